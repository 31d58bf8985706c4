"""The ground a fill is judged on: how broken the file is apart from the hole, and whether a fill adds to it.

A file that is broken only because of the hole counts as sound, so that what a fill leaves broken is the
fill's fault. Knows nothing of tidying and of repeats; its time budget runs on the clock it is given.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tree_sitter import Node, Tree

from . import pythonic
from .halves import missing
from .holes import Hole
from .source import Clock, Flaw, Source, blanks, flaws, grow, indent_at, line_end, line_start, splice, unit


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a fill may be shown; `reason` is one plain phrase, empty when `ok`."""

    ok: bool
    reason: str = ""
    span: tuple[int, int] | None = None
    """Bytes of the fill to write anew; None stands for all of it."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """What a place behind the hole belongs to: a string, a comment or code, and what encloses it."""

    offset: int
    """From the hole's end."""
    kind: str
    owners: frozenset[tuple[int, int]]
    """Where the enclosing statements, bodies and brackets begin that begin before the hole; counted per place."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """What the file is like apart from the hole, so that a fill answers for its own faults only."""

    count: int
    """ERROR and MISSING nodes."""
    size: int
    """Bytes in them, the hole's own not counted."""
    near: bool
    """Whether one lies on the hole's lines or beside them."""
    marks: tuple[_Mark, ...]
    compiles: int
    """How far Python gets with an innocent fill in the hole."""


