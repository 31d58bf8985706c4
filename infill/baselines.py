"""What no model at all would answer, as engines: a fill has to beat these to be worth a wait.

Three ways to copy from the text before the hole: a random line, the previous line, and the line that stands in
the most similar surroundings. A fourth takes that from behind the hole as well, as the engine's own seeds do: what
the model adds is what is above it. They check nothing, so their fills may break a file; `Gated` puts the gate that
the engine has in front of them, which is the fairer comparison.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from .contract import Draft, Engine, EngineInfo, Fill, FillRequest, Outcome
from .holes import locate
from .languages import by_name
from .metrics import similarity
from .similar import Page
from .source import parse
from .syntax import Gate

Choice = Literal["random line", "previous line", "retrieval", "retrieval, both sides"]
LOOK_BACK = 600  # lines


class Copier:
    """An engine that copies another line of the same file.

    A hole that begins on a fresh line gets a whole line (with its line end, unless the suffix brings one); one
    that begins inside a line gets the part of the earlier line that follows the best match of what stands
    left of the hole, up to where the text right of the hole begins again.
    """

    def __init__(self, choice: Choice, clock: Callable[[], float]) -> None:
        """`clock` in seconds, monotonic."""
        self._choice = choice
        self._clock = clock

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        begun = self._clock()
        prefix = request.source[: request.start].decode("utf-8", "replace")
        suffix = request.source[request.end :].decode("utf-8", "replace")
        if self._choice == "retrieval, both sides":
            found = Page(request.source[: request.start], request.source[request.end :]).similar(1)
            text = found[0].text.decode("utf-8", "replace") if found else ""
        else:
            text = self._text(prefix, suffix, random.Random(f"{request.seed}:{request.start}"))
        yield Outcome(
            start=request.start,
            end=request.end,
            node_type="",
            fills=(Fill(text, score=0.0, checked=False),) if text else (),
            reason="" if text else "nothing in the file to copy",
            milliseconds=(self._clock() - begun) * 1000,
            model=self._choice,
        )

    def info(self) -> EngineInfo:
        return EngineInfo(self._choice, "cpu", "none", "none", 0, 0, 0, False)

    def drop_caches(self) -> None:
        pass

    def _text(self, prefix: str, suffix: str, draw: random.Random) -> str:
        *above, left = prefix.split("\n")
        fresh = not left and suffix[:1] != "\n"  # a whole line is missing, its end included
        right, *below = ["", *suffix.split("\n")] if fresh else suffix.split("\n")
        above = above[-LOOK_BACK:]
        earlier = [index for index, line in enumerate(above) if line.strip()]
        if not earlier:
            return ""
        if self._choice == "retrieval":
            index = max(reversed(earlier), key=lambda at: _likeness(at, above, left, right, below))
        elif self._choice == "previous line":
            index = earlier[-1]
        else:
            index = draw.choice(earlier)
        if left.strip():
            return _rest(above[index], left, right)
        return above[index].lstrip() if left else above[index] + "\n" * fresh


def _likeness(at: int, above: list[str], left: str, right: str, below: list[str]) -> float:
    """How much the surroundings of line `at` resemble the hole's: the lines before and after, and the edges."""
    before = above[max(0, at - 2) : at]
    hole_before = above[-2:]
    score = sum(similarity(a, b) for a, b in zip(reversed(before), reversed(hole_before), strict=False))
    after = above[at + 1] if at + 1 < len(above) else left
    score += similarity(after, below[0] if below else "")
    if left.strip():
        score += 2 * _overlap(above[at], left)[1] / (len(left.strip()) or 1)
    if right.strip():
        score += above[at].rstrip().endswith(right.strip())
    return score


def _overlap(line: str, left: str) -> tuple[int, int]:
    """Where in `line` the longest ending of `left` that occurs there stops, and how long that ending is."""
    left = left.lstrip()
    for cut in range(len(left)):
        at = line.find(left[cut:])
        if at >= 0:
            return at + len(left) - cut, len(left) - cut
    return len(line), 0


def _rest(line: str, left: str, right: str) -> str:
    after = line[_overlap(line, left)[0] :] or line.strip()
    edge = right.strip()[:1]
    cut = after.find(edge) if edge else -1
    return after[:cut] if cut > 0 else after


class Gated:
    """Another engine's fills, tidied and offered only if they pass the gate."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        for item in self._inner.fill(request, stop):
            yield self._checked(request, item) if isinstance(item, Outcome) else item

    def _checked(self, request: FillRequest, outcome: Outcome) -> Outcome:
        place = replace(request, start=outcome.start, end=outcome.end, target="selection")
        source = parse(request.source, by_name(request.language), around=outcome.start)
        gate = Gate(source, locate(source, place))
        texts = [(gate.tidy(fill.text.encode()), fill) for fill in outcome.fills]
        kept = tuple(
            replace(fill, text=text.decode(), checked=True) for text, fill in texts if text and gate.check(text).ok
        )
        refused = outcome.reason or gate.check(texts[0][0]).reason or "nothing left of it"
        return replace(outcome, fills=kept, reason="" if kept else refused)

    def info(self) -> EngineInfo:
        return self._inner.info()

    def drop_caches(self) -> None:
        self._inner.drop_caches()
