"""One fill from its prompt to its outcome: seeds, denoising, repair, ranking.

Owns what lives as long as one request. Knows no other request, no cache policy, no file and no clock of its own;
nothing here waits. At most one denoising step, one draft token or one encoder chunk runs between two looks at
`stop()` and the deadline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .canvas import NOISE, Row, close_up, new_row, renoise, slots_in, uniform_noise
from .contract import Draft, Event, Fill, FillRequest, Outcome
from .drafts import left_to_right
from .families import Prompt
from .graph import Loop
from .holes import Hole
from .judge import Candidate, Judge
from .model import Model
from .pace import Pace
from .prefix import PrefixCache
from .ranking import Ranking
from .sampler import Schedule, denoise
from .similar import Page
from .strategy import Strategy
from .tokenizer import Tokenizer
from .work import Encode, Score, Step, Work, tokens

CHUNK = 128
"""Prefix tokens encoded between two looks at `stop()`: about 10 ms of the starter on one core."""


@dataclass(frozen=True, slots=True)
class Warm:
    """What the last fill of a document leaves behind for the next keystroke."""

    before: bytes
    after: bytes
    text: bytes
    ids: tuple[int, ...]
    tail: int
    conditioning: Tensor | None
    asked: tuple[int, str, int]
    """Seed, instruction and candidates: with nothing typed since, only who asks the same again starts from it."""


Why = Literal["", "cancelled", "budget"]


class Interrupted(Exception):
    """Raised when `stop()` or the deadline says so; never leaves `Filling`."""

    def __init__(self, why: Why) -> None:
        self.why: Why = why


@dataclass(frozen=True, slots=True)
class Clockwork:
    """When to stop: the request's clock, its start, and whether anyone still wants the answer."""

    clock: Callable[[], float]
    started: float
    stop: Callable[[], bool]
    budget_ms: float | None

    @property
    def ms(self) -> float:
        return (self.clock() - self.started) * 1000

    def look(self, late_ms: float = 0.0) -> None:
        """Raise `Interrupted` where nobody wants the answer any more, or `late_ms` after the deadline."""
        if self.stop():
            raise Interrupted("cancelled")
        if self.budget_ms is not None and self.ms >= self.budget_ms + late_ms:
            raise Interrupted("budget")