class Ground:
    """One source with one hole, parsed anew for every fill (incrementally, from the source's tree)."""

    def __init__(
        self,
        source: Source,
        hole: Hole,
        *,
        clock: Clock | None = None,
        budget_ms: float | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`source` has a tree; `budget_ms` bounds each single parse; `look` is called before each and may raise."""
        self.source, self.hole = source, hole
        self._clock, self._budget_ms, self._look = clock, budget_ms, look
        self._python = source.language.name == "python"
        self._base = source, hole.end
        """A source to parse from, and where in it the hole ends."""
        self._others: list[tuple[_Mark, ...]] | None = None
        self.limit = self._judge()

    def verdict(self, fill: bytes, *, complete: bool) -> Verdict:
        """Whether the file is no worse with the fill."""
        grown = self._grow(fill)
        if grown is None:
            return Verdict(False, f"the syntax check took longer than {self._budget_ms:g} ms")
        text, tree = grown
        return (
            self._new_flaws(tree, fill, complete)
            or self._swallowed(text, tree, fill)
            or self._beheaded(text, tree, fill)
            or self._uneven(text, tree, fill)
            or self._uncompilable(text, tree, fill)
            or Verdict(True)
        )

    def sound_part(self) -> Ground | None:
        """The largest stretch of lines around the hole that is sound on its own, as a ground of its own.

        Where the file is broken elsewhere, one more flaw can drown in how the parser recovers from the
        others; there it cannot.
        """
        first, last = self.source.window
        around = [(a, b) for a, b, _ in _surroundings(self.source, self.hole.start, self.hole.end)]
        for low, high in reversed(around):
            if low < first or high > last or (low, high) == (first, last):
                continue
            tree = self._parse(self.source.text, (low, high), None)
            if tree is not None:
                part = replace(self.source, tree=tree, window=(low, high))
                ground = Ground(part, self.hole, clock=self._clock, budget_ms=self._budget_ms, look=self._look)
                if not ground.limit.count:
                    return ground
        return None

    # ---- before -----------------------------------------------------------------------------------------

    def _judge(self) -> _Limit:
        """With the text that is there; for an insertion also with neutral fillers or without the lines around.

        A file that is broken only because of the hole counts as sound, so what a fill leaves broken is the
        fill's fault; flaws that stay when the lines around the hole are blanked out are not.
        """
        hole = self.hole
        there = self.source.text[hole.start : hole.end]
        best = self._try(there)
        if best is None:
            return _Limit(0, 0, False, (), pythonic.NOT)
        # To bytecode: a missing `def` line leaves a body that parses as the rest of the function above.
        done = pythonic.FULL if self._python else pythonic.NOT
        if there.strip() or (not best.count and best.compiles >= done):
            return best
        if not best.count and best.compiles == pythonic.SYNTAX:
            return self._with_head(best)
        until = self._clock() + self._budget_ms / 250 if self._clock and self._budget_ms else None
        apart = min(self._apart(), key=lambda one: (one.count, -one.compiles), default=best)
        smallest = best.size
        for filler in self._fillers():
            if until is not None and self._clock is not None and self._clock() > until:
                break  # four parses' worth: what is known by now must do
            made = self._try(filler)
            if made is not None and (made.count, -made.compiles) < (best.count, -best.compiles):
                best = made
            smallest = min(smallest, made.size if made is not None else smallest)
            if (best.count, -best.compiles) <= (apart.count, -apart.compiles) and not best.near:
                break
        if apart.count < best.count:
            return apart
        # One flaw over half the file may be all a parser reports where another fill leaves two small ones.
        best = replace(best, size=min(best.size, smallest))
        if not best.count and best.compiles == pythonic.SYNTAX:
            best = self._with_head(best)
        return replace(best, compiles=max(best.compiles, apart.compiles if apart.count == best.count else 0))

    def _with_head(self, best: _Limit) -> _Limit:
        """Python that parses but does not compile: whether the head of a function in the hole is what it lacks."""
        for head in ("async def x():", "def x():"):
            for indent in self._indents():
                made = self._try(self.hole.wrap(indent + head.encode()))
                if made is not None and not made.count and made.compiles == pythonic.FULL:
                    return made
        return best

    def _fillers(self) -> list[bytes]:
        """Innocent fills, at each likely indentation where the hole begins a line and so decides about it."""
        text, hole, indents = self.source.text, self.hole, self._indents()
        fillers = [hole.wrap(indent + one.encode()) for one in self.source.language.fillers for indent in indents]
        halves = missing(self.source.language.name, text[: hole.start], text[hole.end :])
        fillers = [*(hole.wrap(half) for half in halves), *fillers]
        return list(dict.fromkeys(fillers))

    def _indents(self) -> list[bytes]:
        text, hole = self.source.text, self.hole
        if hole.lead or line_start(text, hole.start) != hole.start:
            return [b""]
        above = indent_at(text, line_start(text, max(0, hole.start - 1)))
        below = re.match(rb"\s*?([ \t]*)(?=\S|\Z)", text[hole.end :])
        step = unit(self.source, hole.start)
        found = [above + step, above, below[1] if below else b"", *([above[: -len(step)]] if above else [])]
        return list(dict.fromkeys(found))

    def _try(self, fill: bytes) -> _Limit | None:
        """The file with `fill` in the hole; None when it could not be parsed in time."""
        grown = self._grow(fill)
        if grown is None:
            return None
        text, tree = grown
        found = flaws(tree)
        marks = self._marks(text, tree, self.hole.start + len(fill))
        near = self._near(text, found, len(fill)) if found else False
        compiles = pythonic.NOT
        if self._python and not near:  # with a flaw beside the hole there is nothing to try
            compiles = pythonic.compiles(self._region(text, tree, len(fill))[0])[0]
        return _Limit(len(found), self._size(found, len(fill)), near, marks, compiles)

    def _near(self, text: bytes, found: Sequence[Flaw], size: int) -> bool:
        low = len(text[: line_start(text, self.hole.start)].rstrip())
        end = line_end(text, self.hole.start + size)
        high = line_end(text, end + len(text[end:]) - len(text[end:].lstrip()))
        return any(one.start <= high and one.end >= low for one in found)

    def _apart(self) -> Iterator[_Limit]:
        """The file with the lines around the hole blanked out: its own, then the statement's."""
        for start, end, beyond in _surroundings(self.source, self.hole.start, self.hole.end):
            if beyond:  # flaws elsewhere in that block are not the hole's
                return
            blank = re.sub(rb"[^\r\n]", b" ", self.source.text[start:end])
            if self._python:
                space = len(blanks(self.source.text[start:end]))
                blank = blank[:space] + b"pass" + blank[space + 4 :]
            text, window, old = splice(self.source, start, end, blank)
            tree = self._parse(text, window, old)
            if tree is None:
                continue
            found = flaws(tree)
            level = pythonic.NOT
            if self._python:
                level = pythonic.compiles(self._region(text, tree, self.hole.end - self.hole.start)[0])[0]
            moved = len(text) - len(self.source.text)
            marks = tuple(
                replace(mark, offset=mark.offset + end - self.hole.end) for mark in self._marks(text, tree, end + moved)
            )
            yield _Limit(len(found), sum(one.end - one.start for one in found), False, marks, level)
            if not found:
                return

    def _size(self, found: Sequence[Flaw], size: int) -> int:
        """Bytes in flaws; where one goes around the hole, the hole's own are not counted."""
        start, end = self.hole.start, self.hole.start + size
        return sum(one.end - one.start - (size if one.start <= start and one.end >= end else 0) for one in found)

    # ---- after ------------------------------------------------------------------------------------------

    def _grow(self, fill: bytes) -> tuple[bytes, Tree] | None:
        base, end = self._base
        text, window, old = splice(base, self.hole.start, end, fill)
        tree = self._parse(text, window, old)
        if tree is None:
            return None
        if not tree.root_node.has_error and (base.tree is None or base.tree.root_node.has_error):
            self._base = replace(base, text=text, window=window, tree=tree), self.hole.start + len(fill)
        return text, tree

    def _parse(self, text: bytes, window: tuple[int, int], old: Tree | None) -> Tree | None:
        self._look()
        return grow(text, self.source.language, window, old=old, budget_ms=self._budget_ms, clock=self._clock)

    def _new_flaws(self, tree: Tree, fill: bytes, complete: bool) -> Verdict | None:
        """More flaws than before, larger ones, or one that begins or ends in the fill or beside it.

        The number alone would let an error grow over the whole file.
        """
        found = flaws(tree)
        start, end = self.hole.start, self.hole.start + len(fill)
        if not complete:
            last = start + fill.rstrip().rfind(b"\n") + 1
            found = [one for one in found if not last <= one.start <= end]
        touching = [
            one for one in found if one.start <= end and one.end >= start and not (one.start < start and one.end > end)
        ]
        limit = self.limit
        if not touching and len(found) <= limit.count and self._size(found, len(fill)) <= limit.size:
            return None
        a = max(min((one.start for one in touching), default=end), start) - start
        b = min(max((one.end for one in touching), default=start), end) - start
        missing = next((one.kind for one in touching if one.start == one.end), "")
        reason = f"a syntax error: {missing} is missing" if missing else "a syntax error"
        return Verdict(False, reason, (a, b) if a < b else None)

    def _swallowed(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        """What stands behind the hole must stay in the string, comment, statement or body it was in.

        Or in the one it would be in behind a neutral filler: with nothing in the hole, `return |` takes
        the next line for its value in half the languages.
        """
        verdict = None
        for marks in self._expected():
            found = self._moved(text, tree, fill, marks)
            if found is None:
                return None
            verdict = verdict or found
        return verdict

    def _expected(self) -> Iterator[tuple[_Mark, ...]]:
        yield self.limit.marks
        if self._others is None:
            fillers = self._fillers()
            limit = self.limit.count
            tried = (self._try(filler) for filler in fillers)
            fine = (one.marks for one in tried if one is not None and one.count <= limit)
            self._others = list(itertools.islice(fine, 2))
        yield from self._others

    def _moved(self, text: bytes, tree: Tree, fill: bytes, marks: Sequence[_Mark]) -> Verdict | None:
        for mark in marks:
            kind, owners = self._owners(text, tree, self.hole.start + len(fill) + mark.offset)
            if kind != mark.kind:
                return Verdict(False, f"turns what follows into {kind}")
            if mark.owners - owners:
                return Verdict(False, "takes what follows out of its block")
        return None

    def _beheaded(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        """C, C++: a block behind the hole that stands for itself outside any function, which the grammar lets pass."""
        found = re.compile(rb"\s*\{").match(text, self.hole.start + len(fill))
        if found is None or self.source.language.name not in ("c", "cpp"):
            return None
        brace = tree.root_node.descendant_for_byte_range(found.end() - 1, found.end())
        block = brace.parent if brace is not None and brace.type == "{" else None
        around = block.parent if block is not None and block.type == "compound_statement" else None
        if around is None or around.type not in ("translation_unit", "declaration_list"):
            return None
        return Verdict(False, "ends before the block that follows")

    def _uneven(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        """Python: statements of one block begin in one column (the grammar lets most slips through)."""
        if not self._python:
            return None
        slip = pythonic.slip(text, tree, self.hole.start, self.hole.start + len(fill))
        return None if slip is None else Verdict(False, "wrong indentation", self._line(text, slip, fill))

    def _line(self, text: bytes, offset: int, fill: bytes) -> tuple[int, int] | None:
        """The line of `offset` as far as it lies in the fill."""
        a = min(max(line_start(text, offset) - self.hole.start, 0), len(fill))
        b = min(max(line_end(text, offset) - self.hole.start, 0), len(fill))
        return (a, b) if a < b else None

    def _uncompilable(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        if not self.limit.compiles:
            return None
        region, at = self._region(text, tree, len(fill))
        level, error = pythonic.compiles(region, self.limit.compiles)
        if level >= self.limit.compiles or error is None:
            return None
        for _ in range((error.lineno or 1) - 1):
            at = text.find(b"\n", at) + 1 or len(text)
        return Verdict(False, f"Python says: {error.msg}", self._line(text, at, fill))

    # ---- places -----------------------------------------------------------------------------------------

    def _region(self, text: bytes, tree: Tree, size: int) -> tuple[bytes, int]:
        """The top-level statements that the fill touches, as whole lines, and where they begin."""
        start, end = self.hole.start, self.hole.start + size
        low, high = line_start(text, start), line_end(text, end)
        above = low
        for node in tree.root_node.children:
            if node.end_byte >= low and node.start_byte <= high:
                low = min(low, line_start(text, node.start_byte))
                high = max(high, line_end(text, node.end_byte))
            elif node.end_byte < low and node.type != "comment":
                above = line_start(text, node.start_byte)  # `def f():` without a body ends before the hole
            elif node.start_byte > high:
                break
        low = min(low, above)
        return text[low:high], low

    def _marks(self, text: bytes, tree: Tree, end: int) -> tuple[_Mark, ...]:
        """Sample places behind `end`: the first and last character of the line, then of lines below."""
        places = []
        for found in re.finditer(rb"[^\s]", text[end : line_end(text, end)]):
            places += [found.start()]
        places = places[:1] + places[-1:]
        for found in re.finditer(rb"\n[ \t]*([^\s])", text[end : end + 4096]):
            places.append(found.start(1))
            if len(places) >= 6:
                break
        return tuple(_Mark(one, *self._owners(text, tree, end + one)) for one in dict.fromkeys(places))

    def _owners(self, text: bytes, tree: Tree, offset: int) -> tuple[str, frozenset[tuple[int, int]]]:
        """What the character at `offset` is part of, and where what encloses it begins, if before the hole."""
        language = self.source.language
        kind = "code"
        decided = False
        owners: Counter[int] = Counter()
        node = tree.root_node.descendant_for_byte_range(offset, min(offset + 1, len(text)))
        while node is not None and node.parent is not None:
            if not decided and node.type in language.comments:
                kind, decided = "a comment", True
            elif not decided and node.type in language.strings:
                kind, decided = "a string", True
            elif "interpolation" in node.type or "substitution" in node.type:
                decided = True
            if node.start_byte < self.hole.start and not node.is_error and self._holds(node):
                owners[node.start_byte] += 1
            node = node.parent
        return kind, frozenset((at, n) for at, count in owners.items() for n in range(count))

    def _holds(self, node: Node) -> bool:
        language = self.source.language
        kind = node.type
        return (
            kind in language.bodies
            or kind in language.functions
            or kind in language.classes
            or kind in language.arguments
            or kind in language.parameters
            or kind.endswith(("_statement", "_clause", "_definition", "_declaration", "_item"))
        )


_CLOSING = re.compile(rb"\s*([)\]}]|end\b|fi\b|done\b|esac\b|</)")
_HANGING = re.compile(
    rb"\s*([)\]}{]|</|(end|fi|done|esac|else|elif|elsif|elseif|except|finally|catch|rescue|ensure|then|do)\b)"
)
"""How a line begins that belongs to the lines above it though it stands no deeper."""


def _surroundings(source: Source, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Ranges of whole lines around a range, growing: its own with what hangs on them, up to the outermost.

    By indentation, because the tree is broken where this is needed. The flag says that the range goes
    beyond the line that opens the block around, so that it holds more than the statement.
    """
    text = source.text
    low, high = line_start(text, start), line_end(text, end)
    opener = re.compile(source.language.opener)
    deep = len(blanks(text[low:high]))
    if not text[low:high].strip() or _CLOSING.match(text[low:high]):
        above = low
        while above > 0:  # a closing line, or where one is missing: its block hangs on it
            above = line_start(text, above - 1)
            line = text[above : line_end(text, above)]
            if line.strip() and len(blanks(line)) <= deep:
                low = above if len(blanks(line)) == deep else low
                break
    beyond = False
    for _ in range(12):
        while high < len(text):  # what stands deeper belongs to it, and a closing line ends it
            begin = text.find(b"\n", high) + 1 or len(text)
            stop = line_end(text, begin)
            line = text[begin:stop]
            if line.strip() and len(blanks(line)) <= deep:
                if len(blanks(line)) < deep or not _HANGING.match(line):
                    break
                high = stop
                if not opener.search(line.decode("utf-8", "replace").rstrip()):
                    break
            high = stop
        yield low, high, beyond
        head = low
        while head > 0 and deep > 0:  # up to the line it hangs on
            head = line_start(text, head - 1)
            line = text[head : line_end(text, head)]
            if line.strip() and len(blanks(line)) < deep:
                break
        else:
            return
        if opener.search(line.decode("utf-8", "replace").rstrip()):
            beyond = True
        low, deep = head, len(blanks(line))
