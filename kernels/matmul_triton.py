"""`matmul` as one Triton kernel, and `product`, the inner loop that the experts share.

Knows nothing of models or files. Imported only where Triton runs: on CUDA, or on a CPU in its interpreter (tests).

With few rows the time is that of reading the codes, so the loop is cut for that:
- 16 or 32 rows fill no tile, and warps side by side over the outputs would be few. So each warp takes its own 64 of
  the inputs (a batched dot puts the batch on the warps) and the partial sums meet once, at the end, in a fixed order.
- Codes stay exact in bf16 and fp16 (-127..127, -8..7) and the scale multiplies the sums: fewer instructions and no
  rounding.
- Codes, scales and rows all come through the asynchronous copy pipeline, 16 bytes a thread.
Unpacking is the other cost. An SM issues 128 instructions of a thread a clock; an H200 at 4.8 TB/s delivers 43 int4
or 21 int8 weights in that time, a 4090 6 or 3. The machine code for sm_90 takes 3 to 5 instructions a weight (loop
length, nvdisasm; 8.4 before `UNPACK`), so an H200 stays near its memory and a 4090 far from this limit.
Not yet run on a GPU: the block sizes are reasoned, tests hold the results in the interpreter and compile every shape.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from triton import knobs

from . import tuned
from .quantised import Int4Groups, Quantised
from .tuned import ANY, Blocks

INTERPRETED: bool = knobs.runtime.interpret

UNPACK = tl.constexpr("""{
.reg .b32 low, high, one, bias;
mov.b32 one, 0x3f803f80;
mov.b32 bias, 0xc308c308;
and.b32 low, $4, 0x0f0f0f0f;
shr.u32 high, $4, 4;
and.b32 high, high, 0x0f0f0f0f;
prmt.b32 $0, low, 0x43434343, 0x5140;
prmt.b32 $1, low, 0x43434343, 0x5342;
prmt.b32 $2, high, 0x43434343, 0x5140;
prmt.b32 $3, high, 0x43434343, 0x5342;
fma.rn.bf16x2 $0, $0, one, bias;
fma.rn.bf16x2 $1, $1, one, bias;
fma.rn.bf16x2 $2, $2, one, bias;
fma.rn.bf16x2 $3, $3, one, bias;
}""")
"""Four bytes of nibbles to two times four bf16. 0x43 before a nibble makes the bf16 number 128 + nibble; minus 136."""

UNPACK_HALF = tl.constexpr("""{
.reg .b32 low, high, bias;
mov.b32 bias, 0xe408e408;
and.b32 low, $4, 0x0f0f0f0f;
shr.u32 high, $4, 4;
and.b32 high, high, 0x0f0f0f0f;
prmt.b32 $0, low, 0x64646464, 0x5140;
prmt.b32 $1, low, 0x64646464, 0x5342;
prmt.b32 $2, high, 0x64646464, 0x5140;
prmt.b32 $3, high, 0x64646464, 0x5342;
add.rn.f16x2 $0, $0, bias;
add.rn.f16x2 $1, $1, bias;
add.rn.f16x2 $2, $2, bias;
add.rn.f16x2 $3, $3, bias;
}""")
"""The same to fp16: 0x64 before a nibble is 1024 + nibble; minus 1032."""

BYTES_HALF = tl.constexpr("""{
.reg .b32 moved, bias;
mov.b32 bias, 0xe480e480;
xor.b32 moved, $2, 0x80808080;
prmt.b32 $0, moved, 0x64646464, 0x5140;
prmt.b32 $1, moved, 0x64646464, 0x5342;
add.rn.f16x2 $0, $0, bias;
add.rn.f16x2 $1, $1, bias;
}""")
"""Four int8 to four fp16: 0x64 before a byte is 1024 + byte, which is the number plus 128; minus 1152."""


TABLE: tuple[tuple[int, int, Blocks], ...] = (
    # rows up to, outputs up to: an output of 2,816 in blocks of 16 is 176 programs, enough for 132 SMs.
    (16, 4096, Blocks(16, 16, 4, 4, 4)),
    (16, ANY, Blocks(16, 32, 4, 4, 4)),
    (32, 4096, Blocks(32, 16, 4, 4, 3)),
    (32, ANY, Blocks(32, 32, 4, 4, 3)),
    (64, 4096, Blocks(32, 32, 4, 4, 3)),
    (64, ANY, Blocks(64, 32, 1, 4, 4)),
    (128, 4096, Blocks(64, 32, 1, 4, 4)),
    # From here on arithmetic counts too: 64 rows are the least that Hopper's wide instructions take.
    (128, ANY, Blocks(64, 128, 1, 8, 3)),
    (ANY, 4096, Blocks(64, 64, 1, 4, 4)),
    (ANY, ANY, Blocks(64, 128, 1, 8, 3)),
)
"""Reasoned, for any GPU; `tuned` has what was measured on one."""


def sizes(rows: int, outputs: int) -> tuple[int, int, Blocks]:
    """The first entry of `TABLE` that a product fits."""
    return next(entry for entry in TABLE if rows <= entry[0] and outputs <= entry[1])


def blocks(rows: int, outputs: int, device: torch.device | None = None) -> Blocks:
    """How a product is cut on `device`, or where nothing was measured."""
    most_rows, most_outputs, built_in = sizes(rows, outputs)
    return built_in if device is None else tuned.of(device).products.get((most_rows, most_outputs), built_in)


def bits(weight: Quantised) -> int:
    return 4 if isinstance(weight, Int4Groups) else 8


def scale_strides(weight: Quantised) -> tuple[int, int]:
    """Of a matrix's scales in elements: from one output row to the next, and from one group to the next."""
    if isinstance(weight, Int4Groups):
        return weight.scale.stride(-2), weight.scale.stride(-1)
    return weight.scale.stride(-1), 0


