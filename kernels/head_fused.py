"""`head.denoise_head` on the kernels of `head_triton`: what they are given, in which order, and what becomes of it.

Knows nothing of canvases, models or files. Imported where Triton runs only. No call waits for the device, and logits
lie in memory once, in bf16 where they are rounded.
"""
# mypy: allow-untyped-calls
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

from __future__ import annotations

from functools import partial

import torch
import triton  # type: ignore[import-untyped]
from torch import Tensor

from .head import Allowed, Conditioning, Head, Held, Noise, Philox, gather_top
from .head_triton import (
    DRAWN_NOISE,
    GIVEN_NOISE,
    NO_NOISE,
    STRIP,
    TILE,
    Blocks,
    blocks,
    expect_kernel,
    logits_kernel,
    merge_kernel,
    probabilities_kernel,
)
from .quantised import Int8Rows

FULL = 2.0**15
"""The largest weight of an int8 row in fp16. One of a 2^-30 of it is still counted."""
PROGRAMS = 512
"""About how many programs `expect_kernel` is split into: a few for each multiprocessor of any card."""


def fused_head(
    hidden: Tensor,
    embedding: Tensor | Int8Rows,
    *,
    softcap: float,
    temperature: float | Tensor,
    banned: Tensor | None,
    allowed: Allowed | None,
    noise: Noise,
    conditioning: Conditioning,
    round_logits: bool,
) -> Head:
    """See `head.denoise_head`. Raw logits lie in memory once, in bf16 if they are rounded and else in fp32, and no
    call waits for the device."""
    (count, width), device = hidden.shape, hidden.device
    codes, scale = (embedding.codes, embedding.scale) if isinstance(embedding, Int8Rows) else (embedding, None)
    vocabulary = len(codes)
    upcast, int8 = device.type != "cuda", scale is not None
    empty = partial(torch.empty, device=device)
    if not isinstance(temperature, Tensor):
        temperature = torch.full((), temperature, dtype=torch.float32, device=device)
    which, masks = _masks(allowed, count, vocabulary, device)
    kind, given, (seed, step) = _noise(noise, device)
    is_banned = None if banned is None else banned.view(torch.uint8)
    masking = (is_banned, which, masks)
    flags = {"IS_BANNED": banned is not None, "IS_HELD": which is not None}

    cut, tiles = blocks(count, int8), triton.cdiv(vocabulary, TILE)
    spilled = tiles * TILE
    raw = empty((count, spilled), dtype=torch.bfloat16 if round_logits else torch.float32)
    largest, total, slope, noisy = empty((4, count, tiles), dtype=torch.float32)
    best, noisy_best = empty((2, count, tiles), dtype=torch.int32)
    logits_kernel[(tiles * triton.cdiv(count, cut.rows),)](
        hidden.contiguous(),
        codes,
        scale,
        *masking,
        given,
        temperature,
        raw,
        largest,
        total,
        slope,
        best,
        noisy,
        noisy_best,
        count,
        vocabulary,
        tiles,
        softcap,
        D=width,
        INT8=int8,
        ROUND=round_logits,
        **flags,
        NOISE=kind,
        UPCAST=upcast,
        BLOCK_N=cut.rows,
        BLOCK_D=cut.inputs,
        TILE=TILE,
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    argmax, sample = empty((2, count), dtype=torch.int64)
    entropy, logprob, logsumexp = empty((3, count), dtype=torch.float32)
    # Rows a program takes at once: in the interpreter, a program costs milliseconds and a row next to nothing.
    together = 1 if device.type == "cuda" else min(256, triton.next_power_of_2(count))
    merge_kernel[(triton.cdiv(count, together),)](
        largest,
        total,
        slope,
        best,
        noisy,
        noisy_best,
        raw,
        *masking,
        temperature,
        seed,
        step,
        argmax,
        sample,
        entropy,
        logprob,
        logsumexp,
        count,
        vocabulary,
        tiles,
        softcap,
        **flags,
        NOISE=kind,
        BLOCK_N=together,
        TILES=triton.next_power_of_2(tiles),
        TILE=TILE,
        num_warps=8,
    )
    # An int8 row's scale has to go to its probability. In fp16 and counted in units that fill its range, the product
    # keeps three bits more than in bf16, where it would be off by up to 0.4 %, the whole embedding alike.
    fold = scale is not None and conditioning == "dense"
    weights = raw.view(torch.float16) if fold and round_logits else raw
    unit = scale.amax() / FULL if scale is not None and fold else None
    strip = min(STRIP, triton.next_power_of_2(spilled))
    probabilities_kernel[(triton.cdiv(count, together), triton.cdiv(spilled, strip))](
        raw,
        weights,
        logsumexp,
        scale,
        unit,
        *masking,
        temperature,
        count,
        vocabulary,
        spilled,
        softcap,
        ROUND=round_logits,
        FOLD=fold,
        **flags,
        BLOCK_N=together,
        STRIP=strip,
        num_warps=8,
    )
    if conditioning != "dense":
        expected = _expect_top(raw, largest, embedding, vocabulary, conditioning)
    elif unit is not None:
        expected = _expect_int8(weights, codes, cut, upcast) * unit
    else:
        expected = raw[:, :vocabulary].to(codes.dtype).mm(codes)
    return Head(argmax, sample, entropy, logprob, expected.to(hidden.dtype))


def _expect_int8(weights: Tensor, codes: Tensor, cut: Blocks, upcast: bool) -> Tensor:
    """Rows of codes [V, D] summed by `weights`: [N, D] fp32. Each split of the vocabulary leaves sums of its own, which
    are added in order: the same every time."""
    (count, spilled), (vocabulary, width) = weights.shape, codes.shape
    outputs = triton.cdiv(count, cut.rows) * triton.cdiv(width, TILE)
    splits = max(1, PROGRAMS // outputs)
    span = triton.cdiv(triton.cdiv(vocabulary, splits), cut.inputs) * cut.inputs
    splits = triton.cdiv(vocabulary, span)
    parts = torch.empty((splits, count, width), dtype=torch.float32, device=weights.device)
    expect_kernel[(outputs, splits)](
        weights,
        codes,
        parts,
        count,
        vocabulary,
        spilled,
        span,
        D=width,
        UPCAST=upcast,
        BLOCK_N=cut.rows,
        BLOCK_V=cut.inputs,
        TILE=TILE,
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    return parts.sum(0)


def _expect_top(
    probabilities: Tensor, largest: Tensor, embedding: Tensor | Int8Rows, vocabulary: int, k: int
) -> Tensor:
    """[N, D], of the k most probable tokens alone. They lie in the k tiles of the largest maxima, so that no more than
    k tiles of a row are looked through."""
    count, tiles = largest.shape
    some = largest.topk(min(k, tiles)).indices
    found = probabilities.view(count, tiles, TILE).gather(1, some[..., None].expand(-1, -1, TILE)).flatten(1)
    best, at = found.topk(min(k, found.shape[1]))
    ids = some.gather(1, at // TILE) * TILE + at % TILE
    return gather_top(best, ids.clamp_(max=vocabulary - 1), embedding)  # what lies behind has probability 0


def _masks(
    allowed: Allowed | None, count: int, vocabulary: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """[N] int32, the number of each slot's mask or -1, and the masks [R, V] uint8; only a few slots are ever held."""
    if isinstance(allowed, Held):
        return allowed
    if not allowed:
        return None, None
    which = torch.full((count,), -1, dtype=torch.int32, device=device)
    masks = torch.zeros((len(allowed), vocabulary), dtype=torch.uint8, device=device)
    for number, (slot, ids) in enumerate(allowed.items()):
        which[slot] = number
        masks[number].index_fill_(0, ids, 1)
    return which, masks


def _noise(noise: Noise, device: torch.device) -> tuple[int, Tensor | None, tuple[Tensor | None, Tensor | None]]:
    """Which kind it is, the given numbers, and the seed and step to draw by."""
    if noise is None:
        return NO_NOISE, None, (None, None)
    if isinstance(noise, Tensor):
        return GIVEN_NOISE, noise.contiguous(), (None, None)
    if isinstance(noise, Philox):
        return DRAWN_NOISE, None, (noise.seed, noise.step)
    seed = torch.randint(1 << 62, (), generator=noise, device=noise.device).to(device)
    return DRAWN_NOISE, None, (seed, torch.zeros_like(seed))
