"""The packed format: a model's weights as the forward pass uses them, in one file that is mapped, not read.

`packed.safetensors` holds the tensors of `layers.Weights`, matrices by output row; `manifest.json` names the
format, the other files with their sizes and SHA-256, and each layer's two scalars. Knows no checkpoint names.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .layers import Dense, Layer, Matrix, Mixture, SelfConditioning, Side, Weights
from .model_config import ModelConfig, ModelError
from .quant import Int8

WEIGHTS, MANIFEST = "packed.safetensors", "manifest.json"
FORMAT = 1
HASHED_AT_LOAD = 1 << 28
"""Bytes. A larger file is only checked by its size when loaded; `verify` reads all of it."""


def is_packed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def save_packed(weights: Weights, source: Path, folder: Path) -> None:
    """Write `weights` and copies of the small files of the folder they came from into `folder`, a new one.

    The manifest comes last and by renaming, so a folder that was left half written is not taken for a model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _named(weights)}
    save_file(tensors, folder / WEIGHTS)
    for path in source.glob("*.json"):
        if path.name not in (MANIFEST, "model.safetensors.index.json"):
            shutil.copyfile(path, folder / path.name)
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name == WEIGHTS or (path.suffix == ".json" and path.name != MANIFEST)
    }
    scalars = [[layer.encoder.scalar, layer.decoder.scalar] for layer in weights.layers]
    manifest = {"format": FORMAT, "files": files, "scalars": scalars}
    draft = folder / (MANIFEST + ".new")
    draft.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    draft.replace(folder / MANIFEST)


def load_packed(folder: Path, config: ModelConfig, device: torch.device) -> Weights:
    """Map the weights; on a CPU they stay in the file until they are used. Raises `ModelError`."""
    manifest = _manifest(folder)
    _check_files(folder, manifest, HASHED_AT_LOAD)
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        return _rebuild(tensors, manifest["scalars"], config)
    except (SafetensorError, OSError, KeyError, IndexError) as error:
        raise ModelError(f"{folder / WEIGHTS} does not fit its config.json ({error}); pack it again") from None


def verify(folder: Path) -> None:
    """Compare every file's checksum with the manifest's; raises `ModelError` naming the first that differs."""
    _check_files(folder, _manifest(folder), largest=None)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ModelError(f"{folder / MANIFEST} has format {manifest['format']}, not {FORMAT}; pack it again")
        return {"files": dict(manifest["files"]), "scalars": list(manifest["scalars"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} cannot be read ({error!r}); pack the model again") from None


def _check_files(folder: Path, manifest: dict[str, Any], largest: int | None) -> None:
    for name, facts in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else -1
        if size != facts["bytes"]:
            found = "is missing" if size < 0 else f"has {size} bytes instead of {facts['bytes']}"
            raise ModelError(f"{path} {found}; copy or pack the model again")
        if (largest is None or size <= largest) and _sha256(path) != facts["sha256"]:
            raise ModelError(f"{path} is damaged (its checksum differs); copy or pack the model again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor below `value` by its path of field names; matrices row by row, the head not twice."""
    if isinstance(value, Weights) and isinstance(value.head, Dense):
        value = {field.name: getattr(value, field.name) for field in fields(value) if field.name != "head"}
    if isinstance(value, Tensor):
        yield name, value.mT if name.endswith(_TRANSPOSED) else value
    elif isinstance(value, dict | tuple) or is_dataclass(value):
        if isinstance(value, tuple):
            items = {str(index): item for index, item in enumerate(value)}
        elif isinstance(value, dict):
            items = value
        else:
            items = {field.name: getattr(value, field.name) for field in fields(value)}
        for key, item in items.items():
            yield from _named(item, f"{name}.{key}" if name else key)


_TRANSPOSED = (".weight", ".columns", ".router", "mixture.gate_up", "mixture.down")


def _rebuild(tensors: dict[str, Tensor], scalars: list[list[float]], config: ModelConfig) -> Weights:
    def matrix(name: str) -> Matrix:
        if (dense := tensors.get(f"{name}.weight")) is not None:
            return Dense(dense.mT)
        return Int8(tensors[f"{name}.columns"].mT, tensors[f"{name}.scale"])

    def layer(index: int) -> Layer:
        at = f"layers.{index}"
        single, mixture = None, None
        if config.num_experts == 1:
            single = matrix(f"{at}.expert_down")
        else:
            router, gate_up, down = (tensors[f"{at}.mixture.{name}"].mT for name in ("router", "gate_up", "down"))
            mixture = Mixture(router, gate_up, down, config.top_k_experts)
        return Layer(
            shape=config.layers[index],
            qkv=matrix(f"{at}.qkv"),
            qk_norm=tensors[f"{at}.qk_norm"],
            out=matrix(f"{at}.out"),
            attention_norm=tensors[f"{at}.attention_norm"],
            gate_up=matrix(f"{at}.gate_up"),
            down=matrix(f"{at}.down"),
            expert_down=single,
            mixture=mixture,
            mlp_width=config.intermediate_size,
            mlp_norm=tensors[f"{at}.mlp_norm"],
            expert_norm=tensors[f"{at}.expert_norm"],
            encoder=Side(scalars[index][0], tensors[f"{at}.encoder.feedforward_norm"]),
            decoder=Side(scalars[index][1], tensors[f"{at}.decoder.feedforward_norm"]),
        )

    embedding = tensors["embedding"]
    tied = "head.columns" not in tensors
    return Weights(
        embedding=embedding,
        head=Dense(embedding.T) if tied else matrix("head"),
        norm=tensors["norm"],
        self_conditioning=SelfConditioning(matrix("self_conditioning.gate_up"), matrix("self_conditioning.down")),
        layers=tuple(layer(index) for index in range(len(config.layers))),
    )
