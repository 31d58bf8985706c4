"""The gate: whether a fill may be shown, and what is cut off it before.

A fill passes if the file is no worse with it: no new ERROR or MISSING node, for Python no new compile
error, nothing behind the hole swallowed or stolen (all judged in `ground`), nothing of it repeated. Knows no
tokens and no model; its time budget is measured on the clock it is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property

from .ground import Ground, Verdict
from .holes import Hole
from .source import Clock, Source, blanks, line_end, line_start

__all__ = ["Gate", "Verdict"]


class Gate:
    """Judges fills for one hole of one source; what the file was like before is found out once, at the first of them.

    In a large file that takes tens of milliseconds, so `look` is called before every parse: it may raise, and the
    next check begins anew.
    """

    def __init__(
        self,
        source: Source,
        hole: Hole,
        *,
        clock: Clock | None = None,
        budget_ms: float | None = None,
        allow_unchecked: bool = False,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`budget_ms` bounds each single parse, on `clock`; over it the verdict is no.

        Without a tree nothing passes unless `allow_unchecked`.
        """
        self.source, self.hole = source, hole
        self.checked = source.tree is not None
        self._allowed = allow_unchecked
        self._clock, self._budget_ms, self._look = clock, budget_ms, look
        self._known: dict[tuple[bytes, bool], Verdict] = {}

    @cached_property
    def _grounds(self) -> list[Ground]:
        whole = Ground(self.source, self.hole, clock=self._clock, budget_ms=self._budget_ms, look=self._look)
        near = whole.sound_part() if whole.limit.count else None
        return [whole, near] if near is not None else [whole]

    @cached_property
    def _astray(self) -> Verdict | None:
        """A quote that is lost above makes strings of code: what a fill does to the file cannot be told there."""
        whole, *near = self._grounds
        return Verdict(False, "a string above is not closed") if near and whole.astray(near[0]) else None

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

        Cuts what leaves the block, blanks that stand on either side already, repeated lines, repeated closing
        brackets, and what goes beyond the line where one line is wanted.
        """
        plain = self._trimmed(fill)
        forms = list(dict.fromkeys((self._flush(self._inside(plain)), self._flush(plain), plain)))
        for form in (self._without_repeats, self._without_closers, self._without_indent, self._first_line):
            forms += [made for made in map(form, list(forms)) if made not in forms]
        for made in forms:
            if self.check(made).ok:
                return made
        return plain

    def _check(self, fill: bytes, complete: bool) -> Verdict:
        body = fill.strip()
        if not body:
            return Verdict(False, "empty")
        if not self.checked:
            return Verdict(self._allowed, "" if self._allowed else self.source.why or "no syntax tree")
        if self.hole.single_line and b"\n" in body:
            return Verdict(False, "goes beyond the line", (fill.index(b"\n", fill.index(body)), len(fill)))
        verdict = self._repeated(fill)
        for ground in self._grounds:
            verdict = verdict or ground.verdict(fill, complete=complete)
            if verdict.mends:  # then no new flaw can hide among others
                return Verdict(True)
            verdict = None if verdict.ok else verdict
        return verdict or self._astray or Verdict(True)

    def _repeated(self, fill: bytes) -> Verdict | None:
        size = self._overlap(fill)
        if not size:
            return None
        return Verdict(False, "repeats what follows", (len(fill) - size, len(fill)))

    # ---- repeats ----------------------------------------------------------------------------------------

    @property
    def _rest(self) -> bytes:
        return self.source.text[self.hole.end : self.hole.end + 4096]

    def _trimmed(self, fill: bytes) -> bytes:
        """Without trailing blanks where the line ends or blanks follow anyway."""
        rest = self._rest
        if self.hole.tail and fill.endswith(self.hole.tail):
            return fill[: -len(self.hole.tail)].rstrip() + self.hole.tail
        if not rest or rest[:1] in b"\r\n":
            return fill.rstrip()
        if rest[:1] in b" \t" and fill.rstrip(b" \t")[-1:] not in (b"\n", b""):
            return fill.rstrip(b" \t")
        return fill

    def _flush(self, fill: bytes) -> bytes:
        """Without leading blanks where blanks stand before the hole already; lines of the fill stay in line."""
        left = self.source.text[line_start(self.source.text, self.hole.start) : self.hole.start]
        if self.hole.lead or left[-1:] not in (b" ", b"\t") or fill[:1] not in (b" ", b"\t"):
            return fill
        first, broken, more = fill.partition(b"\n")
        if not left.strip() and more.strip() and len(blanks(more.lstrip(b"\r\n"))) > len(left):
            return fill  # a block that stands deeper as a whole
        return first.lstrip(b" \t") + broken + more

    def _inside(self, fill: bytes) -> bytes:
        """A block without what leaves it by its indentation: small models write one function after another."""
        hole = self.hole
        if hole.scope not in ("placeholder", "block") or not self.source.language.indented or not hole.indent:
            return fill
        at = len(hole.lead)
        while at := fill.find(b"\n", at) + 1:
            line = fill[at : line_end(fill, at)]
            if line.strip() and len(blanks(line)) < len(hole.indent):
                return fill[:at].rstrip() + hole.tail if fill[:at].strip() else fill
        return fill

    def _overlap(self, fill: bytes) -> int:
        """How many bytes at the fill's end repeat what follows: whole lines, or the rest of this line."""
        body = fill[: len(fill) - len(self.hole.tail)] if fill.endswith(self.hole.tail) else fill
        extra = len(fill) - len(body)
        rest = self._rest.split(b"\n")
        first = rest[0].strip()
        for same in (first, first.rstrip(b")]};,: \t")):
            if _weight(same) >= 6 and body.rstrip().endswith(same):
                kept = body.rstrip()[: -len(same)]
                return len(body) - len(kept.rstrip() if rest[0][:1].isspace() else kept) + extra
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
        """Without closing brackets or words (and what ends a statement) that stand behind the hole already."""
        above, _, last = fill.rstrip().rpartition(b"\n")
        if above.strip() and last.strip().decode("utf-8", "replace") in self.source.language.closers:
            return self._trimmed(above) if self._rest.split()[:1] == [last.strip()] else fill
        rest = b"".join(self._rest.split())[:16]
        end = len(fill.rstrip())
        closers = re.search(rb"[)\]}>{:;,'\"`\s]*$", fill[:end])
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
