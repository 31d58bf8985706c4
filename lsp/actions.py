"""Code actions: what is offered at a place, and the edits that an accepted one makes.

Offering is cheap and asks no model; `Actions.run` asks the daemon when the user has chosen. Knows nothing of
LSP types: ranges are byte offsets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from stopgap.daemon import wire
from stopgap.infill import holes
from stopgap.infill.contract import show_score
from stopgap.infill.languages import Language
from stopgap.infill.syntax import Gate

from .document import Snapshot
from .edits import Edit, apply, edits
from .ghost import line_ending, with_line_ending
from .link import Fills
from .session import WHOLE_FILE

Kind = Literal["hole", "all", "function", "selection", "instruction", "repair", "another"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TITLES: dict[Kind, str] = {
    "hole": "Fill this hole",
    "all": "Fill all holes in this file",
    "function": "Rewrite this function",
    "selection": "Rewrite selection",
    "instruction": "Rewrite with instruction…",
    "repair": "Repair syntax here",
    "another": "Try another",
}
NO_INSTRUCTIONS = "the loaded model does not follow instructions"
MAX_HOLES = 32
"""Holes filled by one "Fill all holes"."""
TOGETHER = 8
"""Holes of one file that are asked for at a time: two of the daemon's batches, so that none waits to be asked for."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One action at a place. `disabled` says why it cannot be chosen; empty when it can."""

    kind: Kind
    start: int
    end: int
    disabled: str = ""

    @property
    def title(self) -> str:
        return TITLES[self.kind]


