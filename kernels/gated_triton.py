"""`gated` as one Triton kernel: the product of `matmul_triton` with a gate behind it, where torch takes three launches.

Knows nothing of models or files. Imported only where Triton runs: on CUDA, or on a CPU in its interpreter (tests).
Gate and up of a column are neighbours in the product, as in `experts_triton.gate_up_kernel`. Not yet run on a GPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from .matmul_triton import INTERPRETED, bits, blocks, product, rounded, scale_strides
from .quantised import Quantised


def gated(x: Tensor, weight: Quantised) -> Tensor:
    """`gated.gated`."""
    count, inputs = x.shape
    hidden = len(weight.codes) // 2
    out = x.new_empty((count, hidden))
    cut = blocks(count, 2 * hidden, x.device)
    if count:
        by_row, by_group = scale_strides(weight)
        gated_kernel[(triton.cdiv(count, cut.rows), triton.cdiv(hidden, cut.outputs // 2))](
            x.contiguous(),
            weight.codes,
            weight.scale,
            out,
            count,
            IN=inputs,
            HIDDEN=hidden,
            BY_ROW=by_row,
            BY_GROUP=by_group,
            BITS=bits(weight),
            ROWS=cut.rows,
            COLUMNS=cut.outputs // 2,
            SLICES=cut.slices,
            STAGES=cut.stages,
            INTERPRETED=INTERPRETED,
            num_warps=cut.warps,
        )
    return out


@triton.jit(do_not_specialize=["count"])
def gated_kernel(
    x,
    codes,
    scale,
    out,
    count,
    IN: tl.constexpr,
    HIDDEN: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLICES: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One block of the result."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = at < count
    start = tl.program_id(1) * COLUMNS
    both = tl.arange(0, 2 * COLUMNS)
    # A block that sticks out computes the last column again.
    row = tl.minimum(start + both // 2, HIDDEN - 1) + both % 2 * HIDDEN
    total = product(
        x, at, live, codes, scale, row, IN, BY_ROW, BY_GROUP, BITS, ROWS, 2 * COLUMNS, SLICES, STAGES, INTERPRETED
    )
    gate, up = tl.split(tl.reshape(total, (ROWS, COLUMNS, 2)))
    # gelu with tanh z, as (1 + tanh z) / 2 = 1 / (1 + exp(-2z)).
    twice = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    column = start + tl.arange(0, COLUMNS)
    places = out + at.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    tl.store(
        places,
        rounded(gate / (1.0 + tl.exp(-twice)) * up, out.dtype.element_ty, INTERPRETED),
        mask=live[:, None] & (column < HIDDEN)[None, :],
    )
