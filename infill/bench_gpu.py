"""What a denoising step of full size costs, against the least it could: every size of canvas, prefix and batch.

Ours runs as the product's own loop runs it (`graph`), transformers' as its generation does, in bf16 and in the same
process, ours first: both together do not fit. Random weights and tokens; routing is counted, not assumed. Whatever has
been measured is handed to `save` at once, so that what fails later costs nothing of it. Knows no file and no clock of
its own: seconds of `clock` where there is no CUDA, CUDA's own events where there is.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stopgap.kernels import path, tuned
from stopgap.kernels.experts import experts

from . import devices, layers
from .bench_kernels import breakdown, kernel_errors
from .bench_report import FORMAT, Record
from .buckets import Size
from .canvas import Row
from .graph import Loop
from .model import Model
from .model_config import ModelConfig, ModelError
from .packed import Bits
from .planner import Routing, Speed, Storage, known_speed, step_costs, step_ms
from .prefix import PrefixCache
from .random_weights import random_model, skew_routing
from .sampler import Schedule


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured, what matters most first: all slots, prefixes and rows, by transformers too if `theirs`."""

    slots: tuple[int, ...] = (32, 256, 16, 64, 128)
    prefixes: tuple[int, ...] = (2048, 8192, 512)
    rows: tuple[int, ...] = (1, 4)
    skewed: tuple[int, ...] = (2048,)
    """Prefixes that are measured with skewed routing too"""
    theirs: bool = True
    taken_apart: tuple[tuple[int, int], ...] = ((32, 2048), (256, 2048))
    """(slots, prefix) whose steps are looked into kernel by kernel, and with which whole fills are timed"""
    repeats: int = 20


TINY = Grid((16, 32), (40, 20), (1, 2), (20,), True, ((16, 20),), 2)
"""To try all of it out."""
FILL = 12
"""Steps of a fill that is timed: what code takes on average (research: 10.7 to 11.7), and what others publish."""


