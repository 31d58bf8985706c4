"""Any published kind of DiffusionGemma checkpoint as one table of dense tensors, read a few rows at a time.

`open_source` takes what is on disk: a folder of safetensors in bf16 (google), FP8, INT8 or NVFP4 (RedHatAI, NVIDIA)
or MLX's group-quantised form, or a GGUF file; and a LoRA adapter's folder to merge. Every tensor of the source is
mapped to a name of `model_config.expected_shapes`, left out by a rule, or makes the opening fail; nothing that the
model needs is ever made up. Knows no packed format of our own, no device and no network.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .checkpoint_gguf import find_gguf
from .checkpoint_lora import EMBEDDING, HEAD, VISION, merge_adapter
from .checkpoint_mlx import find_mlx
from .checkpoint_scaled import ACTIVATION_SCALES, CACHE_SCALES, FORMATS, find_scaled
from .checkpoint_shards import Shards, SourceError, Stored, open_shards, plain, same
from .model_config import DECODER, ENCODER, ModelConfig, expected_shapes
from .weights import CHECKPOINT, INDEX, read_json

CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "stopgap.json",
)
"""Small files that belong to the model; those that are there are carried over."""

TOKENIZER = CARRIED[0]
ROTARY = ("rotary_emb.inv_freq", "rotary_emb.original_inv_freq")


class Source(Protocol):
    """A checkpoint brought to our names. Nothing is dequantised before it is asked for."""

    @property
    def kind(self) -> str:
        """What it is stored as, in a few words."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json in transformers' form, of the dense model (no word of quantisation)."""
        ...

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Dense shape of every tensor of `expected_shapes`, in its order."""
        ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """The source's own names of what is left out on purpose; `describe_skipped` sums them up."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """Small files to carry over."""
        ...

    @property
    def origins(self) -> tuple[Path, ...]:
        """Every file that tensors are read from."""
        ...

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Rows along axis 0 (experts, output rows, vocabulary), dense, bf16 or fp32, on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A `Source` over tensors of any packing."""

    kind: str
    config: Mapping[str, Any]
    skipped: tuple[str, ...]
    files: tuple[Path, ...]
    origins: tuple[Path, ...]
    stored: Mapping[str, Stored]

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {name: own.shape for name, own in self.stored.items()}

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        return self.stored[name].read(rows)


def open_source(path: Path, adapter: Path | None = None, *, adapter_side: str | None = None) -> Source:
    """Open a checkpoint folder or a .gguf file, with an adapter folder merged into it if one is named.

    adapter_side: "decoder" or "encoder" for an adapter that changes the two differently (`checkpoint_lora`).
    Raises `ModelError`, most often as `SourceError`, in one line.
    """
    source: Source = _open_gguf(gguf) if (gguf := _gguf_in(path)) else _open_folder(path)
    return source if adapter is None else merge_adapter(source, adapter, adapter_side)


def describe_skipped(names: Iterable[str]) -> str:
    """Like "356 vision tensors, 11520 activation scales"; empty if nothing was left out."""
    counts = Counter(_skip_rule(name) or "tensors of no use here" for name in names)
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _skip_rule(name: str) -> str | None:
    """Why this tensor of a source is never read, or None."""
    if any(prefix in name for prefix in VISION):
        return "vision tensors"
    if name.endswith(ROTARY):
        return "rotary tables"
    if name.endswith(ACTIVATION_SCALES):
        return "activation scales"
    if name.endswith(CACHE_SCALES):
        return "cache scales"
    return "tied copies" if name == HEAD or name.startswith(ENCODER) else None


def _gguf_in(path: Path) -> Path | None:
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir():
        raise SourceError(f"{path} is no folder of a model and no .gguf file")
    if (path / CHECKPOINT).is_file() or (path / INDEX).is_file():
        return None
    found = sorted(own for own in path.glob("*.gguf") if not own.name.startswith("mmproj"))
    if len(found) > 1:
        raise SourceError(f"{path} holds {len(found)} .gguf files; name one of them, like {found[0]}")
    return found[0] if found else None


def _open_gguf(path: Path) -> Opened:
    config, stored = find_gguf(path)
    if not (path.parent / TOKENIZER).is_file():
        raise SourceError(f"put {TOKENIZER} of the original model beside {path.name}, which has none to carry over")
    return _assemble(f"GGUF {path.name}", config, stored, (), _carried(path.parent), (path,))


def _open_folder(folder: Path) -> Opened:
    raw = read_json(folder / "config.json")
    quantization = _quantization(folder, raw)
    shards = open_shards(folder)
    skipped = [name for name in shards.table if name.startswith(VISION) or name.endswith(ROTARY)]
    for name in skipped:
        del shards.table[name]
    find = _reader(quantization)
    stored, unused = find(shards, quantization)
    config = {key: value for key, value in raw.items() if key not in ("quantization_config", "quantization")}
    kind = _kind(shards, quantization)
    return _assemble(kind, config, stored, (*skipped, *unused), _carried(folder), shards.paths)


def _carried(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in CARRIED if (folder / name).is_file())


def _quantization(folder: Path, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json or, in older Model Optimizer exports, hf_quant_config.json says; empty if nothing."""
    for holder in (raw, raw.get("text_config") or {}):
        for key in ("quantization_config", "quantization"):
            if isinstance(own := holder.get(key), Mapping):
                return own
    if (path := folder / "hf_quant_config.json").is_file():
        return {"quant_method": "modelopt", **read_json(path).get("quantization", {})}
    return {}


