"""A LoRA adapter as PEFT saves it (Unsloth, TRL, axolotl, NeMo's export), merged into a source as it is read.

`adapter_model.safetensors` holds for a module M, under `base_model.model.`:

- `M.lora_A.weight` [r, in] and `M.lora_B.weight` [out, r]: W + B @ A * scale; for an embedding `M.lora_embedding_A`
  [r, vocabulary] and `M.lora_embedding_B` [width, r]: W + (B @ A).T * scale;
- for `target_parameters` on fused experts (PEFT's ParamWrapper) `experts.lora_A.weight` [E r, in] and
  `experts.lora_B.weight` [out, r E], with the expert as the *outer* index of A's rows and the *inner* one of B's
  columns. Two parameters of one module are nested, the inner one under `experts.base_layer`; which is which is told
  by their shapes. PEFT 0.17 and 0.18 took these [out, in] matrices for [in, out]: told by shape as well;
- `M.weight` where M was in `modules_to_save` or an embedding was saved with it: it replaces the base's.

scale = alpha / r, or alpha / sqrt(r) with use_rslora, with alpha_pattern and rank_pattern per module.

Encoder and decoder share their weights in this model, and here they are kept once. transformers makes two modules of
them, so PEFT trains two adapters: TRL's and Unsloth's recipes for DiffusionGemma end with different ones, which one
set of weights cannot hold (TRL's script says so too). They are refused unless the caller names the side to merge
(`stopgap model import --adapter-side`);
equal ones, and those that exist for one side only (NeMo keeps one stack and saves it as the decoder), are merged.
Names and sums were compared with PEFT 0.21.2 on a tiny model: equal. No published adapter's header was seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .checkpoint_shards import Plain, Shards, SourceError, plain, same
from .model_config import DECODER, ENCODER
from .weights import read_json

if TYPE_CHECKING:
    from .checkpoints import Source

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", f"{DECODER}embed_tokens.weight"
PREFIX = "base_model.model."
VISION = ("model.encoder.vision_tower.", "model.encoder.embed_vision.")
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(\.default)?(\.weight)?")
EXPERT = re.compile(r"(?P<experts>.+\.experts)\.(?P<number>\d+)\.(?P<kind>gate|up|down)_proj")
AROUND = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base weights as they are; the others change them first."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A and B of one module, as names in the adapter, and what their product is multiplied by."""

    a: Plain
    b: Plain
    rank: int
    scale: float
    embedding: bool


class Change(Protocol):
    def add(self, dense: Tensor, start: int) -> None:
        """Add what belongs to the rows from `start` on to `dense`, fp32, in place."""
        ...


@dataclass(frozen=True, slots=True)
class MatrixChange:
    pair: Pair

    def add(self, dense: Tensor, start: int) -> None:
        b = self.pair.b.read(slice(start, start + len(dense))).float()
        dense += b @ self.pair.a.read().float() * self.pair.scale


@dataclass(frozen=True, slots=True)
class EmbeddingChange:
    pair: Pair

    def add(self, dense: Tensor, start: int) -> None:
        a = self.pair.a.read().float()[:, start : start + len(dense)]
        dense += (self.pair.b.read().float() @ a).T * self.pair.scale


@dataclass(frozen=True, slots=True)
class FusedChange:
    """All experts of a fused tensor. flipped: the factors are those of the transposed matrices."""

    pair: Pair
    experts: int
    flipped: bool

    def add(self, dense: Tensor, start: int) -> None:
        rank = self.pair.rank
        b = self.pair.b.read().float().reshape(-1, rank, self.experts)
        for row in range(len(dense)):
            expert = start + row
            a = self.pair.a.read(slice(expert * rank, (expert + 1) * rank)).float()
            delta = b[..., expert] @ a * self.pair.scale
            dense[row] += delta.T if self.flipped else delta


@dataclass(frozen=True, slots=True)
class ExpertChange:
    """One expert of a fused tensor, and of it the output rows from `first` on."""

    pair: Pair
    expert: int
    first: int

    def add(self, dense: Tensor, start: int) -> None:
        if start <= self.expert < start + len(dense):
            delta = self.pair.b.read().float() @ self.pair.a.read().float() * self.pair.scale
            dense[self.expert - start, self.first : self.first + len(delta)] += delta


