"""A model folder on disk to a `Model` in memory, with every complaint made before anything is loaded.

A folder holds `config.json`, `tokenizer.json` and either a checkpoint as transformers writes it
(`model.safetensors`, in one piece or in shards with an index) or a packed model (`packed`). Knows no layer math
and no sampling, and never imports transformers: the daemon must be ready in seconds.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stopgap.kernels.quantised import Int4Groups, Int8Rows, Quantised

from . import devices
from .cpu import bf16_is_fast, choose_threads, int8_is_exact, int8_is_fast
from .layers import (
    Dense,
    FewBits,
    Layer,
    Matrix,
    Mixture,
    SelfConditioning,
    Side,
    Weights,
    each_tensor,
    pack_layer,
    pack_self_conditioning,
)
from .model import Model
from .model_config import DECODER, ENCODER, ModelConfig, ModelError, expected_shapes
from .packed import DTYPES, MANIFEST, WEIGHTS, Entry, Part, check, is_packed, layout, plan, read_manifest, size
from .quant import Int8

CHECKPOINT, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL_EMBEDDING = 1 << 26
"""Weights. Beside int8 activations a smaller embedding is kept dense too, for the one product that stays dense: the
starter's step takes 8.5 ms instead of 10."""


def load_model(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    int8: bool | None = None,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Model:
    """Load a checkpoint or a packed model.

    dtype of activations and of all weights that are not quantised: by default fp32 on a CPU and bf16 elsewhere.
    int8 weights times int8 activations: by default on a CPU that multiplies them exactly and faster. threads: by
    default as many as a measurement with `clock` (seconds) favours. Raises `ModelError`, in one line with the remedy.
    """
    device = devices.resolve(str(device))
    config = read_config(folder)
    if device.type == "cpu":
        torch.set_num_threads(threads) if threads else choose_threads(clock)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    if int8 is None:
        int8 = device.type == "cpu" and dtype == torch.float32 and int8_is_exact() and int8_is_fast(clock)
    elif int8 and (device.type != "cpu" or dtype != torch.float32):
        raise ModelError("int8 weights need the device cpu and fp32 activations")
    # The expected embedding is the one large product that stays in full precision; bf16 is what the
    # reference rounds it to.
    soft = torch.bfloat16 if int8 and bf16_is_fast(clock) else dtype
    if is_packed(folder):
        _check_tokenizer(folder, config)
        return Model(config, _load_packed(folder, config, device, dtype, soft, int8), folder.name)
    with ExitStack() as stack:
        stored = _open(folder, stack)
        _check(stored, config)
        _check_tokenizer(folder, config)
        _check_memory(config, device, dtype, int8)
        weights = _pack(stored, config, device, dtype, soft, int8)
    return Model(config, weights, folder.name)


def read_config(folder: Path) -> ModelConfig:
    """The folder's `config.json`; raises `ModelError`."""
    return ModelConfig.from_dict(read_json(folder / "config.json"))


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Every stored tensor's name with the open file that holds it; nothing is read but the headers."""
    if (folder / INDEX).is_file():
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    else:
        names = [CHECKPOINT]
    stored: dict[str, Any] = {}
    for name in names:
        file = _reader(folder / name, stack)
        stored |= dict.fromkeys(file.keys(), file)
    return stored


def _reader(path: Path, stack: ExitStack) -> Any:
    if not path.is_file():
        raise ModelError(f"{path} is missing; copy or download the model again")
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is cut short or no safetensors file ({error}); copy it again") from None


def _check(stored: Mapping[str, Any], config: ModelConfig) -> None:
    expected = expected_shapes(config)
    if missing := [name for name in expected if name not in stored]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"the weights lack {missing[0]}{more}; they do not belong to this config.json")
    for name, shape in expected.items():
        piece = stored[name].get_slice(name)
        if (found := tuple(piece.get_shape())) != shape:
            raise ModelError(f"{name} has the shape {list(found)}, but config.json asks for {list(shape)}")
        if piece.get_dtype() not in ("F32", "BF16", "F16"):
            raise ModelError(f"{name} is stored as {piece.get_dtype()}; only F32, BF16 and F16 can be read")


