"""Which text the model sees: near prefix, near suffix, then what lies further away, under a token budget.

Every cut is made at a line start on a grid laid over the file, so that a keystroke changes nothing but
the end of the prefix and the prefix cache survives it. Knows no token ids and no prompt format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tree_sitter import Node

from .contract import Snippet
from .holes import Hole
from .source import Source, line_end, line_start

Count = Callable[[bytes], int]
"""Tokens in a text."""

PREFIX_SHARE = 0.55
SUFFIX_SHARE = 0.2
NEAR_TOKENS = 700
"""Prefix plus suffix never take less than this if the budget allows: facts further back than the sliding
window of about 1,000 tokens get lost, so the budget left over goes to what is far."""
STEP_TOKENS = 48
"""Rooms change by so much at once: what is encoded first would else change with every token that is typed."""


@dataclass(frozen=True, slots=True)
class Context:
    """The pieces in the order in which they are encoded, the most changeable last."""

    snippets: bytes
    """Other files first, then this file's imports and signatures; whole lines, may be empty."""
    suffix: bytes
    """From the hole's end on."""
    prefix: bytes
    """Up to the hole's start; it begins at a line start."""


def gather(
    source: Source,
    hole: Hole,
    *,
    snippets: Sequence[Snippet] = (),
    budget: int,
    bytes_per_token: float = 3.3,
    count: Count | None = None,
) -> Context:
    """The context of a hole in at most `budget` tokens.

    Tokens are counted by `count` where given, else estimated as bytes / `bytes_per_token`. Without
    neighbours the prefix and the suffix take each other's share and that of the rest.
    """
    text = source.text
    size = count or (lambda piece: round(len(piece) / bytes_per_token))
    bytes_per_token = max(1.0, int(bytes_per_token * 4) / 4)  # every key would shift the grid by a little else
    rooms = _rooms(text, hole, budget, bytes_per_token)
    prefix = _prefix(text, hole.start, rooms[0], bytes_per_token, size)
    suffix = _suffix(text, hole.end, rooms[1], bytes_per_token, size)
    left = _left(budget - size(suffix), prefix, size)
    far = _far(source, hole, hole.start - len(prefix), left, size)
    others = _others(source, snippets, left - size(far), size) if left > 0 else b""
    return Context(others + far, suffix, prefix)


