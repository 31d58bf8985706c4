"""What a block of codes means in a GGUF file: ggml's types that published models of this kind are made of.

By the layout in ggml's source (`block_q4_K` and its neighbours in ggml-common.h) and bit for bit what llama.cpp's own
Python package makes of it: the same products and sums in fp32, in the same order. The types of two and three bits and
the IQ ones are left out. Knows no files.

Measured in processor time of one core of an AMD EPYC, 16 M numbers as an import reads them, in million numbers per
second, that package first: Q8_0 34 and 461, Q5_0 21 and 228, Q4_K 71 and 217, Q6_K 82 and 262.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 1 << 17
"""Numbers made at a time, few enough to stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Type:
    """`size` numbers in `nbytes` bytes; `fill(raw, out)` makes fp32 [n, size] of uint8 [n, nbytes]."""

    name: str
    size: int
    nbytes: int
    fill: Callable[[Tensor, Tensor], object]

    def dense(self, raw: Tensor) -> Tensor:
        """uint8 [rows, n * nbytes] to fp32 [rows, n * size]."""
        blocks = raw.reshape(-1, self.nbytes)
        out = torch.empty(len(blocks), self.size)
        step = max(1, AT_ONCE // self.size)
        for start in range(0, len(blocks), step):
            self.fill(blocks[start : start + step], out[start : start + step])
        return out.view(len(raw), raw.shape[1] // self.nbytes * self.size)


def _halves(raw: Tensor, start: int, count: int = 1) -> list[Tensor]:
    """`count` fp16 numbers of each block from byte `start` on, as fp32 [n, 1]."""
    found = raw[:, start : start + 2 * count].contiguous().view(torch.float16).float()
    return [found[:, index : index + 1] for index in range(count)]


def _as_is(dtype: torch.dtype) -> Callable[[Tensor, Tensor], object]:
    return lambda raw, out: out.copy_(raw.contiguous().view(dtype))


def _q8_0(raw: Tensor, out: Tensor) -> None:
    (scale,) = _halves(raw, 0)
    out.copy_(raw[:, 2:].view(torch.int8)).mul_(scale)


def _nibbles(raw: Tensor, pair: int) -> Tensor:
    """The codes in uint8 [n, m] as [n, m / pair, 2, pair]: the lower halves of `pair` bytes, then their upper ones."""
    pairs = raw.view(len(raw), -1, 1, pair)
    codes = torch.empty(*pairs.shape[:2], 2, pair, dtype=torch.uint8)
    torch.bitwise_and(pairs, 15, out=codes[:, :, :1])
    torch.bitwise_right_shift(pairs, 4, out=codes[:, :, 1:])
    return codes


_BIT = torch.arange(8, dtype=torch.uint8)


def _fifth_bits(raw: Tensor) -> Tensor:
    """Bits of uint8 [n, 4], lowest first, as 0 or 16 in uint8 [n, 32]."""
    return ((raw[:, :, None] >> _BIT) & 1).flatten(1) << 4


def _q4_0(raw: Tensor, out: Tensor) -> None:
    (scale,) = _halves(raw, 0)
    out.copy_(_nibbles(raw[:, 2:], 16).flatten(1)).sub_(8).mul_(scale)


def _q4_1(raw: Tensor, out: Tensor) -> None:
    scale, least = _halves(raw, 0, 2)
    out.copy_(_nibbles(raw[:, 4:], 16).flatten(1)).mul_(scale).add_(least)


def _q5_0(raw: Tensor, out: Tensor) -> None:
    (scale,) = _halves(raw, 0)
    codes = _nibbles(raw[:, 6:], 16).flatten(1).bitwise_or_(_fifth_bits(raw[:, 2:6]))
    out.copy_(codes).sub_(16).mul_(scale)


def _q5_1(raw: Tensor, out: Tensor) -> None:
    scale, least = _halves(raw, 0, 2)
    codes = _nibbles(raw[:, 8:], 16).flatten(1).bitwise_or_(_fifth_bits(raw[:, 4:8]))
    out.copy_(codes).mul_(scale).add_(least)


def _scales_and_minima(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Of the eight groups of a Q4_K or Q5_K block, fp32 [n, 8, 1]: six bits each, the upper two of four lie apart."""
    scale, least = _halves(raw, 0, 2)
    first, second, third = raw[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat([first & 63, third & 15 | (first >> 2) & 48], 1)
    minima = torch.cat([second & 63, third >> 4 | (second >> 2) & 48], 1)
    return (scales.float() * scale)[..., None], (minima.float() * least)[..., None]


def _q4_k(raw: Tensor, out: Tensor) -> None:
    scale, least = _scales_and_minima(raw)
    out.copy_(_nibbles(raw[:, 16:], 32).flatten(1))
    out.view(-1, 8, 32).mul_(scale).sub_(least)


def _q5_k(raw: Tensor, out: Tensor) -> None:
    scale, least = _scales_and_minima(raw)
    fifth = ((raw[:, None, 16:48] >> _BIT[:, None]) & 1) << 4
    out.copy_(_nibbles(raw[:, 48:], 32).flatten(1).bitwise_or_(fifth.flatten(1)))
    out.view(-1, 8, 32).mul_(scale).sub_(least)


def _q6_k(raw: Tensor, out: Tensor) -> None:
    (scale,) = _halves(raw, 208)
    each = raw[:, 192:208].view(torch.int8).float() * scale
    codes = _nibbles(raw[:, :128], 64).view(-1, 2, 4, 32)
    upper = raw[:, 128:192].view(-1, 2, 1, 32) >> (2 * _BIT[:4, None])
    out.copy_(codes.bitwise_or_(upper.bitwise_and_(3).bitwise_left_shift_(4)).flatten(1)).sub_(32)
    out.view(-1, 16, 16).mul_(each[..., None])


TYPES = {
    0: Type("F32", 1, 4, _as_is(torch.float32)),
    1: Type("F16", 1, 2, _as_is(torch.float16)),
    2: Type("Q4_0", 32, 18, _q4_0),
    3: Type("Q4_1", 32, 20, _q4_1),
    6: Type("Q5_0", 32, 22, _q5_0),
    7: Type("Q5_1", 32, 24, _q5_1),
    8: Type("Q8_0", 32, 34, _q8_0),
    12: Type("Q4_K", 256, 144, _q4_k),
    13: Type("Q5_K", 256, 176, _q5_k),
    14: Type("Q6_K", 256, 210, _q6_k),
    30: Type("BF16", 1, 2, _as_is(torch.bfloat16)),
}
"""By their number in a file."""
