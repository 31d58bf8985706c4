"""What becomes of a product with the query, key and value matrix: norms, rotary positions, and a place in the cache.

Knows nothing of models or caches. Plain torch here, the CPU's path and the reference of the fused kernel
(`heads_triton`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import path
from .norm import rms_norm


def turn_heads(
    heads: Tensor, norms: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, eps: float
) -> Tensor:
    """Write a layer's keys and values, [T, 1, K, hd] of any strides and dtype, and return the queries [T, G, K, hd].

    heads [T, G + 1 or G + 2, K, hd]: queries, keys, values; where there are no values, they are the keys before their
    norm's weight and unrotated. norms [G + 1, K, hd], of queries and keys; values are normed without a weight.
    cos, sin [T, 1, 1, hd] of rotary positions, see `rotate`. Raises `path.PathError`.
    """
    chosen = path.chosen(heads.device)
    path.ran["heads", chosen] += 1
    if chosen == "torch":
        return reference(heads, norms, cos, sin, keys, values, eps)
    from . import heads_triton

    return heads_triton.turn_heads(heads, norms, cos, sin, keys, values, eps)


def reference(
    heads: Tensor, norms: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, eps: float
) -> Tensor:
    """`turn_heads` in plain torch."""
    groups = len(norms) - 1
    heads = rms_norm(heads, None, eps)
    if heads.shape[1] > groups + 1:
        to_turn, own_values = torch.split(heads, [groups + 1, 1], dim=1)
    else:
        to_turn, own_values = heads, heads[:, -1:]
    queries, own_keys = torch.split(rotate(to_turn * norms, cos, sin), [groups, 1], dim=1)
    keys.copy_(own_keys)
    values.copy_(own_values)
    return queries


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x [T, …, hd], halves paired (not neighbours); the sine carries the sign of the half that it
    multiplies."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
