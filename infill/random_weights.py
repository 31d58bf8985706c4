"""A model of full size with random weights, made on its device in the form they are kept in, never dense.

For measuring: a step costs the same whatever the weights say, as long as numbers stay in range and tokens go to
different experts. Knows no file; `load` makes a whole engine of it for the daemon, whose fills are nonsense.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from . import devices
from .engine import STARTER, InfillEngine
from .model import Model
from .model_config import ModelConfig
from .packed import DTYPES, Bits, layout, plan
from .planner import real_model
from .sampler import Schedule
from .strategy import Strategy
from .tokenizer import Tokenizer
from .weights import Packed

SMALL = "STOPGAP_BENCH_SMALL"
"""Set to 1, `load` makes the small model instead: to try all of it out on a CPU."""
SLOTS, STEPS = 32, 8
"""Of the fills that are timed."""
_SPREAD_4, _SPREAD_8 = 4.61, 73.3
"""Standard deviation of uniform codes, -8..7 and -127..127."""


def small_model(config: ModelConfig) -> ModelConfig:
    """The same structure, every size as small as int4 allows: 2 layers, 16 experts, a thousand tokens."""
    sliding = next(shape for shape in config.layers if shape.sliding)
    full = next(shape for shape in config.layers if not shape.sliding)
    return replace(
        config,
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_experts=16,
        top_k_experts=2,
        sliding_window=24,
        layers=(replace(sliding, heads=4, kv_heads=2, head_dim=16), replace(full, heads=4, kv_heads=1, head_dim=32)),
    )


def random_model(config: ModelConfig, bits: Bits = 4, device: str | torch.device = "cpu", seed: int = 0) -> Model:
    """A model of these shapes. Matrices keep the size of what goes through them; norms and scalars are one."""
    device = torch.device(device)
    entries = plan(config, bits)
    _, parts = layout(entries)
    widths = {part.name: entries[name].shape for name, own in parts.items() for part in own}
    kinds = {part.name: entries[name].kind for name, own in parts.items() for part in own}
    shapes = {part.name: (part.shape, DTYPES[part.dtype]) for own in parts.values() for part in own}
    source = _Random(device, seed, widths, kinds, shapes)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    packed = Packed(source, entries, parts, device, dtype, dtype, False)
    return Model(config, packed.weights(config, ((1.0, 1.0),) * len(config.layers)), f"random weights, {bits} bits")


class _Random:
    """Stands where a weights file is read."""

    def __init__(
        self,
        device: torch.device,
        seed: int,
        whole: dict[str, tuple[int, ...]],
        kinds: Mapping[str, str],
        stored: dict[str, tuple[tuple[int, ...], torch.dtype]],
    ) -> None:
        self.device, self.whole, self.kinds, self.stored = device, whole, kinds, stored
        self.draw = torch.Generator(device).manual_seed(seed)

    def get_tensor(self, name: str) -> Tensor:
        shape, dtype = self.stored[name]
        whole = self.whole[name]
        size = 1 / math.sqrt(whole[-1])
        if dtype in (torch.uint8, torch.int8):
            low, high = (0, 256) if dtype == torch.uint8 else (-127, 128)
            return torch.randint(low, high, shape, dtype=dtype, device=self.device, generator=self.draw)
        if name.endswith(".scale"):
            spread = _SPREAD_4 if self.kinds[name] == "int4" else _SPREAD_8
            # Levels of int4 have a mean of -0.5: scales of both signs take it out again.
            sign = torch.randint(2, shape, device=self.device, generator=self.draw) * 2 - 1
            return sign.to(dtype).mul_(size / spread)
        if name.endswith("router") or len(whole) == 2:
            drawn = torch.randn(shape, device=self.device, generator=self.draw) * size
            return drawn.to(dtype)
        return torch.ones(shape, dtype=dtype, device=self.device)


def skew_routing(model: Model, by: float = 0.5, seed: int = 0) -> None:
    """Make some experts likelier than others, in place: every expert's scores times a log-normal factor."""
    draw = torch.Generator().manual_seed(seed)
    for layer in model.weights.layers:
        if layer.mixture is not None:
            router = layer.mixture.router
            factors = (by * torch.randn(router.shape[1], generator=draw)).exp()
            router.mul_(factors.to(router.device, router.dtype))


def tokenizer_of(size: int, folder: Path) -> Tokenizer:
    """The starter's tokenizer with unused tokens up to `size`, or as it is if that is fewer."""
    layout = json.loads((STARTER / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = layout["model"]["vocab"]
    first = 1 + max([*vocabulary.values(), *(token["id"] for token in layout["added_tokens"])])
    vocabulary |= {f"<unused{id_}>": id_ for id_ in range(first, size)}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(layout), encoding="utf-8")
    return Tokenizer(path)


def load(
    model: str,
    *,
    device: str,
    clock: Callable[[], float],
    progress: Callable[[str, float], None],
    cache_budget: int = 256 << 20,
    **_: object,
) -> InfillEngine:
    """Called like `engine.load_engine`: fills of 32 slots in 8 steps, one row, no draft, nothing that is not asked."""
    config = real_model()
    if os.environ.get(SMALL) == "1":
        config = replace(small_model(config), vocab_size=8192)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(config.vocab_size, Path(folder))
    progress("weights", 0.1)
    made = random_model(config, 4, devices.resolve(device))
    progress("ready", 1.0)
    strategy = Strategy(
        schedule=Schedule(max_steps=STEPS, patience=1 << 30, calm=-1.0),
        context=2048,
        tail=0,
        near=0,
        rows=1,
        drafts=0,
        retrieved=0,
        told=SLOTS,
        repairs=0,
        warm=False,
    )
    card: dict[str, object] = {"name": made.name, "family": "infill", "languages": ["python"]}
    return InfillEngine(made, tokenizer, card, clock=clock, strategy=strategy, cache_budget=cache_budget)
