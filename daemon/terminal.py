"""How fills, drafts and figures look in a terminal.

Knows nothing of sockets. It imports rich, so commands import it only once they know that they will print for people.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import wire
from .config import VARIABLES, Setting

_AROUND = 3
"""Lines of the file shown above and below a draft."""


def show_fill(console: Console, name: str, before: bytes, after: bytes, done: wire.Done) -> None:
    """The change as a unified diff, then what it cost."""
    old, new = before.decode(), after.decode()
    for line in difflib.unified_diff(old.splitlines(), new.splitlines(), name, name, lineterm="", n=_AROUND):
        console.print(Text(line, style=_style(line)), soft_wrap=True)
    console.print(Text(summary(done), style="dim"), soft_wrap=True)


def summary(done: wire.Done) -> str:
    """One line: model, steps, slots, milliseconds, what was filled."""
    checked = "syntax ok" if done.fills and done.fills[0].checked else "unchecked"
    others = f" · {_count(len(done.fills) - 1, 'other candidate')}" if len(done.fills) > 1 else ""
    return (
        f"{done.model} · {_count(done.steps, 'denoising step')} · {_count(done.slots, 'slot')} · "
        f"{done.milliseconds:.0f} ms · "
        f"{done.node_type or 'hole'} · {checked}{others}"
    )


class Watcher:
    """Shows a draft settling: what has stopped changing is bright, the rest dim."""

    def __init__(self, console: Console, source: bytes) -> None:
        self._source = source
        self._live = Live(console=console, transient=True, auto_refresh=False)

    def __enter__(self) -> Watcher:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def __call__(self, frame: wire.Draft | wire.Progress) -> None:
        if isinstance(frame, wire.Progress):
            self._live.update(Text(f"{frame.what} … {frame.fraction:.0%}", style="dim"), refresh=True)
            return
        above = self._source[: frame.start].decode().split("\n")[-_AROUND - 1 :]
        below = self._source[frame.end :].decode().split("\n")[: _AROUND + 1]
        shown = Text("\n".join(above)) + draft_text(frame) + Text("\n".join(below))
        shown.append(f"\nstep {frame.step} of at most {frame.max_steps}", style="dim")
        self._live.update(shown, refresh=True)


def draft_text(draft: wire.Draft) -> Text:
    """The draft's text with its settled ranges marked."""
    text = Text(draft.text, style="dim")
    for start, end in draft.settled:
        text.stylize("not dim bold green", start, end)
    return text


def show_status(console: Console, status: wire.Status) -> None:
    """Everything `stopgap status` knows, one fact per line."""
    table = Table.grid(padding=(0, 2))
    rows = [
        ("model", f"{status.model} ({status.state})"),
        ("engine", " ".join(filter(None, (status.engine, status.device, status.dtype)))),
        ("kernels", status.kernels),
        ("parameters", f"{status.parameters:,}"),
        ("weights", size(status.weight_bytes)),
        ("prefix caches", size(status.cache_bytes)),
        ("process memory", size(status.rss_bytes)),
        ("device memory", size(status.device_bytes)),
        ("clients", str(status.clients)),
        ("queue", f"{status.running} running, {status.waiting} waiting"),
        ("last hour", f"{_count(status.requests, 'request')}, p50 {status.p50_ms:.0f} ms, p95 {status.p95_ms:.0f} ms"),
        ("daemon", f"process {status.pid}, up {status.uptime_s / 60:.0f} min, stopgap {status.version}"),
        ("socket", status.socket),
        ("log", status.log + ("  (debug_log is on: CONTAINS YOUR CODE)" if status.debug_log else "")),
    ]
    if status.note:
        rows.append(("note", status.note))
    for name, value in rows:
        table.add_row(Text(name, style="dim"), Text(value))
    console.print(table)


def show_stats(console: Console, stats: wire.Stats) -> None:
    """Acceptance per language and the outcomes of the last hour."""
    if stats.languages:
        table = Table("language", "shown", "accepted", "partly", "rejected", "characters")
        for row in stats.languages:
            numbers = (row.shown, row.accepted, row.partial, row.rejected, row.characters)
            table.add_row(row.language, *map(str, numbers))
        console.print(table)
    else:
        console.print("No fill has been shown by an editor yet.")
    ended = ", ".join(f"{count} {outcome}" for outcome, count in stats.outcomes) or "no requests"
    console.print(f"Last hour: {ended}; p50 {stats.p50_ms:.0f} ms, p95 {stats.p95_ms:.0f} ms")


def show_settings(console: Console, file: str, found: bool, settings: Sequence[Setting]) -> None:
    """The effective settings, their origins and what they mean."""
    console.print(f"{file}{'' if found else ' (does not exist; every setting has its default)'}", soft_wrap=True)
    for setting in settings:
        value = json.dumps(setting.value, ensure_ascii=False)
        origin = "" if setting.origin == "default" else f"  # from {setting.origin}"
        console.print(Text(f"\n# {setting.doc}", style="dim"), soft_wrap=True)
        console.print(Text(f"{setting.key} = {value}{origin}"), soft_wrap=True)
    console.print(Text("\n# Each has a variable of its name, such as STOPGAP_MODEL. Variables only:", style="dim"))
    for name, doc in VARIABLES.items():
        console.print(Text(f"#   {name}: {doc}", style="dim"), soft_wrap=True)


def size(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _style(line: str) -> str:
    if line.startswith(("+++", "---")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