def _check_tokenizer(folder: Path, config: ModelConfig) -> None:
    """A tokenizer may leave rows of the embedding unused (padding), but not by much, and never exceed them."""
    if not (path := folder / "tokenizer.json").is_file():
        return  # whoever needs text will say so
    raw = read_json(path)
    vocabulary = raw.get("model", {}).get("vocab", {})
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    count = 1 + max((*ids, *(token["id"] for token in raw.get("added_tokens", ()))), default=-1)
    if not config.vocab_size - 256 <= count <= config.vocab_size:
        raise ModelError(
            f"tokenizer.json has {count} tokens, the model {config.vocab_size}; they do not belong together"
        )


def _check_memory(config: ModelConfig, device: torch.device, dtype: torch.dtype, int8: bool) -> None:
    resident, layer = 0, 0
    for name, shape in expected_shapes(config).items():
        size = math.prod(shape)
        dense = len(shape) < 2 or (config.num_experts > 1 and ".experts." in name)
        each = dtype.itemsize if dense or not int8 else 1
        resident += size * (each if "embed_tokens" not in name or not int8 else dtype.itemsize + 1)
        layer += size if name.startswith(f"{DECODER}layers.0.") else 0
    folding = 3 * 4 * layer  # one layer at a time is folded in fp32
    if device.type != "cpu":
        _check_room(resident, device)
        resident = 0
    _check_room(resident + folding, torch.device("cpu"))


def _check_room(needed: int, device: torch.device) -> None:
    free = devices.free_memory(device)
    kind = "memory" if device.type == "cpu" else "GPU memory"
    if free is not None and needed > free:
        raise ModelError(
            f"the model needs {needed / 1e9:.1f} GB of {kind} and {free / 1e9:.1f} GB are free; "
            "close other programs or take a smaller model"
        )


