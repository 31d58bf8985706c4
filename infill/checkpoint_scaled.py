"""FP8, INT8, INT4 and NVFP4 weights as compressed-tensors (Red Hat) and Model Optimizer (NVIDIA) store them.

Formats, read from their own code and from loaders of the published checkpoints:

- compressed-tensors `float-quantized` and `int-quantized`: `weight` F8_E4M3 or I8 [out, in] and `weight_scale`
  [out, 1] (RedHatAI's FP8-dynamic; the scale is BF16 or F32). Model Optimizer's FP8 has one F32 scale.
- compressed-tensors `pack-quantized` (AWQ, GPTQ and plain rounding to 4 or 8 bits): `weight_packed` I32 [out, words],
  `weight_shape` [2], `weight_scale` [out, groups], and `weight_zero_point` I32 [words, groups], without which zero is
  the middle code, 2 ** (bits - 1). A word holds 32 / bits codes, lowest bits first; zero points are packed along the
  rows. The weight is (code - zero) * scale. Columns reordered by `weight_g_idx` are refused.
- compressed-tensors `nvfp4-pack-quantized`: `weight_packed` U8 [out, in / 2], `weight_scale` F8_E4M3 [out, in / 16],
  `weight_global_scale` F32 [1]. The weight is code * weight_scale / weight_global_scale.
- Model Optimizer `NVFP4`: `weight`, `weight_scale` the same, and `weight_scale_2` F32 [], the *reciprocal* of the
  above: the weight is code * weight_scale * weight_scale_2.

A code of NVFP4 is E2M1; the lower four bits of a byte come first. Which module is packed how is told by the tensors it
has (a checkpoint may mix them). Experts are single matrices, `experts.{N}.{gate,up,down}_proj`: 24,232 tensors in
RedHatAI's FP8, 47,067 in NVIDIA's. RedHatAI's NVFP4 and the packed integers are described from the format; no header of
such an upload was seen.
Knows no names of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checkpoint_shards import DENSE, Shards, SourceError, Stored, plain, split

GROUP = 16
"""Values that share a scale in NVFP4."""

ACTIVATION_SCALES = (".input_scale", ".input_global_scale")
CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale")
WEIGHT, PACKED, SCALE = ".weight", ".weight_packed", ".weight_scale"
DIVISOR, FACTOR = ".weight_global_scale", ".weight_scale_2"
SHAPE, ZERO, ORDER = ".weight_shape", ".weight_zero_point", ".weight_g_idx"
WORD = 32

FORMATS = {
    "compressed-tensors": (
        "float-quantized",
        "int-quantized",
        "pack-quantized",
        "nvfp4-pack-quantized",
        "mixed-precision",
    ),
    "modelopt": ("FP8", "NVFP4", "MIXED_PRECISION"),
}

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
FP4_PAIRS = torch.stack([FP4.repeat(16), FP4.repeat_interleave(16)], 1)
"""What each byte means, [256, 2]."""


def find_scaled(shards: Shards, quantization: Mapping[str, Any]) -> tuple[dict[str, Stored], list[str]]:
    """Every weight by its dense name, and the names of the scales that are for activations and caches."""
    method = quantization["quant_method"]
    found = quantization.get("format" if method == "compressed-tensors" else "quant_algo")
    if found not in FORMATS[method]:
        raise SourceError(f"the checkpoint is {method} {found!r}; only {', '.join(FORMATS[method])} can be read")
    unused = (*ACTIVATION_SCALES, *CACHE_SCALES)
    modules, others = split(shards, (WEIGHT, PACKED, SCALE, DIVISOR, FACTOR, SHAPE, ZERO, ORDER, *unused))
    stored: dict[str, Stored] = {name: plain(shards, name) for name in others}
    skipped = []
    for module, parts in modules.items():
        skipped += [parts.pop(suffix) for suffix in unused if suffix in parts]
        if parts:
            stored[module + WEIGHT] = _weight(shards, module, parts)
    return stored, skipped


def _weight(shards: Shards, module: str, parts: Mapping[str, str]) -> Stored:
    match sorted(parts):
        case [".weight"]:
            return plain(shards, parts[WEIGHT])
        case [".weight", ".weight_scale"]:
            return _scaled(shards, parts[WEIGHT], parts[SCALE])
        case [".weight_global_scale", ".weight_packed", ".weight_scale"]:
            return _blocks(shards, parts[PACKED], parts[SCALE], parts[DIVISOR], divides=True)
        case [".weight_packed", ".weight_scale", ".weight_shape", *_]:
            return _integers(shards, parts)
        case [".weight", ".weight_scale", ".weight_scale_2"]:
            return _blocks(shards, parts[WEIGHT], parts[SCALE], parts[FACTOR], divides=False)
    only = ", ".join(sorted(suffix[1:] for suffix in parts))
    raise SourceError(f"{module} has only {only}; no known format is stored like that")


@dataclass(frozen=True, slots=True)
class Scaled:
    """Codes [out, in] that are numbers themselves, times a scale for each row or for all."""

    shards: Shards
    codes: str
    scale: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shards.shape(self.codes)

    def read(self, rows: slice = slice(None)) -> Tensor:
        scale = self.shards.read(self.scale).float().reshape(-1, 1)
        return self.shards.read(self.codes, rows).float() * (scale[rows] if len(scale) > 1 else scale)


@dataclass(frozen=True, slots=True)
class Blocks:
    """NVFP4: two codes to a byte, a scale for each `GROUP`, and one that divides or multiplies all."""

    shards: Shards
    codes: str
    scale: str
    common: str
    divides: bool

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.shards.shape(self.codes)
        return rows, 2 * columns

    def read(self, rows: slice = slice(None)) -> Tensor:
        common = self.shards.read(self.common).reshape(())
        scale = self.shards.read(self.scale, rows).float()
        scale = scale / common if self.divides else scale * common
        values = fp4_values(self.shards.read(self.codes, rows))
        return (values.reshape(*scale.shape, GROUP) * scale[..., None]).flatten(-2)


@dataclass(frozen=True, slots=True)
class Integers:
    """Codes of `bits` bits in words, a scale and perhaps a zero point for each group of neighbours in a row."""

    shards: Shards
    codes: str
    scale: str
    zero: str | None
    shape: tuple[int, ...]
    bits: int

    def read(self, rows: slice = slice(None)) -> Tensor:
        scale = self.shards.read(self.scale, rows).float()[..., None]
        columns = self.shape[1]
        codes = word_codes(self.shards.read(self.codes, rows), self.bits)[:, :columns]
        zero: Tensor | int = 1 << (self.bits - 1)
        if self.zero is not None:
            along_rows = word_codes(self.shards.read(self.zero).T, self.bits).T
            zero = along_rows[: self.shape[0]][rows][..., None]
        return ((codes.reshape(*scale.shape[:2], columns // scale.shape[1]) - zero).float() * scale).flatten(1)


def word_codes(words: Tensor, bits: int) -> Tensor:
    """int32 [..., n] to the int32 [..., 32n / bits] codes in it, lowest bits first."""
    # A right shift of a negative int32 brings in ones: those above the code are masked away.
    return ((words[..., None] >> torch.arange(0, WORD, bits, dtype=torch.int32)) & ((1 << bits) - 1)).flatten(-2)


def fp4_values(codes: Tensor) -> Tensor:
    """uint8 [..., n] to the fp32 [..., 2n] numbers of its E2M1 codes, lower four bits first."""
    return FP4_PAIRS.index_select(0, codes.flatten().int()).reshape(*codes.shape[:-1], 2 * codes.shape[-1])


def _scaled(shards: Shards, codes: str, scale: str) -> Scaled:
    _need(shards, codes, ("F8_E4M3", "I8"))
    _need(shards, scale, tuple(DENSE))
    out, found = shards.shape(codes)[:1], shards.shape(scale)
    if len(shards.shape(codes)) != 2 or found not in ((*out, 1), out, (1,), ()):
        raise SourceError(f"{scale} has the shape {list(found)}, which fits no rows of {list(shards.shape(codes))}")
    return Scaled(shards, codes, scale)


def _blocks(shards: Shards, codes: str, scale: str, common: str, *, divides: bool) -> Blocks:
    _need(shards, codes, ("U8",))
    _need(shards, scale, ("F8_E4M3",))
    _need(shards, common, ("F32",))
    packed, found = shards.shape(codes), shards.shape(scale)
    if len(packed) != 2 or found != (packed[0], packed[1] * 2 // GROUP) or packed[1] * 2 % GROUP:
        raise SourceError(f"{scale} has the shape {list(found)}, which fits no groups of {GROUP} in {list(packed)}")
    if math.prod(shards.shape(common)) != 1:
        raise SourceError(f"{common} has the shape {list(shards.shape(common))}; it must be one number")
    if (number := float(shards.read(common).reshape(()))) <= 0 or not math.isfinite(number):
        raise SourceError(f"{common} is {number}; copy the checkpoint again")
    return Blocks(shards, codes, scale, common, divides)


def _integers(shards: Shards, parts: Mapping[str, str]) -> Integers:
    codes, scale, zero = parts[PACKED], parts[SCALE], parts.get(ZERO)
    _need(shards, codes, ("I32",))
    _need(shards, scale, tuple(DENSE))
    _need(shards, parts[SHAPE], ("I32", "I64"))
    packed, grouped = shards.shape(codes), shards.shape(scale)
    shape = tuple(shards.read(parts[SHAPE]).flatten().tolist())
    fits = [bits for bits in (4, 8) if packed == (shape[0], -(-shape[-1] * bits // WORD))]
    if len(shape) != 2 or not fits:
        raise SourceError(f"{codes} has the shape {list(packed)}, which holds no {list(shape)} codes of 4 or 8 bits")
    if len(grouped) != 2 or grouped[0] != shape[0] or grouped[1] < 1 or shape[1] % grouped[1]:
        raise SourceError(f"{scale} has the shape {list(grouped)}, which fits no groups of {list(shape)}")
    if zero is not None:
        _need(shards, zero, ("I32",))
        if (found := shards.shape(zero)) != (wanted := (-(-shape[0] * fits[0] // WORD), grouped[1])):
            raise SourceError(f"{zero} has the shape {list(found)} instead of {list(wanted)}; copy it again")
    return Integers(shards, codes, scale, zero, shape, fits[0])


def _need(shards: Shards, name: str, dtypes: tuple[str, ...]) -> None:
    if shards.dtype(name) not in dtypes:
        raise SourceError(f"{name} is stored as {shards.dtype(name)}; only {' and '.join(dtypes)} can be read")
