"""`stopgap serve-openai` as a process, asked over real HTTP; the daemon behind it is the small real one."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import FakeDaemon, done

from stopgap.daemon import wire
from stopgap.lsp.loopback import MAX_BODY, Refused, parts

PREFIX, SUFFIX = "def add(left, right):\n    return ", "\n\n\nprint('Grüße 😀')\n"
NOTATIONS = {
    "Qwen": f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>",
    "StarCoder": f"<fim_prefix>{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>",
    "Code Llama": f"<PRE> {PREFIX} <SUF>{SUFFIX} <MID>",
    "GLM": f"<|code_prefix|>{PREFIX}<|code_suffix|>{SUFFIX}<|code_middle|>",
    "DeepSeek Coder": f"<｜fim▁begin｜>{PREFIX}<｜fim▁hole｜>{SUFFIX}<｜fim▁end｜>",
    "Codestral": f"[SUFFIX]{SUFFIX}[PREFIX]{PREFIX}",
}
"""As Zed writes them (crates/edit_prediction/src/fim.rs)."""
ZED = {"model": "qwen", "prompt": NOTATIONS["Qwen"], "max_tokens": 64, "stop": ["<|endoftext|>", "<|fim_pad|>"]}
"""The whole body of a request of Zed's."""


@dataclass(frozen=True, slots=True)
class Served:
    """The endpoint's process, what is behind it, and the way to ask it."""

    daemon: FakeDaemon
    port: int
    token_file: Path

    def ask(self, body: object, *, path: str = "/v1/completions", token: str | None = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.call("POST", path, data, token=token)

    def call(self, method: str, path: str, data: bytes | None, *, token: str | None = None) -> tuple[int, Any]:
        with self.connection(method, path, data, token) as connection:
            answer = connection.getresponse()
            assert answer.getheader("Content-Type") == "application/json"
            return answer.status, json.loads(answer.read())

    @contextmanager
    def connection(
        self, method: str, path: str, data: bytes | None, token: str | None = None
    ) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        mine = self.token_file.read_text(encoding="ascii") if token is None else token
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {mine}"}
        try:
            connection.request(method, path, data, headers)
            yield connection
        finally:
            connection.close()

    def fills(self, *texts: str) -> None:
        """What the model says from now on, wherever it is asked."""
        self.daemon.fills.clear()
        self.daemon.cancelled.clear()
        self.daemon.answer = lambda request: done(request, *texts)


@pytest.fixture(scope="module")
def process() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="sg-") as name, FakeDaemon(Path(name), done) as daemon:
        command = [Path(sys.executable).parent / "stopgap", "serve-openai", "--port", "0"]
        running = subprocess.Popen(command, env={**os.environ, **daemon.env}, stdout=subprocess.PIPE, text=True)
        try:
            assert running.stdout is not None
            told = running.stdout.readline()
            port = int(told.partition("127.0.0.1:")[2].partition("/")[0])
            yield Served(daemon, port, Path(told.rpartition(" ")[2].strip()))
        finally:
            running.terminate()  # not Ctrl-C: a job started in a shell's background has that ignored
            running.wait(timeout=20)
            running.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def served(process: Served) -> Served:
    process.fills("left + right", "right + left")
    return process


