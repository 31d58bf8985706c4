"""OpenAI-style completions on 127.0.0.1, for editors that know neither LSP's ghost text nor ours (Zed).

A prompt in one of the usual fill-in-the-middle notations becomes a hole; the answer is what ghost text at that place
would insert. Off unless the user runs it; every request must carry the token. Knows HTTP/1.1 as far as one request
a connection needs it, and nothing of files: such a request names none.

Zed's side was read in crates/edit_prediction/src/{fim,open_ai_compatible}.rs, zed-industries/zed: it posts `model`,
`prompt`, `max_tokens` and `stop`, waits for the whole answer, inserts `choices[0].text` at the cursor, and hangs up
when the user types on. The prompt is an excerpt of some 512 tokens around the cursor, without the file's name.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from stopgap.daemon import wire
from stopgap.infill import languages
from stopgap.infill.contract import FillError, show_score
from stopgap.infill.languages import Language

from .ghost import ghost
from .link import Link
from .settings import Settings

HOST = "127.0.0.1"
MAX_HEAD = 16 * 1024
MAX_BODY = 1024 * 1024
"""Bytes of one request; Zed sends about 2 KB."""
MAX_CONNECTIONS = 32
READ_S = 10.0
"""How long a client may take to send a request."""

_STATUS: dict[wire.Code, int] = {"bad_request": 400, "busy": 429}
_OVERTAKEN: frozenset[wire.Code] = frozenset({"cancelled", "superseded", "deadline"})
"""Nothing went wrong, and nobody waits for a text any more."""
_NOTATIONS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<PRE> ", " <SUF>", " <MID>"),  # Code Llama
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek Coder
)
_CODESTRAL = ("[SUFFIX]", "[PREFIX]")
_T = TypeVar("_T")


class Refused(Exception):
    """The HTTP answer to a request that cannot be served; the text is one line with the remedy."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, read to its end."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: bytes


def parts(prompt: str) -> tuple[str, str]:
    """Prefix and suffix of a prompt in one of the notations for filling in the middle.

    Raises Refused for any other text, and for one that holds a marker of its own, where the hole is anyone's guess.
    """
    pieces: list[str] = []
    for first, second, last in _NOTATIONS:
        if prompt.startswith(first) and prompt.endswith(last):
            pieces = prompt[len(first) : len(prompt) - len(last)].split(second)
    if prompt.startswith(_CODESTRAL[0]) and _CODESTRAL[1] in prompt:
        pieces = prompt[len(_CODESTRAL[0]) :].split(_CODESTRAL[1])[::-1]
    if len(pieces) < 2:
        known = ", ".join(notation[0].strip() for notation in (*_NOTATIONS, _CODESTRAL))
        raise Refused(400, f"the prompt is no fill-in-the-middle prompt; it must begin with one of {known}")
    if len(pieces) > 2:
        raise Refused(400, "the prompt has the marker of the hole more than once")
    return pieces[0], pieces[1]