@dataclass(frozen=True, slots=True)
class Merged:
    """A `Source` with the adapter's changes added to what is read."""

    base: Source
    changes: Mapping[str, tuple[Change, ...]]
    replaced: Mapping[str, Plain]
    folder: Path
    side: str | None
    unused: tuple[str, ...]

    @property
    def kind(self) -> str:
        side = f", its {self.side} side" if self.side else ""
        return f"{self.base.kind} with the adapter {self.folder.name}{side}"

    @property
    def config(self) -> Mapping[str, Any]:
        return self.base.config

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return self.base.tensors

    @property
    def skipped(self) -> tuple[str, ...]:
        return (*self.base.skipped, *self.unused)

    @property
    def files(self) -> tuple[Path, ...]:
        return self.base.files

    @property
    def origins(self) -> tuple[Path, ...]:
        return (*self.base.origins, self.folder / CONFIG, self.folder / WEIGHTS)

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        dense = self.replaced[name].read(rows) if name in self.replaced else self.base.read(name, rows)
        if changes := self.changes.get(name):
            dense = dense.float()
            for change in changes:
                change.add(dense, rows.indices(self.tensors[name][0])[0])
        return dense


def merge_adapter(base: Source, folder: Path, side: str | None = None) -> Source:
    """`base` with the adapter in `folder`; raises `SourceError`. side: which of two differing adapters to take."""
    if side not in (None, "decoder", "encoder"):
        raise SourceError(f"the side of an adapter is decoder or encoder, not {side!r}")
    config = _config(folder)
    shards = Shards([folder / WEIGHTS])
    pairs, rest = _pairs(shards, config)
    unused = [name for name in shards.table if name.removeprefix(PREFIX).startswith(VISION)]
    changes: dict[str, list[tuple[str, Change]]] = {}
    for module, pair in pairs.items():
        if module.startswith(VISION):
            continue
        target, change = _change(base, module, pair)
        changes.setdefault(target, []).append(("encoder" if module.startswith(ENCODER) else "decoder", change))
    replaced = _replaced(base, shards, [name for name in rest if name not in unused], side)
    merged = {target: _one_side(target, found, side) for target, found in changes.items()}
    return Merged(base, merged, replaced, folder, side, tuple(unused))


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(folder / CONFIG)
    if (kind := config.get("peft_type")) != "LORA":
        raise SourceError(f"{folder / CONFIG} describes {kind!r}; only LORA adapters can be merged")
    for key in ("use_dora", "lora_bias", "fan_in_fan_out", "trainable_token_indices"):
        if config.get(key):
            raise SourceError(f"{folder / CONFIG} sets {key}, which cannot be merged; merge it with PEFT first")
    if (bias := config.get("bias", "none")) != "none":
        raise SourceError(f"{folder / CONFIG} sets bias to {bias!r}; this model has none")
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise SourceError(
            f"{folder / CONFIG} sets init_lora_weights to {start!r}, which changes the base; merge it with PEFT first"
        )
    return config


def _pairs(shards: Shards, config: Mapping[str, Any]) -> tuple[dict[str, Pair], list[str]]:
    """{module: its factors}, and the names that are no factors."""
    halves: dict[str, dict[str, str]] = {}
    rest = []
    for name in shards.table:
        if match := FACTOR.fullmatch(name.removeprefix(PREFIX)):
            halves.setdefault(match["module"], {})[match["which"] + (match["embedding"] or "")] = name
        else:
            rest.append(name)
    pairs = {}
    for module, names in halves.items():
        if sorted(names) not in (["A", "B"], ["Aembedding_", "Bembedding_"]):
            raise SourceError(f"the adapter has only one factor of {module}; copy it again")
        a, b = (plain(shards, names[key]) for key in sorted(names))
        rank, alpha = (
            _for_module(config, key, pattern, module)
            for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
        )
        scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        pairs[module] = Pair(a, b, int(rank), scale, "A" not in names)
    return pairs, rest


def _for_module(config: Mapping[str, Any], key: str, pattern: str, module: str) -> float:
    """PEFT's rule: the first pattern that matches the end of the module's name, else the value for all."""
    patterns = config.get(pattern) or {}
    try:
        value = next((own for end, own in patterns.items() if re.match(rf"(.*\.)?({end})$", module)), config.get(key))
    except (re.error, AttributeError):
        raise SourceError(f"{CONFIG} has a {pattern} that cannot be read; copy it again") from None
    if not isinstance(value, int | float) or value <= 0:
        raise SourceError(f"{CONFIG} gives {module} the {key} {value!r}; it must be a positive number")
    return value


