"""The canvas: hole slots to denoise, then the near suffix, clamped. One `Row` per candidate.

Knows token ids and slots only: no model, no text, no syntax. `sampler` is the only one that changes a row.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NOISE = -1
"""In a seed: draw this slot uniformly from the vocabulary."""


@dataclass(slots=True)
class Row:
    """One canvas `[hole | tail]` in the course of denoising.

    hole          ids the next step reads, one per hole slot
    tail          clamped ids behind the hole (near suffix, or what a multi-canvas fill continues with)
    origin        where the seed came from: "noise", "draft", "retrieved", "warm", "repair"
    held          hole slots that are clamped too (repair holds what was right); empty = none
    first         ids allowed in slot 0 (token healing); None = any
    sampled       accepted slots take a tempered sample instead of the argmax
    draft         argmax of the last step, one id per hole slot; empty before the first step
    entropy       nats per hole slot at the last step
    logprob       log-probability of the argmax per hole slot at the last step
    unchanged     steps in a row that left `draft` as it was
    conditioning  [len(hole) + len(tail), D] soft embeddings for the next step; None = zeros
    """

    hole: list[int]
    tail: list[int]
    origin: str
    held: list[bool] = field(default_factory=list)
    first: list[int] | None = None
    sampled: bool = False
    draft: list[int] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    unchanged: int = 0
    steps: int = 0
    done: bool = False
    conditioning: Tensor | None = None

    @property
    def free(self) -> list[bool]:
        """Per hole slot: whether it is denoised."""
        return [not held for held in self.held] if self.held else [True] * len(self.hole)

    @property
    def confidence(self) -> float:
        """Mean log-probability of the draft over hole slots, nats; -inf before the first step."""
        return sum(self.logprob) / len(self.logprob) if self.logprob else float("-inf")


def new_row(
    seed: Sequence[int], tail: Sequence[int], origin: str, noise: Callable[[], int], *, sampled: bool = False
) -> Row:
    """A row whose hole starts from `seed`; `NOISE` slots are drawn by `noise`."""
    hole = [noise() if id_ == NOISE else id_ for id_ in seed]
    return Row(hole=hole, tail=list(tail), origin=origin, sampled=sampled)


def uniform_noise(vocabulary: int, seed: int) -> Callable[[], int]:
    """Ids drawn uniformly from the *full* vocabulary: what the model was trained on (special ids included).

    Restricting the noise to plausible ids is out of distribution; special ids are masked in the logits instead.
    """
    generator = random.Random(seed)
    return lambda: generator.randrange(vocabulary)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of unequal length side by side. ids [B, C] int64, free [B, C] bool, conditioning [B, C, D] or None."""

    ids: Tensor
    free: Tensor
    lengths: list[int]
    conditioning: Tensor | None


def batch(rows: Sequence[Row], device: torch.device) -> Batch:
    """Stack rows, padded on the right with id 0; padding is neither free nor attended to (`lengths`)."""
    lengths = [len(row.hole) + len(row.tail) for row in rows]
    width = max(lengths)
    ids = [row.hole + row.tail + [0] * (width - n) for row, n in zip(rows, lengths, strict=True)]
    free = [row.free + [False] * (width - len(row.hole)) for row in rows]
    conditioning = None
    known = [row.conditioning for row in rows if row.conditioning is not None]
    if known:
        conditioning = known[0].new_zeros(len(rows), width, known[0].shape[-1])
        for i, row in enumerate(rows):
            if row.conditioning is not None:
                conditioning[i, : row.conditioning.shape[0]] = row.conditioning
    return Batch(
        torch.tensor(ids, dtype=torch.int64, device=device),
        torch.tensor(free, dtype=torch.bool, device=device),
        lengths,
        conditioning,
    )


def close_up(row: Row, gone: Iterable[int]) -> None:
    """Remove hole slots physically, so that what follows moves up.

    Leaving deleted slots in place as padding costs about 5 points on single-line fills, and 13 where the hole
    was much too long (DreamOn, arXiv 2602.01326).
    """
    dropped = set(gone)
    keep = [i for i in range(len(row.hole)) if i not in dropped]
    if row.conditioning is not None:
        tail = range(len(row.hole), row.conditioning.shape[0])
        row.conditioning = row.conditioning[[*keep, *tail]]
    row.hole = [row.hole[i] for i in keep]
    for name in ("held", "draft", "entropy", "logprob"):
        values = getattr(row, name)
        setattr(row, name, [values[i] for i in keep] if values else values)


def slots_in(spans: Sequence[tuple[int, int]], start: int, end: int) -> set[int]:
    """Slots whose byte range overlaps `start..end`; an empty range takes the slot it touches."""
    return {i for i, (a, b) in enumerate(spans) if a < max(end, start + 1) and b > start}


def renoise(row: Row, slots: set[int], noise: Callable[[], int]) -> None:
    """Give `slots` (and one neighbour on either side) fresh noise and hold every other hole slot."""
    wide = {s + d for s in slots for d in (-1, 0, 1)} & set(range(len(row.draft)))
    row.hole = [noise() if i in wide else id_ for i, id_ in enumerate(row.draft)]
    row.held = [i not in wide for i in range(len(row.hole))]
    row.origin, row.unchanged, row.done = "repair", 0, False
    if row.conditioning is not None:
        row.conditioning = row.conditioning.clone()
        row.conditioning[sorted(wide)] = 0
