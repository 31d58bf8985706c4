"""What a model needs in memory and how fast a denoising step can be at best, from its shapes alone.

Pure arithmetic: knows no torch, no files but the two tables beside it, and no device but by its free memory and its
speed. `plan` is asked before anything is loaded; the roofline is what `stopgap doctor` expects of a step.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from .buckets import Size, bucket_bytes, cache_slots, room_bytes, smaller
from .model_config import ModelConfig, ModelError
from .strategy import Strategy

Bits = Literal[4, 8, 16]
LEAST_CONTEXT = 512
"""Tokens. With fewer a model sees little more than the function around the hole."""
STEP = 64
"""Context limits are multiples of this."""
TEMPLATE = 256
"""Prompt tokens beyond the context: an instruction follower's turns and task, with room for the user's words."""
SPARE = 256
"""Tokens by which a prompt may grow before its document needs a larger prefix cache."""

_DATA = Path(__file__).parent / "data"
_GROUP = 64
_DENOISED, _FUSED, _SCORED = 3.5, 0.5, 2.0
"""How often [slots, vocabulary] is held in fp32 at once: by a denoising step in plain torch (raw in bf16, capped, their
probabilities, a product of both), by a fused one (in bf16), and by ranking, which is never fused (capped, logarithms).
Measured on a CPU with 128 slots and 262,144 tokens: 3.51 and 2.00; the fused one is read off the kernel."""
CHUNK, SCORED_AT_ONCE = 256, 1 << 24
"""Tokens encoded at once and logits ranked at once: the model's own numbers, which cannot be had without torch."""
_WORKSPACE = 32 << 20
"""Bytes that torch gives the matrix library on the stream that steps are captured on, on Hopper; 8 MiB on others."""
_RUNTIME = {"cpu": 300 << 20, "cuda": 700 << 20, "mps": 700 << 20}
"""What torch and the driver take beside tensors: context, library workspaces, fragmentation."""


@dataclass(frozen=True, slots=True)
class Storage:
    """What the three kinds of matrices are stored in: int4, int8, bf16 or fp32; "int8+bf16" for two copies."""

    experts: str
    dense: str
    embedding: str
    vectors: str = "bf16"

    @staticmethod
    def of(bits: Bits) -> Storage:
        """A packed model's: at 4 bits only the experts, nine tenths of the weights, are int4."""
        kinds = {4: ("int4", "int8", "int8"), 8: ("int8", "int8", "int8"), 16: ("bf16", "bf16", "bf16")}
        return Storage(*kinds[bits])


def matrix_bytes(rows: int, columns: int, kind: str) -> int:
    """Bytes of a matrix with so many outputs and inputs, its scales included (`kernels.quantised`)."""
    size = rows * columns
    each = {
        "int4": size // 2 + 2 * rows * math.ceil(columns / _GROUP),
        "int8": size + 4 * rows,
        "bf16": 2 * size,
        "fp32": 4 * size,
    }
    return sum(each[one] for one in kind.split("+"))


@dataclass(frozen=True, slots=True)
class _Matrices:
    """Every matrix of a model as (outputs, inputs); experts are one layer's, all layers have the same."""

    attention: list[tuple[int, int]]
    mlp: list[tuple[int, int]]
    experts: list[tuple[int, int]]
    routers: list[tuple[int, int]]
    conditioning: list[tuple[int, int]]
    embedding: tuple[int, int]


def _matrices(config: ModelConfig) -> _Matrices:
    width, inner, expert, layers = (
        config.hidden_size,
        config.intermediate_size,
        config.moe_intermediate_size,
        len(config.layers),
    )
    attention = []
    for shape in config.layers:
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        attention += [(query + key * (2 if shape.sliding else 1), width), (width, query)]
    mixed = config.num_experts > 1
    single = [] if mixed else [(2 * expert, width), (width, expert)]  # a single expert is part of the MLP
    return _Matrices(
        attention=attention,
        mlp=[(2 * inner, width), (width, inner), *single] * layers,
        experts=[(2 * expert, width), (width, expert)] if mixed else [],
        routers=[(config.num_experts, width)] * layers if mixed else [],
        conditioning=[(2 * inner, width), (width, inner)],
        embedding=(config.vocab_size, width),
    )


def _bytes(matrices: Iterable[tuple[int, int]], kind: str) -> int:
    return sum(matrix_bytes(rows, columns, kind) for rows, columns in matrices)


