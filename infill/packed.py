"""The packed format: a model's weights as the forward pass uses them, in one file that is mapped, not read.

PACKED.md, beside this file, describes every byte. Knows no checkpoint names: `importing` makes packed models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from stopgap.kernels.quantised import GROUP

from .model_config import ModelConfig, ModelError

Bits = Literal[4, 8, 16]
Kind = Literal["int4", "int8", "bf16"]

WEIGHTS, MANIFEST = "packed.safetensors", "manifest.json"
FORMAT = 2
HASHED_AT_LOAD = 1 << 28
"""Bytes. The checksums of a larger file are not looked at when it is loaded; `verify` reads all of it."""
_CHUNK = 1 << 22
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I8": torch.int8, "U8": torch.uint8}


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight of a packed model: how it is stored, and its shape if it were not quantised, matrices [out, in]."""

    kind: Kind
    shape: tuple[int, ...]

    def parts(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """What is stored, by the end of its name: safetensors dtype and shape."""
        *outer, width = self.shape
        if self.kind == "int4":
            return {".codes": ("U8", (*outer, width // 2)), ".scale": ("BF16", (*outer, width // GROUP))}
        if self.kind == "int8":
            return {".codes": ("I8", self.shape), ".scale": ("F32", tuple(outer))}
        return {"": ("BF16", self.shape)}


def plan(config: ModelConfig, bits: Bits) -> dict[str, Entry]:
    """Every weight of a packed model by its path in `layers.Weights`.

    16 bits leave everything bf16. 8 make every matrix int8. 4 make int4 of the experts, which are nine tenths of a
    large model; of a model with a single expert, which shares its matrices with the MLP, of both. Routers, which
    decide much with few weights, and norms stay bf16. Raises `ModelError` for a width that int4 cannot cut into
    groups.
    """
    width, inner, moe, experts = (
        config.hidden_size,
        config.intermediate_size,
        config.moe_intermediate_size,
        config.num_experts,
    )
    matrix: Kind = "bf16" if bits == 16 else "int8"
    expert: Kind = "int4" if bits == 4 else matrix
    shared = expert if experts == 1 else matrix
    entries = {
        "embedding": Entry(matrix, (config.vocab_size, width)),
        "norm": Entry("bf16", (width,)),
        "self_conditioning.gate_up": Entry(matrix, (2 * inner, width)),
        "self_conditioning.down": Entry(matrix, (width, inner)),
    }
    for index, shape in enumerate(config.layers):
        keys = shape.kv_heads * shape.head_dim
        queries = shape.heads * shape.head_dim
        single = moe if experts == 1 else 0
        own = {
            "qkv": Entry(matrix, (queries + keys * (2 if shape.sliding else 1), width)),
            "qk_norm": Entry("bf16", (shape.groups + 1, shape.kv_heads, shape.head_dim)),
            "out": Entry(matrix, (width, queries)),
            "gate_up": Entry(shared, (2 * (inner + single), width)),
            "down": Entry(shared, (width, inner)),
        }
        if experts == 1:
            own["expert_down"] = Entry(expert, (width, moe))
        else:
            own["mixture.router"] = Entry("bf16", (experts, width))
            own["mixture.gate_up"] = Entry(expert, (experts, 2 * moe, width))
            own["mixture.down"] = Entry(expert, (experts, width, moe))
        norms = ("attention_norm", "mlp_norm", "expert_norm", "encoder.feedforward_norm", "decoder.feedforward_norm")
        own |= {name: Entry("bf16", (width,)) for name in norms}
        entries |= {f"layers.{index}.{name}": entry for name, entry in own.items()}
    for name, entry in entries.items():
        if entry.kind == "int4" and entry.shape[-1] % GROUP:
            raise ModelError(f"{name} has {entry.shape[-1]} inputs, no multiple of {GROUP}; pack this model in 8 bits")
    return entries


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor and its place in the weights file, in bytes from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def layout(entries: Mapping[str, Entry]) -> tuple[bytes, dict[str, tuple[Part, ...]]]:
    """The weights file's first bytes and where each entry's parts go behind them.

    A safetensors file: wide elements come first, so that all are aligned; nothing lies between two tensors.
    """
    stored = [
        (f"{name}{end}", dtype, shape)
        for name, entry in entries.items()
        for end, (dtype, shape) in entry.parts().items()
    ]
    stored.sort(key=lambda one: -DTYPES[one[1]].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "stopgap": str(FORMAT)}}
    places, at = {}, 0
    for name, dtype, shape in stored:
        places[name] = (dtype, shape, at, at := at + math.prod(shape) * DTYPES[dtype].itemsize)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(places[name][2:])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    first = len(text).to_bytes(8, "little") + text
    parts = {
        name: tuple(
            Part(name + end, dtype, shape, len(first) + start, len(first) + stop)
            for end in entry.parts()
            for dtype, shape, start, stop in (places[name + end],)
        )
        for name, entry in entries.items()
    }
    return first, parts


def size(entries: Mapping[str, Entry]) -> int:
    """Bytes of the weights file."""
    return max(part.end for own in layout(entries)[1].values() for part in own)


@dataclass(frozen=True, slots=True)
class Record:
    """What the manifest says of one entry."""

    kind: Kind
    nbytes: int
    error: float
    """Root mean square of what rounding changed over that of the weight"""
    sha256: tuple[str, ...]
    """Of each part"""


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json. `scalars` are each layer's two, encoder then decoder; `files` the other files' checksums."""

    bits: Bits
    source: str
    scalars: tuple[tuple[float, float], ...]
    files: Mapping[str, str]
    tensors: Mapping[str, Record]

    @property
    def nbytes(self) -> int:
        """Of all weights."""
        return sum(record.nbytes for record in self.tensors.values())

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT} | asdict(self), indent=1) + "\n"


def is_packed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """Raises `ModelError`."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ModelError(f"{path} has format {raw['format']}, this version reads {FORMAT}: pack it again")
        if raw["bits"] not in (4, 8, 16):
            raise ValueError(f"bits {raw['bits']}")
        tensors = {name: record_from(own) for name, own in raw["tensors"].items()}
        scalars = tuple((float(encoder), float(decoder)) for encoder, decoder in raw["scalars"])
        return Manifest(raw["bits"], raw["source"], scalars, dict(raw["files"]), tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read ({error!r}): copy the model again or pack it again") from None


def record_from(raw: Mapping[str, Any]) -> Record:
    return Record(raw["kind"], int(raw["nbytes"]), float(raw["error"]), tuple(raw["sha256"]))


def check(folder: Path, manifest: Manifest, entries: Mapping[str, Entry]) -> None:
    """What can be compared before loading without reading gigabytes; raises `ModelError`."""
    _check_files(folder, manifest)
    if _check_size(folder, entries) <= HASHED_AT_LOAD:
        _check_tensors(folder, manifest, entries)


def verify(folder: Path, config: ModelConfig, progress: Callable[[int, int], None] = lambda _done, _all: None) -> None:
    """Compare every checksum; raises `ModelError` naming the first file or tensor that differs.

    `progress` is told how many bytes of how many are read.
    """
    manifest = read_manifest(folder)
    entries = plan(config, manifest.bits)
    _check_files(folder, manifest)
    _check_size(folder, entries)
    _check_tensors(folder, manifest, entries, progress)


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, checksum in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing: copy or pack the model again")
        if sha256(path) != checksum:
            raise ModelError(f"{path} is damaged (its checksum differs): copy or pack the model again")


def _check_size(folder: Path, entries: Mapping[str, Entry]) -> int:
    path, wanted = folder / WEIGHTS, size(entries)
    found = path.stat().st_size if path.is_file() else -1
    if found != wanted:
        problem = "is missing" if found < 0 else f"has {found} bytes instead of {wanted}"
        raise ModelError(f"{path} {problem}: copy or pack the model again")
    return found


def _check_tensors(
    folder: Path,
    manifest: Manifest,
    entries: Mapping[str, Entry],
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> None:
    path, (first, parts) = folder / WEIGHTS, layout(entries)
    done, whole = len(first), size(entries)
    with path.open("rb") as file:
        if file.read(len(first)) != first:
            raise ModelError(f"{path} is damaged (its header differs): copy or pack the model again")
        for name, own in parts.items():
            checksums = manifest.tensors[name].sha256 if name in manifest.tensors else ()
            if [_hash_range(file, part) for part in own] != list(checksums):
                raise ModelError(f"{path} is damaged (the checksum of {name} differs): copy or pack the model again")
            done += sum(part.end - part.start for part in own)
            progress(done, whole)


def _hash_range(file: Any, part: Part) -> str:
    file.seek(part.start)
    digest = hashlib.sha256()
    for chunk in _chunks(file, part.end - part.start):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: Any, length: int) -> Iterator[bytes]:
    while length > 0 and (chunk := file.read(min(_CHUNK, length))):
        length -= len(chunk)
        yield chunk


def sha256(path: Path) -> str:
    """A whole file's, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
