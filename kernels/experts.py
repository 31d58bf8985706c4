"""The mixture of experts of one layer: routing and the two grouped matrix products.

Knows nothing of models, checkpoints or files. The Triton version for quantised weights is in `experts_triton`.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import path
from .quantised import Quantised


def experts(x: Tensor, scores: Tensor, gate_up: Tensor | Quantised, down: Tensor | Quantised, top_k: int) -> Tensor:
    """Send every token through its `top_k` best experts and add up what they return, always in the same order.

    x [T, D]; scores [T, E], router logits; gate_up has gate before up; down has each expert's own scale in it.
    Dense weights are gate_up [E, D, 2*M] and down [E, M, D], and the result is differentiable; torch multiplies
    them on any path, counted as `dense experts`. Quantised ones are stored by output row, gate_up [E, 2*M, D] and
    down [E, D, M]. Returns [T, D] in x's dtype. Raises `path.PathError`.

    The weights of the chosen experts are a softmax over the chosen logits alone, which is the softmax over
    all of them renormalised.
    """
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        path.ran["dense experts", "torch"] += 1
        return _dense(x, scores, gate_up, down, top_k)
    if isinstance(gate_up, Tensor) or isinstance(down, Tensor):
        raise TypeError("experts: gate_up and down must both be dense or both be quantised")
    chosen = path.chosen(x.device)
    path.ran["experts", chosen] += 1
    if chosen == "torch":
        return reference(x, scores, gate_up, down, top_k)
    from . import experts_triton

    return experts_triton.experts(x, scores, gate_up, down, top_k)


def reference(x: Tensor, scores: Tensor, gate_up: Quantised, down: Quantised, top_k: int) -> Tensor:
    """`experts` of quantised weights in plain torch and fp32. Of equal scores, the lower expert's counts as better.

    Makes only the experts that are hit dense, one at a time, and waits for the device to learn which they are.
    """
    best, chosen = scores.float().sort(dim=-1, descending=True, stable=True)
    best, chosen = best[:, :top_k], chosen[:, :top_k]
    expert, order = chosen.flatten().sort(stable=True)
    given = x.float()[order // top_k]
    returned = torch.empty_like(given)
    end = 0
    for number, count in enumerate(expert.bincount().tolist()):
        if not count:
            continue
        start, end = end, end + count
        gate, up = (given[start:end] @ gate_up[number].dense(torch.float32).T).chunk(2, dim=-1)
        returned[start:end] = (F.gelu(gate, approximate="tanh") * up) @ down[number].dense(torch.float32).T
    weighted = returned[order.argsort()].view(*chosen.shape, -1) * best.softmax(-1)[..., None]
    total = torch.zeros_like(given[: len(x)])
    for rank in range(top_k):
        total += weighted[:, rank]
    return total.to(x.dtype)


def _dense(x: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
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
