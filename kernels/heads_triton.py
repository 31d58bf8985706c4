"""`heads` as one Triton kernel, where torch takes seven launches: norm, weight, rotation (three), two copies.

Knows nothing of models. Imported only where Triton runs: on CUDA, or on a CPU in its interpreter (tests).
A program has the K heads of one token that are queries of one group, keys, or values: with 32 tokens of a sliding
layer 128 programs of 2,048 numbers. Nothing is rounded before the end. Not yet run on a GPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from .matmul_triton import INTERPRETED, rounded


def turn_heads(
    heads: Tensor, norms: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, eps: float
) -> Tensor:
    """`heads.turn_heads`."""
    tokens, units, kv_heads, width = heads.shape
    groups = len(norms) - 1
    queries = heads.new_empty((tokens, groups, kv_heads, width))
    if tokens:
        tile = triton.next_power_of_2(kv_heads) * triton.next_power_of_2(width)
        heads_kernel[(tokens, units)](
            heads.contiguous(),
            norms,
            cos,
            sin,
            queries,
            keys,
            values,
            *(keys.stride(axis) for axis in (0, 2, 3)),
            *(values.stride(axis) for axis in (0, 2, 3)),
            eps,
            UNITS=units,
            GROUPS=groups,
            HEADS=kv_heads,
            WIDTH=width,
            INTERPRETED=INTERPRETED,
            num_warps=min(4, max(1, tile // 256)),
        )
    return queries


@triton.jit(do_not_specialize=["eps"])
def heads_kernel(
    heads,
    norms,
    cos,
    sin,
    queries,
    keys,
    values,
    key_by_token,
    key_by_head,
    key_by_place,
    value_by_token,
    value_by_head,
    value_by_place,
    eps,
    UNITS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """All heads of unit `program_id(1)` of one token: a group of queries, the keys, or the values."""
    token, unit = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = tl.arange(0, triton.next_power_of_2(HEADS))[:, None]
    place = tl.arange(0, triton.next_power_of_2(WIDTH))[None, :]
    here = (number < HEADS) & (place < WIDTH)
    given = heads + (token * UNITS + unit) * HEADS * WIDTH + number * WIDTH
    x = tl.load(given + place, mask=here, other=0.0).to(tl.float32)
    size = tl.sqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
    if unit <= GROUPS:
        partner = tl.where(place < WIDTH // 2, place + WIDTH // 2, place - WIDTH // 2)
        y = tl.load(given + partner, mask=here, other=0.0).to(tl.float32)
        weights = norms + (unit * HEADS + number) * WIDTH
        x_weight = tl.load(weights + place, mask=here, other=0.0).to(tl.float32)
        y_weight = tl.load(weights + partner, mask=here, other=0.0).to(tl.float32)
        x_by = tl.load(cos + token * WIDTH + place, mask=place < WIDTH, other=0.0).to(tl.float32)
        y_by = tl.load(sin + token * WIDTH + place, mask=place < WIDTH, other=0.0).to(tl.float32)
        turned = (x * x_weight * x_by + y * y_weight * y_by) / size
        if unit < GROUPS:
            to = queries + ((token * GROUPS + unit) * HEADS + number) * WIDTH + place
            tl.store(to, rounded(turned, queries.dtype.element_ty, INTERPRETED), mask=here)
        else:
            to = keys + token * key_by_token + number * key_by_head + place * key_by_place
            tl.store(to, rounded(turned, keys.dtype.element_ty, INTERPRETED), mask=here)
    if unit == UNITS - 1:
        to = values + token * value_by_token + number * value_by_head + place * value_by_place
        tl.store(to, rounded(x / size, values.dtype.element_ty, INTERPRETED), mask=here)
