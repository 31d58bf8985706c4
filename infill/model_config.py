"""What a DiffusionGemma `config.json` says about the text model, and nothing it does not say.

Knows no torch. The class defaults in transformers are not those of any published checkpoint, so a missing
key is an error here, never a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .contract import FillError

ARCHITECTURE = "diffusion_gemma"
ACTIVATION = "gelu_pytorch_tanh"
DECODER, ENCODER = "model.decoder.", "model.encoder.language_model."
"""Where a checkpoint keeps the shared weights, and the encoder's own layer scalars."""

NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "pre_feedforward_layernorm_2",
    "post_feedforward_layernorm",
    "post_feedforward_layernorm_1",
    "post_feedforward_layernorm_2",
)


class ModelError(FillError):
    """A model folder that cannot be used as it stands; `str()` is one line with the remedy."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer's attention. `heads // kv_heads` query heads share one key/value head."""

    sliding: bool
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def groups(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of one kind of layer: only the first `rotated` share of the frequencies turns."""

    theta: float
    rotated: float
    factor: float


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The text model's shapes; sizes in elements, `sliding_window` in tokens and counting the token itself."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[LayerShape, ...]
    rms_norm_eps: float
    softcap: float
    sliding_window: int
    num_experts: int
    top_k_experts: int
    moe_intermediate_size: int
    canvas_length: int
    max_positions: int
    sliding_rope: Rope | None
    full_rope: Rope | None

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> ModelConfig:
        """Read the parsed `config.json`; raises `ModelError` naming the key that is missing or unsupported."""
        if raw.get("model_type") != ARCHITECTURE:
            found = raw.get("model_type") or raw.get("architectures") or "nothing"
            raise ModelError(f"config.json describes {found!r}; only {ARCHITECTURE!r} models can be run")
        text: Mapping[str, Any] = _need(raw, "text_config")
        for key, supported in (
            ("hidden_activation", (ACTIVATION,)),
            ("attention_bias", (False,)),
            ("use_bidirectional_attention", (None, "vision")),
        ):
            if (value := text.get(key, supported[0])) not in supported:
                raise ModelError(f"config.json sets text_config.{key} to {value!r}, which is not supported")
        if not raw.get("tie_word_embeddings", True):
            raise ModelError("config.json unties the word embeddings, which is not supported")
        shapes = _layer_shapes(text)
        ropes: Mapping[str, Any] = _need(text, "rope_parameters")
        config = ModelConfig(
            vocab_size=_size(text, "vocab_size"),
            hidden_size=_size(text, "hidden_size"),
            intermediate_size=_size(text, "intermediate_size"),
            layers=shapes,
            rms_norm_eps=float(_need(text, "rms_norm_eps")),
            # transformers keeps this one outside the serialised fields and writes it only when it is not 30.
            softcap=float(_need(text, "final_logit_softcapping", 30.0)),
            sliding_window=_size(text, "sliding_window"),
            num_experts=_size(text, "num_experts"),
            top_k_experts=_size(text, "top_k_experts"),
            moe_intermediate_size=_size(text, "moe_intermediate_size"),
            canvas_length=_size(raw, "canvas_length"),
            max_positions=_size(text, "max_position_embeddings"),
            sliding_rope=_rope(ropes, "sliding_attention") if any(s.sliding for s in shapes) else None,
            full_rope=_rope(ropes, "full_attention") if any(not s.sliding for s in shapes) else None,
        )
        if config.top_k_experts > config.num_experts:
            raise ModelError("config.json asks for more experts per token than there are (top_k_experts)")
        return config


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that is read from a checkpoint. Vision weights, tied copies and caches are not."""
    width, inner, experts = config.hidden_size, config.intermediate_size, config.num_experts
    shapes: dict[str, tuple[int, ...]] = {
        f"{DECODER}embed_tokens.weight": (config.vocab_size, width),
        f"{DECODER}norm.weight": (width,),
        f"{DECODER}self_conditioning.pre_norm.weight": (width,),
        f"{DECODER}self_conditioning.gate_proj.weight": (inner, width),
        f"{DECODER}self_conditioning.up_proj.weight": (inner, width),
        f"{DECODER}self_conditioning.down_proj.weight": (width, inner),
    }
    for index, shape in enumerate(config.layers):
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        own: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (queries, width),
            "self_attn.k_proj.weight": (keys, width),
            "self_attn.o_proj.weight": (width, queries),
            "self_attn.q_norm.weight": (shape.head_dim,),
            "self_attn.k_norm.weight": (shape.head_dim,),
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
            "experts.gate_up_proj": (experts, 2 * config.moe_intermediate_size, width),
            "experts.down_proj": (experts, width, config.moe_intermediate_size),
            "router.proj.weight": (experts, width),
            "router.scale": (width,),
            "router.per_expert_scale": (experts,),
            "layer_scalar": (1,),
        }
        if shape.sliding:
            own["self_attn.v_proj.weight"] = (keys, width)
        own |= {f"{norm}.weight": (width,) for norm in NORMS}
        shapes |= {f"{DECODER}layers.{index}.{name}": shape_ for name, shape_ in own.items()}
        shapes[f"{ENCODER}layers.{index}.layer_scalar"] = (1,)
    return shapes


