"""The first half of a gated MLP: x times a quantised matrix of gate and up rows, and the gate.

Knows nothing of models or files. The Triton version is in `gated_triton`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from . import matmul, path
from .quantised import Quantised


def gated(x: Tensor, weight: Quantised) -> Tensor:
    """gelu(x @ gateᵀ) * (x @ upᵀ), with tanh's gelu.

    x [n, in]; weight [2 * M, in], gate before up; returns [n, M] in x's dtype. Raises `path.PathError`.
    """
    chosen = path.chosen(x.device)
    path.ran["gated", chosen] += 1
    if chosen == "torch":
        return reference(x, weight)
    from . import gated_triton

    return gated_triton.gated(x, weight)


def reference(x: Tensor, weight: Quantised) -> Tensor:
    """`gated` in plain torch."""
    return gate(matmul.reference(x, weight))


def gate(both: Tensor) -> Tensor:
    """gelu(gate) * up of [n, 2 * M], gate before up."""
    first, second = both.chunk(2, dim=-1)
    return F.gelu(first, approximate="tanh") * second
