"""The smallest changes that turn one text into another, so that a rewrite keeps marks, folds and the cursor.

Knows bytes and offsets only. Lines are compared first; within changed lines, tokens, unless so little is
alike that the diff would only be confetti.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

Edit = tuple[int, int, bytes]
"""`old[start:end]` becomes the bytes."""

_TOKEN = re.compile(rb"[A-Za-z0-9_\x80-\xff]+|[ \t]+|\r\n|.", re.DOTALL)
ALIKE = 0.5
"""Share of tokens that must be equal for a changed block to be edited token by token."""
MAX_TOKENS = 4000
"""Longer blocks are replaced as a whole: the comparison takes quadratic time."""


def edits(old: bytes, new: bytes, offset: int = 0) -> list[Edit]:
    """Edits in ascending order that do not touch one another; offsets count from `offset`."""
    found: list[Edit] = []
    a, b = old.splitlines(keepends=True), new.splitlines(keepends=True)
    for start, end, first, last in _blocks(a, b):
        at = offset + sum(map(len, a[:start]))
        found += _tokens(b"".join(a[start:end]), b"".join(b[first:last]), at)
    return found


def apply(old: bytes, changes: Sequence[Edit]) -> bytes:
    pieces, at = [], 0
    for start, end, new in changes:
        pieces += [old[at:start], new]
        at = end
    return b"".join([*pieces, old[at:]])


def _tokens(old: bytes, new: bytes, offset: int) -> Iterator[Edit]:
    a, b = _TOKEN.findall(old), _TOKEN.findall(new)
    if len(a) + len(b) > MAX_TOKENS or SequenceMatcher(None, a, b, autojunk=False).ratio() < ALIKE:
        yield _trimmed(old, new, offset)
        return
    for start, end, first, last in _blocks(a, b):
        at = offset + sum(map(len, a[:start]))
        yield at, at + sum(map(len, a[start:end])), b"".join(b[first:last])


def _trimmed(old: bytes, new: bytes, offset: int) -> Edit:
    """One edit without the indentation both begin with and the line ending both end in."""
    low, high, shorter = 0, 0, min(len(old), len(new))
    while low < shorter and old[low] == new[low] and old[low] in b" \t":
        low += 1
    while high < shorter - low and old[-1 - high] == new[-1 - high] and old[-1 - high] in b"\r\n":
        high += 1
    return offset + low, offset + len(old) - high, new[low : len(new) - high]


def _blocks(a: Sequence[bytes], b: Sequence[bytes]) -> Iterator[tuple[int, int, int, int]]:
    for tag, start, end, first, last in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal":
            yield start, end, first, last
