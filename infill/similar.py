"""Lines of the file that may stand in the hole as well: those in like surroundings, as they are or renamed.

The text behind the hole counts as much as the text before it: whoever edits has both. Knows no tokens, no model, no
syntax; what it finds is judged like any other draft.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

WORD = re.compile(rb"\w+|[^\w\s]")
ABOVE, BELOW = (4, 2, 1), (4, 2)
"""What the neighbours of a line count in its likeness, nearest first."""
MOST_ALIKE = sum(ABOVE) + sum(BELOW)
RENAMED = 2
"""What a neighbour counts besides that is the hole's neighbour but for the names."""
LINES = 1000
"""Looked at before the hole, and as many behind it."""
WIDEST = 400
"""Bytes; a longer line says nothing."""
REACH = 150
"""Lines before and behind the hole that are renamed."""

_HERE = frozenset([b"\n"])
"""The words of the hole's own line: none that another line has."""


@dataclass(frozen=True, slots=True)
class Similar:
    """`text` may go into the hole as it is. The more `likeness`, the more alike are the places; 0 is not at all."""

    text: bytes
    likeness: float


class Page:
    """The lines around one hole, which is a line of its own that resembles none.

    typed   what stands left of the hole on its line, without indentation
    fresh   a whole line is missing, its indentation included
    """

    def __init__(self, before: bytes, after: bytes) -> None:
        *above, typed = before.split(b"\n")[-LINES - 1 :]
        below = after.split(b"\n", LINES + 1)
        self.typed = typed.lstrip()
        self.fresh = not typed and after[:1] not in (b"\n", b"\r", b"")
        if not self.fresh:
            below = below[1:]
        self.at = len(above)
        self.lines = [line if len(line) <= WIDEST else b"" for line in (*above, b"", *below[:LINES])]
        self._words = [frozenset(WORD.findall(line)) for line in self.lines]
        self._words[self.at] = _HERE

    def similar(self, count: int) -> list[Similar]:
        """What follows `typed` on the lines that begin with it, indentation aside; most alike first, none twice."""
        return _best([(score, i, self._placed(i, rest)) for score, i, rest in self._rests], count)

    def renamed(self, count: int) -> list[Similar]:
        """The same for lines that begin with `typed` but for its names: renamed as they and their neighbours are.

        `width = box.width` becomes `width = cup.width` where the hole is below `height = cup.height` and it stands
        below `height = box.height`. Lines that come out as they are belong to `similar`.
        """
        return _best([(score, i, self._placed(i, rest)) for score, i, rest in self._renamed], count)

    def alike(self, text: bytes) -> tuple[bool, float]:
        """Whether a line goes on from `typed` as `text` does up to its line end, and the best likeness of those that
        do so as they are or renamed."""
        line = first_line(text)
        return line in self._known, max(self._known.get(line, 0.0), self._made.get(line, 0.0))

    def neighbour(self, way: int) -> bytes:
        """The nearest line before (-1) or behind (1) the hole that is not blank, without indentation."""
        lines = self.lines[self.at + 1 :] if way > 0 else reversed(self.lines[: self.at])
        return next((line.strip() for line in lines if line.strip()), b"")

    @cached_property
    def _rests(self) -> list[tuple[float, int, bytes]]:
        lines = enumerate(map(bytes.strip, self.lines))
        rests = [(i, line[len(self.typed) :]) for i, line in lines if line.startswith(self.typed)]
        return [(self._likeness(i), i, rest) for i, rest in rests if rest.strip() and i != self.at]

    @cached_property
    def _renamed(self) -> list[tuple[float, int, bytes]]:
        found: list[tuple[float, int, bytes]] = []
        for i in range(max(0, self.at - REACH), min(len(self.lines), self.at + REACH)):
            if (begun := self._begun(self.lines[i].strip())) is None:
                continue
            names, rest = begun
            agree = sum(self._agrees(i + way, self.at + way, names) for way in (-1, 1))
            if (renamed := _rename(rest, names)) != rest:
                found.append((self._likeness(i) + RENAMED * agree, i, renamed))
        return found

    @cached_property
    def _known(self) -> dict[bytes, float]:
        return {rest.strip(): score for score, _, rest in sorted(self._rests)}

    @cached_property
    def _made(self) -> dict[bytes, float]:
        return {rest.strip(): score for score, _, rest in sorted(self._renamed)}

    def _begun(self, line: bytes) -> tuple[dict[bytes, bytes], bytes] | None:
        """How the words of `line` that stand for those of `typed` are renamed, and the rest; None where they do not."""
        words, typed = list(WORD.finditer(line)), WORD.findall(self.typed)
        if len(words) <= len(typed):
            return None
        cut = words[len(typed) - 1].end() if typed else 0
        names = _renames(line[:cut], self.typed, {})
        rest = line[cut:].lstrip() if self.typed[-1:].isspace() else line[cut:]
        return None if names is None else (names, rest)

    def _agrees(self, i: int, hole: int, names: dict[bytes, bytes]) -> bool:
        """Whether line `i` is line `hole` but for names, which `names` learns."""
        if not (0 <= i < len(self.lines) and 0 <= hole < len(self.lines)) or i == self.at:
            return False
        more = _renames(self.lines[i], self.lines[hole], names) if self._words[i] and self._words[hole] else None
        names.update(more or {})
        return more is not None

    def _likeness(self, i: int) -> float:
        """How alike the neighbours of line `i` and those of the hole are: 0 to the sum of the weights."""
        pairs = ((weight, way * k) for way, sides in ((-1, ABOVE), (1, BELOW)) for k, weight in enumerate(sides, 1))
        return sum(weight * _alike(self._at(i + k), self._at(self.at + k)) for weight, k in pairs)

    def _at(self, i: int) -> frozenset[bytes]:
        return self._words[i] if 0 <= i < len(self._words) else frozenset()

    def _placed(self, i: int, rest: bytes) -> bytes:
        """`rest` of line `i`; where a whole line is wanted, indented from the line above as line `i` is from its."""
        if not self.fresh:
            return rest
        mine, above, here = _indent(self.lines[i]), self._indent_above(i), self._indent_above(self.at)
        return (here[:1] or mine[:1]) * max(0, len(here) + len(mine) - len(above)) + rest

    def _indent_above(self, i: int) -> bytes:
        return next((_indent(line) for line in reversed(self.lines[:i]) if line.strip()), b"")


