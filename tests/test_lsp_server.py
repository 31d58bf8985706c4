"""The server as a process, over its real pipes, with a fake daemon behind a real socket."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import FakeDaemon, done
from lsp_client import position, started

from stopgap.daemon import wire

URI = "untitled:Untitled-1"


def echo(fill: wire.Fill) -> wire.Done:
    """A text that names the exact source and place it was asked about."""
    return done(fill, f"v{zlib.crc32(fill.source):08x}_{fill.start}")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, echo) as running:
        yield running


def at(text: str, kind: int = 2) -> tuple[str, dict[str, Any]]:
    """A document with `|` for the cursor: its text, and the request for ghost text there."""
    index = text.index("|")
    text = text.replace("|", "")
    return text, inline(position(text, index), kind)


def inline(place: dict[str, int], kind: int = 2) -> dict[str, Any]:
    return {"textDocument": {"uri": URI}, "position": place, "context": {"triggerKind": kind}}


def test_a_fill_of_the_daemon_becomes_ghost_text(daemon: FakeDaemon) -> None:
    with started(daemon.env) as client:
        text, request = at("x = 1\ny = |\n")
        client.open(URI, text)
        (item,) = client.call("textDocument/inlineCompletion", request)
        assert item["insertText"] == f"y = v{zlib.crc32(text.encode()):08x}_10"
        assert item["range"] == {"start": {"line": 1, "character": 0}, "end": {"line": 1, "character": 4}}
