"""The layer math of DiffusionGemma, as plain functions over packed weights; differentiable where plain torch runs.

Knows no cache, no files and no sampling: `block` is told how to attend by a callable, so the runtime, which
writes into a prefix cache, and training, which does not, share every line. Encoder and decoder are the same
layers but for `Side`.

Packing rearranges a checkpoint's tensors without changing what is computed:
- A norm in front of a matrix moves its weight into the matrix. The residual is then normalised once for the
  MLP, the router and the experts together.
- Queries, keys and values come from one matrix with rows ordered [group, key/value head, head_dim], so that
  folding the query heads that share a key head into query rows is a view.
- A single expert is only a second MLP: it joins the first one's matrices and its router is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stopgap.kernels.experts import experts
from stopgap.kernels.gated import gate, gated
from stopgap.kernels.heads import turn_heads
from stopgap.kernels.matmul import matmul
from stopgap.kernels.norm import rms_norm
from stopgap.kernels.quantised import Int8Rows, Quantised
from stopgap.kernels.residual import add_normed, add_two_normed

from .model_config import LayerShape, ModelConfig, Rope


class Matrix(Protocol):
    """A weight that rows are multiplied with: [n, in] to [n, out]. Dense or quantised."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Dense:
    """A full-precision weight, [in, out]; the transpose of what checkpoints store, without copying it."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x.mm(self.weight)


@dataclass(frozen=True, slots=True)
class FewBits:
    """A quantised weight, [out, in] as it is stored; activations stay as they are."""

    weight: Quantised

    def __call__(self, x: Tensor) -> Tensor:
        return matmul(x, self.weight)


Turn = Callable[[Tensor, Tensor], Tensor]
"""Writes a layer's new keys and values, [T, 1, K, hd], where it is told, and returns its queries [T, G, K, hd]."""

Attend = Callable[[Turn], Tensor]
"""Has keys and values written and returns what the queries find, [T, G*K*hd]; scores are not scaled."""

Tables = tuple[Tensor, Tensor]
"""Cosine and signed sine, [T, 1, 1, hd], of one kind of layer."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """More than one expert, dense or quantised, see `kernels.experts`."""

    router: Tensor
    """[D, E]"""
    gate_up: Tensor | Quantised
    down: Tensor | Quantised
    top_k: int


@dataclass(frozen=True, slots=True)
class Side:
    """Where encoder and decoder differ: what multiplies a layer's output. It is in the last norm already."""

    scalar: float
    feedforward_norm: Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's packed weights. Vectors are [D] unless said."""

    shape: LayerShape
    qkv: Matrix
    qk_norm: Tensor
    """[G + 1, K, hd]: the query norm once per group, then the key norm."""
    out: Matrix
    attention_norm: Tensor
    gate_up: Matrix
    down: Matrix
    expert_down: Matrix | None
    """Of a single expert, whose gate and up rows are part of `gate_up`."""
    mixture: Mixture | None
    mlp_width: int
    mlp_norm: Tensor
    expert_norm: Tensor
    encoder: Side
    decoder: Side


@dataclass(frozen=True, slots=True)
class SelfConditioning:
    """The gated MLP that reads the last step's soft embedding."""

    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole model. `embedding` [V, D] is also the head, as `head` in whatever precision that runs; of a quantised
    one both share the codes."""

    embedding: Tensor | Int8Rows
    head: Matrix
    norm: Tensor
    self_conditioning: SelfConditioning
    layers: tuple[Layer, ...]


GATE_UP, DOWN, EXPERT_SCALE = "experts.gate_up_proj", "experts.down_proj", "router.per_expert_scale"
"""The checkpoint's tensors of one layer that have an axis of experts and may be packed a few experts at a time."""
BEFORE_EXPERTS = "pre_feedforward_layernorm_2.weight"

T = TypeVar("T")


def each_tensor(value: T, change: Callable[[Tensor], Tensor]) -> T:
    """`value` with every tensor in it changed, at any depth of dataclasses and tuples."""
    if isinstance(value, Tensor):
        return cast(T, change(value))
    if isinstance(value, tuple):
        return cast(T, tuple(each_tensor(item, change) for item in value))
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: each_tensor(getattr(value, field.name), change) for field in fields(value)}
        return cast(T, type(value)(**own))
    return value