def _pack(
    stored: Mapping[str, Any],
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    soft: torch.dtype,
    int8: bool,
) -> Weights:
    def read(prefix: str) -> dict[str, Tensor]:
        names = [name for name in expected_shapes(config) if name.startswith(prefix)]
        return {name[len(prefix) :]: stored[name].get_tensor(name).float() for name in names}

    def settle(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    dense = Int8.of if int8 else Dense
    layers = []
    for index in range(len(config.layers)):
        raw = read(f"{DECODER}layers.{index}.")
        raw["encoder.layer_scalar"] = read(f"{ENCODER}layers.{index}.")["layer_scalar"]
        layers.append(each_tensor(pack_layer(raw, config, index, dense), settle))
    top = read(DECODER + "embed_tokens.") | {"norm": read(DECODER + "norm.")["weight"]}
    conditioning = pack_self_conditioning(read(f"{DECODER}self_conditioning."), dense)
    embedding = top["weight"].to(device, soft)
    return Weights(
        embedding=embedding,
        head=each_tensor(Int8.of(top["weight"].T), settle) if int8 else Dense(embedding.T),
        norm=settle(top["norm"]),
        self_conditioning=each_tensor(conditioning, settle),
        layers=tuple(layers),
    )


def _load_packed(
    folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype, soft: torch.dtype, int8: bool
) -> Weights:
    """Map the weights; on a CPU codes stay in the file until they are used."""
    manifest = read_manifest(folder)
    entries = plan(config, manifest.bits)
    check(folder, manifest, entries)
    _check_room(size(entries), device)
    _, parts = layout(entries)
    try:
        if len(manifest.scalars) != len(config.layers):
            raise ValueError(f"{len(manifest.scalars)} layers in {MANIFEST}")
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return Packed(file, entries, parts, device, dtype, soft, int8).weights(config, manifest.scalars)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(f"{folder / WEIGHTS} does not fit its config.json ({error}): pack it again") from None


@dataclass(frozen=True, slots=True)
class Packed:
    """An open packed model to `Weights`, one tensor at a time; the arguments are those of `load_model`."""

    file: Any
    entries: Mapping[str, Entry]
    parts: Mapping[str, tuple[Part, ...]]
    device: torch.device
    dtype: torch.dtype
    soft: torch.dtype
    int8: bool

    def stored(self, name: str) -> Tensor | Quantised:
        """On the device, as it is in the file."""
        first, *more = (self.part(part) for part in self.parts[name])
        if self.entries[name].kind == "int4":
            return Int4Groups(first, *more)
        return Int8Rows(first, *more) if more else first

    def part(self, part: Part) -> Tensor:
        found: Tensor = self.file.get_tensor(part.name)
        if tuple(found.shape) != part.shape or found.dtype != DTYPES[part.dtype]:
            raise ValueError(f"{part.name} is {found.dtype} {list(found.shape)}")
        return found.to(self.device)

    def vector(self, name: str) -> Tensor:
        found = self.stored(name)
        assert isinstance(found, Tensor)
        return found.to(self.dtype)

    def matrix(self, name: str) -> Matrix:
        return self.product(self.stored(name))

    def product(self, found: Tensor | Quantised) -> Matrix:
        if isinstance(found, Int8Rows):
            return Int8(found.codes.T, found.scale) if self.int8 else FewBits(found)
        if isinstance(found, Int4Groups):
            if self.device.type != "cpu":
                return FewBits(found)
            # Only models of a single expert have it here. They are small, and plain torch makes int4 dense for each
            # product: better once.
            found = found.dense(self.dtype)
            return Dense(found.T)
        return Int8.of(found.T) if self.int8 else Dense(found.to(self.dtype).T)

    def experts(self, name: str) -> Tensor | Quantised:
        found = self.stored(name)
        return found.to(self.dtype).mT if isinstance(found, Tensor) else found

    def weights(self, config: ModelConfig, scalars: tuple[tuple[float, float], ...]) -> Weights:
        embedding = self.stored("embedding")
        assert not isinstance(embedding, Int4Groups)
        head = self.product(embedding) if self.int8 or isinstance(embedding, Int8Rows) else None
        if isinstance(embedding, Tensor):
            embedding = embedding.to(self.soft)
        elif self.int8 and embedding.codes.numel() <= SMALL_EMBEDDING:
            embedding = embedding.dense(self.soft)
        if head is None:
            assert isinstance(embedding, Tensor)
            head = Dense(embedding.T)
        return Weights(
            embedding=embedding,
            head=head,
            norm=self.vector("norm"),
            self_conditioning=SelfConditioning(
                self.matrix("self_conditioning.gate_up"), self.matrix("self_conditioning.down")
            ),
            layers=tuple(self.layer(config, index, *own) for index, own in enumerate(scalars)),
        )

    def layer(self, config: ModelConfig, index: int, encoder: float, decoder: float) -> Layer:
        at = f"layers.{index}"
        mixture = None
        if config.num_experts > 1:
            router = self.vector(f"{at}.mixture.router").T
            gate_up, down = self.experts(f"{at}.mixture.gate_up"), self.experts(f"{at}.mixture.down")
            mixture = Mixture(router, gate_up, down, config.top_k_experts)
        return Layer(
            shape=config.layers[index],
            qkv=self.matrix(f"{at}.qkv"),
            qk_norm=self.vector(f"{at}.qk_norm"),
            out=self.matrix(f"{at}.out"),
            attention_norm=self.vector(f"{at}.attention_norm"),
            gate_up=self.matrix(f"{at}.gate_up"),
            down=self.matrix(f"{at}.down"),
            expert_down=self.matrix(f"{at}.expert_down") if mixture is None else None,
            mixture=mixture,
            mlp_width=config.intermediate_size,
            mlp_norm=self.vector(f"{at}.mlp_norm"),
            expert_norm=self.vector(f"{at}.expert_norm"),
            encoder=Side(encoder, self.vector(f"{at}.encoder.feedforward_norm")),
            decoder=Side(decoder, self.vector(f"{at}.decoder.feedforward_norm")),
        )


def read_json(path: Path) -> Any:
    """A JSON object from a file; raises `ModelError`."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; name a folder that holds a whole model") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds no JSON object; copy it again")
    return raw
