"""The fused vocabulary head as four Triton kernels and one matrix product; `head_fused` calls them.

Knows nothing of canvases, models or files. Imported where Triton runs only, which is on CUDA, or on a CPU in
Triton's interpreter (tests).

1. `logits_kernel` multiplies, rounds, caps, tempers and masks one tile of the vocabulary, keeps of every row what a
   softmax needs of the tile (maximum, sum, entropy term, best id) and writes the raw logits down once, in bf16.
2. `merge_kernel` joins the tiles of a row. Its sample is a Gumbel maximum in two stages, first over the tiles'
   masses and then inside the tile that won: as exact as one over the vocabulary, since the largest of a group of
   Gumbel variables is one around the group's logsumexp, and 100 times fewer random numbers.
3. `probabilities_kernel` overwrites the raw logits with probabilities, for the row's logsumexp is known by now.
   Doing it inside the next product would repeat two exponentials per logit for every tile of the output.
4. The expected embedding: torch's product for a dense embedding, `expect_kernel` for int8 rows.

Nothing of this has run on a GPU yet: block sizes and the cost arguments are reasoned, the numbers are held to the
reference in the interpreter, and every production shape is compiled ahead of time (tests).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

from __future__ import annotations

from dataclasses import dataclass

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from .head import BANNED

TILE = 128
"""Vocabulary entries of one program of `logits_kernel`; 2,048 tiles for the 262,144 of the 26B."""
STRIP = 4096
"""Entries of one program of `probabilities_kernel`."""

NO_NOISE, GIVEN_NOISE, DRAWN_NOISE = 0, 1, 2

_BANNED = tl.constexpr(BANNED)
_OUTSIDE = tl.constexpr(-3e38)
"""Logit of a column behind the vocabulary, below any banned one, and finite: 0 times it is no NaN."""
_FAR = tl.constexpr(1 << 30)
_GIVEN, _DRAWN = tl.constexpr(GIVEN_NOISE), tl.constexpr(DRAWN_NOISE)


@dataclass(frozen=True, slots=True)
class Blocks:
    """How the two products are cut: rows and inputs a program takes at once, its warps and pipeline stages."""

    rows: int
    inputs: int
    warps: int
    stages: int


def blocks(count: int, int8: bool) -> Blocks:
    """For `count` free slots. A stage holds rows x inputs in two bytes and inputs x TILE of the embedding. Of up to 32
    rows, two programs share the 100 KB of a consumer card's multiprocessor: one's exponentials hide behind the other's
    loads."""
    rows = min(128, max(16, triton.next_power_of_2(count)))
    return Blocks(rows, 128 if int8 and rows <= 32 else 64, 4 if rows <= 32 else 8, 3)


@triton.jit
def rounded(x):
    """fp32 rounded to the nearest bf16, as fp32. By hand, since Triton's interpreter would cut instead."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def gumbel(seed, step, row, index):
    """Standard Gumbel noise, of the shape that `row` and `index` broadcast to: a function of its arguments alone.

    -log(E) with E exponential from 32 random bits; near 0, where the noise is large and decides, they are not lost
    to an fp32 number close to 1.
    """
    index, row = index + row * 0, row + index * 0
    bits, _, _, _ = tl.philox(seed, index, index * 0 + step, row, index * 0)
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    small = u * (1.0 + u * (0.5 + u * 0.3333333))
    return -tl.log(tl.where(u < 1e-3, small, -tl.log(tl.maximum(1.0 - u, 1e-9))))


@triton.jit
def tempered(
    raw, row, col, V, softcap, temperature, banned, which, masks, IS_BANNED: tl.constexpr, IS_HELD: tl.constexpr
):
    """Raw logits, capped, divided by the temperature and masked; `row` and `col` broadcast to their shape."""
    # tanh through exp(-|z|), which cannot overflow.
    shrunk = tl.exp(-2.0 * tl.abs(raw) / softcap)
    capped = softcap * (1.0 - shrunk) / (1.0 + shrunk)
    x = tl.where(raw < 0, -capped, capped) / temperature
    inside = col < V
    if IS_BANNED:
        x = tl.where(tl.load(banned + col, mask=inside, other=0) != 0, _BANNED, x)
    if IS_HELD:
        mask = tl.load(which + row)
        kept = tl.load(masks + mask * V + col, mask=inside & (mask >= 0), other=1)
        x = tl.where(kept != 0, x, _BANNED)
    return tl.where(inside, x, _OUTSIDE)


