"""The hole at a cursor: rest of the token, line, statement or block.

The tree is asked first and the line decides where it is silent, because text under a cursor seldom parses.
Never swallows what the user typed, only blanks.
"""

from __future__ import annotations

import functools
import re

from tree_sitter import Node

from .hole import Hole, Scope, between_braces, make, members, smallest
from .languages import Language
from .source import BOM, Source, blanks, indent_at, line_end, line_start, newline, unit


def at_cursor(source: Source, offset: int) -> Hole:
    """Rest of the token, line, statement or block, by what stands on the line and around it."""
    text = source.text
    begin, end = line_start(text, offset), line_end(text, offset)
    left, right = text[begin:offset], text[offset:end]
    if not right.strip():
        if not left.strip():
            return _blank_line(source, offset, left, end)
        return _line_end(source, offset, left, end)
    return _mid_line(source, offset, left, right)


def _blank_line(source: Source, offset: int, left: bytes, end: int) -> Hole:
    """On a line of blanks: the block that the line above opens, else one statement."""
    text = source.text
    above = _line_above(text, offset)
    if above is not None and _opens(source, above) and not _has_body(text, above, offset):
        want = indent_at(text, above) + unit(source, offset)
        lead = want[len(left) :] if want.startswith(left) else b""
        return make(source, offset, end, "block", "block", lead=lead, indent=left + lead)
    lead = b""
    if above is not None and not left:  # editors strip blank lines: the block's indentation is owed
        below = _line_below(text, offset)
        inner = indent_at(text, above) + (unit(source, offset) if _opens(source, above) else b"")
        if below is not None and inner and len(indent_at(text, below)) >= len(inner):
            lead = inner
    return make(source, offset, end, "statement", "statement", lead=lead, indent=left + lead)


def _line_end(source: Source, offset: int, left: bytes, end: int) -> Hole:
    """Behind the last character of a line: a block where one is opened, else the rest of the line."""
    text = source.text
    indent = blanks(left)
    kind = _kind_at(source, offset)
    if kind not in ("comment", "string") and _opens(source, offset - 1):
        body = _has_body(text, offset, offset)
        want = indent + unit(source, offset)
        lead = newline(text) + want
        scope: Scope = "statement" if body else "block"
        return make(source, offset, end, scope, scope, lead=lead, indent=want)
    return make(source, offset, end if text[offset:end].strip() else offset, kind, "line", indent=indent)


def _mid_line(source: Source, offset: int, left: bytes, right: bytes) -> Hole:
    """Text follows on the line: insert before it, on one line; only an empty `{}` may take several."""
    text = source.text
    if left.rstrip().endswith(b"{") and right.lstrip().startswith(b"}"):
        node = smallest(source, offset, offset)
        while node is not None and node.type not in source.language.bodies:
            node = node.parent
        if node is not None and not members(source, node) and node.start_byte < offset < node.end_byte:
            hole = between_braces(source, node, indent_at(text, offset), "block")
            if hole is not None:
                return hole
    kind = _kind_at(source, offset)
    word = re.search(rb"[\w$\x80-\xff]$", left) is not None
    scope: Scope = "token" if word and kind not in ("comment", "string") else "line"
    return make(source, offset, offset, "identifier" if scope == "token" else kind, scope, single_line=True)


_OPERATOR = re.compile(rb"([=+\-*/%<>&|^~!?:,(\[]|\b(return|and|or|not|in|is|if|elif|while|yield|await|case))\s*$")


def _kind_at(source: Source, offset: int) -> str:
    """In a word, what a fill at `offset` will be part of."""
    language = source.language
    node = _leaf(source, offset)
    while node is not None:
        inside = node.start_byte < offset < node.end_byte
        if node.type in language.comments and (inside or _runs_on(source, node, offset)):
            return "comment"
        if inside and node.type in language.strings:
            return "string"
        if inside and node.type in language.arguments:
            return "argument_list"
        if inside and node.type in language.parameters:
            return "parameters"
        if node.type in language.bodies or node.parent is None:
            break
        node = node.parent
    left = source.text[line_start(source.text, offset) : offset]
    if not left.strip():
        return "statement"
    if re.search(rb"(\.|->|::)\w*$", left):
        return "identifier"
    if language.line_comment and left.lstrip().startswith(language.line_comment.encode()):
        return "comment"
    return "expression" if _OPERATOR.search(left) else "line"


def _runs_on(source: Source, node: Node, offset: int) -> bool:
    """Whether typing right behind this comment continues it: true of line comments only."""
    if node.end_byte != offset or not source.language.line_comment:
        return False
    mark = source.language.line_comment.encode()
    return source.text.startswith(mark, node.start_byte)


def _leaf(source: Source, offset: int) -> Node | None:
    """The node of the character before `offset`: what the user has just typed."""
    if source.tree is None:
        return None
    return source.tree.root_node.descendant_for_byte_range(max(0, offset - 1), offset)


def _line_above(text: bytes, offset: int) -> int | None:
    """An offset on the nearest line above that is not blank."""
    kept = text[: line_start(text, offset)].rstrip()
    return len(kept) - 1 if kept and kept != BOM else None


def _line_below(text: bytes, offset: int) -> int | None:
    rest = text[offset : offset + 65536].find(b"\n")
    if rest < 0:
        return None
    tail = text[offset + rest : offset + rest + 65536]
    kept = tail.lstrip()
    return offset + rest + len(tail) - len(kept) if kept else None


def _opens(source: Source, offset: int) -> bool:
    """Whether the line of `offset` (up to it) ends by opening a block."""
    text, language = source.text, source.language
    line = text[line_start(text, offset) : offset + 1].decode("utf-8", "replace").rstrip()
    node = _leaf(source, offset + 1)
    while node is not None and node.type not in language.comments:
        if node.type in language.strings and node.start_byte < offset + 1 < node.end_byte:
            return False
        node = node.parent
    if node is not None:
        begin = max(node.start_byte, line_start(text, offset))
        line = text[line_start(text, offset) : begin].decode("utf-8", "replace").rstrip()
    return bool(line) and _opener(language).search(line) is not None


@functools.cache
def _opener(language: Language) -> re.Pattern[str]:
    return re.compile(language.opener)


def _has_body(text: bytes, above: int, offset: int) -> bool:
    """Whether lines below already stand deeper than the line that opens the block."""
    below = _line_below(text, offset)
    return below is not None and len(indent_at(text, below)) > len(indent_at(text, above))
