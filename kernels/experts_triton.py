"""`experts` of quantised weights as five Triton kernels, without waiting for the device and without atomics.

Knows nothing of models, checkpoints or files. Imported only where Triton runs: on CUDA, or on a CPU in its
interpreter (tests).

A pair is a token and one of its experts, numbered token * top_k + rank; there are P = T * top_k.
1. `choose_kernel`, a program per token: the best experts and their weights.
2. `group_kernel`, a program per expert: lists its pairs and cuts them into tiles of 16. Expert e begins its tiles at
   number start // 16 + e, start being the pairs of the experts before it: nobody's tiles can meet another's, so no
   expert has to know how many tiles the others need, and P // 16 + E tiles hold any routing. At most one tile an
   expert stays empty; its programs end at once.
3. `gate_up_kernel`, a program per tile and block of hidden columns: both products of a column, then the gate.
   Tiles follow each other, so that an expert's second tile finds the codes in the L2. In bf16 the hidden values would
   be rounded as coarsely as the result is; they are kept in fp16, counted in a power of two that each program chooses
   for each of its rows, so that none is too large for fp16 and none too small that matters.
4. `down_kernel`, the same for the outputs; each pair's row, times its weight, is written in fp32.
5. `add_kernel` adds a token's rows, best expert first: the result depends on nothing else in the batch.

The products are `matmul_triton.product`, see there. Not yet run on a GPU.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from . import tuned
from .matmul_triton import INTERPRETED, bits, product, rounded, scale_strides
from .quantised import Quantised
from .tuned import TILE, Blocks

FULL = 8
"""Pairs to an expert, on average, from which on a tile's rows weigh as much as 64 outputs of int4 codes: a row's 64
inputs are 128 bytes, an output's 32. Wider blocks then read the rows less often."""
CUTS: dict[tuple[int, bool], Blocks] = {
    # bits, more than FULL pairs to an expert. A gate and its up count as two outputs: 64 of them are 22 programs to
    # a tile of the 26B, 22 times 112 experts on 132 SMs. Of 704 inputs, 3 steps are all; they are in flight at once.
    (4, False): Blocks(TILE, 64, 4, 4, 3),
    (4, True): Blocks(TILE, 128, 4, 4, 3),
    (8, False): Blocks(TILE, 32, 4, 4, 3),
    (8, True): Blocks(TILE, 64, 4, 4, 3),
}
"""Reasoned, for any GPU; `tuned` has what was measured on one."""
AT_ONCE = 2048
"""Tokens; more go in parts. What the experts return for them takes 8 rows of fp32 each, 185 MB in the 26B."""
LEAST = 32
"""Hidden columns that share a unit, at least: half a group, which is what `product` takes at once."""
CHUNK = 1024
"""Pairs that `group_kernel` looks at together."""
STRIP = 1024
"""Outputs of one program of `add_kernel`."""


def cut(bits: int, full: bool, device: torch.device) -> Blocks:
    """How the products are cut on `device`."""
    return tuned.of(device).experts.get((bits, full), CUTS[bits, full])