def _shared(name: str) -> str:
    """The name under which the weights that encoder and decoder share are kept."""
    return DECODER + name.removeprefix(ENCODER) if name.startswith(ENCODER) else name


def _change(base: Source, module: str, pair: Pair) -> tuple[str, Change]:
    """The tensor that a module's factors change, and how; raises `SourceError` if their shapes do not fit it."""
    name, shapes = _shared(module), base.tensors
    a, b, rank = pair.a.shape, pair.b.shape, pair.rank
    if (target := f"{name}.weight") in shapes and len(shapes[target]) == 2:
        out, width = shapes[target]
        if pair.embedding and (a, b) == ((rank, out), (width, rank)):
            return target, EmbeddingChange(pair)
        if not pair.embedding and (a, b) == ((rank, width), (out, rank)):
            return target, MatrixChange(pair)
    elif match := EXPERT.fullmatch(name):
        target = f"{match['experts']}.{'down' if match['kind'] == 'down' else 'gate_up'}_proj"
        if target in shapes:
            experts, out, width = shapes[target]
            out = out if match["kind"] == "down" else out // 2
            if int(match["number"]) < experts and (a, b) == ((rank, width), (out, rank)):
                return target, ExpertChange(pair, int(match["number"]), out if match["kind"] == "up" else 0)
    elif (name := name.removesuffix(".base_layer")).endswith(".experts"):
        fits = []
        for target in (f"{name}.gate_up_proj", f"{name}.down_proj"):
            experts, out, width = shapes.get(target, (0, 0, 0))
            for flipped, sides in ((False, (width, out)), (True, (out, width))):
                if (a, b) == ((rank * experts, sides[0]), (sides[1], rank * experts)):
                    fits.append((target, FusedChange(pair, experts, flipped)))
        if len(fits) == 1:
            return fits[0]
    else:
        raise SourceError(f"the adapter changes {module}, which is no matrix of this model as we know it")
    raise SourceError(f"the factors of {module}, {list(a)} and {list(b)} of rank {rank}, fit no matrix of the model")


def _one_side(target: str, found: list[tuple[str, Change]], side: str | None) -> tuple[Change, ...]:
    """What is added to one tensor, where encoder and decoder may each have something to add."""
    by_side = {own: [change for of, change in found if of == own] for own in ("decoder", "encoder")}
    decoder, encoder = by_side["decoder"], by_side["encoder"]
    if not decoder or not encoder:
        return tuple(decoder or encoder)
    if side is not None:
        return tuple(by_side[side])
    if len(decoder) == len(encoder) and all(any(_equal(one, other) for other in encoder) for one in decoder):
        return tuple(decoder)
    raise _two_sides(target)


def _two_sides(target: str) -> SourceError:
    return SourceError(
        f"{target} is one weight that encoder and decoder share, and this adapter was trained for each of them apart, "
        "with different results (PEFT does that): choose whose is merged with --adapter-side decoder or "
        "--adapter-side encoder; what the other one learnt is lost"
    )


def _equal(one: Any, other: Any) -> bool:
    mine, its = one.pair, other.pair
    return (
        replace(one, pair=its) == other
        and mine.scale == its.scale
        and torch.equal(mine.a.read(), its.a.read())
        and torch.equal(mine.b.read(), its.b.read())
    )


def _replaced(base: Source, shards: Shards, names: list[str], side: str | None) -> dict[str, Plain]:
    """The tensors that the adapter holds whole."""
    replaced: dict[str, Plain] = {}
    heads = []
    for name in names:
        bare = AROUND.sub("", name.removeprefix(PREFIX))
        target = bare if bare in base.tensors else _shared(bare)  # each side has layer scalars of its own
        own = plain(shards, name)
        if target == HEAD:
            heads.append(own)
        elif target not in base.tensors or own.shape != base.tensors[target]:
            raise SourceError(f"the adapter holds {name} {list(own.shape)}, which fits no part of this model")
        elif target in replaced and not same(own.shape, own.read, replaced[target].read):
            if side is None:
                raise _two_sides(target)
            if bare.startswith(ENCODER) == (side == "encoder"):
                replaced[target] = own
        else:
            replaced[target] = own
    for head in heads:
        embedding = replaced[EMBEDDING].read if EMBEDDING in replaced else partial(base.read, EMBEDDING)
        if head.shape != base.tensors[EMBEDDING] or not same(head.shape, head.read, embedding):
            raise SourceError(f"the adapter's {HEAD} is not its embedding; a model that unties them is not supported")
    return replaced
