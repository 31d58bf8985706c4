"""What a denoising step needs of the vocabulary, for the slots that are free and for no other.

Knows nothing of canvases, models or files. This file is plain torch, the CPU's path and the reference of the fused
one (`head_fused`), which never holds [N, V] in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .path import chosen, ran
from .quantised import Int8Rows

BANNED = -1e30
"""Logit of a token that must not come: finite, so that probability 0 times its logarithm is 0 and not NaN."""

BLOCK = 64
AT_ONCE = 8192
"""Rows of the embedding made dense at a time where it cannot be multiplied as it is: 92 MB of the 26B's 3 GB."""

Conditioning = Literal["dense"] | int
"""Over which tokens the expected embedding is taken: all, or the k most probable, renormalised.

On the starter (V 4,096; 40 holes of 24 slots, 8 greedy steps) 64 tokens instead of all are off, after the RMS norm
that reads it, by 0.01 % for slots below 0.1 nats, 0.4 % below 1, 4 % below 3 and 25 % above, and 4.8 % of the last
drafts' tokens differ (256 tokens: 2.4 %). Hence all, unless a larger model shows otherwise.
"""


class Philox(NamedTuple):
    """Where noise is drawn from without asking the host: a captured graph adds one to `step` and replays."""

    seed: Tensor
    """[] int64"""
    step: Tensor
    """[] int64"""


class Held(NamedTuple):
    """`allowed` for N slots as tensors, which keep their addresses from one replay of a captured graph to the next."""

    which: Tensor
    """[N] int32, the row of `masks` that a slot is held to, or -1"""
    masks: Tensor
    """[R, V] uint8, 1 for every id that may come"""


Allowed = Mapping[int, Tensor] | Held
"""Number of a slot to the only ids it may hold."""

Noise = Tensor | torch.Generator | Philox | None
"""Gumbel noise [N, V], or what to draw it from, or None for `sample` equal to `argmax`."""


class Reading(NamedTuple):
    """N free slots. Everything is taken from the tempered distribution without the banned tokens."""

    argmax: Tensor
    """[N] int64, the lowest of equal ones"""
    sample: Tensor
    """[N] int64"""
    entropy: Tensor
    """[N] fp32, nats"""
    logprob: Tensor
    """[N] fp32, of `argmax`"""
    probabilities: Tensor
    """[N, V] fp32"""


class Head(NamedTuple):
    """As `Reading`, with what the next step is told instead of the probabilities."""

    argmax: Tensor
    sample: Tensor
    entropy: Tensor
    logprob: Tensor
    conditioning: Tensor
    """[N, D] in the dtype of the hidden states: the expected embedding, not yet scaled"""


