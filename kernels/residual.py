"""What follows a sublayer: its norm, the sum with the residual, and the norm that the next sublayer reads.

Knows nothing of models. Plain torch here, the CPU's path and the reference of the fused kernel (`residual_triton`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import path
from .norm import rms_norm

Normed = tuple[Tensor, Tensor]
"""What a sublayer returned, [T, D], and the weight [D] of its norm."""


def add_normed(x: Tensor, added: Normed, eps: float, following: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x + norm(added), and the norm of that sum, times `following` [D] if there is one.

    x [T, D]; both results [T, D] in x's dtype, computed in fp32. Raises `path.PathError`.
    """
    chosen = path.chosen(x.device)
    path.ran["residual", chosen] += 1
    if chosen == "torch":
        return reference(x, added, eps, following)
    from . import residual_triton

    return residual_triton.add_normed(x, added, eps, following)


def add_two_normed(
    x: Tensor, first: Normed, second: Normed, weight: Tensor, scale: float, eps: float, following: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """scale * x + norm(norm(first) + norm(second)) * weight, and the norm of that, as `add_normed`."""
    chosen = path.chosen(x.device)
    path.ran["residual", chosen] += 1
    if chosen == "torch":
        return reference_two(x, first, second, weight, scale, eps, following)
    from . import residual_triton

    return residual_triton.add_two_normed(x, first, second, weight, scale, eps, following)


def reference(x: Tensor, added: Normed, eps: float, following: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`add_normed` in plain torch."""
    x = x + rms_norm(*added, eps)
    return x, rms_norm(x, following, eps)


def reference_two(
    x: Tensor, first: Normed, second: Normed, weight: Tensor, scale: float, eps: float, following: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`add_two_normed` in plain torch."""
    both = rms_norm(*first, eps) + rms_norm(*second, eps)
    x = torch.add(rms_norm(both, weight, eps), x, alpha=scale)
    return x, rms_norm(x, following, eps)