def pack_layer(
    raw: Mapping[str, Tensor], config: ModelConfig, index: int, dense: Callable[[Tensor], Matrix] = Dense
) -> Layer:
    """Pack layer `index` from its checkpoint tensors, named as in the checkpoint below `layers.<index>.`, with
    `encoder.layer_scalar` for the encoder's. Differentiable in every tensor but the scalars. `dense` makes a
    `Matrix` of an [in, out] tensor. Of many experts any run may be given, see `pack_mixture`."""
    shape = config.layers[index]
    kv, groups, width = shape.kv_heads, shape.groups, shape.head_dim
    query = raw["self_attn.q_proj.weight"].view(kv, groups, width, -1).transpose(0, 1).flatten(0, 2)
    values = (raw["self_attn.v_proj.weight"],) if shape.sliding else ()
    qkv = torch.cat((query, raw["self_attn.k_proj.weight"], *values)) * raw["input_layernorm.weight"]
    out = raw["self_attn.o_proj.weight"].view(-1, kv, groups, width).transpose(1, 2).flatten(1)
    qk_norm = torch.cat(
        (
            raw["self_attn.q_norm.weight"].expand(groups, kv, width),
            raw["self_attn.k_norm.weight"].expand(1, kv, width),
        )
    )
    before, before_experts = raw["pre_feedforward_layernorm.weight"], raw[BEFORE_EXPERTS]
    gate, up = raw["mlp.gate_proj.weight"] * before, raw["mlp.up_proj.weight"] * before
    single, mixture = None, None
    if config.num_experts == 1:
        expert_gate, expert_up = (raw[GATE_UP][0] * before_experts).chunk(2)
        gate, up = torch.cat((gate, expert_gate)), torch.cat((up, expert_up))
        single = dense((raw[DOWN][0] * raw[EXPERT_SCALE][0]).T)
    else:
        mixture = pack_mixture(raw, config)
    return Layer(
        shape=shape,
        qkv=dense(qkv.T),
        qk_norm=qk_norm,
        out=dense(out.T),
        attention_norm=raw["post_attention_layernorm.weight"],
        gate_up=dense(torch.cat((gate, up)).T),
        down=dense(raw["mlp.down_proj.weight"].T),
        expert_down=single,
        mixture=mixture,
        mlp_width=config.intermediate_size,
        mlp_norm=raw["post_feedforward_layernorm_1.weight"],
        expert_norm=raw["post_feedforward_layernorm_2.weight"],
        encoder=_side(raw, "encoder.layer_scalar"),
        decoder=_side(raw, "layer_scalar"),
    )


def pack_mixture(raw: Mapping[str, Tensor], config: ModelConfig) -> Mixture:
    """The experts whose matrices and `router.per_expert_scale` are given; all together are too large for some hosts."""
    gate_up = raw[GATE_UP] * raw[BEFORE_EXPERTS]
    down = raw[DOWN] * raw[EXPERT_SCALE][:, None, None]
    router = raw["router.proj.weight"] * (raw["router.scale"] * config.hidden_size**-0.5)
    return Mixture(router.T, gate_up.mT, down.mT, config.top_k_experts)


def _side(raw: Mapping[str, Tensor], name: str) -> Side:
    scalar = float(raw[name])
    return Side(scalar, raw["post_feedforward_layernorm.weight"] * scalar)


def pack_self_conditioning(raw: Mapping[str, Tensor], dense: Callable[[Tensor], Matrix] = Dense) -> SelfConditioning:
    """Pack the tensors named as in the checkpoint below `self_conditioning.`."""
    gate_up = torch.cat((raw["gate_proj.weight"], raw["up_proj.weight"])) * raw["pre_norm.weight"]
    return SelfConditioning(dense(gate_up.T), dense(raw["down_proj.weight"].T))


def rope_tables(rope: Rope, head_dim: int, positions: Tensor, dtype: torch.dtype) -> Tables:
    """Tables for `heads.rotate` of the kernels at `positions` [T]. The sine has the sign of the half it multiplies."""
    turning = int(rope.rotated * head_dim // 2)
    exponents = torch.arange(0, 2 * turning, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = F.pad(rope.theta**-exponents / rope.factor, (0, head_dim // 2 - turning))
    angles = positions.float()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    shape = (-1, 1, 1, head_dim)
    return torch.cat((cos, cos), -1).to(dtype).view(shape), torch.cat((-sin, sin), -1).to(dtype).view(shape)


def attention(layer: Layer, x: Tensor, tables: Tables, attend: Attend, eps: float) -> Tensor:
    """x [T, D], the normalised input. A full layer has no value rows: its values are its keys, unrotated."""
    heads = layer.qkv(x).view(len(x), -1, layer.shape.kv_heads, layer.shape.head_dim)
    cos, sin = tables
    return layer.out(attend(lambda keys, values: turn_heads(heads, layer.qk_norm, cos, sin, keys, values, eps)))


def feedforward(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    """MLP and experts on x [T, D], the normalised residual."""
    hidden = _gated(layer.gate_up, x)
    if layer.mixture is not None:
        mixture = layer.mixture
        routed = experts(x, x.mm(mixture.router), mixture.gate_up, mixture.down, mixture.top_k)
        return layer.down(hidden), routed
    assert layer.expert_down is not None
    return layer.down(hidden[:, : layer.mlp_width]), layer.expert_down(hidden[:, layer.mlp_width :])


def block(
    layer: Layer,
    x: Tensor,
    normed: Tensor,
    tables: Tables,
    attend: Attend,
    side: Side,
    eps: float,
    following: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One layer: x [T, D] and its norm to the next x and its norm, times `following` [D] if there is one."""
    attended = attention(layer, normed, tables, attend, eps)
    x, normed = add_normed(x, (attended, layer.attention_norm), eps)
    shared, routed = feedforward(layer, normed)
    mlp, mixed = (shared, layer.mlp_norm), (routed, layer.expert_norm)
    return add_two_normed(x, mlp, mixed, side.feedforward_norm, side.scalar, eps, following)


def _gated(matrix: Matrix, x: Tensor) -> Tensor:
    return gated(x, matrix.weight) if isinstance(matrix, FewBits) else gate(matrix(x))


def self_condition(weights: SelfConditioning, embedded: Tensor, soft: Tensor | None, eps: float) -> Tensor:
    """Canvas input [T, D]: its tokens' scaled embeddings plus what `soft`, the last step's, adds.

    No `soft` is the first step; the reference then feeds zeros, which this MLP maps to zeros.
    """
    if soft is not None:
        embedded = embedded + weights.down(_gated(weights.gate_up, rms_norm(soft, None, eps)))
    return rms_norm(embedded, None, eps)
