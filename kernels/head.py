"""What a denoising step needs of the vocabulary, for the slots that are free and for no other.

Knows nothing of canvases, models or files. Plain torch, and the reference for any fused version with the same
signature (which would never hold [N, V] in memory).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BANNED = -1e30
"""Logit of a token that must not come: finite, so that probability 0 times its logarithm is 0 and not NaN."""


class Head(NamedTuple):
    """N free slots. Everything is taken from the tempered distribution without the banned tokens."""

    argmax: Tensor
    """[N] int64"""
    sample: Tensor
    """[N] int64"""
    entropy: Tensor
    """[N] fp32, nats"""
    logprob: Tensor
    """[N] fp32, of `argmax`"""
    probabilities: Tensor
    """[N, V] fp32"""


def head(
    logits: Tensor,
    *,
    softcap: float,
    temperature: float,
    banned: Tensor | None = None,
    allowed: Mapping[int, Tensor] | None = None,
    noise: Tensor | torch.Generator | None = None,
) -> Head:
    """Cap, temper and mask raw `logits` [N, V], then read off what sampling needs.

    banned [V] bool, for every slot; allowed: slot number to the only ids [k] it may hold. noise: Gumbel noise
    [N, V], or a generator to draw one uniform number per slot from, or None for `sample` equal to `argmax`.
    """
    # tanh(z) = 2·sigmoid(2z) - 1, without the constant, which no probability depends on: torch's sigmoid is
    # six times faster than its tanh on a CPU. Likewise a bias is nine times faster than masked_fill.
    scaled = (logits.float() * (2 / softcap)).sigmoid_().mul_(2 * softcap / temperature)
    if banned is not None:
        scaled += banned * BANNED
    for slot, ids in (allowed or {}).items():
        kept = scaled[slot, ids]
        scaled[slot] = BANNED
        scaled[slot, ids] = kept
    probabilities = scaled.softmax(-1)
    best, argmax = probabilities.max(-1)
    logprob = best.log()
    peak = scaled.gather(1, argmax[:, None]).squeeze(1)
    entropy = (peak - logprob - torch.linalg.vecdot(probabilities, scaled)).clamp_min_(0.0)
    if noise is None:
        sample = argmax
    elif isinstance(noise, Tensor):
        sample = (scaled + noise).argmax(-1)
    else:
        # One number per slot through the inverse of the distribution function: Gumbel noise for every
        # logit costs more on a CPU than all the rest of this function.
        edges = probabilities.cumsum(-1)
        drawn = torch.rand((len(edges), 1), generator=noise, device=edges.device) * edges[:, -1:]
        sample = torch.searchsorted(edges, drawn, right=True).squeeze(-1).clamp_(max=edges.shape[-1] - 1)
    return Head(argmax, sample, entropy, logprob, probabilities)
