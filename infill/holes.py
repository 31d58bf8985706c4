"""From what the caller points at to the byte range that is filled.

Works on text that does not parse, which is the normal case while typing: the tree is asked first, the
line decides where the tree is silent. Never swallows text the user typed, only blanks; knows no tokens,
no model and no clock.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal

from tree_sitter import Node, Query, QueryCursor

from . import languages
from .contract import FillError, FillRequest
from .languages import Language
from .source import (
    BOM,
    Source,
    blanks,
    flawed,
    indent_at,
    line_end,
    line_start,
    newline,
    parse,
    unit,
)

__all__ = ["Function", "Hole", "LengthPrior", "Scope", "Source", "errors", "function_at"]
__all__ += ["lengths_of", "locate", "parse", "placeholders"]

Scope = Literal["token", "line", "statement", "block", "node", "selection", "placeholder", "error"]


@dataclass(frozen=True, slots=True)
class LengthPrior:
    """Quantiles of likely fill lengths, in bytes."""

    p10: int
    p50: int
    p75: int
    p90: int
    p99: int


@dataclass(frozen=True, slots=True)
class Hole:
    """The byte range `start..end` of the source that a fill replaces; empty for an insertion."""

    start: int
    end: int
    node_type: str
    """What the fill should become: a tree-sitter kind, or a plain word (`expression`, `block`, `line`)."""
    scope: Scope
    indent: bytes
    """The indentation that new lines of the fill start with."""
    lengths: LengthPrior
    single_line: bool
    lead: bytes = b""
    """What every fill must begin with (such as the line break after `{`): prompt with it, then keep it."""
    tail: bytes = b""
    """What every fill must end with (such as the line break before `}`)."""

    def wrap(self, core: bytes) -> bytes:
        """The fill as it goes into the file, from the text the model wrote between `lead` and `tail`."""
        return self.lead + core + self.tail


@dataclass(frozen=True, slots=True)
class Function:
    """A function's byte range and its body's: what stands between the delimiters, blanks trimmed."""

    start: int
    end: int
    body: tuple[int, int]


def locate(source: Source, request: FillRequest) -> Hole:
    """The hole that `request.target` names; FillError with one line when there is none."""
    size = len(source.text)
    if not 0 <= request.start <= request.end <= size:
        raise FillError(f"the range {request.start}..{request.end} lies outside the file (0..{size} bytes)")
    start, end = _snap(source.text, request.start), _snap(source.text, request.end)
    if request.target == "cursor":
        return _cursor(source, start)
    if request.target == "selection":
        return _selection(source, start, end)
    if source.tree is None:
        raise FillError(f"only the cursor and a selection can be filled here: {source.why or 'no syntax tree'}")
    if request.target == "node":
        node = _smallest(source, start, end)
        if node is None or node.parent is None:
            raise FillError("no syntax node there: put the cursor on an expression or statement")
        return _node_hole(source, node)
    if request.target == "body":
        function = _function_node(source, start)
        hole = _body_hole(source, function, "block") if function is not None else None
        if hole is None:
            raise FillError("no function body there: put the cursor inside a function")
        return hole
    found = placeholders(source) if request.target == "placeholder" else errors(source)
    nearest = _nearest(source.text, found, start)
    if nearest is None and request.target == "placeholder":
        around = function_at(source, start)
        inside = [one for one in found if around and around.start <= one.start <= one.end <= around.end]
        nearest = inside[0] if len(inside) == 1 else None
    if nearest is None:
        what = "placeholder" if request.target == "placeholder" else "syntax error"
        raise FillError(f"no {what} there: put the cursor on it or on its line")
    return nearest


def lengths_of(language: str, kind: str, scope: str, replaced: int = 0) -> LengthPrior:
    """Likely lengths in bytes for a fill: measured for the kind, else the scope, else any language.

    Where `replaced` bytes make way, their number is the best single guess and becomes the centre.
    """
    table = _lengths()
    names = [kind, scope, "statement"] if scope not in ("token", "line") else [scope, kind]
    rows = [table.get(one, {}).get(name) for name in names for one in (language, "*")]
    row = next(found for found in [*rows, table["*"]["statement"]] if found)
    if not replaced:
        return LengthPrior(*row[:5])
    return LengthPrior(
        max(1, replaced // 2), replaced, replaced * 5 // 4 + 2, replaced * 7 // 4 + 8, max(replaced * 3, row[3])
    )


def function_at(source: Source, offset: int) -> Function | None:
    """The innermost function around `offset`; on its first line counts as around."""
    node = _function_node(source, _snap(source.text, min(max(offset, 0), len(source.text))))
    if node is None:
        return None
    body = _interior(source, node)
    return Function(node.start_byte, node.end_byte, body[:2] if body else (node.end_byte, node.end_byte))


def placeholders(source: Source) -> list[Hole]:
    """Every placeholder in the parsed window: stand-in statements, empty bodies, `TODO` lines; in order."""
    if source.tree is None:
        return []
    found: dict[tuple[int, int], Hole] = {}
    language = source.language
    pattern = re.compile(language.placeholder.encode(), re.DOTALL) if language.placeholder else None
    for node in _captures(source, language.placeholder_kinds):
        text = source.text[node.start_byte : node.end_byte]
        if len(text) < 400 and pattern and pattern.fullmatch(text) and _stands_in(source, node):
            hole = _node_hole(source, node)
            prior = lengths_of(language.name, "block", "block")
            found[node.start_byte, node.end_byte] = replace(hole, scope="placeholder", lengths=prior)
    for node in _captures(source, language.functions):
        empty = _body_hole(source, node, "placeholder")
        if empty is not None and not source.text[empty.start : empty.end].strip():
            found.setdefault((empty.start, empty.end), empty)
    for node in _captures(source, language.comments):
        todo = _todo_hole(source, node)
        if todo is not None:
            found.setdefault((todo.start, todo.end), todo)
    kept: list[Hole] = []
    for _, hole in sorted(found.items(), key=lambda one: (one[0][0], -one[0][1])):
        if not kept or hole.start > kept[-1].end:
            kept.append(hole)
    return kept


def errors(source: Source) -> list[Hole]:
    """A hole for every ERROR and MISSING node that lies in no other; an ERROR of many lines ends with its first."""
    if source.tree is None:
        return []
    holes: list[Hole] = []
    for node in flawed(source.tree.root_node):
        start, end = _trim(source.text, node.start_byte, node.end_byte)
        end = min(end, max(start, line_end(source.text, start)))
        if holes and start < holes[-1].end:
            continue
        kind = node.type if node.is_missing else "line"
        hole = _hole(source, start, end, kind, "error", single_line=False)
        holes.append(replace(hole, lengths=lengths_of(source.language.name, kind, "line", end - start)))
    return holes


# ---- cursor ---------------------------------------------------------------------------------------------


def _cursor(source: Source, offset: int) -> Hole:
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
        return _hole(source, offset, end, "block", "block", lead=lead, indent=left + lead)
    lead = b""
    if above is not None and not left:  # editors strip blank lines: the block's indentation is owed
        below = _line_below(text, offset)
        inner = indent_at(text, above) + (unit(source, offset) if _opens(source, above) else b"")
        if below is not None and inner and len(indent_at(text, below)) >= len(inner):
            lead = inner
    return _hole(source, offset, end, "statement", "statement", lead=lead, indent=left + lead)


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
        return _hole(source, offset, end, scope, scope, lead=lead, indent=want)
    return _hole(source, offset, end if text[offset:end].strip() else offset, kind, "line", indent=indent)


def _mid_line(source: Source, offset: int, left: bytes, right: bytes) -> Hole:
    """Text follows on the line: insert before it, on one line; only an empty `{}` may take several."""
    text = source.text
    if left.rstrip().endswith(b"{") and right.lstrip().startswith(b"}"):
        node = _smallest(source, offset, offset)
        while node is not None and node.type not in source.language.bodies:
            node = node.parent
        if node is not None and not _members(source, node) and node.start_byte < offset < node.end_byte:
            hole = _delimited(source, node, indent_at(text, offset), "block")
            if hole is not None:
                return hole
    kind = _kind_at(source, offset)
    word = re.search(rb"[\w$\x80-\xff]$", left) is not None
    scope: Scope = "token" if word and kind not in ("comment", "string") else "line"
    return _hole(source, offset, offset, "identifier" if scope == "token" else kind, scope, single_line=True)


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


# ---- nodes, bodies, placeholders ------------------------------------------------------------------------


def _node_hole(source: Source, node: Node) -> Hole:
    """Replace a node; a body without delimiters (Python's block) is one too."""
    start, end = _trim(source.text, node.start_byte, node.end_byte)
    return _hole(source, start, end, node.type, "node", replaced=end - start)


def _selection(source: Source, start: int, end: int) -> Hole:
    node = _smallest(source, *_trim(source.text, start, end))
    exact = node is not None and _trim(source.text, start, end) == (node.start_byte, node.end_byte)
    kind = node.type if node is not None and exact else "line"
    if b"\n" in source.text[start:end].strip() and not exact:
        kind = "block"
    return _hole(source, start, end, kind, "selection", replaced=end - start)


def _function_node(source: Source, offset: int) -> Node | None:
    if source.tree is None:
        return None
    first = line_start(source.text, offset) + len(indent_at(source.text, offset))
    for place in (offset, max(offset - 1, 0), first):
        node = source.tree.root_node.descendant_for_byte_range(place, place)
        while node is not None:
            if node.type in source.language.functions and _interior(source, node) is not None:
                return node
            node = node.parent
    return None


def _body_of(source: Source, function: Node) -> Node | None:
    body = function.child_by_field_name("body")
    if body is not None:
        return body
    return next((one for one in function.children if one.type in source.language.bodies), None)


def _interior(source: Source, function: Node) -> tuple[int, int, Node | None] | None:
    """Where the body's text stands, and the body node; None for a function that can have none.

    A docstring before other statements stays outside.
    """
    text, body = source.text, _body_of(source, function)
    if body is None:
        last = function.children[-1] if function.children else None
        if last is None or last.type not in source.language.closers:
            return None
        place = last.prev_sibling.end_byte if last.prev_sibling is not None else last.start_byte
        return place, place, None
    start, end = body.start_byte, body.end_byte
    children = body.children
    if len(children) >= 2 and text[start : start + 1] == b"{" and children[-1].type == "}":
        start, end = children[0].end_byte, children[-1].start_byte
    start, end = _trim(text, start, end)
    members = _members(source, body)
    if source.language.name == "python" and len(members) > 1 and _is_docstring(members[0]):
        start = members[1].start_byte
    return start, end, body


def _is_docstring(node: Node) -> bool:
    return node.type == "expression_statement" and [c.type for c in node.children] == ["string"]


def _members(source: Source, body: Node) -> list[Node]:
    return [one for one in body.named_children if one.type not in source.language.comments]


def _body_hole(source: Source, function: Node, scope: Scope) -> Hole | None:
    """The whole body; an empty one gets the line breaks and the indentation a body needs."""
    found = _interior(source, function)
    if found is None:
        return None
    start, end, body = found
    outer = indent_at(source.text, function.start_byte)
    inner = outer + unit(source, function.start_byte)
    if body is not None and source.text[start:end].strip() and not _members(source, body):
        line = newline(source.text) + inner  # comments say what to write: they stay
        return _hole(source, end, end, "block", scope, lead=line, indent=inner)
    if source.text[start:end].strip() or (body is not None and _members(source, body)):
        return _hole(source, start, end, "block", scope, replaced=end - start)
    if body is not None and source.text[body.start_byte : body.start_byte + 1] == b"{":
        return _delimited(source, body, outer, scope)
    line = newline(source.text)
    at = _code_end(source.text, function.start_byte, start)
    closer = re.match(rb"[ \t]*(?=\w)", source.text[at:])
    if closer is None:
        return _hole(source, at, at, "block", scope, lead=line + inner, indent=inner)
    return _hole(source, at, at + closer.end(), "block", scope, lead=line + inner, tail=line + outer, indent=inner)


def _delimited(source: Source, body: Node, outer: bytes, scope: Scope) -> Hole | None:
    """Between the braces of an empty body: the blanks there make way for an indented block."""
    children = body.children
    if len(children) < 2 or children[-1].type != "}" or children[-1].is_missing:
        return None
    start, end = children[0].end_byte, children[-1].start_byte
    if source.text[start:end].strip():
        return None
    inner = outer + unit(source, start)
    line = newline(source.text)
    return _hole(source, start, end, "block", scope, lead=line + inner, tail=line + outer, indent=inner)


def _stands_in(source: Source, node: Node) -> bool:
    """Whether a statement that looks like a placeholder is one: alone in a body that could do something."""
    body = node.parent
    if body is None:
        return False
    if source.language.name != "python":
        return not (source.language.name == "bash" and body.type not in source.language.bodies)
    function = body.parent
    if body.type != "block" or function is None or function.type != "function_definition":
        return False
    if node.type == "raise_statement":
        return True
    others = [one for one in _members(source, body) if one.id != node.id and not _is_docstring(one)]
    decorated = function.parent
    head = source.text[decorated.start_byte : function.start_byte] if decorated is not None else b""
    is_stub = decorated is not None and decorated.type == "decorated_definition" and b"overload" in head
    return not others and not is_stub and not _in_protocol(source, function)


def _in_protocol(source: Source, function: Node) -> bool:
    """`...` is the finished body of a method in a Protocol."""
    node = function.parent
    while node is not None and node.type != "class_definition":
        node = node.parent
    bases = node.child_by_field_name("superclasses") if node is not None else None
    return bases is not None and b"Protocol" in source.text[bases.start_byte : bases.end_byte]


_TODO = re.compile(rb"\W*TODO\b")


def _todo_hole(source: Source, comment: Node) -> Hole | None:
    """A new line under a TODO comment that has its line to itself; the comment stays."""
    text = source.text
    start, end = _trim(text, comment.start_byte, comment.end_byte)
    begin = line_start(text, start)
    if text[begin:start].strip() or text[end : line_end(text, end)].strip():
        return None
    if not _TODO.match(text[start : start + 40]):
        return None
    indent = indent_at(text, start)
    return _hole(source, end, end, "block", "placeholder", lead=newline(text) + indent, indent=indent)


def _nearest(text: bytes, holes: list[Hole], offset: int) -> Hole | None:
    """The hole that covers or touches `offset`, else the first on its line."""
    for hole in holes:
        if hole.start <= offset <= hole.end:
            return hole
    begin, end = line_start(text, offset), line_end(text, offset)
    return next((hole for hole in holes if hole.start <= end and hole.end >= begin), None)


# ---- small tools ----------------------------------------------------------------------------------------


def _hole(
    source: Source,
    start: int,
    end: int,
    kind: str,
    scope: Scope,
    *,
    indent: bytes | None = None,
    lead: bytes = b"",
    tail: bytes = b"",
    replaced: int = 0,
    single_line: bool = False,
) -> Hole:
    blank = indent_at(source.text, start) if indent is None else indent
    prior = lengths_of(source.language.name, kind, scope, replaced)
    return Hole(start, end, kind, scope, blank, prior, single_line, lead, tail)


def _snap(text: bytes, offset: int) -> int:
    """Back to the start of the character, before a CRLF, behind the BOM."""
    while 0 < offset < len(text) and text[offset] & 0xC0 == 0x80:
        offset -= 1
    if 0 < offset < len(text) and text[offset - 1 : offset + 1] == b"\r\n":
        offset -= 1
    return max(offset, 3) if text.startswith(BOM) else offset


def _trim(text: bytes, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    kept = piece.strip()
    if not kept:
        return start, end
    start += len(piece) - len(piece.lstrip())
    return start, start + len(kept)


def _smallest(source: Source, start: int, end: int) -> Node | None:
    if source.tree is None:
        return None
    return source.tree.root_node.named_descendant_for_byte_range(start, end)


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


def _code_end(text: bytes, low: int, offset: int) -> int:
    """Back over blanks and line breaks, but not beyond `low`."""
    return low + len(text[low:offset].rstrip())


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


def _captures(source: Source, kinds: frozenset[str]) -> Iterator[Node]:
    if not kinds or source.tree is None:
        return
    query = _query(source.language, kinds)
    for nodes in QueryCursor(query).captures(source.tree.root_node).values():
        yield from nodes


@functools.cache
def _query(language: Language, kinds: frozenset[str]) -> Query:
    alternatives = " ".join(f"({kind})" for kind in sorted(kinds))
    return Query(languages.grammar(language), f"[{alternatives}] @node")


@functools.cache
def _lengths() -> dict[str, dict[str, list[int]]]:
    """`lengths.json`: language -> kind -> p10, p50, p75, p90, p99, count; `*` stands for all languages."""
    text = resources.files(__package__).joinpath("data/lengths.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[int]]] = json.loads(text)["lengths"]
    return table
