"""Attention of a few new tokens over a long prefix and themselves, keys and values where the cache has them.

Knows nothing of models or caches. Plain torch here, the CPU's path and the reference of `attention_triton`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import path


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of queries times keys, unscaled, times values.

    queries [T, G, K, hd]; keys, values [1, K, L, hd], of any strides, read as they lie; mask [T * G, L], added to the
    scores, the same for all G of a token. Returns [T, G * K * hd]. Raises `path.PathError`.

    The query heads that share a key head become query rows: exact, since every row of a token has the same mask, and
    neither keys nor values are repeated or copied.
    """
    chosen = path.chosen(queries.device)
    path.ran["attention", chosen] += 1
    if chosen == "torch":
        return reference(queries, keys, values, mask)
    from . import attention_triton

    return attention_triton.attention(queries, keys, values, mask)


def reference(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """`attention` in plain torch.

    A bf16 cache beside fp32 activations (int8 weights on a CPU) is read by two products: 235 us for 32 tokens that see
    544, where torch's attention takes 320 in fp32 and in bf16. It moves the starter's logits on code no further from
    fp32 than int8 weights do (6.9e-4 nats a token against 6.4e-4).
    """
    tokens, groups, kv_heads, width = queries.shape
    if queries.dtype == keys.dtype:
        rows = queries.reshape(1, tokens * groups, kv_heads, width).transpose(1, 2)
        out = F.scaled_dot_product_attention(rows, keys, values, mask, scale=1.0)
    else:
        rows = queries.to(keys.dtype).reshape(1, tokens * groups, kv_heads, width).transpose(1, 2)
        scores = rows @ keys.mT
        if mask is not None:
            scores += mask
        out = (scores.softmax(-1) @ values).to(queries.dtype)
    return out.transpose(1, 2).reshape(tokens, groups * kv_heads * width)
