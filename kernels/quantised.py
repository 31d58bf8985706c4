"""Weights in fewer bits: the two formats every quantised kernel reads, and how a dense weight is rounded to them.

Knows tensors only. Matrices are stored by output row, `[..., out, in]`, the way checkpoints store them; leading
axes (experts) are free. A scale is rounded to its stored dtype *before* the codes are chosen against it, so that
a coarse scale costs nothing but a slightly different grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 64
"""Inputs that share a scale in int4: 704 and 2112, two widths of the 26B, are multiples of 64 but not of 128."""

SHRINK = tuple(1.0 - 0.04 * step for step in range(11))
"""Clipping points tried for each int4 group, as shares of its largest value."""


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """One scale per output row; a weight is `codes * scale`."""

    codes: Tensor
    """[..., out, in] int8, -127..127"""
    scale: Tensor
    """[..., out] fp32"""

    @staticmethod
    def of(weight: Tensor) -> Int8Rows:
        """Round [..., out, in] to the nearest of 255 levels per row."""
        rows = weight.float()
        scale = rows.abs().amax(-1).clamp_min(1e-12) / 127
        return Int8Rows((rows / scale[..., None]).round_().to(torch.int8), scale)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[..., out, in] in `dtype`, multiplied in fp32."""
        return (self.codes.float() * self.scale[..., None]).to(dtype)


@dataclass(frozen=True, slots=True)
class Int4Groups:
    """One scale per `GROUP` inputs of an output row; a weight is `(nibble - 8) * scale`.

    Byte i of a group holds input i in its low nibble and input i + 32 in its high one: a kernel then multiplies
    two runs of 32 inputs and never has to interleave.
    """

    codes: Tensor
    """[..., out, in / 2] uint8"""
    scale: Tensor
    """[..., out, in / GROUP] bf16"""

    @staticmethod
    def of(weight: Tensor, clip: bool = True) -> Int4Groups:
        """Round [..., out, in] to 16 levels per group; `in` must be a multiple of `GROUP`.

        With `clip`, each group takes the clipping point of `SHRINK` with the smallest squared error.
        """
        if weight.shape[-1] % GROUP:
            raise ValueError(f"int4 needs a multiple of {GROUP} inputs, not {weight.shape[-1]}")
        groups = weight.float().reshape(*weight.shape[:-1], -1, GROUP)
        peak = groups.abs().amax(-1, keepdim=True).clamp_min(1e-12) / 7
        best, scale, codes = None, peak, groups
        for share in SHRINK if clip else (1.0,):
            # bf16 can round down: a peak of 7.02 steps still becomes 7.
            tried = (peak * share).to(torch.bfloat16).float().clamp_min(1e-30)
            level = (groups / tried).round_().clamp_(-8, 7)
            error = (level * tried - groups).square_().sum(-1, keepdim=True)
            if best is None:
                best, scale, codes = error, tried, level
                continue
            better = error < best
            best, scale = torch.where(better, error, best), torch.where(better, tried, scale)
            codes = torch.where(better, level, codes)
        nibbles = (codes + 8).to(torch.uint8)
        packed = nibbles[..., : GROUP // 2] | (nibbles[..., GROUP // 2 :] << 4)
        return Int4Groups(packed.flatten(-2), scale.squeeze(-1).to(torch.bfloat16))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[..., out, in] in `dtype`, multiplied in fp32."""
        packed = self.codes.view(*self.codes.shape[:-1], -1, GROUP // 2)
        levels = torch.cat((packed & 15, packed >> 4), dim=-1).float() - 8
        return (levels * self.scale.float()[..., None]).flatten(-2).to(dtype)


Quantised = Int8Rows | Int4Groups
