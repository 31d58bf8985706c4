"""The mixture of experts of one layer: routing and the two grouped matrix products.

Knows nothing of models, checkpoints or files. Plain torch, differentiable, and the reference for any faster
version with the same signature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def experts(x: Tensor, scores: Tensor, gate_up: Tensor, down: Tensor, top_k: int) -> Tensor:
    """Send every token through its `top_k` best experts and add up what they return.

    x [T, D]; scores [T, E], router logits; gate_up [E, D, 2*M], gate before up; down [E, M, D], with each
    expert's own scale already in it. Returns [T, D] in x's dtype.

    The weights of the chosen experts are a softmax over the chosen logits alone, which is the softmax over
    all of them renormalised. Each token's results are added in the order of its ranking, in fp32 on the way.
    """
    best, chosen = scores.topk(top_k, dim=-1)
    weights = best.softmax(-1, dtype=torch.float32)
    expert, order = chosen.view(-1).sort(stable=True)
    numbers = torch.arange(gate_up.shape[0], device=x.device)
    ends = torch.searchsorted(expert, numbers, right=True, out_int32=True)
    gate, up = F.grouped_mm(x[order // top_k], gate_up, offs=ends).chunk(2, dim=-1)
    hidden = F.grouped_mm(F.gelu(gate, approximate="tanh") * up, down, offs=ends)
    back = order.argsort().view(-1, top_k)
    return (hidden[back] * weights.unsqueeze(-1)).sum(1).to(x.dtype)
