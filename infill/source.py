"""A text parsed once: the syntax tree, the place of its errors, lines and indentation.

Every function takes broken text, CRLF, tabs, a BOM and a missing last newline as they come. Knows no holes
and no requests; has no clock: whoever sets a time budget hands one in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import tree_sitter
from tree_sitter import Node, Tree

from . import languages
from .languages import Language

Clock = Callable[[], float]
"""Seconds from any fixed moment, such as `time.monotonic`."""

WHOLE_BYTES = 128 * 1024
"""Longer texts are parsed around one place only (a whole parse takes about 0.1 ms per KB)."""
WINDOW_BYTES = 64 * 1024
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Source:
    """A text and its tree, shared by holes, context and gate. Offsets in the tree are offsets in `text`."""

    text: bytes
    language: Language
    tree: Tree | None
    window: tuple[int, int] = (0, 0)
    """The byte range the tree covers; all of `text` unless that is longer than WHOLE_BYTES."""
    why: str = ""
    """When `tree` is None: the reason, in words for the user."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """An ERROR node, or a MISSING one (`start == end`), as a byte range."""

    start: int
    end: int
    kind: str


def parse(
    text: bytes,
    language: Language,
    *,
    around: int = 0,
    previous: Source | None = None,
    budget_ms: float | None = None,
    clock: Clock | None = None,
) -> Source:
    """Parse `text`; reuses the tree of an earlier state of the same document where one is given.

    `around` is the byte offset of interest in a text longer than WHOLE_BYTES. When `budget_ms` runs out
    (measured on `clock`, which must then be given) the source comes back without a tree and says why.
    Raises GrammarMissing.
    """
    if budget_ms is not None and clock is None:
        raise TypeError("a budget needs a clock")
    window = _window(text, around)
    old = None
    if previous is not None and previous.tree is not None and previous.language.name == language.name:
        if previous.text == text and previous.window == window:
            return previous
        if window == (0, len(text)) and previous.window == (0, len(previous.text)):
            old = _edited(previous, text)
    tree = grow(text, language, window, old=old, budget_ms=budget_ms, clock=clock)
    why = "" if tree is not None else f"the file could not be parsed within {budget_ms:g} ms"
    return Source(text, language, tree, window, why)


def unparsed(text: bytes, language: Language, why: str) -> Source:
    """A source without a tree, for languages without a grammar."""
    return Source(text, language, None, (0, len(text)), why)


def grow(
    text: bytes,
    language: Language,
    window: tuple[int, int],
    *,
    old: Tree | None = None,
    budget_ms: float | None = None,
    clock: Clock | None = None,
) -> Tree | None:
    """The tree of `text[window]`, from an edited `old` tree where given; None when the budget ran out."""
    parser = languages.parser(language)
    if window != (0, len(text)):
        ranges = [*_opened(text, language, window[0]), window]
        parser.included_ranges = [tree_sitter.Range(point(text, a), point(text, b), a, b) for a, b in ranges]
    if budget_ms is None or clock is None:
        return parser.parse(text, old) if old is not None else parser.parse(text)
    until = clock() + budget_ms / 1000

    def read(offset: int, _: object) -> bytes:
        return text[offset : offset + 16384]

    def late(_offset: int, _has_error: bool) -> bool:
        return clock() >= until

    try:
        if old is not None:  # the binding takes no None
            return parser.parse(read, old, progress_callback=late)
        return parser.parse(read, progress_callback=late)
    except ValueError:  # "Parsing failed": what py-tree-sitter makes of a cancelled parse
        return None


def _opened(text: bytes, language: Language, at: int) -> list[tuple[int, int]]:
    """Where PHP is opened for what begins at `at`: without the tag a part of a file is text, whatever stands in it."""
    start = text.rfind(b"<?php", 0, at) if language.name == "php" else -1
    return [(start, start + 5)] if start > text.rfind(b"?>", 0, at) else []


def splice(source: Source, start: int, end: int, fill: bytes) -> tuple[bytes, tuple[int, int], Tree | None]:
    """The text with `start..end` replaced, its window, and the old tree, edited, to parse it from.

    A tree with errors is of no use: what is parsed from one can differ from a fresh parse (seen in C# and
    JavaScript, where a repaired file kept its MISSING node).
    """
    text = source.text[:start] + fill + source.text[end:]
    a, b = source.window
    window = (a, b + len(fill) - (end - start))
    tree = None
    if source.tree is not None and not source.tree.root_node.has_error:
        tree = source.tree.copy()
        new_end = start + len(fill)
        tree.edit(start, end, new_end, point(source.text, start), point(source.text, end), point(text, new_end))
    return text, window, tree


def point(text: bytes, offset: int) -> tuple[int, int]:
    """Row and column (both from 0, column in bytes) of an offset."""
    return text.count(b"\n", 0, offset), offset - (text.rfind(b"\n", 0, offset) + 1)


def _edited(previous: Source, text: bytes) -> Tree | None:
    """The previous tree, told which one stretch changed."""
    old = previous.text
    start = _shared(old, text)
    limit = min(len(old), len(text)) - start
    same = _shared(old[len(old) - limit :][::-1], text[len(text) - limit :][::-1])
    return splice(previous, start, len(old) - same, text[start : len(text) - same])[2]


def _shared(a: bytes, b: bytes) -> int:
    """Length of the common start, by bisection: slices compare at memory speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _window(text: bytes, around: int) -> tuple[int, int]:
    """A stretch around `around` cut where a line starts at column 0 with something that opens a new item."""
    if len(text) <= WHOLE_BYTES:
        return 0, len(text)
    start = _item_start(text, max(0, around - WINDOW_BYTES // 2), around)
    end = _item_start(text, min(len(text), around + WINDOW_BYTES // 2), len(text))
    return start, end


def _item_start(text: bytes, low: int, high: int) -> int:
    if low == 0 or low >= len(text):
        return low
    found = re.compile(rb"\n(?=[A-Za-z_@#<\[/])").search(text, low - 1, min(high, low + WINDOW_BYTES // 4))
    return found.end() if found else line_start(text, low)


def flaws(tree: Tree) -> list[Flaw]:
    """Every ERROR and MISSING node in order of place, and the heredoc that never ends; cheap where there are none."""
    found = [Flaw(n.start_byte, n.end_byte, n.type) for n in flawed(tree.root_node)]
    return [*found, *_open_heredoc(tree.root_node)]


def _open_heredoc(root: Node) -> list[Flaw]:
    """Ruby's grammar ends a heredoc at the end of the file, without a word."""
    node = root.descendant_for_byte_range(max(0, root.end_byte - 1), root.end_byte)
    while node is not None and node.type != "heredoc_body":
        node = node.parent
    end = node.children[-1] if node is not None and node.children else None
    if end is None or end.type != "heredoc_end" or end.is_missing or end.end_byte > end.start_byte:
        return []
    return [Flaw(end.start_byte, end.end_byte, end.type)]


def flawed(node: Node) -> Iterator[Node]:
    """The ERROR and MISSING nodes in and under `node`, walking only where there are some."""
    if not node.has_error:
        return
    stack = [node]
    while stack:
        one = stack.pop()
        if one.is_error or one.is_missing:
            yield one
        if one.has_error:
            stack.extend(reversed(one.children))


def line_start(text: bytes, offset: int) -> int:
    """Where the line of `offset` begins; after the BOM on the first line."""
    start = text.rfind(b"\n", 0, offset) + 1
    return 3 if start == 0 and text.startswith(BOM) and offset >= 3 else start


def line_end(text: bytes, offset: int) -> int:
    """Where the line of `offset` ends, before its CRLF or LF."""
    end = text.find(b"\n", offset)
    end = len(text) if end < 0 else end
    return end - 1 if end > offset and text[end - 1 : end] == b"\r" else end


def indent_at(text: bytes, offset: int) -> bytes:
    """The blanks at the start of the line of `offset`."""
    start = line_start(text, offset)
    return blanks(text[start : line_end(text, start)])


def blanks(line: bytes) -> bytes:
    """The leading spaces and tabs of a line."""
    return line[: len(line) - len(line.lstrip(b" \t"))]


def newline(text: bytes) -> bytes:
    """The line ending the text uses; LF where it has none."""
    first = text.find(b"\n")
    return b"\r\n" if first > 0 and text[first - 1 : first] == b"\r" else b"\n"


def unit(source: Source, offset: int) -> bytes:
    """One level of indentation as the lines around `offset` show it, else the language's usual one."""
    text = source.text
    low, high = max(0, offset - 8192), min(len(text), offset + 4096)
    widths: dict[int, int] = {}
    last = 0
    for line in text[low:high].split(b"\n")[1 if low else 0 :]:
        if not line.strip():
            continue
        space = blanks(line)
        if space.startswith(b"\t"):
            return b"\t"
        step = len(space) - last
        if step in (2, 3, 4, 8):
            widths[step] = widths.get(step, 0) + 1
        last = len(space)
    if widths:
        return b" " * max(widths, key=lambda step: (widths[step], -step))
    return source.language.unit.encode()