def _reader(
    quantization: Mapping[str, Any],
) -> Callable[[Shards, Mapping[str, Any]], tuple[dict[str, Stored], list[str]]]:
    if not quantization:
        return lambda shards, _: ({name: plain(shards, name) for name in shards.table}, [])
    method = quantization.get("quant_method")
    if isinstance(method, str) and method in FORMATS:
        return find_scaled
    if method is None and "group_size" in quantization and "bits" in quantization:
        return lambda shards, own: (find_mlx(shards, own), [])
    raise SourceError(
        f"config.json says the weights are quantised by {method!r}; "
        f"only {', '.join(FORMATS)} and MLX can be read, take another download of the model"
    )


def _kind(shards: Shards, quantization: Mapping[str, Any]) -> str:
    if not quantization:
        dtypes = Counter(dtype for _, _, dtype in shards.table.values())
        return f"{dtypes.most_common(1)[0][0] if dtypes else 'empty'} safetensors"
    if (method := quantization.get("quant_method")) is None:
        return f"MLX {quantization.get('mode', 'affine')} {quantization['bits']}-bit safetensors"
    return f"{method} {quantization.get('format') or quantization.get('quant_algo')} safetensors"


def _assemble(
    kind: str,
    config: Mapping[str, Any],
    found: dict[str, Stored],
    skipped: Iterable[str],
    files: tuple[Path, ...],
    origins: tuple[Path, ...],
) -> Opened:
    """Bring `found` to the expected names, and account for every one of its tensors."""
    shapes = expected_shapes(ModelConfig.from_dict(config))
    rest = dict(found)
    stored: dict[str, Stored] = {}
    one_scalar = not any(name.startswith(ENCODER) for name in rest)
    for name in shapes:
        # A trainer that holds one stack for encoder and decoder (NeMo) writes the layer scalars once. Half of
        # them missing is damage.
        own = rest.pop(name, None) or _experts(rest, name, shapes[name])
        if own is None and one_scalar and name.startswith(ENCODER):
            own = stored.get(DECODER + name.removeprefix(ENCODER))
        if own is not None:
            stored[name] = own
    if missing := [name for name in shapes if name not in stored]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(f"the weights lack {missing[0]}{more}; the download is not whole or not this model")
    for name, shape in shapes.items():
        if (is_shape := stored[name].shape) != shape:
            raise SourceError(f"{name} has the shape {list(is_shape)}, but config.json asks for {list(shape)}")
    copies = [name for name in rest if name == HEAD or name.startswith(ENCODER)]
    if unknown := [name for name in rest if name not in copies]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise SourceError(f"the weights hold {unknown[0]}{more}, which is no part of this model as we know it")
    for name in copies:
        original = EMBEDDING if name == HEAD else DECODER + name.removeprefix(ENCODER)
        own, kept = rest[name], stored.get(original)
        if kept is None or own.shape != kept.shape or not same(own.shape, own.read, kept.read):
            raise SourceError(f"{name} is not the same as {original}; a model that unties them is not supported")
    return Opened(kind, config, (*skipped, *copies), files, origins, stored)


@dataclass(frozen=True, slots=True)
class Experts:
    """Single experts' matrices as one [experts, out, in] tensor; those of one expert follow each other in it."""

    each: tuple[tuple[Stored, ...], ...]
    shape: tuple[int, ...]

    def read(self, rows: slice = slice(None)) -> Tensor:
        chosen = [torch.cat([part.read().float() for part in parts]) for parts in self.each[rows]]
        return torch.stack(chosen) if chosen else torch.empty(0, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class Halves:
    """Gate and up of all experts, each [experts, out, in], as one tensor."""

    gate: Stored
    up: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        experts, out, width = self.gate.shape
        return experts, out + self.up.shape[1], width

    def read(self, rows: slice = slice(None)) -> Tensor:
        return torch.cat([self.gate.read(rows).float(), self.up.read(rows).float()], 1)


def _experts(rest: dict[str, Stored], name: str, shape: tuple[int, ...]) -> Stored | None:
    """The fused expert tensor `name` made of what a source has instead; None if it has nothing of it."""
    if not (match := re.fullmatch(r"(.*\.experts\.)(gate_up|down)_proj", name)):
        return None
    prefix = match[1]
    kinds = ("gate_proj", "up_proj") if match[2] == "gate_up" else ("down_proj",)
    if (gate := prefix + "gate_proj") in rest and (up := prefix + "up_proj") in rest and len(kinds) == 2:
        return Halves(rest.pop(gate), rest.pop(up))
    wanted = [[f"{prefix}{expert}.{kind}.weight" for kind in kinds] for expert in range(shape[0])]
    if not any(piece in rest for pieces in wanted for piece in pieces):
        return None
    if missing := [piece for pieces in wanted for piece in pieces if piece not in rest]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(f"the weights lack {missing[0]}{more}; the download is not whole")
    out = shape[1] // len(kinds)
    for piece in (piece for pieces in wanted for piece in pieces):
        if rest[piece].shape != (out, shape[2]):
            raise SourceError(
                f"{piece} has the shape {list(rest[piece].shape)}, but config.json asks for {[out, shape[2]]}"
            )
    return Experts(tuple(tuple(rest.pop(piece) for piece in pieces) for pieces in wanted), shape)
