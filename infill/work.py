"""What a fill wants of the model: one forward pass at a time, as a thing that can wait.

A fill yields these instead of calling the model and goes on when `out` is there. Whoever drives it runs them as they
come (`run`) or those of several fills in one pass (`together`). Knows no text and no sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .canvas import Batch
from .model import Denoised, Model
from .prefix import Joined, PrefixCache


@dataclass(slots=True, eq=False)
class Encode:
    """Appends `ids` to the prefix."""

    cache: PrefixCache
    ids: Sequence[int]
    out: Tensor = field(init=False)
    """[n, D] their final hidden states"""


@dataclass(slots=True, eq=False)
class Logits:
    """Reads the next token off a final hidden state [1, D]."""

    hidden: Tensor
    out: Tensor = field(init=False)
    """[1, V] soft-capped, fp32"""


@dataclass(slots=True, eq=False)
class Step:
    """One denoising step; the fields are those of `Model.denoise`."""

    cache: PrefixCache
    canvas: Batch
    temperature: float
    banned: Tensor | None
    allowed: Mapping[int, Tensor] | None
    gumbel: torch.Generator | None
    out: Denoised = field(init=False)


@dataclass(slots=True, eq=False)
class Score:
    """Scores `rows` of ids behind the prefix, left to right."""

    cache: PrefixCache
    rows: Sequence[Sequence[int]]
    out: list[Tensor] = field(init=False)


Work = Encode | Logits | Step | Score


def tokens(work: Work) -> int:
    """Positions that go through the layers."""
    match work:
        case Encode():
            return len(work.ids)
        case Logits():
            return 1
        case Step():
            return sum(work.canvas.lengths)
        case Score():
            return sum(map(len, work.rows))


def run(model: Model, work: Work) -> None:
    """One pass for one fill."""
    match work:
        case Encode():
            work.out = model.encode(work.cache, work.ids)
        case Logits():
            work.out = model.head(work.hidden)
        case Step():
            work.out = denoise(model, work.cache, work.canvas, work)
        case Score():
            work.out = model.score(work.cache, work.rows)


def denoise(model: Model, cache: PrefixCache | Joined, canvas: Batch, like: Step) -> Denoised:
    """The step of `canvas`, which may be that of `like` or hold it."""
    return model.denoise(
        cache,
        canvas.ids,
        canvas.free,
        lengths=canvas.lengths,
        conditioning=canvas.conditioning,
        temperature=like.temperature,
        banned=like.banned,
        allowed=like.allowed,
        gumbel=like.gumbel,
    )
