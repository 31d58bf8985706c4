"""The mixture of experts of one layer: routing and the two grouped matrix products.

Knows nothing of models, checkpoints or files. Plain torch, differentiable, and the reference for any faster
version with the same signature.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


def experts(x: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
    """Send every token through its `top_k` best experts and add up what they return.

    x [T, D]; scores [T, E], router logits; gate_up [E, D, 2*M], gate before up; down [E, M, D], with each
    expert's own scale already in it. Returns [T, D] in x's dtype.

    The weights of the chosen experts are a softmax over the chosen logits alone, which is the softmax over
    all of them renormalised.
    """
    best, chosen = scores.topk(top_k, dim=-1)
    weights = best.softmax(-1, dtype=torch.float32)
    # Rows grouped by expert; `ends` says where each expert's rows end, without asking the device.
    expert, order = chosen.view(-1).sort(stable=True)
    numbers = _count(gate_up.shape[0], x.device)
    ends = torch.searchsorted(expert, numbers, right=True, out_int32=True)
    gate, up = F.grouped_mm(x[order // top_k], gate_up, offs=ends).chunk(2, dim=-1)
    hidden = F.grouped_mm(F.gelu(gate, approximate="tanh") * up, down, offs=ends)
    # Gather each token's results and add them, weighted, in one operation.
    starts = _count(len(x), x.device, top_k)
    if weights.dtype != x.dtype:
        weights = weights.to(x.dtype)
    summed, *_ = torch.embedding_bag(hidden, order.argsort(), starts, False, 0, False, weights.view(-1))
    return summed


@cache
def _count(length: int, device: torch.device, step: int = 1) -> Tensor:
    with torch.inference_mode(False):  # training may save it for backward
        return torch.arange(0, length * step, step, device=device)
