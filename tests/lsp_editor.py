"""An editor with one document: the server is a process with real pipes, and a fake daemon behind a real socket."""

import asyncio
import itertools
import zlib
from typing import Any

from fake_daemon import FakeDaemon, done
from lsp_client import LspClient, position

from stopgap.daemon import wire

CAPABILITIES = {
    "general": {"positionEncodings": ["utf-16"]},
    "notebookDocument": {"synchronization": {}},
    "textDocument": {
        "inlineCompletion": {},
        "codeAction": {
            "codeActionLiteralSupport": {"codeActionKind": {"valueSet": []}},
            "resolveSupport": {"properties": ["edit"]},
            "dataSupport": True,
            "disabledSupport": True,
            "honorsChangeAnnotations": True,
            "tagSupport": {"valueSet": [1]},
        },
    },
    "window": {"workDoneProgress": True},
    "workspace": {
        "applyEdit": True,
        "workspaceEdit": {"documentChanges": True, "changeAnnotationSupport": {"groupsOnLabel": True}},
    },
}
CODE = "def f(a):\n    pass\n\n\ndef g(b):\n    x = b + 1\n    return x\n"
_numbers = itertools.count()


def echo(fill: wire.Fill) -> wire.Done:
    """Texts that name the exact source and place they were asked for."""
    name = f"v{zlib.crc32(fill.source):08x}_{fill.start}"
    return done(fill, *(name + "_x" * n for n in range(fill.candidates)))


async def forever(fill: wire.Fill) -> wire.Done:
    """A daemon that never answers."""
    await asyncio.Event().wait()
    raise AssertionError


class Editor:
    """One document in the shared server, with the daemon's answer for it."""

    def __init__(self, client: LspClient, daemon: FakeDaemon) -> None:
        self.client, self.daemon = client, daemon
        self.uri = ""
        self.text = ""
        self.version = 1

    def open(self, text: str, name: str = "", language: str = "python") -> dict[str, int]:
        """Open a document; the position of `|` in it."""
        place = position(text, text.index("|")) if "|" in text else {"line": 0, "character": 0}
        self.uri = f"file:///w/{name}" if name else f"untitled:Untitled-{next(_numbers)}"
        self.text = text.replace("|", "")
        self.client.open(self.uri, self.text, language)
        return place

    def inline(self, place: dict[str, int], kind: int = 2, **context: Any) -> int:
        return self.client.ask("textDocument/inlineCompletion", self.params(place, kind, **context))

    def params(self, place: dict[str, int], kind: int = 2, **context: Any) -> dict[str, Any]:
        document = {"uri": self.uri}
        return {"textDocument": document, "position": place, "context": {"triggerKind": kind, **context}}

    def ghosts(self, place: dict[str, int], kind: int = 2, **context: Any) -> list[dict[str, Any]] | None:
        message = self.client.reply(self.inline(place, kind, **context))
        assert "error" not in message, message
        found: list[dict[str, Any]] | None = message["result"]
        return found

    def type(self, place: dict[str, int], text: str) -> dict[str, int]:
        """Insert on one line; the position behind it."""
        self.version += 1
        self.client.change(self.uri, self.version, {"range": {"start": place, "end": place}, "text": text})
        return {**place, "character": place["character"] + len(text.encode("utf-16-le")) // 2}

    def actions(self, start: dict[str, int], end: dict[str, int] | None = None, **context: Any) -> list[dict[str, Any]]:
        where = {"start": start, "end": end or start}
        params = {"textDocument": {"uri": self.uri}, "range": where, "context": {"diagnostics": [], **context}}
        found: list[dict[str, Any]] = self.client.call("textDocument/codeAction", params)
        return found

    def action(self, title: str, start: dict[str, int], end: dict[str, int] | None = None) -> dict[str, Any]:
        return next(action for action in self.actions(start, end) if action["title"] == title)

    def resolve(self, action: dict[str, Any]) -> dict[str, Any]:
        resolved: dict[str, Any] = self.client.call("codeAction/resolve", action)
        return resolved

    def answers(self, *texts: str, start: int | None = None, end: int | None = None) -> None:
        self.daemon.answer = lambda fill: done(fill, *texts, start=start, end=end)

    def messages(self) -> list[str]:
        return [params["message"] for params in self.client.notified("window/showMessage")]