def matmul(x: Tensor, weight: Quantised) -> Tensor:
    """`matmul.matmul`."""
    count, inputs = x.shape
    outputs = len(weight.codes)
    out = x.new_empty((count, outputs))
    cut = blocks(count, outputs, x.device)
    if count:
        by_row, by_group = scale_strides(weight)
        matmul_kernel[(triton.cdiv(count, cut.rows), triton.cdiv(outputs, cut.outputs))](
            x.contiguous(),
            weight.codes,
            weight.scale,
            out,
            count,
            IN=inputs,
            OUT=outputs,
            BY_ROW=by_row,
            BY_GROUP=by_group,
            BITS=bits(weight),
            ROWS=cut.rows,
            OUTPUTS=cut.outputs,
            SLICES=cut.slices,
            STAGES=cut.stages,
            INTERPRETED=INTERPRETED,
            num_warps=cut.warps,
        )
    return out


@triton.jit(do_not_specialize=["count"])
def matmul_kernel(
    x,
    codes,
    scale,
    out,
    count,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SLICES: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One block of the result. Blocks of rows follow each other, so that all but the first find codes in the L2."""
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    live = at < count
    # A block that sticks out computes the last output again.
    row = tl.minimum(output, OUT - 1)
    total = product(
        x, at, live, codes, scale, row, IN, BY_ROW, BY_GROUP, BITS, ROWS, OUTPUTS, SLICES, STAGES, INTERPRETED
    )
    places = out + at.to(tl.int64)[:, None] * OUT + output[None, :]
    tl.store(places, rounded(total, out.dtype.element_ty, INTERPRETED), mask=live[:, None] & (output < OUT)[None, :])


@triton.jit
def product(
    x,
    at,
    live,
    codes,
    scale,
    row,
    IN: tl.constexpr,
    BY_ROW: tl.constexpr,
    BY_GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SLICES: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
    units=None,
    unit=None,
    UNIT: tl.constexpr = 0,
):
    """Rows `at` [ROWS] of x [..., IN] times rows `row` [OUTPUTS] of a quantised matrix: [ROWS, OUTPUTS] in fp32.

    Rows that are not `live` are zero. With UNIT, every UNIT numbers of a row of x are counted in a unit of their own,
    `units` [..., IN / UNIT], and the result in `unit` [ROWS], none of which is larger. The interpreter would multiply
    the bits of bf16 numbers as if they were integers, so it gets fp32.
    """
    RUN: tl.constexpr = 64  # GROUP: as a global it would be no number in the interpreter
    HALF: tl.constexpr = 32
    STEP: tl.constexpr = SLICES * RUN
    WHOLE: tl.constexpr = IN % STEP == 0
    BYTES: tl.constexpr = IN * BITS // 8
    given = x + at.to(tl.int64) * IN
    taken = codes + row.to(tl.int64) * BYTES
    if SLICES == 1:
        given, taken, keep = given[:, None], taken[None, :], live[:, None]
        run, half = tl.arange(0, RUN), tl.arange(0, HALF)
        here, there = run[None, :], run[:, None]
        low, there_low = half[None, :], half[:, None]
        by_slice = tl.arange(0, 1)
        total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    else:
        given, taken, keep = given[None, :, None], taken[None, None, :], live[None, :, None]
        run, half, by_slice = tl.arange(0, RUN), tl.arange(0, HALF), tl.arange(0, SLICES)
        first = by_slice[:, None, None]
        here, there = first * RUN + run[None, None, :], first * RUN + run[None, :, None]
        low, there_low = first * RUN + half[None, None, :], first * HALF + half[None, :, None]
        total = tl.zeros((SLICES, ROWS, OUTPUTS), tl.float32)
    for step in tl.range(0, tl.cdiv(IN, STEP), num_stages=STAGES):
        done = step * STEP
        group = step * SLICES + by_slice
        if UNIT:
            share = shares(units, at, live, unit, group * RUN, IN, UNIT, SLICES)
            more_share = shares(units, at, live, unit, group * RUN + HALF, IN, UNIT, SLICES)
        if BITS == 8:
            if WHOLE:
                weights = tl.load(taken + done + there)
                rows = tl.load(given + done + here, mask=keep, other=0.0)
            else:
                weights = tl.load(taken + done + there, mask=done + there < IN, other=0)
                rows = tl.load(given + done + here, mask=keep & (done + here < IN), other=0.0)
            if UNIT:
                rows *= tl.where(here % RUN < HALF, share, more_share)
            if INTERPRETED:
                rows = rows.to(tl.float32)
            if rows.dtype == tl.float16:
                weights = tl.inline_asm_elementwise(
                    BYTES_HALF, "=r,=r,r", [weights], dtype=tl.float16, is_pure=True, pack=4
                )
            total = tl.dot(rows, weights.to(rows.dtype), total, input_precision="ieee")
        else:
            if WHOLE:
                packed = tl.load(taken + done // 2 + there_low)
                rows = tl.load(given + done + low, mask=keep, other=0.0)
                more = tl.load(given + done + low + HALF, mask=keep, other=0.0)
            else:
                packed = tl.load(taken + done // 2 + there_low, mask=done // 2 + there_low < BYTES, other=0)
                rows = tl.load(given + done + low, mask=keep & (done + low < IN), other=0.0)
                more = tl.load(given + done + low + HALF, mask=keep & (done + low < IN), other=0.0)
            if UNIT:
                rows *= share
                more *= more_share
            if INTERPRETED:
                rows, more = rows.to(tl.float32), more.to(tl.float32)
            if rows.dtype == tl.float32:
                weights = ((packed & 15).to(tl.int8) - 8).to(rows.dtype)
                others = ((packed >> 4).to(tl.int8) - 8).to(rows.dtype)
            else:
                weights, others = tl.inline_asm_elementwise(
                    UNPACK if rows.dtype == tl.bfloat16 else UNPACK_HALF,
                    "=r,=r,=r,=r,r",
                    [packed],
                    dtype=(rows.dtype, rows.dtype),
                    is_pure=True,
                    pack=4,
                )
            part = tl.dot(rows, weights, input_precision="ieee")
            part = tl.dot(more, others, part, input_precision="ieee")
            if SLICES == 1:
                steps = tl.load(scale + row * BY_ROW + step * BY_GROUP)
                total += part * steps.to(tl.float32)[None, :]
            else:
                places = scale + row[None, :] * BY_ROW + group[:, None] * BY_GROUP
                steps = tl.load(places) if WHOLE else tl.load(places, mask=(group < IN // RUN)[:, None], other=0.0)
                total += part * steps.to(tl.float32)[:, None, :]
    if SLICES != 1:
        total = tl.sum(total, 0)
    if BITS == 8:
        total *= tl.load(scale + row * BY_ROW)[None, :]
    return total


@triton.jit
def shares(units, at, live, unit, start, IN: tl.constexpr, UNIT: tl.constexpr, SLICES: tl.constexpr):
    """The units of numbers `start` [SLICES] of rows `at` [ROWS], counted in `unit` [ROWS], as product's rows are cut.

    A quotient of powers of two: fp16 holds it exactly, or it is below 2^-24 and what it belongs to counts for nothing.
    """
    COUNT: tl.constexpr = (IN + UNIT - 1) // UNIT
    number = start // UNIT
    places = units + at[None, :] * COUNT + number[:, None]
    own = tl.load(places, mask=live[None, :] & (number < COUNT)[:, None], other=0.0)
    found = (own / unit[None, :]).to(tl.float16)
    return tl.trans(found) if SLICES == 1 else found[:, :, None]


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 in `dtype`, to the nearest. The interpreter cuts bf16 off, so there the bits are rounded first."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)
