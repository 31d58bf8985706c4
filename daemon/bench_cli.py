"""The commands that measure a denoising step and a keystroke: `bench step`, `bench report`, `bench keystroke`.

Knows no torch: a command imports its part of `infill` when it runs and hands it a clock.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .oneshot import InputError

MEASURED = Path("kernels") / "measured"
"""Below the folder the command runs in: records are kept beside the kernels they are about."""


def step(
    model: Annotated[Path | None, typer.Argument(help="A checkpoint folder; the starter by default.")] = None,
    device: Annotated[str, typer.Option(help='"cpu", or "cuda" for the table of full size.')] = "cpu",
    prefix_tokens: Annotated[int, typer.Option(min=1, help="Tokens before the canvas, on a CPU.")] = 512,
    free_slots: Annotated[int, typer.Option(min=1, help="Slots to fill, on a CPU.")] = 32,
    repeats: Annotated[int | None, typer.Option(min=1, help="Steps timed: 30, of a full-size table 20.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of every engine.")] = 1,
    bits: Annotated[int, typer.Option(help="Full size: 4 (int4 experts, int8 rest), 8 or 16.")] = 4,
    slots: Annotated[list[int] | None, typer.Option(help="Full size: only these slots; may be repeated.")] = None,
    prefix: Annotated[list[int] | None, typer.Option(help="Full size: only these prefixes; may be repeated.")] = None,
    transformers: Annotated[bool, typer.Option(help="Full size: transformers' own step in bf16 too.")] = True,
    small: Annotated[
        bool, typer.Option("--small", help="The whole full-size run on a tiny model, on any device.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Full size: folder of the record.")] = MEASURED,
) -> None:
    """Time a denoising step, transformers and stopgap side by side.

    On a CPU with the starter or MODEL. With --device cuda DiffusionGemma 26B's shapes with random weights: every size
    of canvas, prefix and batch against the roofline, kernel by kernel, with errors; the record is a dated JSON file.
    """
    from stopgap.infill.contract import FillError

    try:
        if device.partition(":")[0] == "cpu" and not small:
            _with_model(model, prefix_tokens, free_slots, repeats or 30, threads)
        elif model is not None:
            raise InputError("the full-size table uses random weights: leave MODEL out")
        elif bits not in (4, 8, 16):
            raise InputError(f"--bits {bits}: choose 4, 8 or 16")
        else:
            _full_size(device, bits, slots, prefix, repeats or 20, transformers, small, out)
    except FillError as error:
        raise InputError(str(error)) from None


def _with_model(model: Path | None, prefix_tokens: int, free_slots: int, repeats: int, threads: int) -> None:
    from stopgap.infill.engine import STARTER

    try:
        from stopgap.infill import bench
    except ModuleNotFoundError as error:
        raise InputError(f"the comparison needs {error.name}: pip install transformers") from None
    table = bench.step(
        model or STARTER,
        clock=time.perf_counter,
        own_clock=time.process_time,
        prefix_tokens=prefix_tokens,
        free_slots=free_slots,
        repeats=repeats,
        threads=threads,
    )
    print(table)


def _full_size(
    device: str,
    bits: Any,
    slots: list[int] | None,
    prefix: list[int] | None,
    repeats: int,
    transformers: bool,
    small: bool,
    out: Path,
) -> None:
    import json
    from dataclasses import replace

    from stopgap.infill import bench_gpu, bench_report, devices
    from stopgap.infill.files import write_whole
    from stopgap.infill.planner import real_model
    from stopgap.infill.random_weights import small_model

    where = devices.resolve(device)
    config = small_model(real_model()) if small else real_model()
    grid = bench_gpu.TINY if small else bench_gpu.Grid()
    grid = replace(grid, slots=tuple(slots or grid.slots), prefixes=tuple(prefix or grid.prefixes), repeats=repeats)
    if not transformers:
        grid = replace(grid, theirs=False)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def save(record: dict[str, Any]) -> None:
        path = out / bench_report.file_name(record)
        write_whole(path, json.dumps(record, indent=1) + "\n")
        written[:] = [path]

    bench = bench_gpu.Bench(config, bits, where, time.perf_counter, lambda line: print(line, flush=True), save, grid)
    record = bench.run(time.strftime("%Y-%m-%d"))
    save(record)
    print()
    print(bench_report.table(record))
    _plot(written[0], record)


def _plot(path: Path, record: dict[str, Any]) -> None:
    from stopgap.infill import bench_report

    plot = path.with_suffix(".svg")
    plot.write_text(bench_report.picture(record), encoding="utf-8")
    print(f"record {path}, plot {plot}")


def report(
    record: Annotated[Path, typer.Argument(metavar="RECORD", help="A JSON file that `bench step` wrote.")],
    readme: Annotated[Path | None, typer.Option(help="Put the table between the marks of this file.")] = None,
) -> None:
    """Make the table and the plot of a record again; the plot goes beside it."""
    from stopgap.infill import bench_report

    found = bench_report.read_record(record)
    text = bench_report.table(found)
    print(text)
    _plot(record, found)
    if readme is not None:
        bench_report.into(readme, text)


def keystroke(
    fills: Annotated[int, typer.Option(min=1, help="Requests, one after the other.")] = 30,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="A model of DiffusionGemma 26B's shapes instead of the configured one: 32 slots x 8 steps.",
        ),
    ] = False,
    small: Annotated[bool, typer.Option("--small", help="The random model tiny, to try it out.")] = False,
    device: Annotated[str, typer.Option(help="Instead of the configured one.")] = "",
    loop: Annotated[str, typer.Option(help='"host" or "device": where the denoising loop runs.')] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of a record with every time, a dated JSON file.")] = None,
) -> None:
    """From request to answer through a daemon of its own, the model loaded and the document known: p50 and p95."""
    import json

    from .keystroke import measure

    said, record = measure(fills, random_weights=random_weights, small=small, device=device, loop=loop)
    print(said)
    if out is not None:
        from stopgap.infill import devices
        from stopgap.infill.bench_report import file_name
        from stopgap.infill.files import write_whole

        kind = str(record["device"]).partition(":")[0]
        record["device"] = next((found.title for found in devices.found() if found.kind == kind), kind)
        record = {"date": time.strftime("%Y-%m-%d"), "torch": devices.build(), **record}
        out.mkdir(parents=True, exist_ok=True)
        path = out / file_name(record).replace(".json", "-keystroke.json")
        write_whole(path, json.dumps(record, indent=1) + "\n")
        print(f"record {path}")
