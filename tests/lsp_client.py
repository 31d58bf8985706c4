"""A small LSP client of our own over pipes: not pygls, so that it can see what pygls gets wrong."""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

PATIENCE_S = 30.0
LATER = object()
"""An answer that is not sent: the test calls `answer` when it is time."""
SERVER = "from stopgap.lsp.server import main; main()"


class LspClient:
    """One server process. Requests from the server are answered with null, unless `answers` has a method."""

    def __init__(self, env: Mapping[str, str], cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            cwd=cwd,
        )
        self.notifications: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.replies: dict[int, dict[str, Any]] = {}
        self.order: list[int] = []
        """Ids of the replies in the order they came."""
        self._ids = 0
        self._held: list[bytes] | None = None
        self._news: queue.Queue[None] = queue.Queue()
        self._lock = threading.Lock()
        self.stderr = b""
        self._threads = [threading.Thread(target=self._read), threading.Thread(target=self._drain)]
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def __enter__(self) -> "LspClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def send(self, method: str, params: Any = None, **more: Any) -> None:
        self._write({"jsonrpc": "2.0", "method": method, "params": params, **more})

    def ask(self, method: str, params: Any = None) -> int:
        """Send a request; its id."""
        self._ids += 1
        self.send(method, params, id=self._ids)
        return self._ids

    def answer(self, request: dict[str, Any], result: Any) -> None:
        """Answer a request of the server."""
        self._write({"jsonrpc": "2.0", "id": request["id"], "result": result})

    def reply(self, request: int) -> dict[str, Any]:
        """Wait for the reply to a request: the whole message."""
        self.until(lambda: request in self.replies)
        return self.replies[request]

    def call(self, method: str, params: Any = None) -> Any:
        message = self.reply(self.ask(method, params))
        assert "error" not in message, message
        return message["result"]

    def notified(self, method: str) -> list[Any]:
        return [message["params"] for message in self.notifications if message["method"] == method]

    def until(self, true: Callable[[], Any]) -> None:
        limit = time.monotonic() + PATIENCE_S
        while not true():
            try:
                self._news.get(timeout=max(0.01, min(0.2, limit - time.monotonic())))
            except queue.Empty:
                assert time.monotonic() < limit, f"nothing came; server said: {self.stderr.decode()[-3000:]}"
                assert self.process.poll() is None or true(), self.stderr.decode()[-3000:]

    def initialize(
        self,
        capabilities: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        folders: tuple[Path, ...] = (),
        name: str = "test",
    ) -> dict[str, Any]:
        result: dict[str, Any] = self.call(
            "initialize",
            {
                "processId": os.getpid(),
                "clientInfo": {"name": name},
                "rootUri": folders[0].as_uri() if folders else None,
                "capabilities": capabilities or {"textDocument": {"inlineCompletion": {}}},
                "initializationOptions": options,
                "workspaceFolders": [{"uri": f.as_uri(), "name": f.name} for f in folders] or None,
            },
        )
        self.send("initialized", {})
        return result

    def open(self, uri: str, text: str, language: str = "python", version: int = 1) -> None:
        item = {"uri": uri, "languageId": language, "version": version, "text": text}
        self.send("textDocument/didOpen", {"textDocument": item})

    def change(self, uri: str, version: int, *changes: dict[str, Any]) -> None:
        document = {"uri": uri, "version": version}
        self.send("textDocument/didChange", {"textDocument": document, "contentChanges": list(changes)})

    def stop(self) -> int:
        """Shut down as the protocol wants it; the exit code."""
        self.call("shutdown")
        self.send("exit")
        return self.process.wait(PATIENCE_S)

    @contextmanager
    def burst(self) -> Iterator[None]:
        """All that is sent within arrives at once."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = b"".join(self._held), None
            self._put(held)

    def _write(self, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        framed = b"Content-Length: %d\r\n\r\n" % len(body) + body
        if self._held is not None:
            self._held.append(framed)
        else:
            self._put(framed)

    def _put(self, data: bytes) -> None:
        with self._lock:
            assert self.process.stdin is not None
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def _messages(self) -> Iterator[dict[str, Any]]:
        out = self.process.stdout
        assert out is not None
        while True:
            length = 0
            while (line := out.readline()) != b"\r\n":
                if not line:
                    return
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            yield json.loads(out.read(length))

    def _read(self) -> None:
        for message in self._messages():
            if "method" not in message:
                self.replies[message["id"]] = message
                self.order.append(message["id"])
            elif "id" in message:
                self.requests.append(message)
                result = self.answers.get(message["method"], lambda params: None)(message["params"])
                if result is not LATER:
                    self.answer(message, result)
            else:
                self.notifications.append(message)
            self._news.put(None)

    def _drain(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line


@contextmanager
def started(env: Mapping[str, str], **initialize: Any) -> Iterator[LspClient]:
    """A server that is initialised, and that must stop by itself at the end without a word on stderr."""
    with LspClient(env) as client:
        client.initialize(**initialize)
        yield client
        assert client.stop() == 0
    assert client.stderr == b"", client.stderr.decode()


def position(text: str, index: int) -> dict[str, int]:
    """The utf-16 position of a character index; lines end with LF."""
    before = text[:index]
    line = before.rfind("\n") + 1
    return {"line": before.count("\n"), "character": len(before[line:].encode("utf-16-le")) // 2}
