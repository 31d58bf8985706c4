"""A model folder on disk to a `Model` in memory, with every complaint made before anything is half loaded.

Knows file formats and tensor names; no layer math, no sampling. Never imports transformers: the daemon must be
ready in seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .layers import Dense, Weights, pack_layer, pack_self_conditioning
from .model import Model
from .model_config import ModelConfig
from .quant import Int8


def load_model(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    threads: int | None = None,
) -> Model:
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    raw: dict[str, Tensor] = {}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  a reader, not a dict
            raw[name] = file.get_tensor(name).to(dtype)
    return Model(config, pack(raw, config, int8), folder.name)


def pack(raw: dict[str, Tensor], config: ModelConfig, int8: bool = False) -> Weights:
    dense = Int8.of if int8 else Dense
    decoder = "model.decoder."
    layers = []
    for index in range(len(config.layers)):
        prefix = f"{decoder}layers.{index}."
        mine = {name[len(prefix) :]: tensor for name, tensor in raw.items() if name.startswith(prefix)}
        mine["encoder.layer_scalar"] = raw[f"model.encoder.language_model.layers.{index}.layer_scalar"]
        layers.append(pack_layer(mine, config, index, dense))
    sc = f"{decoder}self_conditioning."
    embedding = raw[f"{decoder}embed_tokens.weight"]
    return Weights(
        embedding=embedding,
        head=dense(embedding.T),
        norm=raw[f"{decoder}norm.weight"],
        self_conditioning=pack_self_conditioning(
            {name[len(sc) :]: tensor for name, tensor in raw.items() if name.startswith(sc)}, dense
        ),
        layers=tuple(layers),
    )
