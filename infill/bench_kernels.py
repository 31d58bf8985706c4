"""Single kernels inside a step: where its time goes, and how far each is from its reference in fp32. Knows no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stopgap.kernels import experts as experts_module
from stopgap.kernels import matmul as matmul_module
from stopgap.kernels.experts import experts
from stopgap.kernels.head import denoise_head, read
from stopgap.kernels.matmul import matmul
from stopgap.kernels.quantised import Int8Rows

from . import devices
from .bench_report import Record
from .layers import FewBits
from .model import Model
from .planner import Cost, Speed

GROUPS: dict[str, tuple[str, ...]] = {
    "experts": ("choose_kernel", "group_kernel", "gate_up_kernel", "down_kernel", "add_kernel"),
    "dense products": ("matmul_kernel",),
    "head": ("logits_kernel", "merge_kernel", "probabilities_kernel"),
    "expected embedding": ("expect_kernel",),
    "attention": ("fmha", "flash", "attention", "softmax"),
}
"""Kernels by what is in their names; what fits none is "other": norms, rotation, masks, sampling, torch's products."""
PARTS = {
    "experts": ("experts",),
    "dense products": ("attention projections", "MLP", "self-conditioning"),
    "head": ("head",),
    "expected embedding": ("expected embedding",),
    "attention": ("attention",),
    "other": ("router",),
}
"""The parts of `planner.step_costs` that each group is held to."""


def breakdown(
    run: Callable[[], object], device: torch.device, costs: dict[str, Cost], speed: Speed, steps: int = 3
) -> list[Record]:
    """Where the time of a step goes, kernel group by kernel group, beside the least that each could take."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            run()
        devices.synchronise(device)
    ms: dict[str, float] = dict.fromkeys([*GROUPS, "other"], 0.0)
    launches: dict[str, float] = dict.fromkeys(ms, 0.0)
    for event in found.key_averages():
        taken = event.self_device_time_total if cuda else event.self_cpu_time_total
        group = next((name for name, parts in GROUPS.items() if any(part in event.key for part in parts)), "other")
        ms[group] += taken / 1000 / steps
        launches[group] += event.count / steps if taken else 0
    return [
        {"group": name, "ms": ms[name], "launches": launches[name]}
        | {"floor_ms": sum(costs[part].ms(speed) for part in PARTS[name])}
        for name in ms
    ]


def kernel_errors(model: Model, tokens: Sequence[int] = (32, 256)) -> list[Record]:
    """How far each kernel is from its reference in fp32 on the same weights: root mean square over that of the result.

    Of the head, also how many rows have the same best token where the two best are further apart than bf16 rounds.
    """
    layer, device, found = model.weights.layers[0], model.device, list[Record]()
    draw = torch.Generator(device).manual_seed(1)

    def rows(count: int, width: int) -> Tensor:
        return torch.randn((count, width), generator=draw, device=device).to(model.dtype)

    def add(kernel: str, count: int, got: Tensor, want: Tensor, **more: Any) -> None:
        off = (got.float() - want.float()).norm() / want.float().norm()
        found.append({"kernel": kernel, "tokens": count, "relative_rms": float(off)} | more)

    with torch.inference_mode():
        for count in tokens:
            x = rows(count, model.config.hidden_size)
            if isinstance(layer.qkv, FewBits):
                add("matmul", count, matmul(x, layer.qkv.weight), matmul_module.reference(x.float(), layer.qkv.weight))
            if layer.mixture is not None and not isinstance(layer.mixture.gate_up, Tensor):
                mixture = layer.mixture
                assert not isinstance(mixture.gate_up, Tensor) and not isinstance(mixture.down, Tensor)
                scores, gate_up, down, top_k = x.mm(mixture.router), mixture.gate_up, mixture.down, mixture.top_k
                want = experts_module.reference(x.float(), scores, gate_up, down, top_k)
                add("experts", count, experts(x, scores, gate_up, down, top_k), want)
            cap, table = model.config.softcap, model.weights.embedding
            got = denoise_head(
                x,
                table,
                softcap=cap,
                temperature=0.7,
                round_logits=x.dtype == torch.bfloat16,
                project=model.weights.head,
            )
            raw = torch.cat([x.float() @ part.T for part in _dense(table)], dim=1)
            best = raw.topk(2).values
            apart = (best[:, 0] - best[:, 1]) > best.abs().amax(1) * 2.0**-7
            told = read(raw, softcap=cap, temperature=0.7)
            same = (got.argmax == told.argmax) | ~apart
            soft = sum(
                told.probabilities[:, at : at + len(part)] @ part
                for at, part in zip(_starts(table), _dense(table), strict=True)
            )
            assert isinstance(soft, Tensor)
            add(
                "head",
                count,
                got.conditioning,
                soft,
                argmax_same=float(same.float().mean()),
                rows_apart=int(apart.sum()),
            )
    return found


def _starts(table: Tensor | Int8Rows) -> range:
    return range(0, len(table.codes if isinstance(table, Int8Rows) else table), 8192)


def _dense(table: Tensor | Int8Rows) -> Iterator[Tensor]:
    for at in _starts(table):
        part = table[at : at + 8192]
        yield part.dense(torch.float32) if isinstance(part, Int8Rows) else part.float()
