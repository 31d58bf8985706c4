"""Replays random edits and requests against the real server and the real daemon, and measures both.

    python tests/lsp_replay.py                      50,000 edits and requests, then latencies
    python tests/lsp_replay.py --edits 2000 --seed 7 --lines 5000

Held to: every answer names the text the client had when it asked (so the server's text was the same), no
answer comes after a newer one for the same document, no error and no word on stderr.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echo_engine import name
from lsp_client import LspClient, position

PIECES = [
    "a", "foo", " ", "    ", "\n", "\r\n", "\r", "(", ")", "[]", "{}", '"', "'", "#", ":", "=", ".", ",", "é", "ß",
    "漢字", "😀", "👩‍👩‍👧", "e\u0301", "\u2028", "\x85", "\f", "\v", "\t", "def f(x):\n    return x\n", "", "\x00",
]  # fmt: skip
LINE_ENDS = ("\r\n", "\n", "\r")


@dataclass
class Book:
    """One document as the client sees it."""

    uri: str
    text: str
    version: int = 1
    pending: dict[int, str] = field(default_factory=dict)
    """Request id -> the answer it must get, unless it is overtaken."""


def lsp_position(text: str, index: int) -> dict[str, int]:
    """utf-16 position; lines end with LF, CR LF or CR."""
    line, start, at = 0, 0, 0
    while at < index:
        if text[at] == "\n" or (text[at] == "\r" and text[at + 1 : at + 2] != "\n"):
            line, start = line + 1, at + 1
        at += 1
    return {"line": line, "character": len(text[start:index].encode("utf-16-le")) // 2}


def boundary(text: str, index: int) -> int:
    """Clients cannot point between CR and LF."""
    return index - 1 if text[max(index - 1, 0) : index + 1] == "\r\n" else index


def replay(client: LspClient, edits: int, seed: int, size: int = 400) -> dict[str, int]:
    """Send `edits` random changes, each with a request; check all that comes back. Returns counts."""
    rng = random.Random(seed)
    books = [Book(f"untitled:{seed}-{n}", "x = 1\n" * 5) for n in range(3)]
    counts = {"edits": 0, "requests": 0, "answered": 0, "overtaken": 0, "cancelled": 0}
    for book in books:
        client.open(book.uri, book.text)
    for _ in range(edits):
        book = rng.choice(books)
        changes = []
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            first, last = sorted(boundary(book.text, rng.randint(0, len(book.text))) for _ in range(2))
            if len(book.text) < size:
                last = first if rng.random() < 0.7 else boundary(book.text, min(last, first + rng.randint(0, 8)))
            new = "".join(rng.choices(PIECES, k=rng.randint(0, 4)))
            span = {"start": lsp_position(book.text, first), "end": lsp_position(book.text, last)}
            changes.append({"range": span, "text": new})
            book.text = book.text[:first] + new + book.text[last:]
        if rng.random() < 0.01:
            book.text = "".join(rng.choices(PIECES, k=rng.randint(0, 60)))
            changes.append({"text": book.text})
        book.version += 1
        client.change(book.uri, book.version, *changes)
        counts["edits"] += 1
        cursor = boundary(book.text, rng.randint(0, len(book.text)))
        params = {
            "textDocument": {"uri": book.uri},
            "position": lsp_position(book.text, cursor),
            "context": {"triggerKind": 1},
        }
        request = client.ask("textDocument/inlineCompletion", params)
        counts["requests"] += 1
        book.pending[request] = name(book.text.encode(), len(book.text[:cursor].encode()))
        if rng.random() < 0.05:
            client.send("$/cancelRequest", {"id": request})
        if rng.random() < 0.3:
            check(client, book, counts)
    for book in books:
        check(client, book, counts)
    orders = [message for message in client.notifications if message["method"] == "window/showMessage"]
    assert not orders, orders
    return counts


def check(client: LspClient, book: Book, counts: dict[str, int]) -> None:
    """Wait for all replies of one document."""
    if not book.pending:
        return
    newest = max(book.pending)
    for request, expected in book.pending.items():
        message = client.reply(request)
        if "error" in message:
            assert message["error"]["code"] == -32800, message
            counts["cancelled"] += 1
        elif message["result"] is None:
            assert request != newest, "the newest request was not answered"
            counts["overtaken"] += 1
        else:
            for item in message["result"]:
                assert expected in item["insertText"], (expected, item)
            assert message["result"], (expected, book.uri, book.version)
            counts["answered"] += 1
    places = [client.order.index(request) for request in book.pending]
    real = [
        place
        for place, request in zip(places, book.pending, strict=True)
        if client.replies[request].get("result") is not None
    ]
    assert real == sorted(real), "an old answer after a new one"
    for request in book.pending:
        del client.replies[request]
        client.order.remove(request)
    book.pending.clear()


def latency(client: LspClient, lines: int, count: int) -> dict[str, list[tuple[float, float]]]:
    """From a keystroke to its ghost text in a file of so many lines, daemon asked and not.

    Milliseconds that passed, and those of processor time that the server used.
    """
    uri = "untitled:latency"
    text = "".join(f"def f{n}(a, b):\n    return a + b * {n}\n" for n in range(lines // 2))
    at = text.index("\n", len(text) // 2) + 1
    text = text[:at] + "x = \n" + text[at:]
    place = position(text, at + 4)
    client.open(uri, text)
    version = 1
    found: dict[str, list[tuple[float, float]]] = {"asked": [], "typed through": []}

    def key(character: str, what: str = "") -> list[dict[str, Any]]:
        nonlocal version, place
        used, start = cpu_ms(client.process.pid), time.perf_counter()
        version += 1
        client.change(uri, version, {"range": {"start": place, "end": place}, "text": character})
        place = {**place, "character": place["character"] + len(character)}
        params = {"textDocument": {"uri": uri}, "position": place, "context": {"triggerKind": 2}}
        answer: list[dict[str, Any]] = client.call("textDocument/inlineCompletion", params)
        took = 1000 * (time.perf_counter() - start)
        if what:
            found[what].append((took, cpu_ms(client.process.pid) - used))
        return answer

    time.sleep(0.5)
    key("(")
    for _ in range(count):
        (item,) = key("+", "asked")
        assert key(item["insertText"][place["character"]], "typed through")
    return found


def show(times: Sequence[float]) -> str:
    return f"p50 {statistics.median(times):.1f} ms, p99 {sorted(times)[len(times) * 99 // 100]:.1f} ms"


def cpu_ms(pid: int) -> float:
    """Processor time of all threads of a process so far; what else the machine does adds little. 0 without /proc."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it has ended meanwhile
            total += int(thread.read_text().split()[0])
    return total / 1e6


