"""`attention` as two Triton kernels: the keys cut into spans that run side by side, and the sum of what they found.

Knows nothing of models or caches. Imported only where Triton runs: on CUDA, or on a CPU in its interpreter (tests).

torch's kernels give a block of query rows to one program that walks all keys. A canvas of 32 slots is 64 rows for each
of 8 key heads in a sliding layer of the 26B and 256 rows for each of 2 in a full one. torch has no flash attention with
a mask, nor for heads of 512; its memory-efficient kernel takes both, for heads beyond 128 in blocks of 32 rows: 16
programs on 132 SMs. (Read off its sources, not measured; for heads of 256 cuDNN may come first.) Cut into spans the
same work is up to `WANTED` programs, each of a few blocks of keys.

1. `attention_kernel`, a program per block of query rows, key head and span: the largest score of every row, the sum of
   the exponentials below it, and the sum of the values weighted with them, in fp32.
2. `combine_kernel`, a program per row and head: the spans' sums brought to one largest score, in a fixed order.
With one span the first one divides and is all.

Weights in bf16 would be rounded as coarsely as the result is: together 2.0e-3 or more where many keys count alike. They
are taken as the sum of two bf16 numbers: tensor cores have time, reading keys and values takes longer. Not yet run on a
GPU: block sizes are reasoned.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from .matmul_triton import INTERPRETED, rounded

WANTED = 132
"""Programs at most that keys are cut for: the SMs of an H200. Each writes rows * dimensions sums in fp32 that are read
again: with twice as many, spans would move more bytes than the keys and values they are cut from."""


class Blocks(NamedTuple):
    """Query rows and keys of one step, dimensions multiplied at a time, warps, stages of the copy pipeline."""

    rows: int
    keys: int
    part: int
    warps: int
    stages: int


def blocks(width: int) -> Blocks:
    """For heads of that many dimensions: what fits into a consumer card's 99 KB with the next keys on their way."""
    if width <= 128:
        return Blocks(32, 64, width, 4, 2)
    return Blocks(32, 32, 128, 8, 2) if width <= 256 else Blocks(32, 16, 128, 8, 3)