@dataclass(frozen=True, slots=True)
class Result:
    """What an action came to. Without edits, `reason` is one line for the user."""

    edits: tuple[Edit, ...] = ()
    reason: str = ""
    start: int = 0
    end: int = 0
    text: str = ""
    """What replaces `start..end` as a whole, for previews; empty for "Fill all holes"."""
    score: float = 0.0
    fill: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A chosen action on one version of a document."""

    kind: Kind
    snapshot: Snapshot
    language: Language
    start: int
    end: int
    path: str = ""
    instruction: str = ""
    budget_ms: float = 20_000.0
    allow_unchecked: bool = False
    snippets: tuple[wire.Snippet, ...] = ()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Applied:
    """The last result in a document, so that "Try another" can start from what stood there before."""

    job: Job
    after: bytes
    start: int
    end: int
    """Of the filled text in `after`."""


Watch = Callable[[wire.FillFrame], None]


class Actions:
    """Runs actions, and remembers the last one of each document."""

    def __init__(self, link: Fills) -> None:
        self._link = link
        self._applied: dict[str, _Applied] = {}

    def offers(
        self, snapshot: Snapshot, source: holes.Source | None, start: int, end: int, *, instructions: bool | None
    ) -> list[Offer]:
        """What can be done at `start..end`; `instructions` is whether the model follows them, None if unknown."""
        found: list[Offer] = []
        last = self._applied.get(snapshot.uri)
        if last is not None and last.after == snapshot.data and last.start <= start <= last.end:
            found.append(Offer("another", start, end))
        if source is None:
            reason = f"no grammar for {snapshot.language_id}: nothing could check the result"
            return [*found, Offer("selection", start, end, reason)] if start < end else found
        waiting = holes.placeholders(source)
        here = next((hole for hole in waiting if hole.start <= end and start <= hole.end), None)
        here = here or next((hole for hole in waiting if _same_line(snapshot, hole, start)), None)
        if here is not None:
            found.append(Offer("hole", here.start, here.end))
        if len(waiting) > 1:
            found.append(Offer("all", start, end))
        broken = next((hole for hole in holes.errors(source) if _same_line(snapshot, hole, start)), None)
        if broken is not None:
            found.append(Offer("repair", broken.start, broken.end))
        function = holes.function_at(source, start)
        if start < end:
            found.append(Offer("selection", start, end))
        elif function is not None:
            found.append(Offer("function", start, end))
        if start < end or function is not None:
            found.append(Offer("instruction", start, end, NO_INSTRUCTIONS if instructions is False else ""))
        return found

    async def run(self, job: Job, watch: Watch | None = None) -> Result:
        """Ask for the fill of a job; `watch` sees progress and drafts. Cancelling the task cancels the fill."""
        if job.kind == "all":
            return await self._all(job, watch)
        if job.kind == "another":
            last = self._applied.get(job.snapshot.uri)
            if last is None or last.after != job.snapshot.data:
                return Result(reason="there is nothing to try again here: the text has changed since")
            job = replace(last.job, seed=last.job.seed + 1)
            now = last.after
        else:
            now = job.snapshot.data
        low, source = _part(job)
        if not low <= job.start <= job.end <= low + len(source):
            return Result(reason="that is too large for one fill: select less")
        end = await self._link.fill(_request(job, low, source, drafts=watch is not None), watch)
        if isinstance(end, wire.Error):
            return Result(reason=end.message)
        before = job.snapshot.data
        span = (end.start + low, end.end + low)
        spliced = [(fill, _spliced(before, span, fill.text)) for fill in end.fills]
        new = [(fill, after) for fill, after in spliced if after not in {before, now}]
        if not new:
            return Result(reason=end.reason or "the model has no other text for this place")
        fill, after = new[0]
        filled = (span[0], span[1] + len(after) - len(before))
        self._applied[job.snapshot.uri] = _Applied(job, after, *filled)
        return Result(
            tuple(_small(now, after)),
            start=span[0],
            end=span[1] + len(now) - len(before),
            text=after[slice(*filled)].decode(),
            score=show_score(fill.score),
            fill=end.id,
        )

    def forget(self, uri: str) -> None:
        self._applied.pop(uri, None)

    async def _all(self, job: Job, watch: Watch | None) -> Result:
        """Every hole of the file, several at a time; what cannot be filled stays as it is."""
        source = holes.parse(job.snapshot.data, job.language, around=job.start)
        waiting = holes.placeholders(source)[:MAX_HOLES]
        if not waiting:
            return Result(reason="there is no hole in this file")
        several = asyncio.Semaphore(TOGETHER)

        async def one(hole: holes.Hole) -> wire.Done | wire.Error:
            async with several:
                mine = replace(job, kind="hole", start=hole.start, end=hole.end)
                low, part = _part(mine)
                end = await self._link.fill(_request(mine, low, part, drafts=False), watch)
                if isinstance(end, wire.Error):
                    return end
                return replace(end, start=end.start + low, end=end.end + low)

        data = job.snapshot.data
        ends = await asyncio.gather(*map(one, waiting))
        whys = [end.message if isinstance(end, wire.Error) else end.reason for end in ends]
        changes: list[Edit] = []
        after = data
        for hole, end in sorted(zip(waiting, ends, strict=True), key=lambda pair: pair[0].start):
            if isinstance(end, wire.Error) or not end.fills or (changes and changes[-1][1] > end.start):
                continue
            text = with_line_ending(end.fills[0].text, line_ending(data)).encode()
            # Each fill passed the gate alone, yet two that did can break a file together.
            moved = len(after) - len(data)
            source = holes.parse(after, job.language, around=end.start + moved, previous=source)
            verdict = Gate(source, replace(hole, start=end.start + moved, end=end.end + moved)).check(text)
            if verdict.ok:
                changes.append((end.start, end.end, text))
                after = apply(data, changes)
            else:
                whys.append(f"the fills do not fit together: {verdict.reason}")
            await asyncio.sleep(0)  # a check may take as long as a keystroke may
        if after == data:
            return Result(reason=next(filter(None, whys), "no hole of this file could be filled"))
        return Result(tuple(_small(data, after)), start=changes[0][0], end=changes[-1][1])


def _request(job: Job, low: int, source: bytes, *, drafts: bool) -> wire.Fill:
    targets: dict[Kind, wire.Target] = {"hole": "placeholder", "function": "body", "repair": "error"}
    selected: wire.Target = "selection" if job.start < job.end else "body"
    return wire.Fill(
        source=source,
        language=job.language.name,
        start=job.start - low,
        end=job.end - low,
        target=targets.get(job.kind, selected),
        path=job.path,
        snippets=job.snippets,
        instruction=job.instruction,
        budget_ms=job.budget_ms,
        seed=job.seed,
        allow_unchecked=job.allow_unchecked,
        document=job.snapshot.uri[-1024:],
        kind="rewrite",
        want_drafts=drafts,
    )


def _part(job: Job) -> tuple[int, bytes]:
    """The text to send: all of it, or whole lines around the place in a large file."""
    data = job.snapshot.data
    if len(data) <= WHOLE_FILE:
        return 0, data
    low = data.rfind(b"\n", 0, max(job.start - WHOLE_FILE // 8, 0)) + 1
    high = data.find(b"\n", min(job.end + WHOLE_FILE // 8, len(data)))
    high = len(data) if high < 0 else high + 1
    return low, data[low : min(high, low + WHOLE_FILE)]


def _spliced(data: bytes, span: tuple[int, int], text: str) -> bytes:
    return data[: span[0]] + with_line_ending(text, line_ending(data)).encode() + data[span[1] :]


def _small(old: bytes, new: bytes) -> list[Edit]:
    """`edits` on the lines that differ only: the rest of a long file is not worth comparing."""
    a, b = old.splitlines(keepends=True), new.splitlines(keepends=True)
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    tail = 0
    while tail < min(len(a), len(b)) - same and a[-1 - tail] == b[-1 - tail]:
        tail += 1
    low = sum(map(len, a[:same]))
    return edits(b"".join(a[same : len(a) - tail]), b"".join(b[same : len(b) - tail]), low)


def _same_line(snapshot: Snapshot, hole: holes.Hole, offset: int) -> bool:
    return snapshot.line_at(hole.start) == snapshot.line_at(offset) or hole.start <= offset <= hole.end