def denoise_head(
    hidden: Tensor,
    embedding: Tensor | Int8Rows,
    *,
    softcap: float,
    temperature: float | Tensor,
    banned: Tensor | None = None,
    allowed: Allowed | None = None,
    noise: Noise = None,
    conditioning: Conditioning = "dense",
    round_logits: bool = False,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Head:
    """From final hidden states [N, D] to samples and to the expected embedding that the next step is told.

    embedding [V, D], which is the head as well. temperature: a number, or [] fp32 on the device. banned, allowed,
    noise: as in `read`. round_logits: round raw logits to bf16 before the soft-cap, which is what a bf16 head gives
    (transformers, vLLM); ties are then common, and the lowest id wins. project: raw logits [N, V] of hidden states
    where they are not `hidden @ embedding.T`, for the plain path only (a CPU's int8 rounds its activations too).
    """
    path = chosen(hidden.device)
    ran["head", path] += 1
    if not len(hidden):
        none, number = hidden.new_zeros(0, dtype=torch.int64), hidden.new_zeros(0, dtype=torch.float32)
        return Head(none, none, number, number, hidden)
    if path == "triton":
        from .head_fused import fused_head

        return fused_head(
            hidden,
            embedding,
            softcap=softcap,
            temperature=temperature,
            banned=banned,
            allowed=allowed,
            noise=noise,
            conditioning=conditioning,
            round_logits=round_logits,
        )
    raw = project(hidden) if project else _logits(hidden, embedding, round_logits)
    if round_logits:
        raw = raw.to(torch.bfloat16)
    argmax, sample, entropy, logprob, probabilities = read(
        raw, softcap=softcap, temperature=temperature, banned=banned, allowed=allowed, noise=noise
    )
    expected = _expect(probabilities, embedding, conditioning).to(hidden.dtype)
    return Head(argmax, sample, entropy, logprob, expected)


def read(
    logits: Tensor,
    *,
    softcap: float,
    temperature: float | Tensor,
    banned: Tensor | None = None,
    allowed: Allowed | None = None,
    noise: Noise = None,
) -> Reading:
    """Cap, temper and mask raw `logits` [N, V], then read off what sampling needs. fp32 logits are used up.

    banned [V] bool, for every slot; allowed: slot number to the only ids [k] it may hold. A generator gives one
    uniform number per slot here and not Gumbel noise; a `Philox` is read on the host and seeds one.
    """
    # tanh(z) = 2·sigmoid(2z) - 1, without the constant, which no probability depends on: torch's sigmoid is
    # six times faster than its tanh on a CPU. Likewise a bias is nine times faster than masked_fill.
    scaled = logits.float().mul_(2 / softcap).sigmoid_().mul_(2 * softcap / temperature)
    if banned is not None:
        scaled += banned * BANNED
    if isinstance(allowed, Held):
        free = (allowed.which < 0)[:, None]
        scaled = torch.where(free | (allowed.masks[allowed.which.clamp_min(0)] > 0), scaled, BANNED)
        allowed = None
    for slot, ids in (allowed or {}).items():
        kept = scaled[slot, ids]
        scaled[slot] = BANNED
        scaled[slot, ids] = kept
    probabilities = scaled.softmax(-1)
    best, argmax = _largest(probabilities)
    logprob = best.log()
    peak = scaled.gather(1, argmax[:, None]).squeeze(1)
    entropy = (peak - logprob - torch.linalg.vecdot(probabilities, scaled)).clamp_min_(0.0)
    if noise is None:
        sample = argmax
    elif isinstance(noise, Tensor):
        sample = (scaled + noise).argmax(-1)
    else:
        if isinstance(noise, Philox):
            noise = torch.Generator(logits.device).manual_seed(int(noise.seed) + int(noise.step))
        sample = _draw(probabilities, noise)
    return Reading(argmax, sample, entropy, logprob, probabilities)


def gather_top(best: Tensor, ids: Tensor, embedding: Tensor | Int8Rows) -> Tensor:
    """The mean embedding [N, D] of tokens `ids` [N, k], weighted by their probabilities `best` [N, k]."""
    best = best.float() / best.float().sum(-1, keepdim=True)
    if isinstance(embedding, Int8Rows):
        best, rows = best * embedding.scale[ids], embedding.codes[ids].float()
    else:
        rows = embedding[ids]
    return torch.bmm(best[:, None].to(rows.dtype), rows).squeeze(1)


def _logits(hidden: Tensor, embedding: Tensor | Int8Rows, rounding: bool) -> Tensor:
    """Raw logits [N, V]: as torch's own product rounds them if they are to be rounded, and else in fp32."""
    if (
        isinstance(embedding, Tensor)
        and embedding.dtype == hidden.dtype
        and (rounding or hidden.dtype == torch.float32)
    ):
        return hidden.mm(embedding.T)
    rows = hidden.float()
    return torch.cat([rows.mm(part.T) for part in _dense_parts(embedding)], dim=1)


def _expect(probabilities: Tensor, embedding: Tensor | Int8Rows, conditioning: Conditioning) -> Tensor:
    """[N, D] in some dtype"""
    if conditioning != "dense":
        return gather_top(*probabilities.topk(conditioning), embedding)
    if isinstance(embedding, Tensor):
        return probabilities.to(embedding.dtype).mm(embedding)
    sums = probabilities.new_zeros(len(probabilities), embedding.codes.shape[1])
    for number, part in enumerate(_dense_parts(embedding)):
        sums.addmm_(probabilities[:, number * AT_ONCE : number * AT_ONCE + len(part)], part)
    return sums


def _dense_parts(embedding: Tensor | Int8Rows) -> Iterator[Tensor]:
    """The rows of the embedding in fp32, `AT_ONCE` at a time."""
    count = len(embedding) if isinstance(embedding, Tensor) else len(embedding.codes)
    for at in range(0, count, AT_ONCE):
        part = embedding[at : at + AT_ONCE]
        yield part.float() if isinstance(part, Tensor) else part.dense(torch.float32)


def _blocks(values: Tensor) -> Tensor:
    """[N, V] as [N, blocks, width]: reducing blocks first is vectorised and three times faster on a CPU."""
    return values.view(len(values), -1, BLOCK if values.shape[1] % BLOCK == 0 else values.shape[1])


def _pick(blocks: Tensor, block: Tensor) -> Tensor:
    """Of each row of blocks [N, blocks, width] the one numbered `block` [N, 1]."""
    return blocks.gather(1, block[..., None].expand(-1, -1, blocks.shape[2])).squeeze(1)


def _largest(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the largest value and its index, the lowest of equal ones."""
    blocks = _blocks(probabilities)
    block = blocks.amax(-1).argmax(-1, keepdim=True)
    best, inside = _pick(blocks, block).max(-1)
    return best, block.squeeze(1) * blocks.shape[2] + inside


def _draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index per row, through the inverse of the distribution function: one random number a row, where
    Gumbel noise for every probability would cost more on a CPU than all the rest of `head`."""
    blocks = _blocks(probabilities)
    edges = blocks.sum(-1).cumsum(-1)
    drawn = torch.rand((len(edges), 1), generator=generator, device=edges.device) * edges[:, -1:]
    block = torch.searchsorted(edges, drawn, right=True).clamp_(max=edges.shape[1] - 1)
    inside = _pick(blocks, block)
    drawn -= edges.gather(1, block) - inside.sum(-1, keepdim=True)
    # Rounding may push the number out of its block; a token without probability must never come.
    edges = inside.cumsum(-1)
    drawn = torch.minimum(drawn.clamp_(min=0.0), edges[:, -1:].nextafter(edges.new_zeros(())))
    return (block * blocks.shape[2] + torch.searchsorted(edges, drawn, right=True)).squeeze(1)
