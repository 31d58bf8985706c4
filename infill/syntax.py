"""The gate: whether a fill may be shown, judged on the spliced text, and what is cut off it before.

A fill passes if the file is no worse with it: no new ERROR or MISSING node, for Python no new compile
error, nothing behind the hole swallowed or stolen, nothing of it repeated. Knows no tokens and no model;
its time budget is measured on the clock it is given.
"""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tree_sitter import Node, Tree

from .holes import Hole
from .source import Clock, Flaw, Source, blanks, flaws, grow, line_end, line_start, splice

_FULL, _AST, _NOT = 2, 1, 0


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
    owners: frozenset[int]
    """Where the enclosing statements, bodies and brackets begin that begin before the hole."""


@dataclass(frozen=True, slots=True)
class _Before:
    """What the file is like apart from the hole, so that a fill answers for its own faults only."""

    count: int
    """ERROR and MISSING nodes."""
    size: int
    """Bytes in them, the hole's own not counted."""
    marks: tuple[_Mark, ...]
    compiles: int
    """How far Python gets with an innocent fill in the hole."""


class Gate:
    """Judges fills for one hole of one source; what the file was like before is found out once."""

    def __init__(
        self,
        source: Source,
        hole: Hole,
        *,
        clock: Clock | None = None,
        budget_ms: float | None = None,
        allow_unchecked: bool = False,
    ) -> None:
        """`budget_ms` bounds each single parse, on `clock`; over it the verdict is no.

        Without a tree nothing passes unless `allow_unchecked`.
        """
        self.source, self.hole = source, hole
        self.checked = source.tree is not None
        self._allowed = allow_unchecked
        self._clock, self._budget_ms = clock, budget_ms
        self._others: list[tuple[_Mark, ...]] | None = None
        self._known: dict[tuple[bytes, bool], Verdict] = {}
        self._before = self._judge_before() if self.checked else None

    def check(self, fill: bytes, *, complete: bool = True) -> Verdict:
        """The verdict on a fill as it would go into the file (`Hole.wrap` applied).

        With `complete=False` the fill may be unfinished on its last line.
        """
        key = fill, complete
        if key not in self._known:
            self._known[key] = self._check(fill, complete)
        return self._known[key]

    def tidy(self, fill: bytes) -> bytes:
        """The fill without what repeats the text behind the hole; the first form that passes, else the plainest.

        Cuts trailing blanks, repeated lines, repeated closing brackets, a repeated indentation, and what
        goes beyond the line where one line is wanted.
        """
        plain = self._trimmed(fill)
        forms = [plain]
        for form in (self._without_repeats, self._without_closers, self._without_indent, self._first_line):
            forms += [made for made in map(form, list(forms)) if made not in forms]
        for made in forms:
            if self.check(made).ok:
                return made
        return plain

    # ---- before -----------------------------------------------------------------------------------------

    def _judge_before(self) -> _Before:
        """With the text that is there; for an insertion also with neutral fillers or without the lines around.

        A file that is broken only because of the hole counts as sound, so what a fill leaves broken is the
        fill's fault; flaws that stay when the lines around the hole are blanked out are not.
        """
        hole = self.hole
        there = self.source.text[hole.start : hole.end]
        best = self._try(there)
        if best is None:
            return _Before(0, 0, (), _NOT)
        done = _FULL if self._python else _NOT
        if there.strip() or (not best.count and best.compiles >= done):
            return best
        apart = min(self._apart(), key=lambda one: (one.count, -one.compiles), default=best)
        for filler in dict.fromkeys(hole.wrap(one.encode()) for one in self.source.language.fillers):
            made = self._try(filler)
            if made is not None and (made.count, -made.compiles) < (best.count, -best.compiles):
                best = made
            if (best.count, -best.compiles) <= (apart.count, -apart.compiles):
                break
        if apart.count < best.count:
            return apart
        return replace(best, compiles=max(best.compiles, apart.compiles if apart.count == best.count else 0))

    def _try(self, fill: bytes) -> _Before | None:
        """The file with `fill` in the hole; None when it could not be parsed in time."""
        grown = self._grow(fill)
        if grown is None:
            return None
        text, tree = grown
        found = flaws(tree)
        compiles = _compiles(self._region(text, tree, len(fill))[0])[0] if self._python else _NOT
        marks = self._marks(text, tree, self.hole.start + len(fill))
        return _Before(len(found), self._size(found, len(fill)), marks, compiles)

    def _apart(self) -> Iterator[_Before]:
        """The file with the lines around the hole blanked out: its own, then the statement's."""
        for start, end in _surroundings(self.source, self.hole.start, self.hole.end):
            blank = re.sub(rb"[^\r\n]", b" ", self.source.text[start:end])
            if self._python:
                space = len(blanks(self.source.text[start:end]))
                blank = blank[:space] + b"pass" + blank[space + 4 :]
            text, window, old = splice(self.source, start, end, blank)
            tree = self._parse(text, window, old)
            if tree is None:
                continue
            found = flaws(tree)
            level = _NOT
            if self._python:
                level = _compiles(self._region(text, tree, self.hole.end - self.hole.start)[0])[0]
            moved = len(text) - len(self.source.text)
            marks = tuple(
                replace(mark, offset=mark.offset + end - self.hole.end) for mark in self._marks(text, tree, end + moved)
            )
            yield _Before(len(found), sum(one.end - one.start for one in found), marks, level)
            if not found:
                return

    def _size(self, found: Sequence[Flaw], size: int) -> int:
        """Bytes in flaws; where one goes around the hole, the hole's own are not counted."""
        start, end = self.hole.start, self.hole.start + size
        return sum(one.end - one.start - (size if one.start <= start and one.end >= end else 0) for one in found)

    @property
    def _python(self) -> bool:
        return self.source.language.name == "python"

    # ---- after ------------------------------------------------------------------------------------------

    def _check(self, fill: bytes, complete: bool) -> Verdict:
        if not fill.strip():
            return Verdict(False, "empty")
        if self._before is None:
            return Verdict(self._allowed, "" if self._allowed else self.source.why or "no syntax tree")
        if self.hole.single_line and b"\n" in fill.strip():
            return Verdict(
                False, "goes beyond the line", (fill.index(b"\n", len(fill) - len(fill.lstrip())), len(fill))
            )
        grown = self._grow(fill)
        if grown is None:
            return Verdict(False, f"the syntax check took longer than {self._budget_ms:g} ms")
        text, tree = grown
        return (
            self._new_flaws(tree, fill, complete)
            or self._swallowed(text, tree, fill)
            or self._repeated(fill)
            or self._uneven(text, tree, fill)
            or self._uncompilable(text, tree, fill)
            or Verdict(True)
        )

    def _grow(self, fill: bytes) -> tuple[bytes, Tree] | None:
        text, window, old = splice(self.source, self.hole.start, self.hole.end, fill)
        tree = self._parse(text, window, old)
        return (text, tree) if tree is not None else None

    def _parse(self, text: bytes, window: tuple[int, int], old: Tree | None) -> Tree | None:
        return grow(text, self.source.language, window, old=old, budget_ms=self._budget_ms, clock=self._clock)

    def _new_flaws(self, tree: Tree, fill: bytes, complete: bool) -> Verdict | None:
        """More flaws than before, larger ones, or one that begins or ends in the fill or beside it.

        The number alone would let an error grow over the whole file.
        """
        assert self._before is not None
        found = flaws(tree)
        start, end = self.hole.start, self.hole.start + len(fill)
        if not complete:
            last = start + fill.rstrip().rfind(b"\n") + 1
            found = [one for one in found if not last <= one.start <= end]
        touching = [
            one for one in found if one.start <= end and one.end >= start and not (one.start < start and one.end > end)
        ]
        limit = self._before
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
        assert self._before is not None
        yield self._before.marks
        if self._others is None:
            fillers = (self.hole.wrap(one.encode()) for one in self.source.language.fillers)
            limit = self._before.count
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

    def _repeated(self, fill: bytes) -> Verdict | None:
        size = self._overlap(fill)
        if not size:
            return None
        return Verdict(False, "repeats what follows", (len(fill) - size, len(fill)))

    def _uneven(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        """Python: statements of one block begin in one column (the grammar lets most slips through)."""
        if not self._python:
            return None
        start, end = self.hole.start, self.hole.start + len(fill)
        node = tree.root_node.descendant_for_byte_range(start, end)
        while node is not None and node.type not in ("block", "module"):
            node = node.parent
        stack = [node] if node is not None else []
        while stack:
            node = stack.pop()
            if node.end_byte < start or node.start_byte > end:
                continue
            if node.type in ("block", "module"):
                slip = _slip(text, node)
                if slip is not None:
                    a = min(max(line_start(text, slip) - start, 0), len(fill))
                    b = min(max(line_end(text, slip) - start, 0), len(fill))
                    return Verdict(False, "wrong indentation", (a, b) if a < b else None)
            stack.extend(node.named_children)
        return None

    def _uncompilable(self, text: bytes, tree: Tree, fill: bytes) -> Verdict | None:
        assert self._before is not None
        if not self._before.compiles:
            return None
        region, at = self._region(text, tree, len(fill))
        level, error = _compiles(region, self._before.compiles)
        if level >= self._before.compiles or error is None:
            return None
        place = self._line_of(text, at, error)
        a = min(max(line_start(text, place) - self.hole.start, 0), len(fill))
        b = min(max(line_end(text, place) - self.hole.start, 0), len(fill))
        return Verdict(False, f"Python says: {error.msg}", (a, b) if a < b else None)

    @staticmethod
    def _line_of(text: bytes, at: int, error: SyntaxError) -> int:
        for _ in range((error.lineno or 1) - 1):
            at = text.find(b"\n", at) + 1 or len(text)
        return at

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
        return text[low:high] + b"\n", low

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

    def _owners(self, text: bytes, tree: Tree, offset: int) -> tuple[str, frozenset[int]]:
        """What the character at `offset` is part of, and where what encloses it begins, if before the hole."""
        language = self.source.language
        kind = "code"
        decided = False
        owners = set()
        node = tree.root_node.descendant_for_byte_range(offset, min(offset + 1, len(text)))
        while node is not None and node.parent is not None:
            if not decided and node.type in language.comments:
                kind, decided = "a comment", True
            elif not decided and node.type in language.strings:
                kind, decided = "a string", True
            elif "interpolation" in node.type or "substitution" in node.type:
                decided = True
            if node.start_byte < self.hole.start and not node.is_error and self._holds(node):
                owners.add(node.start_byte)
            node = node.parent
        return kind, frozenset(owners)

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

    # ---- repeats ----------------------------------------------------------------------------------------

    @property
    def _rest(self) -> bytes:
        return self.source.text[self.hole.end : self.hole.end + 4096]

    def _trimmed(self, fill: bytes) -> bytes:
        """Without trailing blanks where the line ends anyway."""
        rest = self._rest
        if self.hole.tail and fill.endswith(self.hole.tail):
            return fill[: -len(self.hole.tail)].rstrip() + self.hole.tail
        if not rest or rest[:1] in b"\r\n":
            return fill.rstrip()
        return fill

    def _overlap(self, fill: bytes) -> int:
        """How many bytes at the fill's end repeat what follows: whole lines, or the rest of this line."""
        body = fill[: len(fill) - len(self.hole.tail)] if fill.endswith(self.hole.tail) else fill
        extra = len(fill) - len(body)
        rest = self._rest.split(b"\n")
        first = rest[0].strip()
        if first and _weight(first) >= 6 and body.rstrip().endswith(first):
            kept = body.rstrip()[: -len(first)]
            return len(body) - len(kept) + extra
        following = [line.strip() for line in rest[1:] if line.strip()]
        lines = body.split(b"\n")
        for count in range(min(len(lines), len(following), 12), 0, -1):
            last = [line.strip() for line in lines[-count:]]
            if last == following[:count] and sum(map(_weight, last)) >= 6:
                return min(len(b"\n".join(lines[-count:])) + 1 + extra, len(fill))
        return 0

    def _without_repeats(self, fill: bytes) -> bytes:
        kept = fill[: len(fill) - self._overlap(fill)]
        return self._trimmed(kept + self.hole.tail) if kept.strip() and kept != fill else fill

    def _without_closers(self, fill: bytes) -> bytes:
        """Without closing brackets (and what ends a statement) that stand behind the hole already."""
        rest = b"".join(self._rest.split())[:16]
        end = len(fill.rstrip())
        closers = re.search(rb"[)\]}>;,'\"`\s]*$", fill[:end])
        assert closers is not None
        tail = b"".join(closers.group().split())
        same = next((n for n in range(min(len(tail), len(rest)), 0, -1) if rest.startswith(tail[-n:])), 0)
        while same:
            end -= 1
            same -= fill[end : end + 1].strip() != b""
        return self._trimmed(fill[:end]) if end < len(fill.rstrip()) else fill

    def _without_indent(self, fill: bytes) -> bytes:
        """Without the indentation that stands before the hole already."""
        blank = self.source.text[line_start(self.source.text, self.hole.start) : self.hole.start]
        return fill[len(blank) :] if blank and not blank.strip() and fill.startswith(blank) else fill

    def _first_line(self, fill: bytes) -> bytes:
        if not self.hole.single_line:
            return fill
        line = fill.lstrip(b"\r\n").split(b"\n")[0]
        return line.rstrip(b"\r")


def _weight(line: bytes) -> int:
    """How much a line says: `}` and `end` nothing, so that repeating them is no offence."""
    return len(re.findall(rb"[\w\x80-\xff]", line))


_CLOSING = re.compile(rb"\s*([)\]}]|end\b|fi\b|done\b|esac\b|</)")


def _surroundings(source: Source, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole lines around a range: its own with what hangs on them, then up to the statement's head.

    By indentation, because the tree is broken where this is needed. It stops at a line that opens a block:
    flaws elsewhere in that block are not the hole's.
    """
    text = source.text
    low, high = line_start(text, start), line_end(text, end)
    deep = len(blanks(text[low:high]))
    if not text[low:high].strip() or _CLOSING.match(text[low:high]):
        above = low
        while above > 0:  # a closing line, or where one is missing: its block hangs on it
            above = line_start(text, above - 1)
            line = text[above : line_end(text, above)]
            if line.strip() and len(blanks(line)) <= deep:
                low = above if len(blanks(line)) == deep else low
                break
    for _ in range(8):
        while high < len(text):  # what stands deeper belongs to it, and a closing line ends it
            begin = text.find(b"\n", high) + 1 or len(text)
            stop = line_end(text, begin)
            line = text[begin:stop]
            if line.strip() and len(blanks(line)) <= deep:
                if len(blanks(line)) == deep and _CLOSING.match(line):
                    high = stop
                break
            high = stop
        yield low, high
        head = low
        while head > 0 and deep > 0:  # up to the line it hangs on
            head = line_start(text, head - 1)
            line = text[head : line_end(text, head)]
            if line.strip() and len(blanks(line)) < deep:
                break
        else:
            return
        if re.search(source.language.opener, line.decode("utf-8", "replace").rstrip()):
            return
        low, deep = head, len(blanks(line))


def _slip(text: bytes, block: Node) -> int | None:
    """Where a statement of this block begins a line in another column than the first one does."""
    wanted: bytes | None = b"" if block.type == "module" else None
    for child in block.named_children:
        if child.type == "comment" or child.is_error:
            continue
        begin = line_start(text, child.start_byte)
        blank = text[begin : child.start_byte]
        if blank.strip(b" \t\f\\\r\n"):
            if wanted is None:
                return None  # `if x: y` on one line
            continue
        if wanted is None:
            wanted = blank
        elif blank.strip(b"\f") != wanted:
            return child.start_byte
    return None


def _compiles(region: bytes, want: int = _FULL) -> tuple[int, SyntaxError | None]:
    """How far Python gets with a text: to bytecode, to a syntax tree, or nowhere and why.

    `return` outside a function and the like are found on the way to bytecode only.
    """
    level, problem = _NOT, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = region.decode()
            tree = ast.parse(text, "<fill>")
            level = _AST
            if want == _FULL:
                compile(tree, "<fill>", "exec", dont_inherit=True)
                level = _FULL
        except SyntaxError as error:
            problem = error
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            problem = SyntaxError(str(error) or type(error).__name__)
    return level, problem