def experts(x: Tensor, scores: Tensor, gate_up: Quantised, down: Quantised, top_k: int) -> Tensor:
    """`experts.experts` of quantised weights. Everything has a size that the host knows, so it can be captured."""
    tokens, width = x.shape
    if tokens > AT_ONCE:
        parts = zip(x.split(AT_ONCE), scores.split(AT_ONCE), strict=True)
        return torch.cat([experts(some, their, gate_up, down, top_k) for some, their in parts])
    count, hidden = gate_up.codes.shape[0], gate_up.codes.shape[1] // 2
    out = x.new_empty(x.shape)
    if not tokens:
        return out
    pairs, tiles = tokens * top_k, tokens * top_k // TILE + count
    chosen, order = (torch.empty(pairs, dtype=torch.int32, device=x.device) for _ in range(2))
    weights = torch.empty(pairs, dtype=torch.float32, device=x.device)
    table = torch.empty((tiles, 3), dtype=torch.int32, device=x.device)
    first, second = (cut(bits(weight), pairs > FULL * count, x.device) for weight in (gate_up, down))
    columns = max(LEAST, first.outputs // 2)
    unit = 0 if x.dtype == torch.float32 else columns
    between = torch.empty((pairs, hidden), dtype=torch.float16 if unit else x.dtype, device=x.device)
    units = torch.empty((pairs, triton.cdiv(hidden, columns)), dtype=torch.float32, device=x.device)
    returned = torch.empty((pairs, width), dtype=torch.float32, device=x.device)
    choose_kernel[(tokens,)](scores.contiguous(), chosen, weights, E=count, TOP_K=top_k, num_warps=1)
    chunk = min(CHUNK, triton.next_power_of_2(pairs))
    group_kernel[(count,)](chosen, order, table, pairs, CHUNK=chunk, TILE=TILE, num_warps=min(4, max(1, chunk // 64)))
    by_row, by_group = scale_strides(gate_up)
    gate_up_kernel[(tiles, triton.cdiv(hidden, columns))](
        x.contiguous(),
        order,
        table,
        gate_up.codes,
        gate_up.scale,
        between,
        units,
        TOP_K=top_k,
        IN=width,
        HIDDEN=hidden,
        BY_EXPERT=gate_up.scale.stride(0),
        BY_ROW=by_row,
        BY_GROUP=by_group,
        BITS=bits(gate_up),
        ROWS=TILE,
        COLUMNS=columns,
        UNIT=unit,
        SLICES=first.slices,
        STAGES=first.stages,
        INTERPRETED=INTERPRETED,
        num_warps=first.warps,
    )
    by_row, by_group = scale_strides(down)
    down_kernel[(tiles, triton.cdiv(width, second.outputs))](
        between,
        units,
        order,
        table,
        weights,
        down.codes,
        down.scale,
        returned,
        HIDDEN=hidden,
        OUT=width,
        BY_EXPERT=down.scale.stride(0),
        BY_ROW=by_row,
        BY_GROUP=by_group,
        BITS=bits(down),
        ROWS=TILE,
        OUTPUTS=second.outputs,
        UNIT=unit,
        SLICES=second.slices,
        STAGES=second.stages,
        INTERPRETED=INTERPRETED,
        num_warps=second.warps,
    )
    strip = min(STRIP, triton.next_power_of_2(width))
    add_kernel[(tokens, triton.cdiv(width, strip))](
        returned, out, TOP_K=top_k, OUT=width, STRIP=strip, INTERPRETED=INTERPRETED, num_warps=4
    )
    return out


@triton.jit
def choose_kernel(scores, chosen, weights, E: tl.constexpr, TOP_K: tl.constexpr):
    """One token's TOP_K best experts of scores [T, E], of equal ones the lower, and the softmax over their scores."""
    WIDE: tl.constexpr = triton.next_power_of_2(E)
    RANKS: tl.constexpr = triton.next_power_of_2(TOP_K)
    token = tl.program_id(0).to(tl.int64)
    number, ranks = tl.arange(0, WIDE), tl.arange(0, RANKS)
    left = tl.load(scores + token * E + number, mask=number < E, other=float("-inf")).to(tl.float32)
    # What is no number would equal nothing, not even the maximum.
    left = tl.where(left == left, left, float("-inf"))  # noqa: PLR0124
    free = number < E
    best = tl.full((RANKS,), float("-inf"), tl.float32)
    which = tl.zeros((RANKS,), tl.int32)
    for rank in tl.static_range(TOP_K):
        top = tl.max(left, 0)
        found = tl.min(tl.where(free & (left == top), number, WIDE), 0)
        best = tl.where(ranks == rank, top, best)
        which = tl.where(ranks == rank, found, which)
        free = free & (number != found)
        left = tl.where(free, left, float("-inf"))
    share = tl.exp(best - tl.max(best, 0))
    kept = ranks < TOP_K
    tl.store(chosen + token * TOP_K + ranks, which, mask=kept)
    tl.store(weights + token * TOP_K + ranks, share / tl.sum(share, 0), mask=kept)


@triton.jit(do_not_specialize=["pairs"])
def group_kernel(chosen, order, table, pairs, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """One expert's pairs, in order, behind those of the experts before it; and its tiles: expert, first place in
    `order`, pairs (0 for an empty one)."""
    expert = tl.program_id(0)
    at = tl.arange(0, CHUNK)
    before, own = 0, 0
    for done in range(0, pairs, CHUNK):
        found = tl.load(chosen + done + at, mask=done + at < pairs, other=1 << 30)
        before += tl.sum((found < expert).to(tl.int32), 0)
        own += tl.sum((found == expert).to(tl.int32), 0)
    tile, end = before // TILE + expert, (before + own) // TILE + expert + 1
    for number in range(tile, end):
        past = (number - tile) * TILE
        tl.store(table + number * 3, expert)
        tl.store(table + number * 3 + 1, before + past)
        tl.store(table + number * 3 + 2, tl.maximum(tl.minimum(own - past, TILE), 0))
    place = before
    if own > 0:
        for done in range(0, pairs, CHUNK):
            mine = tl.load(chosen + done + at, mask=done + at < pairs, other=1 << 30) == expert
            rank = tl.cumsum(mine.to(tl.int32), 0)
            tl.store(order + place + rank - 1, done + at, mask=mine)
            place += tl.sum(mine.to(tl.int32), 0)


@triton.jit
def pairs_of(table, tile, ROWS: tl.constexpr):
    """A tile's expert, the places [ROWS] of its pairs in `order`, and which of them there are."""
    rows = tl.arange(0, ROWS)
    expert = tl.load(table + tile * 3).to(tl.int64)
    count = tl.load(table + tile * 3 + 2)
    return expert, tl.load(table + tile * 3 + 1) + rows, rows < count


@triton.jit
def gate_up_kernel(
    x,
    order,
    table,
    codes,
    scale,
    between,
    units,
    TOP_K: tl.constexpr,
    IN: tl.constexpr,
    HIDDEN: tl.constexpr,
    BY_EXPERT: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    SLICES: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """gelu(x @ gateᵀ) * (x @ upᵀ) of one tile and COLUMNS hidden columns, to [P, HIDDEN] by place in `order`.

    Gate and up of a column are neighbours in the product, which one thread holds: no exchange to multiply them. With
    UNIT, which is COLUMNS, a row's numbers are counted in a power of two that goes to `units` [P, HIDDEN / COLUMNS].
    """
    tile = tl.program_id(0)
    if tl.load(table + tile * 3 + 2) == 0:
        return
    expert, place, live = pairs_of(table, tile, ROWS)  # pyright: ignore[reportGeneralTypeIssues]
    token = tl.load(order + place, mask=live, other=0) // TOP_K
    start = tl.program_id(1) * COLUMNS
    both = tl.arange(0, 2 * COLUMNS)
    row = tl.minimum(start + both // 2, HIDDEN - 1) + both % 2 * HIDDEN
    total = product(
        x,
        token,
        live,
        codes + expert * (2 * HIDDEN * IN * BITS // 8),
        scale + expert * BY_EXPERT,
        row,
        IN,
        BY_ROW,
        BY_GROUP,
        BITS,
        ROWS,
        2 * COLUMNS,
        SLICES,
        STAGES,
        INTERPRETED,
    )
    gate, up = tl.split(tl.reshape(total, (ROWS, COLUMNS, 2)))
    # gelu with tanh z, as (1 + tanh z) / 2 = 1 / (1 + exp(-2z)).
    twice = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    gated = gate / (1.0 + tl.exp(-twice)) * up
    column = start + tl.arange(0, COLUMNS)
    if UNIT:
        # The exponent of the largest, so that it lies from 2^14 to 2^15; of an infinite one as of any other.
        peak = tl.max(tl.where((column < HIDDEN)[None, :], tl.abs(gated), 0.0), 1)
        exponent = (peak.to(tl.int32, bitcast=True) >> 23) & 255
        exponent = tl.maximum(exponent, 28) - 14
        gated *= ((254 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
        own = (exponent << 23).to(tl.float32, bitcast=True)
        tl.store(units + place * ((HIDDEN + COLUMNS - 1) // COLUMNS) + tl.program_id(1), own, mask=live)
    places = between + place.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    tl.store(
        places, rounded(gated, between.dtype.element_ty, INTERPRETED), mask=live[:, None] & (column < HIDDEN)[None, :]
    )


@triton.jit
def down_kernel(
    between,
    units,
    order,
    table,
    weights,
    codes,
    scale,
    returned,
    HIDDEN: tl.constexpr,
    OUT: tl.constexpr,
    BY_EXPERT: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    UNIT: tl.constexpr,
    SLICES: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """What one tile's expert returns, times the pair's weight, to [P, OUT] by pair in fp32."""
    tile = tl.program_id(0)
    if tl.load(table + tile * 3 + 2) == 0:
        return
    expert, place, live = pairs_of(table, tile, ROWS)  # pyright: ignore[reportGeneralTypeIssues]
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    if UNIT:
        COUNT: tl.constexpr = (HIDDEN + UNIT - 1) // UNIT
        number = tl.arange(0, triton.next_power_of_2(COUNT))
        kept = live[:, None] & (number < COUNT)[None, :]
        unit = tl.max(tl.load(units + place[:, None] * COUNT + number[None, :], mask=kept, other=1e-38), 1)
    else:
        unit = tl.full((ROWS,), 1.0, tl.float32)
    total = product(
        between,
        place,
        live,
        codes + expert * (OUT * HIDDEN * BITS // 8),
        scale + expert * BY_EXPERT,
        tl.minimum(output, OUT - 1),
        HIDDEN,
        BY_ROW,
        BY_GROUP,
        BITS,
        ROWS,
        OUTPUTS,
        SLICES,
        STAGES,
        INTERPRETED,
        units,
        unit,
        UNIT,
    )
    total *= unit[:, None]
    pair = tl.load(order + place, mask=live, other=0)
    total *= tl.load(weights + pair, mask=live, other=0.0)[:, None]
    places = returned + pair.to(tl.int64)[:, None] * OUT + output[None, :]
    tl.store(places, total, mask=live[:, None] & (output < OUT)[None, :])


@triton.jit
def add_kernel(returned, out, TOP_K: tl.constexpr, OUT: tl.constexpr, STRIP: tl.constexpr, INTERPRETED: tl.constexpr):
    """The sum of a token's TOP_K rows of `returned` [P, OUT], in their order."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * STRIP + tl.arange(0, STRIP)
    total = tl.zeros((STRIP,), tl.float32)
    for rank in tl.static_range(TOP_K):
        total += tl.load(returned + (token * TOP_K + rank) * OUT + at, mask=at < OUT, other=0.0)
    tl.store(out + token * OUT + at, rounded(total, out.dtype.element_ty, INTERPRETED), mask=at < OUT)
