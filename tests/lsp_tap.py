"""Runs a command and passes its standard input and output on, noting when language-server requests went by.

    python -P tests/lsp_tap.py LOG COMMAND…

One JSON line per completion request and per reply to one goes to LOG. Bytes are passed on before they are looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

METHODS = {"textDocument/inlineCompletion", "textDocument/completion"}


class Tap:
    """Both directions of one conversation."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("a", encoding="utf-8", buffering=1)
        self._asked: set[Any] = set()

    def pump(self, source: BinaryIO, drain: BinaryIO) -> None:
        """Passes on until the end; closes the drain."""
        held = b""
        while data := os.read(source.fileno(), 1 << 16):
            now, wall = time.monotonic(), time.time()
            drain.write(data)
            drain.flush()
            held += data
            while (message := self._message(held)) is not None:
                body, held = message
                self._note(json.loads(body), now, wall)
        drain.close()

    def _message(self, held: bytes) -> tuple[bytes, bytes] | None:
        head, found, rest = held.partition(b"\r\n\r\n")
        if not found:
            return None
        (size,) = (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return (rest[:size], rest[size:]) if len(rest) >= size else None

    def _note(self, message: dict[str, Any], now: float, wall: float) -> None:
        number = message.get("id")
        if message.get("method") in METHODS:
            self._asked.add(number)
            self._write(id=number, what="asked", now=now, wall=wall)
        elif "method" not in message and number in self._asked:
            result = message.get("result") or []
            items = result.get("items", []) if isinstance(result, dict) else result
            self._write(id=number, what="answered", items=len(items), now=now, wall=wall)

    def _write(self, **line: object) -> None:
        self._log.write(json.dumps(line) + "\n")


def main() -> int:
    tap = Tap(Path(sys.argv[1]))
    child = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None and child.stdout is not None
    threading.Thread(target=tap.pump, args=(sys.stdin.buffer, child.stdin), daemon=True).start()
    tap.pump(child.stdout, sys.stdout.buffer)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
