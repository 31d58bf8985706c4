"""The typed-through cache: ghost text that is still right after the user typed part of it.

Keyed on the text before *and* behind the cursor, so a fill is never served against a suffix it was not
checked with. Knows nothing of versions, the daemon or time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import repeat

from .ghost import CLOSERS, Ghost, is_subsequence, without_common_tail

MAX_ENTRIES = 12
MAX_BYTES = 8 * 1024 * 1024
MAX_TYPED = 4096
MAX_CLOSED = 4
"""Editors put the closing half of a pair behind the cursor; that many bytes of it are tolerated."""


@dataclass(frozen=True, slots=True)
class Entry:
    head: bytes
    tail: bytes
    ghosts: tuple[Ghost, ...]
    indent: int
    """Bytes of indentation moved from the end of `head` into every ghost, so that it may change."""


class TypedThrough:
    """The last answers for one document, newest first, bounded in number and bytes."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=MAX_ENTRIES)

    def put(self, data: bytes, cursor: int, ghosts: tuple[Ghost, ...]) -> None:
        """Remember that these ghosts, perhaps none, are the answer at this place of this text."""
        head, tail = data[:cursor], data[cursor:]
        line = head[max(head.rfind(b"\n"), head.rfind(b"\r")) + 1 :]
        indent = len(line) if not line.strip(b" \t") else 0
        if indent:
            head = head[:-indent]
            ghosts = tuple(replace(g, insert=line[: indent - g.back] + g.insert, back=0) for g in ghosts)
        self._entries.appendleft(Entry(head, tail, ghosts, indent))
        size = 0
        for kept, entry in enumerate(self._entries):
            size += len(entry.head) + len(entry.tail)
            if size > MAX_BYTES and kept:
                while len(self._entries) > kept:
                    self._entries.pop()
                break

    def get(self, data: bytes, cursor: int, wanted: int = 1) -> tuple[Ghost, ...] | None:
        """What is left of a remembered answer here: `()` if the answer was nothing, None if unknown.

        An entry with fewer than `wanted` ghosts does not answer.
        """
        for entry in self._entries:
            found = self._continued(entry, data, cursor)
            if found is None or (found and len(found) < wanted):
                continue
            if not found and wanted > 1:
                continue
            return found
        return None

    def clear(self) -> None:
        self._entries.clear()

    @staticmethod
    def _continued(entry: Entry, data: bytes, cursor: int) -> tuple[Ghost, ...] | None:
        typed_length = cursor - len(entry.head)
        closed_length = len(data) - cursor - len(entry.tail)
        if not 0 <= typed_length <= MAX_TYPED or not 0 <= closed_length <= MAX_CLOSED:
            return None
        if not data.startswith(entry.head) or not data.endswith(entry.tail):
            return None
        typed = data[len(entry.head) : cursor]
        behind = cursor + closed_length
        closed = data[cursor:behind]
        if any(byte not in CLOSERS for byte in closed):
            return None
        if not entry.ghosts:
            return () if len(typed) == entry.indent and not typed.strip() and not closed else None
        at_line_start = entry.head[-1:] in {b"", b"\n", b"\r"}
        over = [data[cursor : behind + ghost.over] for ghost in entry.ghosts]
        left = map(_rest, entry.ghosts, repeat(typed), over, repeat(at_line_start))
        return tuple(ghost for ghost in left if ghost is not None) or None


def _rest(ghost: Ghost, typed: bytes, over: bytes, at_line_start: bool) -> Ghost | None:
    """The ghost once `typed` stands before the cursor and `over` behind it goes; None if it differs."""
    if ghost.insert.startswith(typed):
        insert, back = ghost.insert[len(typed) :], 0
    else:
        done, line = _last_line(typed)
        if not (done or at_line_start) or not ghost.insert.startswith(done):
            return None
        insert, back = ghost.insert[len(done) :], len(line)
        if not insert.lstrip(b" \t").startswith(line.lstrip(b" \t")):
            return None
        if insert.split(b"\n", 1)[0].strip() == line.strip():
            return None  # the line is complete but for its indentation: nothing to show on it
    insert, over = without_common_tail(insert, over)
    if not insert.strip() or not is_subsequence(over, insert.split(b"\n", 1)[0]):
        return None
    return replace(ghost, insert=insert, over=len(over), back=back)


def _last_line(typed: bytes) -> tuple[bytes, bytes]:
    cut = typed.rfind(b"\n") + 1
    return typed[:cut], typed[cut:]