@contextmanager
def echoing(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a real daemon with the echo engine; stopped at the end."""
    env = {
        "STOPGAP_RUNTIME_DIR": str(folder / "run"),
        "STOPGAP_STATE_DIR": str(folder / "state"),
        "STOPGAP_CONFIG": str(folder / "config.toml"),
        "STOPGAP_ENGINE_FACTORY": f"{Path(__file__).parent / 'echo_engine.py'}:load",
        "PYTHONPATH": "",
    }
    try:
        yield env
    finally:
        subprocess.run(
            [sys.executable, "-P", "-m", "stopgap.daemon", "daemon", "stop"],
            env={**os.environ, **env},
            check=False,
            capture_output=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--edits", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--keys", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, echoing(Path(folder)) as env, LspClient(env) as client:
        start = time.perf_counter()
        client.initialize(options={"candidates": 1, "prepareNext": False})
        passed, spent = time.perf_counter() - start, cpu_ms(client.process.pid) / 1000
        print(f"initialize answered after {passed:.2f} s, {spent:.2f} s of processor time (process start included)")
        start = time.perf_counter()
        counts = replay(client, arguments.edits, arguments.seed)
        print(f"replayed {counts} in {time.perf_counter() - start:.0f} s: texts equal, order kept, no error")
        for what, keys in latency(client, arguments.lines, arguments.keys).items():
            took, used = map(show, zip(*keys, strict=True))
            print(f"{arguments.lines} lines, {what}: {took}; processor time of the server {used}")
        print(f"load average {os.getloadavg()[0]:.1f}")
        status = Path(f"/proc/{client.process.pid}/status")
        if status.exists():
            print(f"resident: {int(status.read_text().split('VmRSS:')[1].split()[0]) / 1024:.0f} MB")
        assert client.stop() == 0
        assert client.stderr == b"", client.stderr.decode()


if __name__ == "__main__":
    main()