def test_what_zed_sends_is_answered_as_it_decodes_it(served: Served) -> None:
    status, answer = served.ask(ZED)
    assert status == 200
    assert isinstance(answer.pop("id"), str)
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "fake",
        "choices": [{"text": "left + right", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    }


def test_the_hole_is_where_the_prompt_has_it(served: Served) -> None:
    served.ask(ZED)
    (asked,) = served.daemon.fills
    assert asked.source == (PREFIX + SUFFIX).encode()
    assert asked.start == asked.end == len(PREFIX.encode())
    assert (asked.language, asked.target, asked.candidates) == ("python", "cursor", 1)


@pytest.mark.parametrize("notation", NOTATIONS)
def test_every_notation_of_zeds_is_understood(notation: str) -> None:
    assert parts(NOTATIONS[notation]) == (PREFIX, SUFFIX)


@pytest.mark.parametrize(
    "prompt", ["", "def f():", "<|fim_prefix|>a<|fim_suffix|>b", "<fim_prefix>a<|fim_suffix|>b<fim_middle>"]
)  # the last mixes two notations
def test_a_prompt_without_a_hole_is_refused(prompt: str) -> None:
    with pytest.raises(Refused, match="no fill-in-the-middle prompt"):
        parts(prompt)


def test_a_text_that_holds_a_marker_of_its_own_is_refused_rather_than_guessed_at() -> None:
    with pytest.raises(Refused, match="more than once"):
        parts(f"<fim_prefix>mark = '<fim_suffix>'\n{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>")


def test_openais_own_suffix_is_understood_and_n_gives_several_texts(served: Served) -> None:
    status, answer = served.ask({"prompt": PREFIX, "suffix": SUFFIX, "n": 2})
    assert status == 200
    assert [choice["text"] for choice in answer["choices"]] == ["left + right", "right + left"]
    assert served.daemon.fills[0].candidates == 2


def test_the_address_names_the_language(served: Served) -> None:
    assert served.ask(ZED, path="/v1/completions?language=rust")[0] == 200
    assert served.daemon.fills[0].language == "rust"
    status, answer = served.ask(ZED, path="/v1/completions?language=pyton")
    assert status == 400
    assert "did you mean python" in answer["error"]["message"]


def test_a_fill_that_ends_like_the_rest_of_the_line_is_not_repeated(served: Served) -> None:
    served.daemon.answer = lambda request: done(request, "first, last)", end=request.start + 1)
    _, answer = served.ask({"prompt": "print(", "suffix": ")\n"})
    assert answer["choices"][0]["text"] == "first, last"


def test_a_fill_that_would_replace_something_is_not_offered_as_an_insertion(served: Served) -> None:
    served.daemon.answer = lambda request: done(request, "x) + f(y", end=request.start + 1)
    _, answer = served.ask({"prompt": "f(", "suffix": ") \n"})
    assert answer["choices"][0]["text"] == ""


def test_nothing_is_an_empty_text_with_a_reason(served: Served) -> None:
    served.fills()
    status, answer = served.ask(ZED)
    assert (status, answer["choices"][0]["text"]) == (200, "")
    assert answer["stopgap"]["reason"] == "the fake has no fill"


def test_a_fill_the_model_was_not_sure_of_is_not_offered(served: Served) -> None:
    served.daemon.answer = lambda request: replace(done(request), fills=(wire.Candidate("left + right", -3.0),))
    _, answer = served.ask(ZED)
    assert answer["choices"][0]["text"] == ""


def test_models_names_the_one_there_is(served: Served) -> None:
    status, answer = served.call("GET", "/v1/models", None)
    assert (status, [model["id"] for model in answer["data"]]) == (200, ["fake"])


@pytest.mark.parametrize("token", ["", "wrong", "Grüße"])
def test_without_the_token_nothing_is_served(served: Served, token: str) -> None:
    status, answer = served.ask(ZED, token=token)
    assert status == 401
    assert "token" in answer["error"]["message"]
    assert served.daemon.fills == []


def test_only_this_user_can_read_the_token_and_it_stays_the_same(served: Served) -> None:
    assert stat.S_IMODE(served.token_file.stat().st_mode) == 0o600
    assert len(served.token_file.read_text(encoding="ascii")) >= 32


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not JSON"),
        (b"[]", 400, "not a JSON object"),
        ({"prompt": 1}, 400, "prompt must be a text"),
        ({"prompt": "x"}, 400, "must begin with one of <|fim_prefix|>"),
        ({"prompt": "a", "suffix": "b", "n": 9}, 400, "from 1 to 8"),
        ({"prompt": "a", "suffix": "b", "stream": True}, 400, "stream is not supported"),
        (b'{"prompt": "\\ud800", "suffix": ""}', 400, "lone surrogate"),
        (b" " * (MAX_BODY + 1), 413, "send an excerpt"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(served: Served, body: object, status: int, says: str) -> None:
    told, answer = served.ask(body)
    assert told == status
    assert says in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert served.daemon.fills == []


def test_other_addresses_and_methods_are_refused(served: Served) -> None:
    assert served.ask(ZED, path="/v1/chat/completions")[0] == 404
    assert served.call("GET", "/v1/completions", None)[0] == 405


@pytest.mark.parametrize(
    "sent", [b"\x16\x03\x01\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n", b"POST"]
)
def test_garbage_ends_the_connection_and_nothing_else(served: Served, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while client.recv(4096):
            pass
    assert served.ask(ZED)[0] == 200


@pytest.mark.parametrize(
    ("code", "status"), [("paused", 503), ("no_model", 503), ("busy", 429), ("bad_request", 400), ("superseded", 200)]
)
def test_errors_of_the_daemon_have_a_status(served: Served, code: wire.Code, status: int) -> None:
    served.daemon.answer = lambda request: wire.Error(request.id, code, "what the daemon says")
    told, answer = served.ask(ZED)
    assert told == status
    assert "what the daemon says" in json.dumps(answer)


def test_a_client_that_hangs_up_cancels_its_request(served: Served) -> None:
    async def slowly(request: wire.Fill) -> wire.Done:
        await asyncio.sleep(60)
        return done(request, "too late")

    served.daemon.answer = slowly
    with served.connection("POST", "/v1/completions", json.dumps(ZED).encode()):
        until(lambda: served.daemon.fills)
        assert served.daemon.cancelled == []
    until(lambda: served.daemon.cancelled == [served.daemon.fills[0].id])


@pytest.mark.skipif(sys.platform != "linux", reason="skipped: only Linux has all of 127/8 as addresses of its own")
def test_it_listens_on_one_address_only(served: Served) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", served.port), 5)


def test_a_port_that_is_taken_is_said_plainly(served: Served) -> None:
    command = [Path(sys.executable).parent / "stopgap", "serve-openai", "--port", str(served.port)]
    told = subprocess.run(command, env={**os.environ, **served.daemon.env}, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert told.stderr.startswith(f"stopgap: port {served.port} cannot be listened on")
    assert told.stderr.count("\n") == 1


def until(true: Any) -> None:
    limit = time.monotonic() + 30
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)