def cut(length: int, programs: int, step: int) -> tuple[int, int]:
    """How many spans so many keys are cut into, and how many keys one has, where one span is that many programs."""
    spans = min(-(-length // step), max(1, WANTED // programs))
    span = -(-length // (spans * step)) * step
    return -(-length // span), span


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """`attention.attention`. Everything has a size that the host knows, so it can be captured."""
    tokens, groups, kv_heads, width = queries.shape
    rows, length = tokens * groups, keys.shape[2]
    queries = queries.contiguous()
    out = torch.empty_like(queries)
    if rows:
        size = blocks(triton.next_power_of_2(width))
        tiles = triton.cdiv(rows, size.rows)
        spans, span = cut(length, tiles * kv_heads, size.keys)
        sums, tops, parts = out, out, out
        if spans > 1:
            parts = queries.new_empty((spans, rows, kv_heads, width), dtype=torch.float32)
            tops, sums = queries.new_empty((2, spans, rows, kv_heads), dtype=torch.float32)
        attention_kernel[(tiles, kv_heads, spans)](
            queries,
            keys,
            values,
            keys if mask is None else mask,
            out,
            parts,
            tops,
            sums,
            rows,
            length,
            span,
            *keys.stride()[1:],
            *values.stride()[1:],
            0 if mask is None else mask.stride(0),
            HEADS=kv_heads,
            WIDTH=width,
            GROUPS=groups,
            MASKED=mask is not None,
            WHOLE=spans == 1,
            ROWS=size.rows,
            KEYS=size.keys,
            PART=size.part,
            STAGES=size.stages,
            INTERPRETED=INTERPRETED,
            num_warps=size.warps,
        )
        if spans > 1:
            combine_kernel[(rows, kv_heads)](
                parts, tops, sums, out, rows, spans, HEADS=kv_heads, WIDTH=width, INTERPRETED=INTERPRETED, num_warps=2
            )
    return out.view(tokens, groups * kv_heads * width)


@triton.jit(do_not_specialize=["rows", "length", "span"])
def attention_kernel(
    queries,
    keys,
    values,
    mask,
    out,
    parts,
    tops,
    sums,
    rows,
    length,
    span,
    key_by_head,
    key_by_token,
    key_by_place,
    value_by_head,
    value_by_token,
    value_by_place,
    mask_by_row,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUPS: tl.constexpr,
    MASKED: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
    STAGES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One block of rows of one key head over the keys of span `program_id(2)`.

    The interpreter would multiply the bits of bf16 numbers as if they were integers, so it gets fp32.
    """
    WIDE: tl.constexpr = triton.next_power_of_2(WIDTH)
    EVEN: tl.constexpr = WIDE == WIDTH
    head, number = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    place, part, key = tl.arange(0, WIDE), tl.arange(0, PART), tl.arange(0, KEYS)
    given = queries + (row.to(tl.int64)[:, None] * HEADS + head) * WIDTH
    key_at, value_at = keys + head * key_by_head, values + head * value_by_head
    # All rows of a token have the same mask: the first one's lines are read again from the cache.
    mask_at = mask + (row // GROUPS * GROUPS).to(tl.int64)[:, None] * mask_by_row
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, WIDE), tl.float32)
    first = tl.program_id(2) * span
    for begin in tl.range(first, tl.minimum(first + span, length), KEYS, num_stages=STAGES):
        at = begin + key
        there = at < length
        token = at.to(tl.int64)
        scores = tl.zeros((ROWS, KEYS), tl.float32)
        for done in tl.static_range(0, WIDE, PART):
            inside = done + part < WIDTH
            left = tl.load(given + done + part[None, :], mask=live[:, None] & inside[None, :], other=0.0)
            right = tl.load(
                key_at + token[None, :] * key_by_token + (done + part)[:, None] * key_by_place,
                mask=there[None, :] & inside[:, None],
                other=0.0,
            )
            if INTERPRETED:
                left, right = left.to(tl.float32), right.to(tl.float32)
            scores = tl.dot(left.to(right.dtype), right, scores, input_precision="ieee")
        if MASKED:
            shown = tl.load(mask_at + at[None, :], mask=live[:, None] & there[None, :], other=0.0)
            scores += shown.to(tl.float32)
        scores = tl.where(there[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        # A row that has seen nothing so far has no largest score to subtract.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        share = tl.exp(scores - finite[:, None])
        shrink = tl.exp(top - finite)
        total = total * shrink + tl.sum(share, 1)
        lines = value_at + token[:, None] * value_by_token + place[None, :] * value_by_place
        if EVEN:
            read = tl.load(lines, mask=there[:, None], other=0.0)
        else:
            read = tl.load(lines, mask=there[:, None] & (place < WIDTH)[None, :], other=0.0)
        if INTERPRETED:
            read = read.to(tl.float32)
        coarse = rounded(share, values.dtype.element_ty, INTERPRETED)
        found = tl.dot(coarse.to(read.dtype), read, found * shrink[:, None], input_precision="ieee")
        if values.dtype.element_ty != tl.float32:
            rest = rounded(share - coarse.to(tl.float32), values.dtype.element_ty, INTERPRETED)
            found = tl.dot(rest.to(read.dtype), read, found, input_precision="ieee")
        top = higher
    to = (row.to(tl.int64)[:, None] * HEADS + head) * WIDTH + place[None, :]
    kept = live[:, None] & (place < WIDTH)[None, :]
    if WHOLE:
        found /= tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out + to, rounded(found, out.dtype.element_ty, INTERPRETED), mask=kept)
    else:
        tl.store(parts + number * rows * HEADS * WIDTH + to, found, mask=kept)
        line = (number * rows + row) * HEADS + head
        tl.store(tops + line, top, mask=live)
        tl.store(sums + line, total, mask=live)


@triton.jit(do_not_specialize=["rows", "spans"])
def combine_kernel(
    parts, tops, sums, out, rows, spans, HEADS: tl.constexpr, WIDTH: tl.constexpr, INTERPRETED: tl.constexpr
):
    """One row of one head: what its spans found, in their order."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.arange(0, triton.next_power_of_2(WIDTH))
    here = place < WIDTH
    first = row * HEADS + head
    step = rows.to(tl.int64) * HEADS
    top = float("-inf")
    for number in range(0, spans):
        top = tl.maximum(top, tl.load(tops + first + number * step))
    finite = tl.where(top == float("-inf"), 0.0, top)
    total = 0.0
    found = tl.zeros((triton.next_power_of_2(WIDTH),), tl.float32)
    for number in range(0, spans):
        line = first + number * step
        share = tl.exp(tl.load(tops + line) - finite)
        total += share * tl.load(sums + line)
        found += share * tl.load(parts + line * WIDTH + place, mask=here, other=0.0)
    found /= tl.where(total == 0.0, 1.0, total)
    tl.store(out + first * WIDTH + place, rounded(found, out.dtype.element_ty, INTERPRETED), mask=here)
