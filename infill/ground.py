"""The ground a fill is judged on: how broken the file is apart from the hole, and whether a fill adds to it.

A file that is broken only because of the hole counts as sound, so that what a fill leaves broken is the
fill's fault. Knows nothing of tidying and of repeats; its time budget runs on the clock it is given.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tree_sitter import Tree

from . import pythonic, readers
from .around import surroundings
from .fillers import fillers, indents
from .holes import Hole, remark
from .lax import lapse
from .marks import Mark, begins, owners, sample
from .source import Clock, Flaw, Source, blanks, flaws, grow, indent_at, line_end, line_start, splice


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a fill may be shown; `reason` is one plain phrase, empty when `ok`."""

    ok: bool
    reason: str = ""
    span: tuple[int, int] | None = None
    """Bytes of the fill to write anew; None stands for all of it."""
    mends: bool = False
    """Whether the file was broken and has no fault with the fill."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """What the file is like apart from the hole, so that a fill answers for its own faults only."""

    count: int
    """ERROR and MISSING nodes."""
    size: int
    """Bytes in them, the hole's own not counted."""
    near: bool
    """Whether one lies on the hole's lines or beside them."""
    marks: tuple[Mark, ...]
    reads: int
    """How far the language's own reader gets with an innocent fill in the hole."""
    places: tuple[tuple[int, int], ...] = ()
    """Where the flaws are, in the text without the hole."""


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
        self._reader = readers.NAMES.get(source.language.name, "")
        # An exact place was asked for, in a file that may lack a line there: what follows may have hung on that line.
        self._inserts = source.language.indented and hole.scope == "selection" and hole.start == hole.end
        self._base = source, hole.end
        """A source to parse from, and where in it the hole ends."""
        self._others: list[tuple[Mark, ...]] | None = None
        self.limit = self._judge()

    def verdict(self, fill: bytes, *, complete: bool) -> Verdict:
        """Whether the file is no worse with the fill."""
        grown = self._grow(fill)
        if grown is None:
            return Verdict(False, f"the syntax check took longer than {self._budget_ms:g} ms")
        text, tree = grown
        bad = (
            self._new_flaws(tree, fill, complete)
            or self._swallowed(text, tree, fill)
            or self._beheaded(text, tree, fill)
            or self._draws_in(tree, fill)
            or self._lax(text, tree, fill)
            or self._uneven(text, tree, fill)
            or self._unreadable(text, tree, fill)
        )
        return bad or Verdict(True, mends=bool(self.limit.count) and self._faultless(text, tree, len(fill)))

    def sound_part(self) -> Ground | None:
        """The largest stretch of lines around the hole that is sound on its own, as a ground of its own.

        Where the file is broken elsewhere, one more flaw can drown in how the parser recovers from the
        others; there it cannot.
        """
        first, last = self.source.window
        around = [(a, b) for a, b, _ in surroundings(self.source, self.hole.start, self.hole.end)]
        for low, high in reversed(around):
            if low < first or high > last or (low, high) == (first, last):
                continue
            if self.source.language.name == "php" and self.source.text[low : low + 1].isspace():
                continue  # may be of a class, whose members its grammar takes nowhere else
            tree = self._parse(self.source.text, (low, high), None)
            if tree is not None:
                part = replace(self.source, tree=tree, window=(low, high))
                ground = Ground(part, self.hole, clock=self._clock, budget_ms=self._budget_ms, look=self._look)
                if not ground.limit.count:
                    return ground
        return None

    def astray(self, part: Ground) -> bool:
        """Whether the hole is in a string that a lost quote has made: by the whole file, and not by the `part`."""
        kinds = [self._kind_before(one.source.tree) for one in (self, part)]
        return kinds == ["a string", "code"]

    def _kind_before(self, tree: Tree | None) -> str:
        at = max(0, self.hole.start - 1)
        return owners(self.source.language, self.source.text, tree, at, at)[0] if tree is not None else ""

    @cached_property
    def _fillers(self) -> list[bytes]:
        return fillers(self.source, self.hole)

    # ---- before -----------------------------------------------------------------------------------------

    def _judge(self) -> _Limit:
        """With the text that is there; where it says nothing also with neutral fillers or without the lines around.

        A file that is broken only because of the hole counts as sound, so what a fill leaves broken is the
        fill's fault; flaws that stay when the lines around the hole are blanked out are not.
        """
        hole = self.hole
        there = self.source.text[hole.start : hole.end]
        best = self._try(there)
        if best is None:
            return _Limit(0, 0, False, (), pythonic.NOT)
        # To bytecode: a missing `def` line leaves a body that parses as the rest of the function above.
        done = pythonic.FULL if self._reader else pythonic.NOT
        if not best.count and best.reads >= done:
            return best
        if there.strip() and remark(self.source.language, there) != "a comment":
            return best
        if not best.count and best.reads == pythonic.SYNTAX:
            return self._with_head(best)
        given = best.places
        until = self._clock() + self._budget_ms / 250 if self._clock and self._budget_ms else None
        apart = min(self._apart(), key=lambda one: (one.count, -one.reads), default=best)
        smallest = best.size
        for filler in self._fillers:
            if until is not None and self._clock is not None and self._clock() > until:
                break  # four parses' worth: what is known by now must do
            made = self._try(filler)
            if made is not None and (made.count, -made.reads) < (best.count, -best.reads):
                best = made
            smallest = min(smallest, made.size if made is not None else smallest)
            if (best.count, -best.reads) <= (apart.count, -apart.reads) and not best.near:
                break
        if apart.count < best.count:
            return replace(apart, places=given)
        # One flaw over half the file may be all a parser reports where another fill leaves two small ones.
        best = replace(best, size=min(best.size, smallest), places=given)  # a filler may break other places
        if not best.count and best.reads == pythonic.SYNTAX:
            best = self._with_head(best)
        return replace(best, reads=max(best.reads, apart.reads if apart.count == best.count else 0))

    def _with_head(self, best: _Limit) -> _Limit:
        """Python that parses but does not compile: whether the head of a function in the hole is what it lacks."""
        for head in ("async def x():", "def x():"):
            for indent in indents(self.source, self.hole):
                made = self._try(self.hole.wrap(indent + head.encode()))
                if made is not None and not made.count and made.reads == pythonic.FULL:
                    return made
        return best

    def _try(self, fill: bytes) -> _Limit | None:
        """The file with `fill` in the hole; None when it could not be parsed in time."""
        grown = self._grow(fill)
        if grown is None:
            return None
        text, tree = grown
        found = flaws(tree)
        marks = self._marks(text, tree, self.hole.start + len(fill))
        near = self._near(text, found, len(fill)) if found else False
        level = pythonic.NOT if near else self._read(text, tree, len(fill))  # with a flaw beside it there is no use
        return _Limit(len(found), self._size(found, len(fill)), near, marks, level, self._places(found, len(fill)))

    def _near(self, text: bytes, found: Sequence[Flaw], size: int) -> bool:
        low = len(text[: line_start(text, self.hole.start)].rstrip())
        end = line_end(text, self.hole.start + size)
        high = line_end(text, end + len(text[end:]) - len(text[end:].lstrip()))
        return any(one.start <= high and one.end >= low for one in found)

    def _apart(self) -> Iterator[_Limit]:
        """The file with the lines around the hole blanked out: its own, then the statement's."""
        for start, end, beyond in surroundings(self.source, self.hole.start, self.hole.end):
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
            level = self._read(text, tree, self.hole.end - self.hole.start)
            moved = len(text) - len(self.source.text)
            marks = tuple(
                replace(mark, offset=mark.offset + end - self.hole.end) for mark in self._marks(text, tree, end + moved)
            )
            size = sum(one.end - one.start for one in found)
            yield _Limit(len(found), size, False, marks, level, self._places(found, moved))
            if not found:
                return

    def _size(self, found: Sequence[Flaw], size: int) -> int:
        """Bytes in flaws; where one goes around the hole, the hole's own are not counted."""
        start, end = self.hole.start, self.hole.start + size
        return sum(one.end - one.start - (size if one.start <= start and one.end >= end else 0) for one in found)

    def _places(self, found: Sequence[Flaw], size: int) -> tuple[tuple[int, int], ...]:
        """Flaws as ranges of the text without the hole, where `size` bytes are in it."""

        def back(at: int) -> int:
            return min(at, max(self.hole.start, at - size))

        return tuple((back(one.start), back(one.end)) for one in found)

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
        fewer = len(found) <= limit.count and self._size(found, len(fill)) <= limit.size
        if not touching and fewer and self._known(self._places(found, len(fill))):
            return None
        a = max(min((one.start for one in touching), default=end), start) - start
        b = min(max((one.end for one in touching), default=start), end) - start
        missing = next((one.kind for one in touching if one.start == one.end), "")
        reason = f"a syntax error: {missing} is missing" if missing else "a syntax error"
        return Verdict(False, reason, (a, b) if a < b else None)

    def _known(self, places: Sequence[tuple[int, int]]) -> bool:
        """Whether flaws lie in those that are there without the fill: fewer may still be others."""
        return all(any(a <= start and end <= b for a, b in self.limit.places) for start, end in places)

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

    def _expected(self) -> Iterator[tuple[Mark, ...]]:
        yield self.limit.marks
        if self._others is None:
            limit = self.limit.count
            tried = (self._try(filler) for filler in self._fillers)
            fine = (one.marks for one in tried if one is not None and one.count <= limit)
            self._others = list(itertools.islice(fine, 2))
        yield from self._others

    def _moved(self, text: bytes, tree: Tree, fill: bytes, marks: Sequence[Mark]) -> Verdict | None:
        for mark in marks:
            at = self.hole.start + len(fill) + mark.offset
            kind, found = owners(self.source.language, text, tree, self.hole.start, at)
            if kind != mark.kind:
                return Verdict(False, f"turns what follows into {kind}")
            if mark.owners - found and not (
                self._inserts and begins(self.source.language, tree, self.hole.start, self.hole.start + len(fill), at)
            ):
                return Verdict(False, "takes what follows out of its block")
        return None

    def _draws_in(self, tree: Tree, fill: bytes) -> Verdict | None:
        """A last line that goes on in the next one, as `if (a)` and `return a &&` do where a statement follows.

        Not where the next line asks for it: it stands deeper, begins with an operator or a brace, or goes on from a
        neutral filler too. Annotations and labels have their own line.
        """
        hole, source = self.hole, self.source
        language = source.language
        below = _NEXT.match(source.text, hole.end)
        above, broken, last = fill.rstrip().rpartition(b"\n")
        if self.limit.count or not language.joins or below is None or _OWN_LINE.match(last.strip()):
            return None
        indent = blanks(last) if broken else indent_at(source.text, hole.start)
        if len(below[1]) > len(indent):
            return None

        def goes_on(tree: Tree, size: int) -> bool:
            end = hole.start + size
            return begins(language, tree, hole.start, end, end + len(below[0]))

        if not goes_on(tree, len(fill)):
            return None
        for filler in [b"", *self._fillers[:4]]:
            grown = self._grow(filler)
            if grown is not None and not flaws(grown[1]) and goes_on(grown[1], len(filler)):
                return None
        return Verdict(False, "goes on in the line that follows", (len(above), len(fill)))

    def _lax(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        start = self.hole.start
        found = lapse(self.source.language, text, tree, start, start + len(fill))
        return None if found is None else Verdict(False, found[0], (found[1] - start, found[2] - start))

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

    def _faultless(self, text: bytes, tree: Tree, size: int) -> bool:
        return not flaws(tree) and (not self._reader or self._read(text, tree, size) == pythonic.FULL)

    def _unreadable(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        if not self.limit.reads:
            return None
        region, at = self._region(text, tree, len(fill))
        level, problem = readers.read(self.source.language.name, region, self.limit.reads)
        if level >= self.limit.reads or problem is None:
            return None
        for _ in range(problem.line - 1):
            at = text.find(b"\n", at) + 1 or len(text)
        return Verdict(False, f"{self._reader} says: {problem.message}", self._line(text, at, fill))

    def _read(self, text: bytes, tree: Tree, size: int) -> int:
        """How far the language's own reader gets; nowhere where there is none or it would not see the whole."""
        a, b = self.source.window
        if not self._reader or (not self._python and b - a < len(self.source.text)):
            return pythonic.NOT
        return readers.read(self.source.language.name, self._region(text, tree, size)[0])[0]

    # ---- places -----------------------------------------------------------------------------------------

    def _region(self, text: bytes, tree: Tree, size: int) -> tuple[bytes, int]:
        """The top-level statements that the fill touches, as whole lines, and where they begin; data as a whole."""
        if not self._python:
            return text, 0
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

    def _marks(self, text: bytes, tree: Tree, end: int) -> tuple[Mark, ...]:
        return sample(self.source.language, text, tree, self.hole.start, end)


_NEXT = re.compile(
    rb"[ \t]*\r?\n(?:[ \t]*\r?\n)*([ \t]*)(?=[\w$\"'`@(])(?!(?:else|elif|catch|finally|extends|implements|where)\b)"
)
"""What lies between a hole that ends its line and a line below that begins a statement of its own."""
_OWN_LINE = re.compile(rb"@|\[|#\[|template\b|//|/\*|\*|(case\b.*|\w+)\s*:$|.*[({\[,]$")
"""How a line begins that belongs to the one below and says so."""
