"""Rows times a quantised weight: x @ weightᵀ, where only the weight is in fewer bits.

Knows nothing of models or files. The Triton version is in `matmul_triton`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import path
from .quantised import Quantised

AT_ONCE = 1 << 24
"""Weights that the reference makes dense at a time: 64 MB, where the whole head would be 3 GB."""


def matmul(x: Tensor, weight: Quantised) -> Tensor:
    """x [n, in] by weight [out, in] to [n, out] in x's dtype, added up in fp32. Raises `path.PathError`."""
    chosen = path.chosen(x.device)
    path.ran["matmul", chosen] += 1
    if chosen == "torch":
        return reference(x, weight)
    from . import matmul_triton

    return matmul_triton.matmul(x, weight)


def reference(x: Tensor, weight: Quantised) -> Tensor:
    """`matmul` in plain torch."""
    rows, step = x.float(), max(1, AT_ONCE // x.shape[1])
    parts = [rows @ weight[at : at + step].dense(torch.float32).T for at in range(0, len(weight.codes), step)]
    return torch.cat(parts, dim=1).to(x.dtype)
