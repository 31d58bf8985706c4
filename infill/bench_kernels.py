"""Single kernels inside a step: where its time goes, and how far each is from its reference in fp32. Knows no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from stopgap.kernels import attention as attention_module
from stopgap.kernels import experts as experts_module
from stopgap.kernels import gated as gated_module
from stopgap.kernels import heads as heads_module
from stopgap.kernels import matmul as matmul_module
from stopgap.kernels import residual as residual_module
from stopgap.kernels.experts import experts
from stopgap.kernels.head import denoise_head, read
from stopgap.kernels.matmul import matmul
from stopgap.kernels.quantised import Int8Rows

from . import devices
from .bench_report import Record
from .graph import captured
from .layers import FewBits, rope_tables
from .model import Model
from .planner import Cost, Speed

GROUPS: dict[str, tuple[str, ...]] = {
    "experts": ("choose_kernel", "group_kernel", "gate_up_kernel", "down_kernel", "add_kernel"),
    "dense products": ("matmul_kernel", "gated_kernel"),
    "head": ("logits_kernel", "merge_kernel", "probabilities_kernel"),
    "expected embedding": ("expect_kernel",),
    "attention": ("fmha", "flash", "attention", "softmax", "combine_kernel"),
    "between products": ("heads_kernel", "residual_kernel"),
}
"""Kernels by what is in their names; what fits none is "other": masks, sampling, torch's products."""
PARTS = {
    "experts": ("experts",),
    "dense products": ("attention projections", "MLP", "self-conditioning"),
    "head": ("head",),
    "expected embedding": ("expected embedding",),
    "attention": ("attention",),
    "between products": (),
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


def kernel_errors(
    model: Model, tokens: Sequence[int] = (32, 256), time: Callable[[Callable[[], object]], float] | None = None
) -> list[Record]:
    """How far each kernel is from its reference in fp32 on the same weights: root mean square over that of the result.

    Of the head, also how many rows have the same best token where the two best are further apart than bf16 rounds. With
    `time`, milliseconds of a call, the kernels between the products are timed against torch, see `between_errors`.
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
            found += between_errors(model, count, time)
    return found


def between_errors(
    model: Model, count: int, time: Callable[[Callable[[], object]], float] | None = None, prefix: int = 2048
) -> list[Record]:
    """As `kernel_errors`, of what lies between a layer's products: `count` tokens, behind `prefix` where that matters.

    Milliseconds are those of a captured graph on CUDA: launches from Python would cost more than the kernels do.
    """
    device, dtype, eps, found = model.device, model.dtype, model.config.rms_norm_eps, list[Record]()
    draw = torch.Generator(device).manual_seed(2)

    def rows(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    def add(kernel: str, run: Callable[..., Tensor], plain: Callable[..., Tensor], *given: Any) -> None:
        exact = [_fp32(one) for one in given]
        got, want = run(*given), plain(*exact)
        off = (got.float() - want).norm() / want.norm()
        record: Record = {"kernel": kernel, "tokens": count, "relative_rms": float(off)}
        if time is not None:
            record["ms"] = _ms(partial(run, *given), device, time)
            record["torch_ms"] = _ms(partial(plain, *given), device, time)
        found.append(record)

    layer = model.weights.layers[0]
    kinds = {each.shape.sliding: each for each in model.weights.layers}
    for sliding, each in kinds.items():
        kind, shape = "sliding" if sliding else "full", each.shape
        queries = rows(count, shape.groups, shape.kv_heads, shape.head_dim) * shape.head_dim**-0.5
        seen = min(prefix, model.config.sliding_window - 1) if sliding else prefix
        keys, values = (rows(1, shape.kv_heads, seen + count, shape.head_dim) for _ in range(2))
        mask = torch.zeros((count * shape.groups, seen + count), dtype=dtype, device=device)
        mask[:, : seen // 4] = -1e30
        add(f"attention, {kind}", attention_module.attention, attention_module.reference, queries, keys, values, mask)
        rope = model.config.sliding_rope if sliding else model.config.full_rope
        assert rope is not None
        tables = rope_tables(rope, shape.head_dim, torch.arange(count, device=device), dtype)
        raw = rows(count, shape.groups + 1 + sliding, shape.kv_heads, shape.head_dim)
        places = rows(2, count, 1, shape.kv_heads, shape.head_dim)

        def turned(turn: Callable[..., Tensor], *given: Tensor) -> Tensor:
            return turn(*given, eps)

        add(
            f"heads, {kind}",
            lambda *given: turned(heads_module.turn_heads, *given),
            lambda *given: turned(heads_module.reference, *given),
            raw,
            each.qk_norm,
            *tables,
            *places,
        )
    width = model.config.hidden_size
    x, first, second = (rows(count, width) for _ in range(3))
    norms = (layer.mlp_norm, layer.expert_norm, layer.decoder.feedforward_norm)

    def summed(run: Callable[..., tuple[Tensor, Tensor]], x: Tensor, *given: Tensor) -> Tensor:
        one, other, by_one, by_other, by_both = given
        return run(x, (one, by_one), (other, by_other), by_both, 0.7, eps)[1]

    add(
        "residual",
        lambda *given: summed(residual_module.add_two_normed, *given),
        lambda *given: summed(residual_module.reference_two, *given),
        *(x, first, second, *norms),
    )
    if isinstance(layer.gate_up, FewBits):
        weight = layer.gate_up.weight
        add(
            "gated product",
            lambda x: gated_module.gated(x, weight),
            # In fp32 the reference, else what took its place: a product, then torch's gate.
            lambda x: gated_module.reference(x, weight) if x.dtype == torch.float32 else _product_and_gate(x, weight),
            x,
        )
    return found


AT_ONCE = 20
"""Calls of one captured graph."""


def _ms(run: Callable[[], object], device: torch.device, time: Callable[[Callable[[], object]], float]) -> float:
    """Of one call, on CUDA of a graph of `AT_ONCE`."""
    if device.type != "cuda":
        return time(run)
    return time(captured(run, AT_ONCE)) / AT_ONCE


def _product_and_gate(x: Tensor, weight: Any) -> Tensor:
    return gated_module.gate(matmul(x, weight))


def _fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _starts(table: Tensor | Int8Rows) -> range:
    return range(0, len(table.codes if isinstance(table, Int8Rows) else table), 8192)


def _dense(table: Tensor | Int8Rows) -> Iterator[Tensor]:
    for at in _starts(table):
        part = table[at : at + 8192]
        yield part.dense(torch.float32) if isinstance(part, Int8Rows) else part.float()