@triton.jit
def logits_kernel(
    hidden,  # [N, D]
    embedding,  # [V, D], dense or int8
    scale,  # [V] fp32, of int8 rows
    banned,  # [V] uint8
    which,  # [N] int32, number of the row's mask, -1 for none
    masks,  # [R, V] uint8
    noise,  # [N, V]
    temperature,  # [] fp32
    raw,  # [N, W] out, W = tiles * TILE
    largest,  # [N, tiles] fp32 out, and so on
    total,  # Σ exp(x - largest)
    slope,  # Σ exp(x - largest) (x - largest)
    best,  # int32
    noisy,  # largest with noise
    noisy_best,  # int32
    N,
    V,
    tiles,
    softcap,
    D: tl.constexpr,
    INT8: tl.constexpr,
    ROUND: tl.constexpr,
    IS_BANNED: tl.constexpr,
    IS_HELD: tl.constexpr,
    NOISE: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
):
    # Programs that share a tile of the embedding are neighbours, so that the second one finds it in the L2 cache.
    row_blocks = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0) // row_blocks
    row = (tl.program_id(0) % row_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    col = tile * TILE + tl.arange(0, TILE)
    there, inside = row < N, col < V
    # What lies behind the last row or column computes that one again; it is stored nowhere and counts nothing.
    near = tl.minimum(row, N - 1)
    given, taken = hidden + near[:, None] * D, embedding + tl.minimum(col, V - 1)[None, :] * D
    sums = tl.zeros((BLOCK_N, TILE), dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        at = start + tl.arange(0, BLOCK_D)
        if D % BLOCK_D == 0:
            x, weight = tl.load(given + at[None, :]), tl.load(taken + at[:, None])
        else:
            x = tl.load(given + at[None, :], mask=(at < D)[None, :], other=0.0)
            weight = tl.load(taken + at[:, None], mask=(at < D)[:, None], other=0)
        if UPCAST:  # the interpreter multiplies the bits of bf16
            x = x.to(tl.float32)
        sums = tl.dot(x, weight.to(x.dtype), sums, input_precision="ieee")
    if INT8:
        sums *= tl.load(scale + col, mask=inside, other=0.0)[None, :]
    if ROUND:
        sums = rounded(sums)
    tl.store(raw + row[:, None] * (tiles * TILE) + col[None, :], sums, mask=there[:, None])

    x = tempered(
        sums, near[:, None], col[None, :], V, softcap, tl.load(temperature), banned, which, masks, IS_BANNED, IS_HELD
    )
    peak = tl.max(x, axis=1)
    below = x - peak[:, None]
    weight = tl.exp(below)
    at = row * tiles + tile
    tl.store(largest + at, peak, mask=there)
    tl.store(total + at, tl.sum(weight, axis=1), mask=there)
    tl.store(slope + at, tl.sum(weight * below, axis=1), mask=there)
    tl.store(best + at, tl.min(tl.where(x == peak[:, None], col[None, :], _FAR), axis=1), mask=there)
    if NOISE == _GIVEN:
        y = x + tl.load(noise + near[:, None] * V + col[None, :], mask=inside[None, :], other=0.0).to(tl.float32)
        peak = tl.max(y, axis=1)
        tl.store(noisy + at, peak, mask=there)
        tl.store(noisy_best + at, tl.min(tl.where(y == peak[:, None], col[None, :], _FAR), axis=1), mask=there)


@triton.jit
def merge_kernel(
    largest,  # [N, tiles], as `logits_kernel` left them
    total,
    slope,
    best,
    noisy,
    noisy_best,
    raw,  # [N, tiles * TILE]
    banned,
    which,
    masks,
    temperature,
    seed,  # [] int64
    step,  # [] int64
    argmax,  # [N] int64 out
    sample,  # [N] int64 out
    entropy,  # [N] fp32 out
    logprob,  # [N] fp32 out
    logsumexp,  # [N] fp32 out
    N,
    V,
    tiles,
    softcap,
    IS_BANNED: tl.constexpr,
    IS_HELD: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILES: tl.constexpr,  # `tiles` or the next power of two
    TILE: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = row < N
    near = tl.minimum(row, N - 1)[:, None]
    tile = tl.arange(0, TILES)[None, :]
    real = (tile < tiles) & (near >= 0)
    at = near * tiles + tile
    peaks = tl.load(largest + at, mask=real, other=_OUTSIDE)
    sums = tl.load(total + at, mask=real, other=1.0)
    slopes = tl.load(slope + at, mask=real, other=0.0)
    ids = tl.load(best + at, mask=real, other=_FAR)
    peak = tl.max(peaks, axis=1)
    below = peaks - peak[:, None]
    share = tl.exp(below)
    mass = tl.sum(tl.where(real, share * sums, 0.0), axis=1)
    # Σ p log p with every logit taken relative to the largest: no large numbers that cancel.
    spread = tl.sum(tl.where(real, share * (slopes + sums * below), 0.0), axis=1) / mass
    first = tl.min(tl.where(peaks == peak[:, None], ids, _FAR), axis=1)
    tl.store(argmax + row, first.to(tl.int64), mask=there)
    tl.store(entropy + row, tl.maximum(tl.log(mass) - spread, 0.0), mask=there)
    tl.store(logprob + row, -tl.log(mass), mask=there)
    tl.store(logsumexp + row, peak + tl.log(mass), mask=there)
    taken = first
    if NOISE == _GIVEN:
        y = tl.load(noisy + at, mask=real, other=_OUTSIDE)
        ids = tl.load(noisy_best + at, mask=real, other=_FAR)
        taken = tl.min(tl.where(y == tl.max(y, axis=1)[:, None], ids, _FAR), axis=1)
    if NOISE == _DRAWN:
        key, now = tl.load(seed), tl.load(step).to(tl.int32)
        y = tl.where(real, peaks + tl.log(sums) + gumbel(key, now, near, tile), _OUTSIDE)
        won = tl.min(tl.where(y == tl.max(y, axis=1)[:, None], tile, _FAR), axis=1)
        within = tl.arange(0, TILE)[None, :]
        col = won[:, None] * TILE + within
        logits = tl.load(raw + near * (tiles * TILE) + col).to(tl.float32)
        x = tempered(logits, near, col, V, softcap, tl.load(temperature), banned, which, masks, IS_BANNED, IS_HELD)
        y = tl.where(col < V, x + gumbel(key, now, near, tiles + within), _OUTSIDE)
        taken = tl.min(tl.where(y == tl.max(y, axis=1)[:, None], col, _FAR), axis=1)
    tl.store(sample + row, taken.to(tl.int64), mask=there)


@triton.jit
def probabilities_kernel(
    raw,  # [N, W]
    out,  # [N, W], the same memory, fp16 if FOLD
    logsumexp,  # [N]
    scale,  # [V] fp32, multiplied in if FOLD
    unit,  # [] fp32, what `out` is counted in if FOLD
    banned,
    which,
    masks,
    temperature,
    N,
    V,
    W,
    softcap,
    ROUND: tl.constexpr,
    FOLD: tl.constexpr,
    IS_BANNED: tl.constexpr,
    IS_HELD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STRIP: tl.constexpr,
):
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    col = (tl.program_id(1) * STRIP + tl.arange(0, STRIP))[None, :]
    there, at = (row < N) & (col < W), row * W + col
    logits = tl.load(raw + at, mask=there, other=0.0).to(tl.float32)
    row = tl.minimum(row, N - 1)
    x = tempered(logits, row, col, V, softcap, tl.load(temperature), banned, which, masks, IS_BANNED, IS_HELD)
    probability = tl.exp(x - tl.load(logsumexp + row))
    if FOLD:
        probability *= tl.load(scale + col, mask=col < V, other=0.0) / tl.load(unit)
    elif ROUND:
        probability = rounded(probability)
    tl.store(out + at, probability, mask=there)


@triton.jit
def expect_kernel(
    weights,  # [N, W], probabilities times the scales of the int8 rows, in `unit`
    codes,  # [V, D] int8
    parts,  # [splits, N, D] fp32 out
    N,
    V,
    W,
    span,  # vocabulary entries of one split, a multiple of BLOCK_V
    D: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    TILE: tl.constexpr,
):
    row_blocks = tl.cdiv(N, BLOCK_N)
    row = (tl.program_id(0) % row_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)
    out = (tl.program_id(0) // row_blocks) * TILE + tl.arange(0, TILE)
    there, inside = row < N, out < D
    split = tl.program_id(1)
    # As in `logits_kernel`; behind the vocabulary the weights are zero.
    given, taken = weights + tl.minimum(row, N - 1)[:, None] * W, codes + out[None, :]
    sums = tl.zeros((BLOCK_N, TILE), dtype=tl.float32)
    for start in range(split * span, tl.minimum((split + 1) * span, V), BLOCK_V):
        col = start + tl.arange(0, BLOCK_V)
        p = tl.load(given + col[None, :])
        line = taken + tl.minimum(col, V - 1)[:, None] * D
        code = tl.load(line) if D % TILE == 0 else tl.load(line, mask=inside[None, :], other=0)
        # To fp16 by its bits: 0x6400 + n is 1024 + n. A conversion runs at a quarter of the speed, which an H200's
        # memory outruns.
        bits = (code.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400
        code = bits.to(tl.float16, bitcast=True) - 1152.0
        if UPCAST:
            p = p.to(tl.float32)
        sums = tl.dot(p, code.to(p.dtype), sums, input_precision="ieee")
    at = parts + (split * N + row[:, None]) * D + out[None, :]
    tl.store(at, sums, mask=there[:, None] & inside[None, :])