def _need(raw: Mapping[str, Any], key: str, absent: Any = None) -> Any:
    """`raw[key]`, where null counts as missing unless `absent` says what a missing key means."""
    value = raw.get(key, absent)
    if value is None:
        raise ModelError(f"config.json lacks {key!r}; take the file that belongs to the weights")
    return value


def _size(raw: Mapping[str, Any], key: str) -> int:
    value = _need(raw, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json sets {key!r} to {value!r}; it must be a positive whole number")
    return value


def _layer_shapes(text: Mapping[str, Any]) -> tuple[LayerShape, ...]:
    kinds = _need(text, "layer_types")
    if len(kinds) != _size(text, "num_hidden_layers"):
        raise ModelError("config.json lists a different number of layer_types than num_hidden_layers")
    if unknown := set(kinds) - {"sliding_attention", "full_attention"}:
        raise ModelError(f"config.json names the layer type {sorted(unknown)[0]!r}, which is not supported")
    heads, overrides = _size(text, "num_attention_heads"), _full_layer_overrides(text, kinds)
    shapes = []
    for index, kind in enumerate(kinds):
        own = {**text, **overrides.get(index, {})}
        shape = LayerShape(
            kind == "sliding_attention", heads, _size(own, "num_key_value_heads"), _size(own, "head_dim")
        )
        if heads % shape.kv_heads:
            raise ModelError(f"layer {index}: {heads} query heads cannot share {shape.kv_heads} key heads")
        if shape.head_dim % 2:
            raise ModelError(f"layer {index}: head_dim {shape.head_dim} is odd; rotary positions need pairs")
        shapes.append(shape)
    return tuple(shapes)


def _full_layer_overrides(text: Mapping[str, Any], kinds: list[str]) -> dict[int, Mapping[str, Any]]:
    """What single layers change: `per_layer_config` (transformers >= 5.2x) or the two `global_` keys before it."""
    if (by_layer := text.get("per_layer_config")) is not None:
        # Keys are layer numbers, padded with zeros to one width ("05", "11"), or kinds of layers.
        named = {int(key) if str(key).isdigit() else key: own for key, own in by_layer.items()}
        if unknown := set(named) - set(range(len(kinds))) - set(kinds):
            raise ModelError(f"config.json: per_layer_config names {unknown.pop()!r}, which is no layer here")
        return {index: {**named.get(kind, {}), **named.get(index, {})} for index, kind in enumerate(kinds)}
    if "full_attention" not in kinds:
        return {}
    own = {"head_dim": _need(text, "global_head_dim")}
    if (kv_heads := text.get("num_global_key_value_heads")) is not None:
        own["num_key_value_heads"] = kv_heads
    return {index: own for index, kind in enumerate(kinds) if kind == "full_attention"}


def _rope(ropes: Mapping[str, Any], kind: str) -> Rope:
    raw: Mapping[str, Any] = _need(ropes, kind)
    rope_type = _need(raw, "rope_type")
    rope = Rope(
        float(_need(raw, "rope_theta")),
        float(raw.get("partial_rotary_factor", 1.0)),
        float(raw.get("factor", 1.0)),
    )
    # The reference cannot run the plain type on part of a head either: its tables get too narrow.
    if rope_type not in ("default", "proportional") or (rope_type == "default" and rope.rotated != 1.0):
        raise ModelError(f"config.json asks for {rope_type!r} rotary positions, which is not supported")
    return Rope(rope.theta, rope.rotated, 1.0) if rope_type == "default" else rope
