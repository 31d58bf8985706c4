"""Says whether a fill made a file worse, by a fresh look at the whole text: the check on the gate's work.

Shares no rule and no tree with the gate (`syntax`): parses from nothing, and compiles Python to the end, where
the gate may stop at the syntax tree. Knows nothing of models, requests or why a fill was offered.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import tree_sitter

from .languages import Language, parser


@dataclass(frozen=True, slots=True)
class Splice:
    """`whole[start:end]` is replaced by `fill`; all bytes, the text around stays as it is."""

    whole: bytes
    start: int
    end: int
    fill: bytes

    @property
    def result(self) -> bytes:
        return self.whole[: self.start] + self.fill + self.whole[self.end :]

    def moved(self, start: int, end: int) -> tuple[int, int]:
        """A byte range of `whole`, in the result; an edge inside the replaced range moves outwards to its edge."""
        shift = len(self.fill) - (self.end - self.start)

        def edge(at: int, inside: int) -> int:
            if at <= self.start:
                return at
            return at + shift if at >= self.end else inside

        return edge(start, self.start), edge(end, self.start + len(self.fill))


@functools.lru_cache(maxsize=8)  # every contender is held against the same original
def faults(language: Language, text: bytes) -> tuple[tuple[int, int], ...]:
    """Byte ranges of every ERROR and MISSING node of a fresh parse, outermost errors only."""
    found: list[tuple[int, int]] = []
    open_nodes: list[tree_sitter.Node] = [parser(language).parse(text).root_node]
    while open_nodes:
        node = open_nodes.pop()
        if node.is_error or node.is_missing:
            found.append((node.start_byte, node.end_byte))
        elif node.has_error:
            open_nodes.extend(node.children)
    return tuple(sorted(found))


@functools.lru_cache(maxsize=8)
def compiles(text: bytes) -> bool:
    """Whether Python accepts the file, through to its byte code (`return` outside a function is refused)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "<file>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return False
    return True


def sound(language: Language, text: bytes) -> bool:
    """No fault anywhere, and for Python a file that compiles."""
    return not faults(language, text) and (language.name != "python" or compiles(text))


def adds_error(language: Language, splice: Splice) -> bool:
    """Whether the result has an ERROR or MISSING beyond those of `whole`, or no longer compiles.

    An old fault excuses a new one only if the new one lies inside it.
    """
    old = [splice.moved(*fault) for fault in faults(language, splice.whole)]
    for start, end in faults(language, splice.result):
        if not any(left <= start and end <= right for left, right in old):
            return True
    return language.name == "python" and compiles(splice.whole) and not compiles(splice.result)
