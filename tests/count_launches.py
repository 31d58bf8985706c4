"""Counts what one captured denoising step of the 26B launches on a GPU, and what those launches move; needs no GPU.

    python -P tests/count_launches.py --slots 32 --prefix 2048

The step is that of `infill/graph`, at full size, but every weight is one number seen as a whole matrix and no Triton
kernel, attention or norm is computed: no size, address or branch of that step depends on what a tensor holds, so the
calls are those of a real one. An operation of torch counts as one launch unless it only looks at memory in another way;
a product of cuBLAS or a sort may be two, so the count is a least one.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    os.environ |= {"TRITON_INTERPRET": "1", "STOPGAP_KERNELS": "triton"}

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stopgap.infill import packed
from stopgap.infill.bench_gpu import random_rows
from stopgap.infill.graph import Loop, Size
from stopgap.infill.model import Model
from stopgap.infill.model_config import ModelConfig
from stopgap.infill.planner import real_model
from stopgap.infill.sampler import Schedule
from stopgap.infill.weights import Packed
from stopgap.kernels import norm

NODE_US = (1.0, 2.0)
"""What a node of a CUDA graph costs beside its own work: the gap to the next one, by published measurements."""
LARGE = {
    *("logits_kernel", "expect_kernel", "gate_up_kernel", "down_kernel", "matmul_kernel", "gated_kernel"),
    *("attention_kernel", "scaled_dot_product_attention"),
}
"""Launches that read weights, or the prefix's keys and values; all others are small."""


@dataclass(slots=True)
class Kind:
    """All launches of one name."""

    count: int = 0
    nbytes: int = 0
    """Of their arguments and results, each read or written once."""


Kinds = dict[str, Kind]


class _Source:
    """Stands where a weights file is read: every tensor is one number."""

    def __init__(self, shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self.shapes = shapes

    def get_tensor(self, name: str) -> Tensor:
        shape, dtype = self.shapes[name]
        return torch.ones((), dtype=dtype).expand(shape)


def hollow_model(config: ModelConfig, bits: packed.Bits = 4) -> Model:
    """A model of these shapes in bf16 whose weights take no memory."""
    entries = packed.plan(config, bits)
    _, parts = packed.layout(entries)
    shapes = {part.name: (part.shape, packed.DTYPES[part.dtype]) for own in parts.values() for part in own}
    bf16 = torch.bfloat16
    found = Packed(_Source(shapes), entries, parts, torch.device("cpu"), bf16, bf16, False)
    return Model(config, found.weights(config, ((1.0, 1.0),) * len(config.layers)))


class _Launches(TorchDispatchMode):  # type: ignore[misc]
    """Operations that reach the device."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        self.kinds = kinds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        writes = any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.arguments)
        given = {tensor.data_ptr() for tensor in _storages((args, kwargs))}
        looks = not writes and all(tensor.data_ptr() in given for tensor in _storages(result))
        if not looks and "empty" not in name:
            if name in {"index_select", "index", "gather", "embedding"}:  # rows of a table, not all of it
                add(self.kinds, name, (result, result))
            else:
                add(self.kinds, name, (args, kwargs, result))
        return result


class _Whole(TorchFunctionMode):
    """Calls that are one kernel on a GPU and several operations on a CPU."""

    def __init__(self, kinds: Kinds) -> None:
        super().__init__()
        self.kinds = kinds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.rms_norm or func is F.scaled_dot_product_attention:
            result = torch.empty_like(args[0])
            add(self.kinds, func.__name__, (args, kwargs, result))
            return result
        return func(*args, **(kwargs or {}))


def add(kinds: Kinds, name: str, values: Any) -> None:
    kind = kinds.setdefault(name, Kind())
    kind.count += 1
    kind.nbytes += sum(tensor.numel() * tensor.itemsize for tensor in _tensors(values))


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for tensor in _tensors(values):
        yield tensor.untyped_storage()


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


@contextmanager
def counting() -> Iterator[Kinds]:
    """What is launched inside, by name."""
    from triton.runtime.interpreter import InterpretedFunction

    kinds: Kinds = {}

    def run(self: Any, *args: Any, **options: Any) -> None:
        add(kinds, self.fn.__name__, (args, options))

    real: Callable[..., Any] = InterpretedFunction.run
    InterpretedFunction.run = run
    norm.FUSED.add("cpu")
    try:
        with _Whole(kinds), _Launches(kinds):
            yield kinds
    finally:
        norm.FUSED.discard("cpu")
        InterpretedFunction.run = real


def count(config: ModelConfig, slots: int, prefix: int, rows: int = 1, bits: packed.Bits = 4) -> Kinds:
    """Launches of one step. Needs STOPGAP_KERNELS=triton and TRITON_INTERPRET=1."""
    model = hollow_model(config, bits)
    loop = Loop(model)
    canvas = random_rows(config, rows, slots)
    bucket = loop.bucket(Size(prefix, rows, slots), model.new_cache(16, scratch=16), canvas, Schedule())
    with torch.inference_mode(), counting() as kinds:
        bucket.step()
    return kinds


def by_part(kinds: Kinds) -> Kinds:
    """Large launches and small ones, and among these Triton's own."""
    parts = {"large": Kind(), "small, ours": Kind(), "small, torch": Kind()}
    for name, kind in kinds.items():
        ours = "small, ours" if name.endswith("_kernel") else "small, torch"
        part = parts["large" if name in LARGE else ours]
        part.count += kind.count
        part.nbytes += kind.nbytes
    return parts


def report(kinds: Kinds) -> str:
    """A table by name, the most frequent first, and what the launches cost at least."""
    lines = ["| launch | count | MB moved |", "|---|--:|--:|"]
    ordered = sorted(kinds.items(), key=lambda one: (-one[1].count, one[0]))
    lines += [f"| {name} | {kind.count} | {kind.nbytes / 1e6:.2f} |" for name, kind in ordered]
    parts = by_part(kinds)
    lines += [f"| **{name}** | {kind.count} | {kind.nbytes / 1e6:.2f} |" for name, kind in parts.items()]
    whole = sum(part.count for part in parts.values())
    small = whole - parts["large"].count
    low, high = (f"{whole * us / 1000:.2f}" for us in NODE_US)
    few, many = (f"{small * us / 1000:.2f}" for us in NODE_US)
    lines += ["", f"{whole} launches, gaps of {low} to {high} ms; {small} of them small, {few} to {many} ms"]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--layers", type=int, default=0, help="only the first so many")
    asked = parser.parse_args()
    shape = real_model()
    if asked.layers:
        shape = replace(shape, layers=shape.layers[: asked.layers])
    torch.set_num_threads(1)
    print(report(count(shape, asked.slots, asked.prefix, asked.rows)))