def first_line(text: bytes) -> bytes:
    return text.strip().split(b"\n")[0].rstrip()


def _indent(line: bytes) -> bytes:
    return line[: len(line) - len(line.lstrip(b" \t"))]


def _alike(a: frozenset[bytes], b: frozenset[bytes]) -> float:
    """Jaccard similarity of two lines' words; two blank lines are alike."""
    return len(a & b) / len(a | b) if a or b else 1.0


def _renames(one: bytes, other: bytes, names: dict[bytes, bytes]) -> dict[bytes, bytes] | None:
    """`names` and what else makes `other` of `one`; None where they differ in more than words, or not always alike."""
    left, right, names = WORD.findall(one), WORD.findall(other), dict(names)
    if len(left) != len(right):
        return None
    for a, b in zip(left, right, strict=True):
        if a != b and not (_is_word(a) and _is_word(b) and names.setdefault(a, b) == b):
            return None
    return names


def _is_word(token: bytes) -> bool:
    return re.match(rb"\w", token) is not None


def _rename(text: bytes, names: dict[bytes, bytes]) -> bytes:
    return re.sub(rb"\w+", lambda word: names.get(word[0], word[0]), text)


def _best(found: list[tuple[float, int, bytes]], count: int) -> list[Similar]:
    best: dict[bytes, Similar] = {}
    for score, _, text in sorted(found, reverse=True):
        best.setdefault(text.rstrip(), Similar(text.rstrip(), score))
    return list(best.values())[:count]
