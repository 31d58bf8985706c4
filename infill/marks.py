"""What the text behind a hole belongs to: strings, comments, and the statements that enclose it.

Sampled at a few places, so that a fill that swallows or steals what follows is noticed though the result parses.
Knows no verdicts.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from tree_sitter import Node, Tree

from .languages import Language
from .source import line_end


@dataclass(frozen=True, slots=True)
class Mark:
    """What a place behind the hole belongs to: a string, a comment or code, and what encloses it."""

    offset: int
    """From the hole's end."""
    kind: str
    owners: frozenset[tuple[int, int]]
    """Where the enclosing statements, bodies and brackets begin that begin before the hole; counted per place."""


def sample(language: Language, text: bytes, tree: Tree, start: int, end: int) -> tuple[Mark, ...]:
    """Sample places behind a fill at `start..end`: the first and last character of the line, then of lines below."""
    places = []
    for found in re.finditer(rb"[^\s]", text[end : line_end(text, end)]):
        places += [found.start()]
    places = places[:1] + places[-1:]
    for found in re.finditer(rb"\n[ \t]*([^\s])", text[end : end + 4096]):
        places.append(found.start(1))
        if len(places) >= 6:
            break
    return tuple(Mark(one, *owners(language, text, tree, start, end + one)) for one in dict.fromkeys(places))


def owners(
    language: Language, text: bytes, tree: Tree, start: int, offset: int
) -> tuple[str, frozenset[tuple[int, int]]]:
    """What the character at `offset` is part of, and where what encloses it begins, if before `start`."""
    kind = "code"
    decided = False
    begun: Counter[int] = Counter()
    node = tree.root_node.descendant_for_byte_range(offset, min(offset + 1, len(text)))
    while node is not None and node.parent is not None:
        if not decided and node.type in language.comments:
            kind, decided = "a comment", True
        elif not decided and node.type in language.strings:
            kind, decided = "a string", True
        elif "interpolation" in node.type or "substitution" in node.type:
            decided = True
        if node.start_byte < start and not node.is_error and _holds(language, node):
            begun[node.start_byte] += 1
        node = node.parent
    return kind, frozenset((at, n) for at, count in begun.items() for n in range(count))


def begins(language: Language, tree: Tree, start: int, end: int, offset: int) -> bool:
    """Whether something that begins in `start..end`, and is more than a body, goes on to `offset`."""
    node = tree.root_node.descendant_for_byte_range(offset, offset + 1)
    while node is not None and node.parent is not None and node.start_byte >= start:
        if node.start_byte < end and not node.is_error and node.type not in language.bodies:
            return True
        node = node.parent
    return False


def _holds(language: Language, node: Node) -> bool:
    kind = node.type
    return (
        kind in language.bodies
        or kind in language.functions
        or kind in language.classes
        or kind in language.arguments
        or kind in language.parameters
        or kind.endswith(("_statement", "_clause", "_definition", "_declaration", "_item"))
        or any(last.type in language.closers for last in node.children[-1:])
    )
