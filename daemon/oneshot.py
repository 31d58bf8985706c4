"""`stopgap fill`: a file and a place in it become a request; the answer becomes a file again.

Knows nothing of terminals; `cli` decides what is printed.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from . import wire

_POSITION = re.compile(r"(\d+):(\d+)")
_BOM = "\ufeff"


class InputError(Exception):
    """What the user asked for cannot be done; `str()` is one line."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of the source, and what they mean to the engine."""

    start: int
    end: int
    target: wire.Target


def read_source(file: str) -> bytes:
    """The bytes of `file`, or of stdin for "-".

    Raises:
        InputError: it cannot be read, is not UTF-8, or is larger than `wire.MAX_SOURCE`.
    """
    if file == "-":
        source = sys.stdin.buffer.read(wire.MAX_SOURCE + 1)
    else:
        try:
            with Path(file).open("rb") as stream:
                source = stream.read(wire.MAX_SOURCE + 1)
        except OSError as error:
            raise InputError(f"{file}: {error.strerror}") from None
    if len(source) > wire.MAX_SOURCE:
        raise InputError(f"{file} is larger than {wire.MAX_SOURCE >> 20} MB")
    try:
        source.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 (byte {error.start})") from None
    return source


def place_of(source: bytes, at: str, marker: str, select: str, target: wire.Target) -> Range:
    """The range that --at, --marker or --select names; exactly one of them is not empty.

    Raises:
        InputError: none or several were given, or the place is not in the source.
    """
    if sum(map(bool, (at, marker, select))) != 1:
        raise InputError("say where: one of --at LINE:COLUMN, --marker TEXT, --select L:C-L:C")
    if marker:
        return Range(*_marker(source, marker), "selection")
    if at:
        offset = _offset(source, at, "--at")
        return Range(offset, offset, target)
    first, dash, last = select.partition("-")
    if not dash:
        raise InputError(f"--select {select}: LINE:COLUMN-LINE:COLUMN was expected")
    start, end = _offset(source, first, "--select"), _offset(source, last, "--select")
    if end < start:
        raise InputError(f"--select {select}: the end lies before the start")
    return Range(start, end, "selection")


def language_of(file: str, name: str) -> str:
    """The language to ask for, from --language or the file's name.

    Raises:
        InputError: neither tells it. FillError: there is no such language.
    """
    from stopgap.infill.languages import by_name, for_path

    if name:
        return by_name(name).name
    if file == "-":
        raise InputError("stdin has no file name: say --language NAME")
    found = for_path(file)
    if found is None:
        raise InputError(f"{file}: no language has this file name; say --language NAME")
    return found.name


async def ask(
    request: wire.Fill, watch: Callable[[wire.Draft | wire.Progress], None] | None = None
) -> wire.Done | wire.Error:
    """Sends one request, starting the daemon if none runs; drafts go to `watch`."""
    from .client import Client

    client = Client("cli")
    try:
        async with aclosing(client.fill(request)) as frames:
            async for frame in frames:
                if isinstance(frame, wire.Done | wire.Error):
                    return frame
                if watch is not None:
                    watch(frame)
    finally:
        await client.close()
    raise AssertionError("the client promises a terminal frame")


def spliced(source: bytes, done: wire.Done) -> bytes:
    """The source with the best fill in the hole; every other byte is as it was."""
    return source[: done.start] + done.fills[0].text.encode() + source[done.end :]


def write_in_place(file: str, before: bytes, after: bytes) -> None:
    """Replaces the file's content at once, so that a crash leaves the old or the new one, never a half.

    Raises:
        InputError: it changed since it was read, is read-only, or cannot be written.
    """
    path = Path(file).resolve()  # of a symlink the target is replaced, not the link
    temporary = ""
    try:
        if path.read_bytes() != before:
            raise InputError(f"{file} has changed meanwhile; nothing was written")
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & 0o222:  # a file can be replaced whatever its mode, but that is not what its owner meant
            raise InputError(f"{file} is read-only; nothing was written (chmod +w {file})")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(after)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
        temporary = ""
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _marker(source: bytes, marker: str) -> tuple[int, int]:
    wanted = marker.encode("utf-8", "surrogateescape")
    start = source.find(wanted)
    if start < 0:
        raise InputError(f"the marker {marker!r} is not in the file")
    if source.find(wanted, start + 1) >= 0:
        raise InputError(f"the marker {marker!r} is in the file more than once; say --at LINE:COLUMN")
    return start, start + len(wanted)


def _offset(source: bytes, text: str, option: str) -> int:
    """Byte offset of LINE:COLUMN, both from 1, the column in characters; one past the end is allowed."""
    found = _POSITION.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{option} {text}: LINE:COLUMN was expected, e.g. 12:5")
    line, column = int(found[1]), int(found[2])
    lines = source.decode("utf-8").split("\n")
    if not 1 <= line <= len(lines):
        raise InputError(f"{option} {text}: the file has {len(lines)} lines")
    whole = lines[line - 1].removesuffix("\r")
    # A byte order mark is no character to an editor, so it is none to a user who counts.
    skipped = len(_BOM) if line == 1 and whole.startswith(_BOM) else 0
    width = len(whole) - skipped
    if not 1 <= column <= width + 1:
        raise InputError(f"{option} {text}: line {line} has {width} characters")
    before = sum(len(one.encode()) + 1 for one in lines[: line - 1])
    return before + len(whole[: skipped + column - 1].encode())
