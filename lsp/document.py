"""The text of an open document at one version, and where its lines and characters are.

Knows nothing of LSP types, sockets or languages. Offsets are byte offsets into UTF-8; a position is
`(line, character)` in the unit agreed with the client. pygls keeps a workspace of its own, which is not
used: it splits lines with `str.splitlines`, so a form feed (common in older sources) or U+2028 counts as
a line end there but not in the protocol, and every edit behind one lands in the wrong place.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Encoding = Literal["utf-8", "utf-16", "utf-32"]
Position = tuple[int, int]
Change = tuple[tuple[Position, Position] | None, str]
"""A range and the text that replaces it; None as the range replaces the whole document."""

END_OF_LINE = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class Edit:
    """What one change did to the bytes: `removed`, which began at `start`, became `inserted`."""

    start: int
    removed: bytes
    inserted: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of one document; immutable, so a request keeps the text it was asked about."""

    uri: str
    version: int
    language_id: str
    data: bytes
    starts: tuple[int, ...]
    """Offset of the first byte of every line; never empty."""
    edit: Edit | None = None
    """The last change that led here; None after opening or a replacement of the whole text."""

    def line_at(self, offset: int) -> int:
        return bisect_right(self.starts, offset) - 1

    def line_start(self, offset: int) -> int:
        return self.starts[self.line_at(offset)]

    def line_end(self, offset: int) -> int:
        """The end of the line around `offset`, before its line ending."""
        return self._content_end(self.line_at(offset))

    def _content_end(self, line: int) -> int:
        if line + 1 == len(self.starts):
            return len(self.data)
        end = self.starts[line + 1] - 1
        if end > self.starts[line] and self.data[end - 1 : end + 1] == b"\r\n":
            end -= 1
        return end

    def offset(self, position: Position, encoding: Encoding) -> int:
        """Byte offset of a position; anything outside the text or inside a character is clamped."""
        line, character = max(position[0], 0), max(position[1], 0)
        if line >= len(self.starts):
            return len(self.data)
        start, end = self.starts[line], self._content_end(line)
        if encoding == "utf-8":
            at = min(start + character, end)
            while at > start and at < len(self.data) and self.data[at] & 0xC0 == 0x80:
                at -= 1
            return at
        content = self.data[start:end]
        if content.isascii():
            return min(start + character, end)
        if encoding == "utf-32":
            return start + len(content.decode()[:character].encode())
        units = content.decode().encode("utf-16-le")[: 2 * character]
        return start + len(units.decode("utf-16-le", "ignore").encode())

    def position(self, offset: int, encoding: Encoding) -> Position:
        """Position of a byte offset; between CR and LF it is the end of the line."""
        line = self.line_at(offset)
        before = self.data[self.starts[line] : min(offset, self._content_end(line))]
        if encoding == "utf-8" or before.isascii():
            return line, len(before)
        text = before.decode("utf-8", "ignore")
        return line, len(text) if encoding == "utf-32" else len(text.encode("utf-16-le")) // 2

    def changed(self, version: int, changes: Iterable[Change], encoding: Encoding) -> Snapshot:
        """The next version; every change is read against the text the one before it left."""
        now = self
        for span, text in changes:
            now = now._one_change(span, utf8(text), encoding)
        return Snapshot(now.uri, version, now.language_id, now.data, now.starts, now.edit)

    def _one_change(self, span: tuple[Position, Position] | None, new: bytes, encoding: Encoding) -> Snapshot:
        if span is None:
            return opened(self.uri, self.version, self.language_id, new)
        first, last = sorted((self.offset(span[0], encoding), self.offset(span[1], encoding)))
        data = self.data[:first] + new + self.data[last:]
        shift = len(new) - (last - first)
        # One line before and one behind the edit are read again: the edit may join or part a CR LF.
        low = max(self.line_at(first) - 1, 0)
        high = min(self.line_at(last) + 2, len(self.starts))
        stop = self.starts[high] + shift if high < len(self.starts) else len(data)
        middle = [m.end() for m in END_OF_LINE.finditer(data, self.starts[low], stop)]
        tail = self.starts[high:]
        if shift:
            tail = tuple(start + shift for start in tail)
        if tail and middle and middle[-1] == tail[0]:
            middle.pop()
        starts = (*self.starts[: low + 1], *middle, *tail)
        return Snapshot(self.uri, self.version, self.language_id, data, starts, Edit(first, self.data[first:last], new))


def opened(uri: str, version: int, language_id: str, text: str | bytes) -> Snapshot:
    data = text if isinstance(text, bytes) else utf8(text)
    starts = (0, *(m.end() for m in END_OF_LINE.finditer(data)))
    return Snapshot(uri, version, language_id, data, starts)


def utf8(text: str) -> bytes:
    """UTF-8 of a string from JSON, where half a surrogate pair may stand alone: it becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


class Documents:
    """The open documents; the only place where a version of a text is replaced by the next."""

    def __init__(self, encoding: Encoding = "utf-16") -> None:
        self.encoding: Encoding = encoding
        self._open: dict[str, Snapshot] = {}

    def get(self, uri: str) -> Snapshot | None:
        return self._open.get(uri)

    def __iter__(self) -> Iterator[Snapshot]:
        """Open documents, the one edited last first."""
        return reversed(self._open.values())

    def __len__(self) -> int:
        return len(self._open)

    def open(self, uri: str, version: int, language_id: str, text: str) -> Snapshot:
        self._open.pop(uri, None)
        self._open[uri] = snapshot = opened(uri, version, language_id, text)
        return snapshot

    def change(self, uri: str, version: int, changes: Iterable[Change]) -> Snapshot | None:
        """The new version, or None for a document that was never opened (the change is dropped)."""
        before = self._open.pop(uri, None)
        if before is None:
            return None
        self._open[uri] = after = before.changed(version, changes, self.encoding)
        return after

    def close(self, uri: str) -> None:
        self._open.pop(uri, None)