class Filling:
    """One request in progress. Iterate `frames()`, then take `outcome()`."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        strategy: Strategy,
        request: FillRequest,
        hole: Hole,
        prompt: Prompt,
        judge: Judge,
        clockwork: Clockwork,
        *,
        delete: int | None,
        bytes_per_token: float,
        pace: Pace,
        ranking: Ranking | None,
        loop: Loop | None = None,
    ) -> None:
        """`bytes_per_token` is that of the text before the hole; `delete` as in `families.Family`; `loop` denoises on
        the device, else the host does it step by step; `pace` outlives the request; `ranking` is for
        "fitted", which is "causal" without."""
        self.model, self.tokenizer, self.strategy = model, tokenizer, strategy
        self.request, self.hole, self.prompt, self.judge = request, hole, prompt, judge
        self.clockwork, self.delete = clockwork, None if strategy.told else delete
        self.before, self.after = request.source[: hole.start], request.source[hole.end :]
        self.bytes_per_token, self.pace, self.ranking, self.loop = bytes_per_token, pace, ranking, loop
        self.page = Page(self.before, self.after)
        # Where several lines are missing a line of the file is no rival to them: the weights were fitted on lines.
        replaced = request.source[hole.start : hole.end]
        self.one_line = hole.scope not in ("block", "placeholder") and b"\n" not in replaced.strip()
        self.events: list[Event] = []
        self.steps = self.reused = 0
        self.stopped: Literal["", "stable", "budget", "cancelled", "steps"] = ""
        self.warm: Warm | None = None
        self.asked = (request.seed, request.instruction, request.candidates)
        self.noise = uniform_noise(len(tokenizer), request.seed)
        self.generator = torch.Generator(device=model.device).manual_seed(request.seed)
        special = set(tokenizer.special.values())
        newlines = tokenizer.newlines if hole.single_line else frozenset[int]()
        self.banned = self._mask(special - {self.delete} | newlines)
        self.ends = prompt.ends | newlines
        self.banned_in_draft = self._mask(special - self.ends)
        self.blank = self._mask(special | tokenizer.blanks)
        # What a healed first slot may hold; None where nothing is to be healed.
        self.first = (tokenizer.starting_with(prompt.overlap) or None) if prompt.overlap else None

    def _mask(self, ids: AbstractSet[int]) -> Tensor:
        mask = torch.zeros(len(self.tokenizer), dtype=torch.bool, device=self.model.device)
        mask[sorted(ids)] = True
        return mask

    def frames(self, cache: PrefixCache, warm: Warm | None) -> Iterator[Draft | Work]:
        """Encode, seed, denoise, judge, rank; yields what is to be run, and a draft after every denoising step."""
        try:
            yield from self._in_time(self._drafts(cache, warm))
            self.stopped = self.stopped or "stable"
        except Interrupted as interrupted:
            self.stopped = interrupted.why
            self._note("cancelled" if self.stopped == "cancelled" else "time is up")
        try:
            if self.stopped != "cancelled":
                yield from self._in_time(self._rank(cache))
        except Interrupted as interrupted:
            self.stopped = interrupted.why

    def _drafts(self, cache: PrefixCache, warm: Warm | None) -> Iterator[Draft | Work]:
        similar = self._similar()
        last = yield from self._encode(cache)
        if row := self._warm_row(warm):
            rows = [row]
        else:
            rows = yield from self._seed(cache, last, similar)
            self._more_similar()
        if self.strategy.denoise:
            yield from self._denoise(cache, rows)

    def _in_time(self, items: Iterator[Draft | Work]) -> Iterator[Draft | Work]:
        """`items`, but no pass that the deadline would overtake: what it brings could not be judged any more.

        A denoising step is not begun either when there would be no time left to rank what is there already.
        """
        with closing(items):  # type: ignore[type-var]
            for item in items:
                if isinstance(item, Draft):
                    yield item
                    continue
                needed = self._needed(item) if self.clockwork.budget_ms is not None else 0.0
                try:
                    self.clockwork.look(-needed)
                except Interrupted:
                    self.pace.doubt(item)
                    raise
                begun = self.clockwork.ms
                yield item
                self.pace.learn(item, self.clockwork.ms - begun)

    def _needed(self, work: Work) -> float:
        return self.pace.ms(type(work), tokens(work)) + (self._ranking_ms() if isinstance(work, Step) else 0.0)

    def _ranking_ms(self) -> float:
        if self.clockwork.budget_ms is None:
            return 0.0
        return self.pace.ms(Score, sum(map(len, self._finalists())))

    def outcome(self, model_name: str) -> Outcome:
        """The terminal answer, best fill first; a cancelled request has none."""
        best = [] if self.stopped == "cancelled" else self.judge.best()[: self.request.candidates]
        return Outcome(
            start=self.hole.start,
            end=self.hole.end,
            node_type=self.hole.node_type,
            fills=tuple(Fill(c.text.decode(), c.score, checked=self.judge.gate.checked) for c in best),
            reason="" if best else self._why_nothing(),
            steps=self.steps,
            slots=len(best[0].ids) if best else 0,
            milliseconds=self.clockwork.ms,
            model=model_name,
            prefix_tokens=len(self.prompt.ids),
            prefix_reused=self.reused,
            stopped=self.stopped,
            events=tuple(self.events),
        )

    def _why_nothing(self) -> str:
        if self.stopped == "cancelled":
            return "cancelled"
        refused = self.judge.refusals()
        if refused:
            most = max(refused, key=refused.count)
            return f"none of {len(refused)} drafts passed the syntax gate; most often: {most}"
        return "the time was up before a first draft" if self.stopped == "budget" else "the model had nothing to add"

    def _note(self, what: str) -> None:
        self.events.append(Event(self.clockwork.ms, what))

    def _encode(self, cache: PrefixCache) -> Generator[Work, None, Tensor]:
        """Bring the cache to the prompt; returns the hidden state of its last token, [1, D]."""
        ids = self.prompt.ids
        # The last token is always encoded again: a draft needs its hidden state, which the cache does not keep.
        self.reused = cache.match(ids[:-1])
        cache.crop(self.reused)
        last = torch.empty(0)
        for at in range(self.reused, len(ids), CHUNK):
            self.clockwork.look()
            chunk = Encode(cache, ids[at : at + CHUNK])
            yield chunk
            last = chunk.out[-1:]
        self._note(f"prefix: {len(ids)} tokens, {self.reused} of them known from before")
        return last

    # -- seeds -----------------------------------------------------------------------------------------------

    def _row(self, seed: Sequence[int], origin: str) -> Row:
        return new_row(seed, self.prompt.tail[: self.strategy.tail_beside(len(seed))], origin, self.noise)

    def _warm_row(self, warm: Warm | None) -> Row | None:
        """The last fill of this document less what has been typed of it since, if that is how things are."""
        if warm is None or not self.strategy.warm or self.after != warm.after:
            return None
        if not self.before.startswith(warm.before):
            return None
        typed = self.before[len(warm.before) :]
        if not warm.text.startswith(typed) or typed == warm.text or not (typed or warm.asked == self.asked):
            return None
        ids = self._ids_of(self._core(warm.text[len(typed) :]))
        row = self._row(ids, "warm")
        if warm.conditioning is not None and tuple(ids) == warm.ids[-len(ids) :] and warm.tail == len(row.tail):
            row.conditioning = warm.conditioning[-(len(ids) + warm.tail) :]
        self._note(f"warm start: {len(typed)} bytes of the last fill were typed, {len(ids)} slots are left")
        return row

    def _similar(self) -> list[list[int]]:
        """The most similar line, judged at once: it costs no model, so a very short deadline has an answer too."""
        found = [self._ids_of(line.text) for line in self.page.similar(min(1, self.strategy.retrieved))]
        for ids in found:
            self.judge.offer(ids, float("-inf"), "file")
        return found

    def _more_similar(self) -> None:
        """Other lines of the file, judged as they are or renamed, as long as there is time to rank them."""
        if not self.strategy.retrieved or not self.one_line:
            return
        lines = [(line, "file") for line in self.page.similar(self.strategy.retrieved)[1:]]
        lines += [(line, "file, renamed") for line in self.page.renamed(self.strategy.renamed)]
        for line, origin in lines:
            self.clockwork.look(-self._ranking_ms())
            self.judge.offer(self._ids_of(line.text), float("-inf"), origin)

    def _ids_of(self, core: bytes) -> list[int]:
        return self.tokenizer.encode(self.prompt.overlap + core)

    def _seed(self, cache: PrefixCache, last: Tensor, similar: Sequence[list[int]]) -> Generator[Work, None, list[Row]]:
        """Rows to denoise: drafts, similar lines, then noise of likely lengths; no doubles."""
        overlap, strategy = self.prompt.overlap, self.strategy
        seeds: list[tuple[str, list[int]]] = []
        for n in range(strategy.drafts):
            draft = yield from self._draft(cache, last, temperature=0.8 if n else 0.0)
            seeds += [("draft", draft), ("draft, first line", self._first_line(draft))]
        seeds += [("similar line", ids) for ids in similar]
        sizes = [len(overlap) + getattr(self.hole.lengths, quantile) for quantile in strategy.lengths]
        counts = [min(max(1, round(size / self.bytes_per_token)), strategy.slots) for size in sizes]
        seeds += [("noise", [NOISE] * count) for count in ([strategy.told] if strategy.told else counts)]
        rows: dict[tuple[int, ...], Row] = {}
        for origin, seed in seeds:
            if seed and tuple(seed) not in rows and len(rows) < strategy.rows:
                row = self._row(seed, origin)
                row.first = self.first if origin == "noise" else None
                rows[tuple(seed)] = row
        self._note("seeds: " + ", ".join(f"{row.origin} of {len(row.hole)} slots" for row in rows.values()))
        return list(rows.values())

    def _first_line(self, draft: Sequence[int]) -> list[int]:
        """A draft up to its first line end: a small model often writes on where the suffix already stands."""
        ends = [i for i, id_ in enumerate(draft) if id_ in self.tokenizer.newlines]
        if not ends or not (line := list(draft[: ends[0]])):
            return []
        self.judge.offer(line, float("-inf"), "draft")
        return line

    def _draft(self, cache: PrefixCache, last: Tensor, *, temperature: float) -> Generator[Work, None, list[int]]:
        most = round(self.hole.lengths.p90 / self.bytes_per_token)
        limit = min(max(self.strategy.shortest, most), self.strategy.longest)
        words = left_to_right(
            cache,
            last,
            ends=self.ends,
            banned=self.banned_in_draft,
            blank=self.blank,
            bonus=self._mask(self.prompt.ends) * self.strategy.end_bonus,
            max_tokens=limit,
            first=self.first,
            temperature=temperature,
            generator=self.generator,
        )
        draft: list[int] = []
        try:
            for ids in words:
                if isinstance(ids, Work):
                    yield ids
                    continue
                draft = list(ids)
                self.clockwork.look()
        finally:
            words.close()
        if len(draft) < limit:  # it ended by itself; one that was cut short would be offered in mid-word
            self.judge.offer(draft, float("-inf"), "draft")
        return draft

    # -- denoising and repair --------------------------------------------------------------------------------

    def _denoise(self, cache: PrefixCache, rows: list[Row]) -> Iterator[Draft | Work]:
        schedule = self.strategy.schedule
        if self.request.max_steps is not None:
            schedule = replace(schedule, max_steps=self.request.max_steps)
        if rows and rows[0].origin == "warm":
            schedule = replace(schedule, max_steps=min(schedule.max_steps, self.strategy.warm_steps))
        for row in rows:
            if len(row.hole) > self.strategy.slots:
                yield from self._denoise_long(cache, row, schedule)
        rows = [row for row in rows if len(row.hole) <= self.strategy.slots]
        yield from self._round(cache, rows, schedule)
        for _ in range(self.strategy.repairs):
            most = self.strategy.repair_steps
            if self.request.max_steps is not None:
                most = min(most, self.request.max_steps - self.steps)
            if most <= 0 or not (rows := self._repair(rows)):
                return
            yield from self._round(cache, rows, replace(schedule, max_steps=most))

    def _round(
        self,
        cache: PrefixCache,
        rows: Sequence[Row],
        schedule: Schedule,
        head: Sequence[int] = (),
        rest: Sequence[int] = (),
    ) -> Iterator[Draft | Work]:
        """Denoise rows until they are done; `head` and `rest` are the fill's ids on either side of this canvas."""
        before = [row.hole for row in rows]
        most = self.steps + schedule.max_steps
        for step in self._steps(cache, rows, schedule):
            if isinstance(step, Step):
                yield step
                continue
            self.steps += 1
            for row in rows:
                ids = [*head, *row.draft, *rest]
                if row.draft and (candidate := self.judge.offer(ids, row.confidence, row.origin)):
                    self._remember(candidate, row)
            yield self._frame(rows, before, most, head, rest)
            before = [row.draft for row in rows]
            self.clockwork.look()
        if rows and not all(row.done for row in rows):
            self.stopped = "steps"

    def _steps(self, cache: PrefixCache, rows: Sequence[Row], schedule: Schedule) -> Iterator[Step | int]:
        """The denoising loop: on the device, which runs its steps itself, or here, where every step is a `Work`."""
        if self.loop is not None:
            return self.loop.denoise(cache, rows, schedule, noise=self.noise, banned=self.banned, delete=self.delete)
        return denoise(
            cache,
            rows,
            schedule,
            device=self.model.device,
            noise=self.noise,
            banned=self.banned,
            delete=self.delete,
            generator=self.generator,
        )

    def _denoise_long(self, cache: PrefixCache, row: Row, schedule: Schedule) -> Iterator[Draft | Work]:
        """A hole wider than a canvas: canvas after canvas from left to right, each clamped to what follows in the seed.

        What is settled goes into the prefix; the last `overlap` slots of a canvas are denoised again at the head of
        the next, so that no join is decided with one side unseen. The cache is cropped back to the prompt.
        """
        width, overlap, length = self.strategy.slots, self.strategy.overlap, len(cache)
        settled: list[int] = []
        seed = list(row.hole)
        try:
            while seed:
                last = len(seed) <= width
                rest = [] if last else seed[width:]
                tail = (self.prompt.tail if last else rest)[: self.strategy.tail_beside(min(width, len(seed)))]
                canvas = new_row(seed[:width], tail, row.origin, self.noise)
                yield from self._round(cache, [canvas], schedule, settled, rest)
                keep = canvas.draft if last else canvas.draft[: max(1, len(canvas.draft) - overlap)]
                seed = [] if last else [*canvas.draft[len(keep) :], *rest]
                settled += keep
                if not last:
                    yield Encode(cache, keep)
                    self.clockwork.look()
        finally:
            cache.crop(length)

    def _repair(self, rows: Sequence[Row]) -> list[Row]:
        """Rows whose draft was refused, with the slots of the error renoised and the others held."""
        again: list[Row] = []
        reasons: set[str] = set()
        for row in rows:
            close_up(row, [i for i, id_ in enumerate(row.draft) if id_ == self.delete])
            verdict = self.judge.verdict(row.draft)
            if verdict.ok or not row.draft:
                continue
            shift = len(self.prompt.overlap)
            start, end = verdict.span or (0, len(self.judge.text(row.draft)))
            slots = slots_in(self.tokenizer.spans(row.draft), start + shift, end + shift)
            renoise(row, slots or set(range(len(row.draft))), self.noise)
            reasons.add(verdict.reason)
            again.append(row)
        if again:
            self._note(f"refused by the gate, tried again: {'; '.join(sorted(reasons))}")
        return again

    def _remember(self, candidate: Candidate, row: Row) -> None:
        """Keep the last fill for a warm start; its conditioning only where that matches the slots."""
        known = row.conditioning if len(row.hole) == len(candidate.ids) else None
        self.warm = Warm(self.before, self.after, candidate.text, candidate.ids, len(row.tail), known, self.asked)

    def _frame(
        self,
        rows: Sequence[Row],
        before: Sequence[Sequence[int]],
        max_steps: int,
        head: Sequence[int],
        rest: Sequence[int],
    ) -> Draft:
        """The surest row as it stands; what did not change in this step counts as settled."""
        at = max(range(len(rows)), key=lambda i: rows[i].confidence)
        ids, old = [*head, *rows[at].draft, *rest], [*head, *before[at]]
        settled: list[tuple[int, int]] = []
        text = ""
        for i, id_ in enumerate(ids):
            piece = self.tokenizer.token_bytes[id_].decode(errors="replace")
            if i < len(old) and old[i] == id_:
                settled.append((len(text), len(text) + len(piece)))
            text += piece
        return Draft(self.steps, max_steps, self.hole.start, self.hole.end, text, tuple(settled))

    # -- ranking ---------------------------------------------------------------------------------------------

    def _rank(self, cache: PrefixCache) -> Iterator[Work]:
        """Rank what passed by the causal likelihood of the fill and of what must come after it, and by the file.

        The canvas's own confidence cannot do this: the clamped suffix leaks into it. The score that is shown is the
        mean log-probability of a token; a mean alone would favour long fills, whose later tokens are easy.
        """
        if self.strategy.rank == "canvas" or len(cache) < len(self.prompt.ids):
            return  # or the time was up before the prompt was read
        rows, room = self._finalists(), self.strategy.scratch - 1  # the prefix's last token is scored again beside them
        if self.clockwork.budget_ms is not None:
            left, every = self.clockwork.budget_ms - self.clockwork.ms, len(rows)
            while rows and self.pace.ms(Score, sum(map(len, rows))) > left:
                rows.pop()
            rows = rows if len(rows) > 1 or every == 1 else []
        if not rows:
            return
        finalists = self.judge.best()[: len(rows)]
        batches: list[list[list[int]]] = [[]]
        for row in rows:
            if sum(map(len, batches[-1])) + len(row) > room:
                batches.append([])
            batches[-1].append(row)
        scored: list[list[float]] = []
        for batch in batches:
            self.clockwork.look()
            work = Score(cache, batch)
            yield work
            scored += [likely.tolist() for likely in work.out]
        pairs = list(zip(finalists, scored, strict=True))
        self.judge.rescore({c.text: (sum(likely) / len(likely), self._worth(c, likely)) for c, likely in pairs})
        self._note(f"{len(finalists)} fills passed the gate and were ranked")

    def _worth(self, candidate: Candidate, likely: Sequence[float]) -> float:
        """Where a fill ranks; `likely` are the log-probabilities of its tokens and its end."""
        if self.strategy.rank == "fitted" and self.ranking and self.one_line:
            text, ways = self._core(candidate.text), self.judge.ways[candidate.text]
            return self.ranking.rank(self.page, text, len(ways), likely)
        return sum(likely) / math.pow(len(likely), self.strategy.rank_length)

    def _finalists(self) -> list[list[int]]:
        """What would be ranked, as ids, best first.

        Of what is longer than all the room the beginning has to do: a mean over that much says enough.
        """
        best = self.judge.best()[: self.strategy.finalists]
        heads = [self._ids_of(self._core(candidate.text)) for candidate in best]
        return [[*head, *self.prompt.after][: self.strategy.scratch - 1] for head in heads]

    def _core(self, text: bytes) -> bytes:
        """A fill as the model sees it: without what the hole prescribes, which is in the prompt, and with LF."""
        return text.removeprefix(self.hole.lead).removesuffix(self.hole.tail).replace(b"\r\n", b"\n")
