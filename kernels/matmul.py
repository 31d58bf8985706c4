"""Rows times a quantised weight: x @ weightᵀ, where only the weight is in fewer bits.

Knows nothing of models or files.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .quantised import Quantised

AT_ONCE = 1 << 24
"""Weights that the reference makes dense at a time: 64 MB, where the whole head would be 3 GB."""


def matmul(x: Tensor, weight: Quantised) -> Tensor:
    """x [n, in] by weight [out, in] to [n, out] in x's dtype, added up in fp32."""
    return reference(x, weight)


def reference(x: Tensor, weight: Quantised) -> Tensor:
    """`matmul` in plain torch."""
    rows, step = x.float(), max(1, AT_ONCE // x.shape[1])
    parts = [rows @ weight[at : at + step].dense(torch.float32).T for at in range(0, len(weight.codes), step)]
    return torch.cat(parts, dim=1).to(x.dtype)