def weight_bytes(config: ModelConfig, storage: Storage) -> int:
    """Bytes of all weights as `layers.Weights` holds them, the tied embedding once."""
    parts = _matrices(config)
    layers = len(config.layers)
    vectors = config.hidden_size * (5 * layers + 1)
    vectors += sum((shape.groups + 1) * shape.kv_heads * shape.head_dim for shape in config.layers)
    shared = storage.dense if parts.experts else storage.experts  # a single expert shares its matrices with the MLP
    return (
        _bytes([*parts.attention, *parts.conditioning], storage.dense)
        + _bytes(parts.mlp, shared)
        + _bytes(parts.experts, storage.experts) * config.num_experts * layers
        + _bytes(parts.routers, storage.vectors)
        + matrix_bytes(*parts.embedding, storage.embedding)
        + matrix_bytes(vectors, 1, storage.vectors)
    )


def cache_bytes(config: ModelConfig, capacity: int, scratch: int, itemsize: int) -> int:
    """A `prefix.PrefixCache` for `capacity` prompt tokens and `scratch` canvas slots, its rotary tables included."""
    slots = {sliding: cache_slots(config, sliding, capacity, scratch) for sliding in (False, True)}
    each = sum(2 * shape.kv_heads * shape.head_dim * slots[shape.sliding] for shape in config.layers)
    turns = sum(2 * width * slots[False] for _, width in {(shape.sliding, shape.head_dim) for shape in config.layers})
    return (each + turns) * itemsize


def canvas_bytes(config: ModelConfig, strategy: Strategy, itemsize: int, *, fused: bool = False) -> int:
    """The largest step's activations: a layer's over all tokens at once, and the logits of all slots.

    fused: the vocabulary head runs as a kernel that holds no logits in fp32.
    """
    denoised = _logits(config, strategy.rows * strategy.slots, fused)
    scored = round(4 * min(strategy.scratch * config.vocab_size, SCORED_AT_ONCE) * _SCORED)
    return max(denoised, scored) + _activations(config, max(strategy.scratch, CHUNK), itemsize)


def loop_bytes(
    config: ModelConfig, strategy: Strategy, context: int, itemsize: int, *, fused: bool, captured: bool
) -> int:
    """What the denoising loop on the device takes beside everything else (`graph.Loop`), in the largest bucket.

    The room for one prefix and the canvas with its masks, tables and state of that bucket and of all smaller ones. If
    steps are `captured`, the pool that graphs allocate from: a step's activations once more, since nobody else may use
    that memory between replays. Smaller buckets share room and pool.
    """
    slots = min(strategy.slots + strategy.tail, strategy.canvas)
    size = Size.of(strategy.rows, slots, context + TEMPLATE)
    tokens = size.rows * size.slots
    pool = _logits(config, tokens, fused) + _activations(config, tokens, itemsize) + _WORKSPACE if captured else 0
    buckets = sum(bucket_bytes(config, each, itemsize) for each in smaller(size))
    return room_bytes(config, size, itemsize) + buckets + pool


def _logits(config: ModelConfig, slots: int, fused: bool) -> int:
    return round(4 * slots * config.vocab_size * (_FUSED if fused else _DENOISED))


def _activations(config: ModelConfig, tokens: int, itemsize: int) -> int:
    """Of one layer over `tokens` tokens at once."""
    heads = max((shape.heads + 2 * shape.kv_heads) * shape.head_dim for shape in config.layers)
    routed = config.top_k_experts * (3 * config.moe_intermediate_size + config.hidden_size)
    return tokens * (4 * config.hidden_size + 2 * heads + 3 * config.intermediate_size + routed) * max(itemsize, 4)


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes of each part at a context limit of `context` tokens."""

    context: int
    weights: int
    cache: int
    canvases: int
    workspace: int
    loop: int = 0
    """Of the denoising loop on the device, where that runs"""
    notice: str = ""
    """One line for the user if the limit had to be lowered."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.canvases + self.workspace + self.loop

    def __str__(self) -> str:
        parts = (
            ("weights", self.weights),
            (f"prefix caches at {self.context} tokens", self.cache),
            ("canvases", self.canvases),
            ("workspace", self.workspace),
            *([("steps on the device", self.loop)] if self.loop else []),
        )
        return ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts)


