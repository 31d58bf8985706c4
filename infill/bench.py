"""What one denoising step costs, ours and transformers' side by side in one run.

Knows no request, no daemon. The reference is transformers' own `_denoising_step` (decoder forward, sampling,
acceptance, renoising, stopping test); ours is `Model.denoise`, which leaves acceptance and stopping to the
sampler: a few operations on vectors of one number per slot.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig

from stopgap.kernels import norm

from .bench_reference import reference_step
from .cpu import Clock
from .model import Model
from .reference import load_reference
from .weights import load_model, read_config

Step = Callable[[], object]
Mode: Any = TorchDispatchMode


def step(
    folder: Path,
    *,
    clock: Clock,
    own_clock: Clock,
    prefix_tokens: int = 512,
    free_slots: int = 32,
    repeats: int = 30,
    threads: int = 1,
) -> str:
    """A table of milliseconds per denoising step with the model in `folder` on the CPU.

    Once with the free slots alone and once with clamped ones behind them up to the model's canvas length, as a
    fill has them. `clock` is the wall's and `own_clock` counts what this process alone used, which holds on a busy
    machine too; seconds. Median of `repeats`; the engines take turns, and each takes one step before the one that
    counts, since steps follow each other in a fill. Prefix and canvas are random tokens: a step costs the same
    whatever they say.
    """
    config = read_config(folder)
    pick = torch.Generator().manual_seed(0)
    prefix = torch.randint(config.vocab_size, (prefix_tokens,), generator=pick).tolist()
    networks = {
        f"transformers, {_name(dtype)}": load_reference(folder, dtype=dtype, threads=threads).network
        for dtype in (torch.float32, torch.bfloat16)
    }
    models = {
        f"stopgap, {'int8' if int8 else 'float32'}": load_model(folder, int8=int8, threads=threads)
        for int8 in (False, True)
    }
    exact, rounded = models.values()
    lines = [
        f"One denoising step of {exact.parameters / 1e6:.1f} M parameters behind {prefix_tokens} tokens: "
        f"milliseconds, median of {repeats}, {threads} thread(s)",
        "transformers: decoder forward, softmax, multinomial, acceptance, renoising, stopping test",
        "stopgap: forward pass, head for free slots, sample, entropy, expected embedding",
    ]
    for width in sorted({free_slots, max(free_slots, config.canvas_length)}):
        canvas = torch.randint(config.vocab_size, (1, width), generator=pick)
        free = (torch.arange(width) < free_slots)[None]
        steps = {name: reference_step(network, prefix, canvas) for name, network in networks.items()}
        steps |= {name: our_step(model, prefix, canvas, free) for name, model in models.items()}
        times = _take_turns(steps, (clock, own_clock), repeats)
        first = next(iter(times.values()))
        title = f"{free_slots} free + {width - free_slots} clamped slots"
        lines.append(f"{title:<32}{'wall ms':>9}{'faster':>8}{'cpu ms':>9}{'faster':>8}")
        for name, taken in times.items():
            columns = (f"{1e3 * ours:>9.2f}{base / ours:>7.2f}x" for ours, base in zip(taken, first, strict=True))
            lines.append(f"  {name:<30}{''.join(columns)}")
    return "\n".join([*lines, _agreement(exact, rounded, prefix), operations()])


def operations() -> str:
    """How many operations a step hands to torch, on a model as deep as the 26B (30 layers, 128 experts, 8 of them
    for each token) and otherwise tiny: what a GPU has to be told is the same. Counted in inference mode."""
    sliding_and_full = [*["sliding_attention"] * 5, "full_attention"] * 5
    shape: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 30,
        "layer_types": sliding_and_full,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 8,
        "sliding_window": 1024,
    }
    tower = transformers.Gemma4VisionConfig(
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=1,
        head_dim=16,
        position_embedding_size=16,
    )
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**shape),
        vision_config=tower,
        canvas_length=32,
        image_token_id=256,
        boi_token_id=257,
        eoi_token_id=258,
    )
    network = DiffusionGemmaForBlockDiffusion(config)
    network.train(False)
    with TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        model = load_model(Path(folder), int8=False, threads=torch.get_num_threads())
    prefix, canvas = list(range(48)), torch.arange(32)[None]
    theirs = count(reference_step(network, prefix, canvas))
    mine = our_step(model, prefix, canvas, torch.ones_like(canvas, dtype=torch.bool))
    on_cpu = count(mine)
    norm.FUSED.add("cpu")  # the branch a GPU takes, where torch's rms_norm is one kernel
    try:
        on_gpu = count(mine)
    finally:
        norm.FUSED.discard("cpu")
    return (
        f"Operations a step, 30 layers of 128 experts: transformers {theirs}, stopgap {on_gpu} on a GPU's path, where "
        f"torch's rms_norm is one kernel, and {on_cpu} on a CPU's, where it is written out "
        "(every call that reaches torch's dispatcher, views and composite calls as one each)"
    )


def our_step(model: Model, prefix: Sequence[int], canvas: Tensor, free: Tensor) -> Step:
    """One step in the middle of a run: there is a conditioning from the step before."""
    cache = model.new_cache(len(prefix), scratch=canvas.numel())
    model.encode(cache, prefix)
    noise = torch.Generator().manual_seed(0)
    before = model.denoise(cache, canvas, free, temperature=0.7, gumbel=noise).conditioning
    return lambda: model.denoise(cache, canvas, free, conditioning=before, temperature=0.7, gumbel=noise)


class _Counter(Mode):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def count(run: Step) -> int:
    """Operations that reach torch's dispatcher in one call, views included."""
    run()
    counter = _Counter()
    with counter:
        run()
    return int(counter.count)


def _take_turns(steps: Mapping[str, Step], clocks: Sequence[Clock], repeats: int) -> dict[str, list[float]]:
    """Median seconds of each step by each clock."""
    taken: dict[str, list[list[float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, run in steps.items():
            run()
            starts = [clock() for clock in clocks]
            run()
            taken[name].append([clock() - start for clock, start in zip(clocks, starts, strict=True)])
    return {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in taken.items()}


def _agreement(exact: Model, rounded: Model, prefix: Sequence[int]) -> str:
    """How far int8 is from fp32 on the causal logits behind every prefix token."""
    ours, theirs = (m.head(m.encode(m.new_cache(len(prefix)), prefix)).log_softmax(-1) for m in (exact, rounded))
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean()
    divergence = (ours.exp() * (ours - theirs)).sum(-1).mean()
    return f"int8 against float32: same best token {100 * same:.1f} %, divergence {divergence:.1e} nats a token"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
