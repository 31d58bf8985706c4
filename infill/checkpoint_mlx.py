"""Group-quantised safetensors as MLX writes them (mlx-vlm's conversions of this model, mlx-community's uploads).

A module has `weight` U32 [..., in * bits / 32], `scales` [..., in / group] and, in the affine mode, `biases` of the
same shape. Codes are a bit stream along the last axis, lowest bits first. Modes (mlx.core.quantize):

- affine: bits 2, 3, 4, 5, 6 or 8, the value is code * scale + bias (both in the weights' own dtype);
- mxfp4, mxfp8: codes E2M1 or E4M3, groups of 32, U8 scales that are powers of two (E8M0: 2 ** (scale - 127));
- nvfp4: codes E2M1, groups of 16, U8 scales that are E4M3, and no scale above them.

config.json's `quantization` gives group_size, bits and mode for all modules, and again for single ones: mlx-vlm's
4-bit model keeps attention, dense MLP, router and embedding at 8 bits. Names are those of transformers, but for
`.weight` after the fused experts. Read from mlx-vlm's code and MLX's documentation; no published file was seen, and
nothing here was compared with MLX itself. Knows no names of the model but those two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checkpoint_scaled import fp4_values
from .checkpoint_shards import DENSE, Shards, SourceError, Stored, plain, split

WEIGHT, SCALES, BIASES = ".weight", ".scales", ".biases"
AFFINE = "affine"
MODES = {AFFINE: (2, 3, 4, 5, 6, 8), "mxfp4": (4,), "mxfp8": (8,), "nvfp4": (4,)}
WORD = 32


def find_mlx(shards: Shards, quantization: Mapping[str, Any]) -> dict[str, Stored]:
    """Every weight by its dense name; raises `SourceError`."""
    modules, others = split(shards, (WEIGHT, SCALES, BIASES))
    stored: dict[str, Stored] = {name: plain(shards, name) for name in others}
    for module, parts in modules.items():
        # mlx-vlm makes a module of each fused expert parameter.
        name = module if module.endswith((".experts.gate_up_proj", ".experts.down_proj")) else module + WEIGHT
        if set(parts) == {WEIGHT}:
            stored[name] = plain(shards, parts[WEIGHT])
        elif set(parts) in ({WEIGHT, SCALES}, {WEIGHT, SCALES, BIASES}):
            stored[name] = _groups(shards, module, parts, quantization)
        else:
            only = ", ".join(sorted(suffix[1:] for suffix in parts))
            raise SourceError(f"{module} has only {only}; copy the checkpoint again")
    return stored


@dataclass(frozen=True, slots=True)
class Groups:
    """Codes in `group` neighbours that share a scale and, where there is one, a bias."""

    shards: Shards
    codes: str
    scales: str
    biases: str | None
    group: int
    bits: int
    mode: str

    @property
    def shape(self) -> tuple[int, ...]:
        *outer, words = self.shards.shape(self.codes)
        return (*outer, words * WORD // self.bits)

    def read(self, rows: slice = slice(None)) -> Tensor:
        words = self.shards.read(self.codes, rows).view(torch.int32)
        scales = self.shards.read(self.scales, rows)
        if self.mode == AFFINE:
            values, scales = unpack_bits(words, self.bits).float(), scales.float()
        else:
            codes = words.view(torch.uint8)
            values = codes.view(torch.float8_e4m3fn).float() if self.bits == 8 else fp4_values(codes)
            scales = scales.view(torch.float8_e4m3fn if self.mode == "nvfp4" else torch.float8_e8m0fnu).float()
        values = values.reshape(*scales.shape, self.group) * scales[..., None]
        if self.biases is not None:
            values += self.shards.read(self.biases, rows).float()[..., None]
        return values.flatten(-2)


def unpack_bits(words: Tensor, bits: int) -> Tensor:
    """int32 [..., n] to the int32 [..., 32n / bits] codes in it; a code may lie across two words (3, 5, 6 bits)."""
    start = torch.arange(WORD, dtype=torch.int32) * bits  # in a run of `bits` words, which holds 32 codes
    first, shift = (start // WORD).long(), start % WORD
    runs = words.reshape(*words.shape[:-1], words.shape[-1] // bits, bits)
    # A right shift of a negative int32 brings in ones: those above the code are masked away.
    codes = runs[..., first] >> shift
    crossing = shift + bits > WORD
    if crossing.any():
        low = (1 << (WORD - shift)) - 1
        above = runs[..., (first + 1).clamp(max=bits - 1)] << (WORD - shift).clamp(max=WORD - 1)
        codes = torch.where(crossing, codes & low | above, codes)
    return (codes & ((1 << bits) - 1)).flatten(-2)


def _groups(shards: Shards, module: str, parts: Mapping[str, str], quantization: Mapping[str, Any]) -> Groups:
    own = quantization.get(module)
    params: Mapping[str, Any] = own if isinstance(own, Mapping) else quantization
    group, bits, mode = params.get("group_size", 0), params.get("bits", 0), params.get("mode") or AFFINE
    whole = isinstance(bits, int) and isinstance(group, int)
    if not whole or mode not in MODES or bits not in MODES[mode] or group < 1:
        raise SourceError(f"config.json quantises {module} as {mode} of {bits} bits in groups of {group}: unknown")
    codes, scales, biases = parts[WEIGHT], parts[SCALES], parts.get(BIASES)
    wanted = tuple(DENSE) if mode == AFFINE else ("U8",)
    if shards.dtype(codes) != "U32" or shards.dtype(scales) not in wanted or (biases is not None) != (mode == AFFINE):
        raise SourceError(f"{codes} and its scales are not stored as the mode {mode} stores them; copy them again")
    *outer, words = shards.shape(codes)
    columns = words * WORD // bits
    expected = (*outer, columns // group)
    if columns % group or words % bits or shards.shape(scales) != expected:
        raise SourceError(
            f"{scales} has the shape {list(shards.shape(scales))}; "
            f"{columns} columns in groups of {group} need {list(expected)}"
        )
    if biases is not None and (shards.shape(biases) != expected or shards.dtype(biases) != shards.dtype(scales)):
        raise SourceError(f"{biases} does not have the shape and dtype of its scales; copy the checkpoint again")
    return Groups(shards, codes, scales, biases, group, bits, mode)