class Endpoint:
    """The requests of all clients that have the token."""

    def __init__(self, link: Link, token: str, language: str, settings: Settings | None = None) -> None:
        """`language` is that of requests whose address names none; raises FillError for one without a grammar."""
        self._link, self._token = link, token
        self._language = _known(language)
        self._settings = settings or Settings()
        self._open = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection: one request, one answer."""
        self._open += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):  # the client has gone
                try:
                    request = await self._read(reader, writer)
                    answer = await _while_there(reader, self._serve(request))
                    if answer is not None:
                        await _send(writer, 200, answer)
                except Refused as refused:
                    await _send(writer, refused.status, _error(refused.status, str(refused)))
                    await _drain(reader, writer)
        finally:
            self._open -= 1
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        if self._open > MAX_CONNECTIONS:
            raise Refused(503, f"more than {MAX_CONNECTIONS} connections are open")
        try:
            async with asyncio.timeout(READ_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *rest = head.rstrip("\r\n").split("\r\n")
                headers = {
                    name.strip().lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)
                }
                words = line.split(" ")
                if len(words) != 3 or not words[2].startswith("HTTP/1."):
                    raise Refused(400, "this is not HTTP/1.1")
                given = headers.get("authorization", "").encode()
                if not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
                    raise Refused(401, "the Authorization header must be Bearer and the token that serve-openai named")
                length = headers.get("content-length", "0" if words[0] == "GET" else "")
                if not length.isascii() or not length.isdigit():
                    raise Refused(411, "the request must have a Content-Length")
                if len(length) > 9 or int(length) > MAX_BODY:
                    raise Refused(413, f"the request is larger than {MAX_BODY} bytes; send an excerpt")
                if headers.get("expect", "").lower() == "100-continue":
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await reader.readexactly(int(length))
        except asyncio.LimitOverrunError:
            raise Refused(431, f"the headers are longer than {MAX_HEAD} bytes") from None
        except TimeoutError:
            raise Refused(408, f"the request took longer than {READ_S:g} s to arrive") from None
        url = urlsplit(words[1])
        return Request(words[0], url.path.rstrip("/"), parse_qs(url.query), body)

    async def _serve(self, request: Request) -> dict[str, object]:
        served = {"/v1/models": "GET", "/v1/completions": "POST"}
        method = served.get(request.path)
        if method is None:
            raise Refused(404, f"there is no {request.path or '/'}; there are {' and '.join(served)}")
        if request.method != method:
            raise Refused(405, f"{request.path} wants {method}")
        if method == "GET":
            return await self._models()
        try:
            named = request.query.get("language")
            language = _known(named[-1]) if named else self._language
        except FillError as error:
            raise Refused(400, str(error)) from None
        return await self._complete(_fields(request.body), language)

    async def _models(self) -> dict[str, object]:
        status = await self._link.status()
        if status is None:
            raise Refused(503, self._link.health.message or "the stopgap daemon cannot be reached")
        model = {"id": status.model, "object": "model", "created": 0, "owned_by": "stopgap"}
        return {"object": "list", "data": [model]}

    async def _complete(self, fields: dict[str, Any], language: Language) -> dict[str, object]:
        prefix, suffix = _hole(fields)
        data, cursor = prefix + suffix, len(prefix)
        wanted = fields.get("n", 1)
        if type(wanted) is not int or not 1 <= wanted <= 8:
            raise Refused(400, "n must be a whole number from 1 to 8")
        # One document for all: who types on has overtaken what was asked before.
        request = wire.Fill(
            data,
            language.name,
            cursor,
            cursor,
            candidates=wanted,
            budget_ms=self._settings.budget_ms,
            document="openai",
        )
        end = await self._link.fill(request)
        if isinstance(end, wire.Error):
            if end.code in _OVERTAKEN:
                return _completion(wire.Done(0, cursor, cursor, "", ()), (), end.message)
            raise Refused(_STATUS.get(end.code, 503), end.message)
        texts: list[str] = []
        for fill in end.fills:
            score = show_score(fill.score)
            shown = ghost(data, cursor, (end.start, end.end), fill.text, score=score, checked=fill.checked)
            # What would replace something around the cursor cannot be said in a text to insert.
            if shown is not None and not shown.over and not shown.back and score >= self._settings.show_threshold:
                texts.append(shown.insert.decode())
        return _completion(end, tuple(dict.fromkeys(texts))[:wanted], end.reason or "the model was not sure enough")


def _known(name: str) -> Language:
    language = languages.by_name(name)
    languages.grammar(language)
    return language


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(fields, dict):
        raise Refused(400, "the body is not a JSON object")
    if fields.get("stream"):
        raise Refused(400, "stream is not supported: a fill is checked before any of it is shown")
    return fields


def _hole(fields: dict[str, Any]) -> tuple[bytes, bytes]:
    """What stands before and behind the hole; `suffix` beside a plain prompt is OpenAI's own way to say it."""
    prompt, suffix = fields.get("prompt"), fields.get("suffix")
    if not isinstance(prompt, str) or not isinstance(suffix, str | None):
        raise Refused(400, "prompt must be a text, and suffix, if there is one, too")
    if suffix is None:
        prompt, suffix = parts(prompt)
    try:
        return prompt.encode(), suffix.encode()
    except UnicodeEncodeError:
        raise Refused(400, "the prompt has half a character (a lone surrogate) in it") from None


async def _while_there(reader: asyncio.StreamReader, work: Coroutine[Any, Any, _T]) -> _T | None:
    """The result of `work`, which is cancelled when the client hangs up: then None."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and (gone.exception() is not None or not gone.result()):
            return None
        return await task
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _completion(done: wire.Done, texts: Sequence[str], reason: str) -> dict[str, object]:
    """The answer with every field that Zed's decoder wants. Without a fill the text is empty and `stopgap` says why."""
    whole = {"logprobs": None, "finish_reason": "stop"}
    choices = [{"text": text, "index": at, **whole} for at, text in enumerate(texts or ("",))]
    usage = {"prompt_tokens": done.prefix_tokens, "completion_tokens": done.slots}
    answer: dict[str, object] = {
        "id": f"stopgap-{done.trace or secrets.token_hex(4)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": done.model,
        "choices": choices,
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
    return answer if texts else {**answer, "stopgap": {"reason": reason}}


def _error(status: int, message: str) -> dict[str, object]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": f"stopgap: {message}", "type": kind, "code": status}}


async def _send(writer: asyncio.StreamWriter, status: int, answer: dict[str, object]) -> None:
    body = json.dumps(answer, ensure_ascii=False).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    await writer.drain()


async def _drain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read what was sent all the same: closing before makes the kernel reset the connection, answer and all."""
    writer.write_eof()
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            while await reader.read(MAX_HEAD):
                pass


def token_in(path: Path) -> str:
    """The token of this user, made at the first call; nobody else may read the file."""
    with suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32))
    token = path.read_text(encoding="ascii").strip()
    if len(token) < 32:
        raise FillError(f"{path} holds no token; remove it and start again")
    return token


async def serve(token_file: Path, port: int, language: str) -> None:
    """Listens until cancelled, and says on standard output where."""
    link = Link("openai", lambda health: None)
    endpoint = Endpoint(link, token_in(token_file), language)
    try:
        server = await asyncio.start_server(endpoint.accept, HOST, port, limit=MAX_HEAD)
    except OSError as error:
        raise FillError(f"port {port} cannot be listened on ({error.strerror}); choose another with --port") from None
    try:
        at = server.sockets[0].getsockname()[1]
        print(f"serving http://{HOST}:{at}/v1/completions; the token is in {token_file}", flush=True)
        await server.serve_forever()
    finally:
        server.close()
        await link.close()


def main(token_file: Path, port: int, language: str) -> None:
    """`stopgap serve-openai`."""
    asyncio.run(serve(token_file, port, language))
