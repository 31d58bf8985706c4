"""Look for better block sizes of the quantised products on this GPU: `TRITON_INTERPRET=0 python tests/tune_kernels.py`.

From the entry that is in use, one number is changed at a time as long as that is faster, within `--seconds` in all.
What was found is written after every size: the times of both as data (`--out`), and the table that the kernels read
on a GPU of this kind (`kernels/tuned.py`). Weights rotate through more memory than any L2 cache holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from stopgap.infill import devices
from stopgap.infill.files import write_whole
from stopgap.kernels import experts_triton, matmul_triton, tuned
from stopgap.kernels.quantised import Int4Groups, Int8Rows, Quantised
from stopgap.kernels.tuned import Blocks, Tuned

STEPS: dict[str, tuple[int, ...]] = {
    "rows": (16, 32, 64, 128),
    "outputs": (16, 32, 64, 128, 256),
    "slices": (1, 2, 4, 8),
    "warps": (2, 4, 8),
    "stages": (2, 3, 4, 5),
}
ROTATED = 128 << 20
"""Bytes of weights that one timed run goes through."""


def neighbours(cut: Blocks, fixed: tuple[str, ...] = ()) -> Iterator[Blocks]:
    """One number a step up or down; slices and warps together, as every warp takes a slice of its own, or all share."""
    for name, steps in STEPS.items():
        if name in fixed:
            continue
        for way in (-1, 1):
            at = steps.index(getattr(cut, name)) + way
            if 0 <= at < len(steps):
                found = cut._replace(**{name: steps[at]})
                if found.slices > 1 and name in ("slices", "warps"):
                    both = max(2, getattr(found, name))
                    found = found._replace(slices=both, warps=both)
                yield found


def climb(
    start: Blocks, cost: Callable[[Blocks], float], go_on: Callable[[], bool], fixed: tuple[str, ...] = ()
) -> tuple[Blocks, float, float, int]:
    """The best found, its cost, that of `start`, and how many were tried. What cannot run costs infinitely much."""
    tried = {start: cost(start)}
    best = start
    while True:
        better = False
        for cut in neighbours(best, fixed):
            if not go_on():
                return best, tried[best], tried[start], len(tried)
            if cut not in tried:
                tried[cut] = cost(cut)
                if tried[cut] < tried[best] * 0.98:  # less is noise
                    best, better = cut, True
                    break
        if not better:
            return best, tried[best], tried[start], len(tried)


class Tuning:
    """The machine, its clock, and what has been found; `save` is called after every size."""

    def __init__(
        self, device: torch.device, clock: Callable[[], float], small: bool, save: Callable[[Tuning], None]
    ) -> None:
        self.device, self.clock, self.small, self.save = device, clock, small, save
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.found: list[dict[str, Any]] = []
        before = tuned.of(device)
        self.products, self.experts = dict(before.products), dict(before.experts)

    def ms(self, run: Callable[[], object]) -> float:
        try:
            return statistics.median(devices.times(self.device, run, 1 if self.small else 10, self.clock))
        except Exception as error:  # too much shared memory, or a shape the compiler refuses: not the way to go
            print(f"    {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}")
            return float("inf")

    def weights(self, bits: int, *shape: int) -> list[Quantised]:
        """As many as `ROTATED` holds."""
        made: list[Quantised] = []
        size = 0
        while not made or (size < ROTATED and not self.small):
            if bits == 4:
                codes = torch.randint(256, (*shape[:-1], shape[-1] // 2), dtype=torch.uint8, device=self.device)
                scale = torch.full((*shape[:-1], shape[-1] // 64), 0.01, dtype=torch.bfloat16, device=self.device)
                made.append(Int4Groups(codes, scale))
            else:
                codes = torch.randint(-127, 128, shape, dtype=torch.int8, device=self.device)
                made.append(Int8Rows(codes, torch.full(shape[:-1], 0.001, device=self.device)))
            size += codes.nbytes
        return made

    def tune_products(self, go_on: Callable[[], bool]) -> None:
        """int8, for every number of rows and both classes of outputs that `TABLE` tells apart."""
        every = [(rows, shape) for rows in (32, 256, 16, 64, 128) for shape in ((8192, 2816), (2816, 4096))]
        for rows, (outputs, inputs) in [(16, (64, 64))] if self.small else every:
            if not (self.small or go_on()):
                return
            x = torch.randn((rows, inputs), device=self.device).to(self.dtype)
            weights = self.weights(8, outputs, inputs)
            known = matmul_triton.blocks

            def cost(cut: Blocks, x: Any = x, weights: Any = weights, known: Any = known) -> float:
                vars(matmul_triton)["blocks"] = lambda *_: cut
                try:
                    return self.ms(lambda: [matmul_triton.matmul(x, weight) for weight in weights]) / len(weights)
                finally:
                    vars(matmul_triton)["blocks"] = known

            best = climb(known(rows, outputs, self.device), cost, go_on)
            key = matmul_triton.sizes(rows, outputs)[:2]
            self.note("products", f"{rows} x {outputs}", self.products, key, *best)

    def tune_experts(self, go_on: Callable[[], bool]) -> None:
        """The four entries of `CUTS`, with 32 and 256 tokens."""
        width, hidden, count, top_k = (64, 64, 4, 2) if self.small else (2816, 704, 128, 8)
        for bits, full in list(experts_triton.CUTS):
            if (full or bits == 8) if self.small else not go_on():
                continue
            tokens = 256 if full else 4 if self.small else 32
            x = torch.randn((tokens, width), device=self.device).to(self.dtype)
            scores = torch.randn((tokens, count), device=self.device).to(self.dtype)
            shapes = (count, 2 * hidden, width), (count, width, hidden)
            pairs = list(zip(*(self.weights(bits, *shape) for shape in shapes), strict=False))
            known = experts_triton.cut

            def cost(cut: Blocks, known: Any = known, pairs: Any = pairs, given: Any = (x, scores)) -> float:
                vars(experts_triton)["cut"] = lambda *_: cut
                try:
                    return self.ms(lambda: [experts_triton.experts(*given, *pair, top_k) for pair in pairs]) / len(
                        pairs
                    )
                finally:
                    vars(experts_triton)["cut"] = known

            best = climb(known(bits, full, self.device), cost, go_on, fixed=("rows",))
            self.note("experts", f"int{bits}, {tokens} tokens", self.experts, (bits, full), *best)

    def note(
        self,
        what: str,
        size: str,
        table: dict[Any, Blocks],
        key: Any,
        best: Blocks,
        ms: float,
        before: float,
        tried: int,
    ) -> None:
        print(f"{what}, {size}: {before:.4f} ms -> {ms:.4f} ms after {tried}: {best}", flush=True)
        line = {"table": what, "key": key, "best": best._asdict(), "ms": ms, "ms_before": before, "tried": tried}
        self.found.append(line)
        if ms < float("inf"):  # what cannot run at all is no entry
            table[key] = best
        self.save(self)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--out", type=Path, default=Path("kernels") / "measured", help="folder of the record")
    parser.add_argument("--table", type=Path, default=tuned.FOLDER, help="folder of the table that the kernels read")
    parser.add_argument("--small", action="store_true", help="toy sizes, to try it out in Triton's interpreter")
    options = parser.parse_args(arguments)
    device = devices.resolve(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    title, capability = tuned.kind(device)
    record = options.out / f"{time.strftime('%Y-%m-%d')}-{tuned.file_name(title, '').removesuffix('.toml')}-tuning.json"
    table = options.table / tuned.file_name(title, capability)
    options.out.mkdir(parents=True, exist_ok=True)
    about = f"Found by tests/tune_kernels.py on {title} with {devices.build()}, {time.strftime('%Y-%m-%d')}."

    def save(tuning: Tuning) -> None:
        found = {"device": title, "torch": devices.build(), "found": tuning.found}
        write_whole(record, json.dumps(found, indent=1) + "\n")
        tuned.write(table, Tuned(None, tuning.products, tuning.experts), about)

    tuning = Tuning(device, time.perf_counter, options.small, save)
    end = time.monotonic() + options.seconds
    for part in (tuning.tune_experts, tuning.tune_products):
        part(lambda: time.monotonic() < end)
    print(f"record {record}, table {table}")
    return tuning.found


if __name__ == "__main__":
    main()