def plan(
    config: ModelConfig,
    weights: int,
    strategy: Strategy,
    *,
    free: int | None,
    device: str = "cpu",
    itemsize: int = 2,
    cache_budget: int = 0,
    fused: bool = False,
    looped: bool = False,
) -> Plan:
    """The largest context limit up to `strategy.context` with which everything fits into `free` bytes.

    weights      bytes, from `weight_bytes` or as they lie on the disk
    device       "cpu", "cuda" or "mps"
    itemsize     bytes of an activation, and of a key or a value
    cache_budget what prefix caches of documents that nobody asks about may take together; one more is always
                 in use, and another is kept whatever the budget (a rewrite suspended for a keystroke)
    fused        see `canvas_bytes`
    looped       the denoising loop runs on the device, on CUDA as captured graphs (`loop_bytes`)
    Without `free` (nobody knows) nothing is refused. Raises `ModelError` with the numbers if not even the least
    context fits.
    """

    def at(context: int) -> Plan:
        capacity = context + TEMPLATE + strategy.longest + SPARE
        one = cache_bytes(config, capacity, strategy.scratch, itemsize)
        caches = one + max(one, cache_budget)
        loop, captured = 0, device == "cuda"
        if looped:
            loop = loop_bytes(config, strategy, context, itemsize, fused=fused, captured=captured)
        canvases = canvas_bytes(config, strategy, itemsize, fused=fused)
        return Plan(context, weights, caches, canvases, _RUNTIME[device], loop)

    wanted = strategy.context
    whole = at(wanted)
    if free is None or whole.total <= free:
        return whole
    least = at(min(LEAST_CONTEXT, wanted))
    place = "memory" if device == "cpu" else "GPU memory"
    if least.total > free:
        raise ModelError(
            f"the model needs {least.total / 1e9:.1f} GB of {place} ({least}) and {free / 1e9:.1f} GB are free; "
            "close other programs, or take fewer bits or a smaller model (`stopgap doctor` says which fits)"
        )
    fits = least
    for context in range(least.context // STEP * STEP + STEP, wanted, STEP):
        if (tried := at(context)).total > free:
            break
        fits = tried
    notice = f"context limit lowered from {wanted} to {fits.context} tokens: {free / 1e9:.1f} GB of {place} are free"
    return replace(fits, notice=notice)


# -- the roofline -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Speed:
    """What a device reads and multiplies per second: bytes, and bf16 operations (infinite where nobody says)."""

    bandwidth: float
    flops: float = math.inf
    source: str = ""


@dataclass(frozen=True, slots=True)
class Routing:
    """How one layer's tokens spread over its experts, on average over the layers."""

    hit: float
    """Experts with at least one token"""
    padded: float
    """Rows that tensor cores multiply: each expert's tokens filled up to a multiple of 16"""

    @staticmethod
    def even(config: ModelConfig, tokens: int) -> Routing:
        """What chance gives, every expert being as likely as the others."""
        if config.num_experts == 1:
            return Routing(0.0, 0.0)
        missed = (1 - config.top_k_experts / config.num_experts) ** tokens
        return Routing(config.num_experts * (1 - missed), _padded_rows(config, tokens))

    @staticmethod
    def of(counts: Iterable[Iterable[int]]) -> Routing:
        """From the tokens of every expert, layer by layer."""
        layers = [list(layer) for layer in counts]
        hit = sum(sum(count > 0 for count in layer) for layer in layers)
        padded = sum(sum(16 * math.ceil(count / 16) for count in layer) for layer in layers)
        return Routing(hit / max(len(layers), 1), padded / max(len(layers), 1))


@dataclass(frozen=True, slots=True)
class Cost:
    """The least that one part of a step multiplies and reads."""

    flops: float
    nbytes: float

    def ms(self, speed: Speed) -> float:
        """The longer of the two."""
        return 1000 * max(self.nbytes / speed.bandwidth, self.flops / speed.flops)


def step_costs(
    config: ModelConfig,
    storage: Storage,
    *,
    slots: int = 32,
    prefix: int = 2048,
    rows: int = 1,
    routing: Routing | None = None,
) -> dict[str, Cost]:
    """What a denoising step over `rows` canvases of `slots` behind `prefix` tokens takes, part by part.

    A prefix is read once for all rows. Logits and activations cost nothing; of `routing` chance is assumed.
    """
    parts, tokens = _matrices(config), slots * rows
    routing = routing or Routing.even(config, tokens)
    one_expert = sum(rows * columns for rows, columns in parts.experts)
    seen = [min(prefix, config.sliding_window - 1) if shape.sliding else prefix for shape in config.layers]
    keys = sum(4 * shape.kv_heads * shape.head_dim * (n + tokens) for shape, n in zip(config.layers, seen, strict=True))
    products = sum(
        4 * tokens * shape.heads * shape.head_dim * (n + slots) for shape, n in zip(config.layers, seen, strict=True)
    )
    embedding = Cost(2 * tokens * math.prod(parts.embedding), matrix_bytes(*parts.embedding, storage.embedding))
    layers = len(config.layers)

    def dense(matrices: list[tuple[int, int]], kind: str) -> Cost:
        return Cost(_size(matrices) * 2 * tokens, _bytes(matrices, kind))

    return {
        "attention projections": dense(parts.attention, storage.dense),
        "attention": Cost(products, keys),
        "MLP": dense(parts.mlp, storage.dense if parts.experts else storage.experts),
        "router": dense(parts.routers, storage.vectors),
        "experts": Cost(
            2 * routing.padded * one_expert * layers, routing.hit * _bytes(parts.experts, storage.experts) * layers
        ),
        "head": embedding,
        "expected embedding": embedding,
        "self-conditioning": dense(parts.conditioning, storage.dense),
    }


def step_ms(
    config: ModelConfig,
    storage: Storage,
    speed: Speed,
    *,
    slots: int = 32,
    prefix: int = 2048,
    rows: int = 1,
    routing: Routing | None = None,
) -> float:
    """The fewest milliseconds of a denoising step; see `step_costs`.

    Each part takes the longer of reading its bytes and multiplying; parts run one after the other, launches cost
    nothing. Published engines reach 0.5 to 0.9 of this speed.
    """
    costs = step_costs(config, storage, slots=slots, prefix=prefix, rows=rows, routing=routing)
    return sum(part.ms(speed) for part in costs.values())


def _size(matrices: Iterable[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in matrices)


def _padded_rows(config: ModelConfig, slots: int) -> float:
    """`Routing.padded` by chance: binomial, through logarithms as 1,024 tokens are beyond a float's range."""
    share = config.top_k_experts / config.num_experts
    if share == 1:
        return config.num_experts * 16 * math.ceil(slots / 16)
    rows = (
        math.exp(
            math.lgamma(slots + 1) - math.lgamma(k + 1) - math.lgamma(slots - k + 1)
            + k * math.log(share) + (slots - k) * math.log1p(-share)
        ) * 16 * math.ceil(k / 16)
        for k in range(1, slots + 1)
    )  # fmt: skip
    return config.num_experts * sum(rows)


# -- tables -------------------------------------------------------------------------------------------------


_VARIANTS = "ti|super|d|laptop|mobile|with|max-q|max|pro|ultra|nvl|pcie"


def known_speed(name: str) -> Speed | None:
    """The published speed of a processor with that name; None if unknown.

    An entry must be part of the name as whole words, and no word behind it may tell of another variant: an RTX 4090
    Laptop is no RTX 4090. The longest entry counts.
    """
    ends = rf"(?!\w)(?! (?:{_VARIANTS})\b)"
    rows = [row for row in _gpus() if re.search(rf"(?<!\w){re.escape(str(row['name']))}{ends}", name, re.IGNORECASE)]
    if not rows:
        return None
    row = max(rows, key=lambda row: len(str(row["name"])))
    flops = float(row["tflops"]) * 1e12 if "tflops" in row else math.inf
    return Speed(float(row["gb_s"]) * 1e9, flops, str(row["source"]))


@cache
def _gpus() -> list[dict[str, str | float]]:
    text = (_DATA / "gpus.toml").read_text(encoding="utf-8")
    rows: list[dict[str, str | float]] = tomllib.loads(text)["gpu"]
    return rows


@cache
def real_model() -> ModelConfig:
    """DiffusionGemma 26B-A4B's shapes, to plan for it before anybody has downloaded it."""
    text = (_DATA / "diffusiongemma-26b.json").read_text(encoding="utf-8")
    return ModelConfig.from_dict(json.loads(text))