@dataclass(slots=True)
class Bench:
    """One run: the machine, and what has been measured so far."""

    config: ModelConfig
    bits: Bits
    device: torch.device
    clock: Callable[[], float]
    say: Callable[[str], None]
    save: Callable[[Record], None]
    grid: Grid = field(default_factory=Grid)
    record: Record = field(default_factory=dict)

    def run(self, stamp: str) -> Record:
        """All of it. `stamp` goes into the record as its date. Raises `ModelError` before anything is measured."""
        title = next(found.title for found in devices.found() if found.name.partition(":")[0] == self.device.type)
        speed = known_speed(title)
        bandwidth = devices.copy_bandwidth(self.device, self.clock)
        self.record |= {
            "format": FORMAT,
            "date": stamp,
            "device": title,
            "torch": devices.build(),
            "triton": _version("triton"),
            "kernels": tuned.described(self.device),
            "bits": self.bits,
            "model": {"layers": len(self.config.layers), "hidden": self.config.hidden_size},
            "speed": asdict(speed) if speed else None,
            "copied_bytes_a_second": bandwidth,
            "steps": [],
            "fills": [],
            "kernels_of_a_step": [],
            "errors": [],
            "failed": [],
        }
        if speed is None:
            speed = Speed(bandwidth, source="measured by copying")
            self.say(
                f"{title}: no published speed is known; the floor is that of its copies, {bandwidth / 1e9:.0f} GB/s"
            )
        self.say(f"{title}, {self.record['torch']}, kernels {self.record['kernels']}, {self.bits} bits")
        self._ours(speed)
        devices.forget_peak(self.device)
        if self.grid.theirs:
            self._try("transformers", partial(self._all_of_theirs, speed))
        devices.forget_peak(self.device)
        return self.record

    def _ours(self, speed: Speed) -> None:
        model = random_model(self.config, self.bits, self.device)
        self.record["weight_bytes"] = model.nbytes
        self._try("errors", partial(self._errors, model))
        for routing in ("even", "skewed"):
            if routing == "skewed":
                skew_routing(model)
            for prefix in self.grid.prefixes if routing == "even" else self.grid.skewed:
                loop, cache = Loop(model), model.new_cache(prefix, scratch=16)
                cache_ids = torch.randint(self.config.vocab_size, (prefix,), generator=_draw()).tolist()
                model.encode(cache, cache_ids)
                for rows, slots in itertools.product(self.grid.rows, self.grid.slots):
                    one = partial(self._one, loop, cache, rows, slots, prefix, routing, speed)
                    self._try(f"{routing} routing, {rows} x {slots} slots behind {prefix}", one)
                    loop.drop()  # each size's memory is its own
                    devices.forget_peak(self.device)

    def _errors(self, model: Model) -> None:
        self.record["errors"] += kernel_errors(model, (32, 256), self._time)
        for line in self.record["errors"]:
            self.say(f"{line['kernel']} of {line['tokens']} tokens: relative RMS {line['relative_rms']:.1e}")

    def _one(
        self, loop: Loop, cache: PrefixCache, rows: int, slots: int, prefix: int, routing: str, speed: Speed
    ) -> None:
        canvas = random_rows(self.config, rows, slots)
        # Nothing is ever calm: every step does what a step in the middle of a fill does.
        schedule = Schedule(calm=-1.0, patience=1 << 30)
        devices.forget_peak(self.device)
        bucket = loop.bucket(Size.of(rows, slots, prefix), cache, canvas, schedule)
        with counting() as counts:
            bucket.step()
        devices.forget_peak(self.device)  # an uncaptured step beside the graph, which only this benchmark runs
        real = Routing.of(counts)
        ms = self._time(bucket.again)
        storage = Storage.of(self.bits)
        sizes: dict[str, Any] = {"slots": slots, "prefix": prefix, "rows": rows, "routing": real}
        costs = step_costs(self.config, storage, **sizes)
        floor = step_ms(self.config, storage, speed, **sizes)
        how = "CUDA graph" if bucket.graph is not None else "eager"
        self._add(
            {"engine": "stopgap", "how": how, "routing": routing, "hit_experts": real.hit, "rows": rows}
            | {
                "slots": slots,
                "prefix": prefix,
                "ms": ms,
                "floor_ms": floor,
                "peak_bytes": devices.peak_bytes(self.device),
            }
            | {"nbytes": sum(cost.nbytes for cost in costs.values())}
        )
        if rows == 1 and routing == "even" and (slots, prefix) in self.grid.taken_apart:
            eager = self._time(bucket.step)
            for line in breakdown(bucket.step, self.device, costs, speed):
                self.record["kernels_of_a_step"].append(line | {"slots": slots, "prefix": prefix, "eager_ms": eager})
            self.save(self.record)
            self._fill(loop, cache, slots, prefix)

    def _fill(self, loop: Loop, cache: PrefixCache, slots: int, prefix: int) -> None:
        """A canvas from noise through `FILL` steps, with everything that the host does meanwhile."""
        schedule = Schedule(max_steps=FILL, calm=-1.0, patience=1 << 30)

        def run() -> None:
            assert len(list(loop.denoise(cache, random_rows(self.config, 1, slots), schedule, noise=lambda: 1))) == FILL

        ms = self._time(run)
        line = {"slots": slots, "prefix": prefix, "steps": FILL, "ms": ms, "tokens_a_second": 1000 * slots / ms}
        self.record["fills"].append(line)
        self.save(self.record)
        self.say(
            f"a fill of {slots} slots behind {prefix} in {FILL} steps: {ms:.1f} ms, {1000 * slots / ms:.0f} tokens/s"
        )

    def _all_of_theirs(self, speed: Speed) -> None:
        from .bench_reference import reference_network

        network = reference_network(self.config, self.device)
        for prefix, rows, slots in itertools.product(self.grid.prefixes, self.grid.rows, self.grid.slots):
            one = partial(self._theirs, network, rows, slots, prefix, speed)
            self._try(f"transformers, {rows} x {slots} slots behind {prefix}", one)

    def _theirs(self, network: Any, rows: int, slots: int, prefix: int, speed: Speed) -> None:
        from .bench_reference import reference_step

        ids = torch.randint(self.config.vocab_size, (prefix,), generator=_draw()).tolist()
        canvas = torch.randint(self.config.vocab_size, (rows, slots), generator=_draw()).to(self.device)
        devices.forget_peak(self.device)
        ms = self._time(reference_step(network, ids, canvas))
        storage = Storage.of(16)
        sizes: dict[str, Any] = {"slots": slots, "prefix": prefix, "rows": rows}
        self._add(
            {"engine": "transformers", "how": "bf16", "routing": "even", "hit_experts": None, "ms": ms}
            | sizes
            | {"floor_ms": step_ms(self.config, storage, speed, **sizes)}
            | {"peak_bytes": devices.peak_bytes(self.device)}
            | {"nbytes": sum(cost.nbytes for cost in step_costs(self.config, storage, **sizes).values())}
        )

    def _add(self, line: Record) -> None:
        self.record["steps"].append(line)
        self.save(self.record)
        self.say(
            f"{line['engine']:>12} {line['routing']:>6} {line['rows']} x {line['slots']:>3} behind {line['prefix']:>4}:"
            f" {line['ms']:8.3f} ms, floor {line['floor_ms']:7.3f}, {100 * line['floor_ms'] / line['ms']:3.0f} %"
        )

    def _try(self, what: str, attempt: Callable[[], None]) -> None:
        """Goes on after a failure, which is kept beside the numbers: there may be no second try on this machine."""
        try:
            attempt()
        except (RuntimeError, ModelError, path.PathError) as error:
            reason = str(error).strip().partition("\n")[0][:300]
            self.record["failed"].append({"what": what, "why": f"{type(error).__name__}: {reason}"})
            self.save(self.record)
            self.say(f"FAILED {what}: {reason}")
            devices.forget_peak(self.device)

    def _time(self, run: Callable[[], object]) -> float:
        """Median milliseconds."""
        return statistics.median(devices.times(self.device, run, self.grid.repeats, self.clock))


def random_rows(config: ModelConfig, rows: int, slots: int) -> list[Row]:
    """Canvases of noise, all of whose slots are free."""
    ids = torch.randint(config.vocab_size, (rows, slots), generator=_draw()).tolist()
    return [Row(hole, [], "noise") for hole in ids]


@contextmanager
def counting() -> Iterator[list[list[int]]]:
    """The tokens that every expert gets, layer by layer, of the steps run inside."""
    counts: list[list[int]] = []

    def counted(x: Tensor, scores: Tensor, gate_up: Any, down: Any, top_k: int) -> Tensor:
        chosen = scores.topk(top_k).indices.flatten()
        counts.append(chosen.bincount(minlength=scores.shape[1]).tolist())
        return experts(x, scores, gate_up, down, top_k)

    module: Any = layers
    module.experts = counted
    try:
        yield counts
    finally:
        module.experts = experts


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
