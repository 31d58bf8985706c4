"""One fill from its hole to its outcome: seeds, denoising, the gate, repair, ranking.

Owns everything that lives as long as one request. Knows no other request, no cache policy, no file and no
clock of its own; nothing here waits. At most one denoising step, one draft token or one encoder chunk runs
between two looks at `stop()` and the deadline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .canvas import NOISE, Row, close_up, new_row, renoise, slots_in, uniform_noise
from .contract import Draft, Event, Fill, FillRequest, Outcome
from .drafts import left_to_right, similar_lines
from .holes import Hole, Source
from .model import Model
from .prefix import PrefixCache
from .prompt import InfillMarkers
from .sampler import denoise
from .strategy import Strategy
from .syntax import Gate, Verdict
from .tokenizer import Tokenizer

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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that passed the gate."""

    text: bytes
    ids: tuple[int, ...]
    score: float
    origin: str


class Interrupted(Exception):
    """Raised inside a fill when `stop()` or the deadline says so; never leaves this module."""


class Filling:
    """One request in progress. `frames()` is the whole of it."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        markers: InfillMarkers,
        strategy: Strategy,
        request: FillRequest,
        source: Source,
        hole: Hole,
        gate: Gate,
        *,
        clock: Callable[[], float],
        stop: Callable[[], bool],
        started: float,
    ) -> None:
        self.model, self.tokenizer, self.markers = model, tokenizer, markers
        self.strategy, self.request, self.source, self.hole, self.gate = strategy, request, source, hole, gate
        self.clock, self.stop, self.started = clock, stop, started
        self.events: list[Event] = []
        self.candidates: dict[bytes, Candidate] = {}
        self.verdicts: dict[bytes, Verdict] = {}
        self.steps = 0
        self.stopped = ""
        self.warm: Warm | None = None
        self.noise = uniform_noise(len(tokenizer), request.seed)
        self.generator = torch.Generator(device=model.device).manual_seed(request.seed)
        specials = set(tokenizer.special.values())
        newlines = {i for i, b in enumerate(tokenizer.token_bytes) if b"\n" in b} if hole.single_line else set()
        self.banned = self._mask(specials - {markers.delete} | newlines)
        self.banned_in_draft = self._mask(specials - {markers.end})
        self.ends = newlines | {markers.end}

    def _mask(self, ids: set[int]) -> Tensor:
        mask = torch.zeros(len(self.tokenizer), dtype=torch.bool, device=self.model.device)
        mask[sorted(ids)] = True
        return mask

    # -- time -----------------------------------------------------------------------------------------

    def note(self, what: str) -> None:
        self.events.append(Event((self.clock() - self.started) * 1000, what))

    def look(self) -> None:
        """Raise when the request is no longer wanted or its time is up."""
        if self.stop():
            self.stopped = "cancelled"
            raise Interrupted
        budget = self.request.budget_ms
        if budget is not None and (self.clock() - self.started) * 1000 >= budget:
            self.stopped = "budget"
            raise Interrupted

    # -- the way of one fill --------------------------------------------------------------------------

    def frames(
        self,
        cache: PrefixCache,
        prompt: Sequence[int],
        overlap: bytes,
        tail: Sequence[int],
        warm: Warm | None,
    ) -> Iterator[Draft]:
        """Encode, seed, denoise, judge; yields a draft after every step. `outcome()` has the result afterwards.

        overlap   bytes of the prefix that are left out of `prompt` and that the fill's first token must repeat
                  (token healing); cut off every text again
        tail      the near suffix, as ids
        """
        self.overlap, self.tail = overlap, list(tail[: self.strategy.tail])
        try:
            last = self._encode(cache, prompt)
            rows = self._warm_row(warm) or self._seed(cache, last)
            if self.strategy.denoise:
                yield from self._denoise(cache, rows)
            self._rank(cache)
            self.stopped = self.stopped or "stable"
        except Interrupted:
            self.note({"cancelled": "cancelled", "budget": "time is up"}[self.stopped])

    def outcome(self, model_name: str, prompt_tokens: int) -> Outcome:
        """The terminal answer, best fill first."""
        best = sorted(self.candidates.values(), key=lambda c: (-c.score, len(c.text)))
        fills = tuple(
            Fill(c.text.decode(), c.score, checked=self.gate.checked) for c in best[: self.request.candidates]
        )
        if self.stopped == "cancelled":
            fills = ()
        return Outcome(
            start=self.hole.start,
            end=self.hole.end,
            node_type=self.hole.node_type,
            fills=fills,
            reason="" if fills else self._why_nothing(),
            steps=self.steps,
            slots=max((len(c.ids) for c in best[:1]), default=0),
            milliseconds=(self.clock() - self.started) * 1000,
            model=model_name,
            prefix_tokens=prompt_tokens,
            prefix_reused=self.reused,
            stopped=self.stopped,  # type: ignore[arg-type]
            events=tuple(self.events),
        )

    def _why_nothing(self) -> str:
        if self.stopped == "cancelled":
            return "cancelled"
        refused = [v.reason for v in self.verdicts.values() if not v.ok]
        if refused:
            common = max(set(refused), key=refused.count)
            return f"{len(refused)} drafts, none passed the syntax gate; most often: {common}"
        return (
            "the time was up before a first draft was ready" if self.stopped == "budget" else "the model had no draft"
        )

    def _encode(self, cache: PrefixCache, prompt: Sequence[int]) -> Tensor:
        """Bring the cache to `prompt`; the hidden state of its last token, [1, D]."""
        # The last token is always encoded again: a draft needs its hidden state, which the cache does not keep.
        self.reused = min(cache.match(prompt), len(prompt) - 1)
        cache.crop(self.reused)
        last: Tensor | None = None
        for at in range(self.reused, len(prompt), CHUNK):
            self.look()
            last = self.model.encode(cache, prompt[at : at + CHUNK])[-1:]
        self.note(f"prefix: {len(prompt)} tokens, {self.reused} reused")
        assert last is not None
        return last

    # -- seeds ----------------------------------------------------------------------------------------

    def _warm_row(self, warm: Warm | None) -> list[Row]:
        """The last fill of this document less what has been typed of it since, if that is how things are."""
        before = self.source.text[: self.hole.start]
        after = self.source.text[self.hole.end :]
        if warm is None or not self.strategy.warm or after != warm.after or not before.startswith(warm.before):
            return []
        typed = before[len(warm.before) :]
        rest = warm.text[len(typed) :]
        if not rest or not warm.text.startswith(typed):
            return []
        ids = self.tokenizer.encode(self.overlap + rest)
        row = new_row(ids, self.tail, "warm", self.noise)
        kept = len(ids) + warm.tail
        if tuple(ids) == warm.ids[-len(ids) :] and warm.conditioning is not None and warm.tail == len(self.tail):
            row.conditioning = warm.conditioning[-kept:]
        self.note(f"warm start: {len(typed)} bytes typed, {len(ids)} slots kept")
        return [row]

    def _seed(self, cache: PrefixCache, last: Tensor) -> list[Row]:
        """Rows to denoise: drafts, similar lines, then noise of likely lengths, without doubles."""
        seeds: list[tuple[str, list[int]]] = []
        for n in range(self.strategy.drafts):
            seeds.append(("draft", self._draft(cache, last, temperature=0.0 if n == 0 else 0.8)))
        if self.strategy.retrieved:
            before, after = self.source.text[: self.hole.start], self.source.text[self.hole.end :]
            for line in similar_lines(before, after, count=self.strategy.retrieved):
                seeds.append(("retrieved", self.tokenizer.encode(self.overlap + line)))
        for quantile in self.strategy.lengths:
            expected = len(self.overlap) + self.hole.lengths.quantile(quantile)
            slots = max(1, round(expected / self.bytes_per_token))
            seeds.append(("noise", [NOISE] * min(slots, self.strategy.slots)))
        rows: list[Row] = []
        seen: set[tuple[int, ...]] = set()
        for origin, seed in seeds:
            if seed and tuple(seed) not in seen and len(rows) < self.strategy.rows:
                seen.add(tuple(seed))
                row = new_row(seed[: self.strategy.slots], self.tail, origin, self.noise)
                row.first = self.first if origin == "noise" else None
                rows.append(row)
        self.note("seeds: " + ", ".join(f"{row.origin} {len(row.hole)}" for row in rows))
        return rows

    @property
    def bytes_per_token(self) -> float:
        """Of this place's own text, which the length prior (bytes) is turned into slots with."""
        near = self.source.text[max(0, self.hole.start - 600) : self.hole.start]
        near = near.decode(errors="ignore").encode()
        return max(1.0, len(near) / max(1, len(self.tokenizer.encode(near)))) if near else 3.0

    @property
    def first(self) -> list[int] | None:
        """What a healed first slot may hold."""
        return (self.tokenizer.starting_with(self.overlap) or None) if self.overlap else None

    def _draft(self, cache: PrefixCache, last: Tensor, *, temperature: float) -> list[int]:
        limit = min(self.strategy.slots, max(8, round(self.hole.lengths.quantile(0.99) / 2)))
        draft: list[int] = []
        words = left_to_right(
            self.model,
            cache,
            last,
            ends=self.ends,
            banned=self.banned_in_draft,
            max_tokens=limit,
            first=self.first,
            temperature=temperature,
            generator=self.generator,
        )
        try:
            for draft in words:
                self.look()
        except Interrupted:
            self._judge(draft, float("-inf"), "draft")
            raise
        finally:
            words.close()
        self._judge(draft, float("-inf"), "draft")
        return list(draft)

    # -- denoising, judging, repairing ----------------------------------------------------------------

    def _denoise(self, cache: PrefixCache, rows: list[Row]) -> Iterator[Draft]:
        schedule = self.strategy.schedule
        if self.request.max_steps is not None:
            schedule = replace(schedule, max_steps=self.request.max_steps)
        if rows and rows[0].origin == "warm":
            schedule = replace(schedule, max_steps=min(schedule.max_steps, self.strategy.warm_steps))
        for attempt in range(1 + self.strategy.repairs):
            if attempt:
                rows = self._repair(rows)
                schedule = replace(schedule, max_steps=min(schedule.max_steps, 4))
            if not rows:
                return
            before = [list(row.hole) for row in rows]
            for _ in denoise(
                self.model, cache, rows, schedule, noise=self.noise, banned=self.banned,
                delete=self.markers.delete, generator=self.generator,
            ):  # fmt: skip
                self.steps += 1
                for row in rows:
                    self._judge(row.draft, row.confidence, row.origin, row)
                yield self._frame(rows, before, schedule.max_steps)
                before = [list(row.draft) for row in rows]
                self.look()
            passed = sum(self._verdict(self._text(row.draft)).ok for row in rows)
            self.note(f"{self.steps} steps: {passed} of {len(rows)} drafts pass the gate")

    def _repair(self, rows: Sequence[Row]) -> list[Row]:
        """Rows whose draft was refused, with the slots of the error renoised and the rest held."""
        again: list[Row] = []
        for row in rows:
            close_up(row, [i for i, id_ in enumerate(row.draft) if id_ == self.markers.delete])
            text = self._text(row.draft)
            verdict = self._verdict(text)
            if verdict.ok or not row.draft:
                continue
            spans = self.tokenizer.spans(row.draft)
            start, end = verdict.span or (0, len(text))
            slots = slots_in(spans, start + len(self.overlap), end + len(self.overlap))
            renoise(row, slots or set(range(len(row.draft))), self.noise)
            again.append(row)
        if again:
            self.note(
                f"repair: {len(again)} drafts, "
                + "; ".join(sorted({self._verdict(self._text(r.draft)).reason for r in again}))
            )
        return again

    def _text(self, ids: Sequence[int]) -> bytes:
        """The fill's text before tidying: decoded, without the healed overlap; b"" if that does not fit."""
        text = self.tokenizer.decode(ids)
        return text[len(self.overlap) :] if text.startswith(self.overlap) else b""

    def _verdict(self, text: bytes) -> Verdict:
        verdict = self.verdicts.get(text)
        if verdict is None:
            verdict = self.verdicts[text] = self._check(text)
        return verdict

    def _check(self, text: bytes) -> Verdict:
        try:
            text.decode()
        except UnicodeDecodeError:
            return Verdict(False, "ends inside a character", None)
        return self.gate.check(self.gate.tidy(text))

    def _judge(self, ids: Sequence[int], score: float, origin: str, row: Row | None = None) -> None:
        """Put a draft before the gate; what passes may be offered from now on."""
        text = self._text(ids)
        if not text or not self._verdict(text).ok:
            return
        tidy = self.gate.tidy(text)
        known = self.candidates.get(tidy)
        if known is None or score > known.score:
            self.candidates[tidy] = Candidate(tidy, tuple(ids), score, origin)
            if row is not None:
                self._remember(tidy, ids, row)

    def _remember(self, text: bytes, ids: Sequence[int], row: Row) -> None:
        conditioning = row.conditioning if len(row.hole) == len(ids) else None
        self.warm = Warm(
            before=self.source.text[: self.hole.start],
            after=self.source.text[self.hole.end :],
            text=text,
            ids=tuple(ids),
            tail=len(row.tail),
            conditioning=conditioning,
        )

    def _frame(self, rows: Sequence[Row], before: Sequence[Sequence[int]], max_steps: int) -> Draft:
        """The surest row as it stands, with what did not change in this step marked as settled."""
        at = max(range(len(rows)), key=lambda i: rows[i].confidence)
        ids, old = rows[at].draft, before[at]
        settled: list[tuple[int, int]] = []
        text = ""
        for i, id_ in enumerate(ids):
            piece = self.tokenizer.token_bytes[id_].decode(errors="replace")
            if i < len(old) and old[i] == id_:
                settled.append((len(text), len(text) + len(piece)))
            text += piece
        return Draft(self.steps, max_steps, self.hole.start, self.hole.end, text, tuple(settled))

    # -- ranking --------------------------------------------------------------------------------------

    def _rank(self, cache: PrefixCache) -> None:
        """Score what passed by the causal likelihood of the fill and of its end, mean per token."""
        if self.strategy.rank != "causal" or not self.candidates:
            return
        self.look()
        finalists = sorted(self.candidates.values(), key=lambda c: -c.score)[:8]
        rows = [self.tokenizer.encode(self.overlap + c.text) + [self.markers.end] for c in finalists]
        scores = self.model.score(cache, rows)
        self.candidates = {c.text: replace(c, score=float(s.mean())) for c, s in zip(finalists, scores, strict=True)}
