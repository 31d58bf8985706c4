"""From what the caller points at to the byte range that is filled: nodes, bodies, placeholders, errors.

Knows no tokens, no model and no clock; the rules at a cursor are in `cursor`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tree_sitter import Node, Query, QueryCursor

from . import languages
from .contract import FillError, FillRequest
from .cursor import at_cursor
from .hole import Hole, LengthPrior, Scope, between_braces, lengths_of, make, members, smallest, snap, trim
from .languages import Language
from .source import Source, flawed, indent_at, line_end, line_start, newline, parse, unit

__all__ = ["Function", "Hole", "LengthPrior", "Scope", "Source", "errors", "function_at"]
__all__ += ["lengths_of", "locate", "parse", "placeholders"]


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
    start, end = snap(source.text, request.start), snap(source.text, request.end)
    if request.target == "cursor":
        return at_cursor(source, start)
    if request.target == "selection":
        return _selection(source, start, end)
    if source.tree is None:
        raise FillError(f"only the cursor and a selection can be filled here: {source.why or 'no syntax tree'}")
    if request.target == "node":
        node = smallest(source, start, end)
        if node is None or node.parent is None:
            raise FillError("no syntax node there: put the cursor on an expression or statement")
        return _node_hole(source, node)
    if request.target == "body":
        function = _function_node(source, start)
        hole = _body_hole(source, function, "block") if function is not None else None
        if hole is not None and _waits(source, hole):
            hole = replace(hole, scope="placeholder")
        if hole is None:
            raise FillError("no function body there: put the cursor inside a function")
        return hole
    found = placeholders(source) if request.target == "placeholder" else errors(source)
    nearest = _nearest(source.text, found, start)
    if nearest is None and request.target == "placeholder":
        around = function_at(source, start)
        inside = [one for one in found if around and _belongs(source.text, around, one)]
        nearest = inside[0] if len(inside) == 1 else None
    if nearest is None:
        what = "placeholder" if request.target == "placeholder" else "syntax error"
        raise FillError(f"no {what} there: put the cursor on it or on its line")
    return nearest


def function_at(source: Source, offset: int) -> Function | None:
    """The innermost function around `offset`; on its first line counts as around."""
    node = _function_node(source, snap(source.text, min(max(offset, 0), len(source.text))))
    if node is None:
        return None
    body = _interior(source, node)
    return Function(node.start_byte, node.end_byte, body[:2] if body else (node.end_byte, node.end_byte))


def placeholders(source: Source) -> list[Hole]:
    """Every placeholder in the parsed window: stand-in statements, empty bodies, `TODO` lines; in order."""
    if source.tree is None:
        return []
    found: dict[tuple[int, int], Hole] = {}
    bare: set[int] = set()
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
        if empty is not None and not source.text[empty.start : empty.end].strip() and not _declares(source, node):
            found.setdefault((empty.start, empty.end), empty)
            bare.add(empty.start)
    for node in _captures(source, language.comments):
        todo = _todo_hole(source, node)
        if todo is not None:
            found.setdefault((todo.start, todo.end), todo)
    kept: list[Hole] = []
    for _, hole in sorted(found.items(), key=lambda one: (one[0][0], -one[0][1])):
        if kept and kept[-1].start == kept[-1].end and _is_one(source.text[kept[-1].end : hole.start], kept[-1], bare):
            kept.pop()  # `# TODO: x` over `pass`, or under a head without a body: one thing to write, not two
        if not kept or hole.start > kept[-1].end:
            kept.append(hole)
    return kept


def stands_in(language: Language, text: bytes) -> bool:
    """Whether `text` is nothing but a placeholder of the language, or one line that says TODO."""
    pattern = language.placeholder
    if pattern and len(text) < 400 and re.fullmatch(pattern.encode(), text, re.DOTALL):
        return True
    return b"\n" not in text and _TODO.match(text) is not None


def remark(language: Language, text: bytes) -> str:
    """What a text is that does nothing: "a comment", "a docstring", or empty."""
    head = b"<?php " if language.name == "php" else b""
    root = languages.parser(language).parse(head + text).root_node
    code = [one for one in root.named_children if one.type not in language.comments and one.type != "php_tag"]
    if root.has_error or any(language.name != "python" or not _is_docstring(one) for one in code):
        return ""
    return "a docstring" if code else "a comment"


def errors(source: Source) -> list[Hole]:
    """A hole for every ERROR and MISSING node that lies in no other; an ERROR of many lines ends with its first."""
    if source.tree is None:
        return []
    holes: list[Hole] = []
    for node in flawed(source.tree.root_node):
        start, end = trim(source.text, node.start_byte, node.end_byte)
        end = min(end, max(start, line_end(source.text, start)))
        if holes and start < holes[-1].end:
            continue
        kind = node.type if node.is_missing else "line"
        hole = make(source, start, end, kind, "error", single_line=False)
        holes.append(replace(hole, lengths=lengths_of(source.language.name, kind, "line", end - start)))
    return holes


# ---- nodes, bodies, placeholders ------------------------------------------------------------------------


def _node_hole(source: Source, node: Node) -> Hole:
    """Replace a node; a body without delimiters (Python's block) is one too."""
    start, end = trim(source.text, node.start_byte, node.end_byte)
    return make(source, start, end, node.type, "node", replaced=end - start)


def _selection(source: Source, start: int, end: int) -> Hole:
    node = smallest(source, *trim(source.text, start, end))
    exact = node is not None and trim(source.text, start, end) == (node.start_byte, node.end_byte)
    kind = node.type if node is not None and exact else "line"
    if b"\n" in source.text[start:end].strip() and not exact:
        kind = "block"
    if exact and node is not None and _stands_for_code(source, node):
        kind = "statement" if node.type in source.language.comments else kind
        return make(source, start, end, kind, "selection", replaced=0)
    # Whole lines are replaced by whole lines: without its line break a fill would run into the next one. An empty
    # line has its own.
    whole = line_start(source.text, start) == start and line_start(source.text, end) == end and end > 0
    whole = whole and not (start == end and source.text[end : end + 1] in (b"\n", b"\r"))
    tail = newline(source.text) if whole and end < len(source.text) else b""
    return make(source, start, end, kind, "selection", tail=tail, replaced=end - start)


def _stands_for_code(source: Source, node: Node) -> bool:
    """A comment or placeholder in place of code: its own length says nothing about the fill's."""
    if node.type in source.language.comments:
        return True
    return stands_in(source.language, source.text[node.start_byte : node.end_byte])


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
    start, end = trim(text, start, end)
    inside = members(source, body)
    if source.language.name == "python" and len(inside) > 1 and _is_docstring(inside[0]):
        start = inside[1].start_byte
    return start, end, body


def _is_docstring(node: Node) -> bool:
    return node.type == "expression_statement" and [c.type for c in node.children] == ["string"]


def _body_hole(source: Source, function: Node, scope: Scope) -> Hole | None:
    """The whole body; an empty one gets the line breaks and the indentation a body needs."""
    found = _interior(source, function)
    if found is None:
        return None
    start, end, body = found
    outer = indent_at(source.text, function.start_byte)
    if body is not None and source.text[start:end].strip() and not members(source, body):
        inner = outer + unit(source, function.start_byte)
        line = newline(source.text) + inner  # comments say what to write: they stay
        return make(source, end, end, "block", scope, lead=line, indent=inner)
    if body is not None and body.named_children and source.language.name == "python":
        said = [one for one in body.named_children if one.type != "comment"]
        if len(said) == 1 and _is_docstring(said[0]) and line_start(source.text, start) > function.start_byte:
            inner = indent_at(source.text, start)
            return make(source, end, end, "block", scope, lead=newline(source.text) + inner, indent=inner)
    if source.text[start:end].strip() or (body is not None and members(source, body)):
        only = members(source, body) if body is not None else []
        stands_in = len(only) == 1 and _stands_for_code(source, only[0])
        return make(source, start, end, "block", scope, replaced=0 if stands_in else end - start)
    if body is not None and source.text[body.start_byte : body.start_byte + 1] == b"{":
        return between_braces(source, body, outer, scope)
    inner = outer + unit(source, function.start_byte)  # reads thousands of bytes: not for every full body
    line = newline(source.text)
    at = _code_end(source.text, function.start_byte, start)
    closer = re.match(rb"[ \t]*(?=\w)", source.text[at:])
    if closer is None:
        return make(source, at, at, "block", scope, lead=line + inner, indent=inner)
    return make(source, at, at + closer.end(), "block", scope, lead=line + inner, tail=line + outer, indent=inner)


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
    if _declares(source, function):
        return False
    others = [one for one in members(source, body) if one.id != node.id and not _is_docstring(one)]
    return node.type == "raise_statement" or not others


_DECLARING = re.compile(rb"@[\w.]*(overload|abstract\w+)\b")


def _declares(source: Source, function: Node) -> bool:
    """Whether an empty body is a finished one: of an overload, an abstract method, a method of a Protocol."""
    if source.language.name != "python":
        return False
    node = function.parent
    head = source.text[node.start_byte : function.start_byte] if node is not None else b""
    if node is not None and node.type == "decorated_definition" and _DECLARING.search(head):
        return True
    while node is not None and node.type != "class_definition":
        node = node.parent
    bases = node.child_by_field_name("superclasses") if node is not None else None
    return bases is not None and b"Protocol" in source.text[bases.start_byte : bases.end_byte]


_TODO = re.compile(rb"\W*TODO\b")


def _is_one(between: bytes, first: Hole, bare: set[int]) -> bool:
    """Whether two holes are one thing to write; two lines that say TODO are two."""
    return not between.strip() or (first.start in bare and _only_says(between))


def _only_says(text: bytes) -> bool:
    """Whether a stretch between two holes is blank or one line that says TODO."""
    line = text.strip()
    return not line or (b"\n" not in line and _TODO.match(line) is not None)


def _belongs(text: bytes, function: Function, hole: Hole) -> bool:
    """Whether a hole lies in a function, or below one that is all head and a comment: grammars leave that outside."""
    if hole.start < function.start:
        return False
    return hole.end <= function.end or (hole.start == hole.end and _only_says(text[function.end : hole.start]))


def _waits(source: Source, hole: Hole) -> bool:
    """Whether a body is there to be written: nothing in it, or a placeholder."""
    old = source.text[hole.start : hole.end].strip()
    return not old or stands_in(source.language, old)


def _todo_hole(source: Source, comment: Node) -> Hole | None:
    """A new line under a TODO comment that has its line to itself; the comment stays."""
    text = source.text
    start, end = trim(text, comment.start_byte, comment.end_byte)
    begin = line_start(text, start)
    if text[begin:start].strip() or text[end : line_end(text, end)].strip():
        return None
    if not _TODO.match(text[start : start + 40]):
        return None
    indent = indent_at(text, start)
    return make(source, end, end, "block", "placeholder", lead=newline(text) + indent, indent=indent)


def _nearest(text: bytes, holes: list[Hole], offset: int) -> Hole | None:
    """The hole that covers or touches `offset`, else the first on its line."""
    for hole in holes:
        if hole.start <= offset <= hole.end:
            return hole
    begin, end = line_start(text, offset), line_end(text, offset)
    return next((hole for hole in holes if hole.start <= end and hole.end >= begin), None)


def _code_end(text: bytes, low: int, offset: int) -> int:
    """Back over blanks and line breaks, but not beyond `low`."""
    return low + len(text[low:offset].rstrip())


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