def _rooms(text: bytes, hole: Hole, budget: int, bytes_per_token: float) -> tuple[int, int]:
    """Tokens for prefix and suffix; what one side does not need the other may have."""
    before = (round(hole.start / bytes_per_token) // STEP_TOKENS + 1) * STEP_TOKENS
    after = round((len(text) - hole.end) / bytes_per_token) + 1
    near = max(round(budget * (PREFIX_SHARE + SUFFIX_SHARE)), min(budget, NEAR_TOKENS))
    suffix = min(after, round(near * SUFFIX_SHARE / (PREFIX_SHARE + SUFFIX_SHARE)))
    prefix = min(before, near - suffix)
    return prefix, min(after, near - prefix)


def _left(room: int, prefix: bytes, size: Count) -> int:
    """What the prefix leaves of a room, in steps; the line being typed has a room of its own, so it counts seldom."""
    lines = prefix[: prefix.rfind(b"\n") + 1]
    typed = max(STEP_TOKENS // 2, size(prefix) - size(lines))
    return (room - size(lines) - typed) // STEP_TOKENS * STEP_TOKENS


def _prefix(text: bytes, end: int, room: int, bytes_per_token: float, size: Count) -> bytes:
    """The text before `end` from a grid line on: the start moves once per quarter of the room, not per key."""
    bytes_room = int(room * bytes_per_token)
    step = max(64, bytes_room // 4)
    low = max(0, end - bytes_room)
    start = 0 if low == 0 else _next_line(text, -(-low // step) * step, end)
    while start < end and size(text[start:end]) > room:
        start = _next_line(text, start + step, end)
    if start < end or not end:
        return text[start:end]
    near = max(low, text.rfind(b"\n", 0, end) + 1)  # lines too long for the grid: what is nearest
    return _tail(text[near:end], room, size)


def _suffix(text: bytes, start: int, room: int, bytes_per_token: float, size: Count) -> bytes:
    """The text behind `start`, whole lines; typing before it leaves it as it is."""
    piece = text[start : start + int(room * bytes_per_token)]
    if start + len(piece) < len(text):
        piece = _whole(piece[: piece.rfind(b"\n") + 1] or piece)
    while piece and size(piece) > room:
        cut = piece.rfind(b"\n", 0, len(piece) * 7 // 8) + 1
        piece = piece[:cut] if cut else _whole(piece[: len(piece) * 7 // 8])
    return _whole(piece)


def _tail(piece: bytes, room: int, size: Count) -> bytes:
    piece = _begun(piece)
    while piece and size(piece) > room:
        piece = _begun(piece[len(piece) // 8 + 1 :])
    return piece


def _begun(piece: bytes) -> bytes:
    """Without a character cut in half at the beginning."""
    while piece and piece[0] & 0xC0 == 0x80:
        piece = piece[1:]
    return piece


def _whole(piece: bytes) -> bytes:
    """Without a character cut in half at the end."""
    return piece.decode("utf-8", "ignore").encode() if piece[-4:].decode("utf-8", "replace")[-1:] == "�" else piece


def _next_line(text: bytes, offset: int, end: int) -> int:
    """The first line start at or behind `offset`, at most `end`."""
    if offset <= 0:
        return 0
    found = text.find(b"\n", offset - 1, end)
    return end if found < 0 else found + 1


# ---- what lies further away -----------------------------------------------------------------------------


def _far(source: Source, hole: Hole, before: int, room: int, size: Count) -> bytes:
    """Imports and signatures outside the near text, as lines in the order of the file.

    What encloses the hole comes first into the room, then imports, then signatures from near to far.
    """
    if source.tree is None or room <= 0 or before <= 0:
        return b""
    at = len(source.text[: hole.start].rstrip()) if hole.indent else hole.start
    enclosing = _enclosing(source, at, before)  # behind `def f():` the tree knows of no body yet
    wanted = [*enclosing, *_imports(source, before), *_signatures(source, before)]
    chosen: dict[tuple[int, int], bytes] = {}
    used = 0
    for start, end in wanted:
        line = source.text[start:end].rstrip() + b"\n"
        cost = size(line)
        if (start, end) in chosen or used + cost > room:
            continue
        chosen[start, end] = line
        used += cost
    return b"".join(chosen[key] for key in sorted(chosen))


def _head(source: Source, node: Node) -> tuple[int, int]:
    """The lines of a function or class before its body."""
    body = node.child_by_field_name("body")
    body = body or next((one for one in node.children if one.type in source.language.bodies), None)
    start, end = line_start(source.text, node.start_byte), node.end_byte
    if body is not None:
        comments = source.language.comments
        heads = [one.end_byte for one in node.children if one.end_byte <= body.start_byte and one.type not in comments]
        end = heads[-1] if heads else body.start_byte
    return start, line_end(source.text, start) if end - start > 400 else end


def _enclosing(source: Source, offset: int, before: int) -> list[tuple[int, int]]:
    found = []
    assert source.tree is not None
    node = source.tree.root_node.descendant_for_byte_range(max(offset - 1, 0), offset)
    while node is not None:
        if node.type in source.language.functions | source.language.classes and node.start_byte < before:
            found.append(_head(source, node))
        node = node.parent
    return found


def _imports(source: Source, before: int) -> list[tuple[int, int]]:
    assert source.tree is not None
    found = []
    for node in source.tree.root_node.named_children:
        if node.start_byte >= before:
            break
        if node.type in source.language.imports or _requires(source, node):
            found.append((node.start_byte, min(node.end_byte, node.start_byte + 2000)))
    return found


_REQUIRE = re.compile(rb"(const|let|var|local)?\s*[\w{},\s]*=?\s*(require|require_relative|source)\b")


def _requires(source: Source, node: Node) -> bool:
    """Languages whose imports are calls."""
    if source.language.name not in ("javascript", "typescript", "tsx", "ruby", "lua", "php"):
        return False
    return _REQUIRE.match(source.text[node.start_byte : node.start_byte + 200]) is not None


def _signatures(source: Source, before: int) -> list[tuple[int, int]]:
    """Heads of functions and classes (and of the members of classes) before the near text, nearest first."""
    assert source.tree is not None
    language = source.language
    found: list[tuple[int, int]] = []
    stack = [(source.tree.root_node, 0)]
    while stack:
        node, depth = stack.pop()
        for child in node.named_children:
            if child.start_byte >= before:
                break
            if child.type in language.functions or child.type in language.classes:
                found.append(_head(source, child))
            inside = child.type in language.classes or child.type in language.bodies
            if depth < 3 and (inside or child.type in ("decorated_definition", "export_statement", "ERROR")):
                stack.append((child, depth + 1))
    return sorted(found, reverse=True)


def _others(source: Source, snippets: Sequence[Snippet], room: int, size: Count) -> bytes:
    """Other files, each under a comment with its path; the caller's order is the order of worth.

    The worthiest stands last, nearest to the hole.
    """
    mark, (open_, close) = source.language.line_comment, source.language.block_comment
    pieces: list[bytes] = []
    for snippet in snippets:
        title = f"{mark} {snippet.path}" if mark else f"{open_} {snippet.path} {close}".strip()
        body = snippet.text.encode("utf-8", "replace").rstrip() + b"\n"
        piece = title.encode("utf-8", "replace") + b"\n" + body
        while size(piece) > room:
            cut = piece.rfind(b"\n", 0, len(piece) * 3 // 4) + 1
            if cut <= len(title) + 1:
                piece = b""
                break
            piece = piece[:cut]
        room -= size(piece)
        pieces.append(piece)
    return b"".join(reversed(pieces))
