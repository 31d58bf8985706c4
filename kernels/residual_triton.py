"""`residual` as one Triton kernel, a program per row: where torch takes three launches after attention and six after
the feed-forward, each waiting for the one before.

Knows nothing of models. Imported only where Triton runs: on CUDA, or on a CPU in its interpreter (tests).
A row stays in registers from the first norm to the last; between them nothing is rounded. Not yet run on a GPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from .matmul_triton import INTERPRETED, rounded
from .residual import Normed


def add_normed(x: Tensor, added: Normed, eps: float, following: Tensor | None) -> tuple[Tensor, Tensor]:
    """`residual.add_normed`."""
    return _launch(x, added, None, None, 1.0, eps, following)


def add_two_normed(
    x: Tensor, first: Normed, second: Normed, weight: Tensor, scale: float, eps: float, following: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`residual.add_two_normed`."""
    return _launch(x, first, second, weight, scale, eps, following)


def _launch(
    x: Tensor,
    first: Normed,
    second: Normed | None,
    weight: Tensor | None,
    scale: float,
    eps: float,
    following: Tensor | None,
) -> tuple[Tensor, Tensor]:
    tokens, width = x.shape
    x, value, another = x.contiguous(), first[0].contiguous(), (second or first)[0].contiguous()
    total, normed = x.new_empty(x.shape), x.new_empty(x.shape)
    if tokens:
        whole = triton.next_power_of_2(width)
        residual_kernel[(tokens,)](
            x,
            value,
            first[1],
            another,
            (second or first)[1],
            first[1] if weight is None else weight,
            first[1] if following is None else following,
            total,
            normed,
            scale,
            eps,
            D=width,
            WIDE=whole,
            TWO=second is not None,
            FOLLOWED=following is not None,
            INTERPRETED=INTERPRETED,
            num_warps=min(8, max(1, whole // 256)),
        )
    return total, normed


@triton.jit(do_not_specialize=["scale", "eps"])
def residual_kernel(
    x,
    first,
    first_weight,
    second,
    second_weight,
    weight,
    following,
    total,
    normed,
    scale,
    eps,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    TWO: tl.constexpr,
    FOLLOWED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One row. `second`, `weight` and `following` are read only where TWO and FOLLOWED say so."""
    at = tl.arange(0, WIDE)
    here = at < D
    place = tl.program_id(0).to(tl.int64) * D + at
    # What does not depend on a norm is asked for first: the row waits for memory once.
    left = tl.load(x + place, mask=here, other=0.0).to(tl.float32) * scale
    value = tl.load(first + place, mask=here, other=0.0).to(tl.float32)
    by = tl.load(first_weight + at, mask=here, other=0.0).to(tl.float32)
    if TWO:
        other = tl.load(second + place, mask=here, other=0.0).to(tl.float32)
        other_by = tl.load(second_weight + at, mask=here, other=0.0).to(tl.float32)
        outer = tl.load(weight + at, mask=here, other=0.0).to(tl.float32)
    if FOLLOWED:
        last = tl.load(following + at, mask=here, other=0.0).to(tl.float32)
    value = by * unit(value, eps, D)
    if TWO:
        value = outer * unit(value + other_by * unit(other, eps, D), eps, D)
    value += left
    tl.store(total + place, rounded(value, total.dtype.element_ty, INTERPRETED), mask=here)
    value = unit(value, eps, D)
    if FOLLOWED:
        value *= last
    tl.store(normed + place, rounded(value, normed.dtype.element_ty, INTERPRETED), mask=here)


@triton.jit
def unit(row, eps, D: tl.constexpr):
    """The RMS norm of one row of D numbers, zeros behind it."""
    return row / tl.sqrt(tl.sum(row * row, 0) / D + eps)
