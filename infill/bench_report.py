"""The record of a full-size step benchmark as a table and as a picture. Knows no torch and measures nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .contract import FillError
from .files import write_whole
from .plot import Point, svg

Record = dict[str, Any]
FORMAT = 1
BEGIN, END = "<!-- step benchmark: begin -->", "<!-- step benchmark: end -->"
"""What the generated part of a README stands between."""


def read_record(path: Path) -> Record:
    """A record that `stopgap bench step` wrote; raises `FillError`."""
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']}")
        return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FillError(f"{path} is no record of `stopgap bench step`: {error}") from None


def table(record: Record) -> str:
    """Markdown: a step of every size by both engines beside the floor, then what else was measured."""
    lines = [
        f"{record['device']}, {record['date']}, {record['torch']}, kernels {record['kernels']}, {_weights(record)}:",
        "milliseconds of one denoising step, median.",
        "",
        "| rows x slots | prefix | routing, experts hit | floor ms | stopgap ms | of the floor | GB/s | memory GB "
        "| transformers bf16 ms | faster |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    theirs = {(line["rows"], line["slots"], line["prefix"]): line["ms"] for line in _of(record, "transformers")}
    ours = _of(record, "stopgap")
    for line in sorted(ours, key=lambda one: (one["routing"], one["rows"], one["prefix"], one["slots"])):
        size = line["rows"], line["slots"], line["prefix"]
        other = theirs.get(size) if line["routing"] == "even" else None
        cells = [
            f"{line['rows']} x {line['slots']}",
            str(line["prefix"]),
            f"{line['routing']}, {line['hit_experts']:.0f}",
            f"{line['floor_ms']:.2f}",
            f"{line['ms']:.2f}",
            f"{100 * line['floor_ms'] / line['ms']:.0f} %",
            f"{line['nbytes'] / line['ms'] / 1e6:.0f}",
            f"{line['peak_bytes'] / 1e9:.1f}" if line["peak_bytes"] else "",
            f"{other:.2f}" if other else "",
            f"{other / line['ms']:.1f}x" if other else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if fills := record["fills"]:
        lines += ["", "| fill of | prefix | steps | ms | tokens/s |", "|---|---|---|---|---|"]
        lines += [
            f"| {one['slots']} slots | {one['prefix']} | {one['steps']} | {one['ms']:.1f} "
            f"| {one['tokens_a_second']:.0f} |"
            for one in fills
        ]
    if apart := record["kernels_of_a_step"]:
        lines += ["", "| slots, prefix | kernels | ms | floor ms | launches |", "|---|---|---|---|---|"]
        lines += [
            f"| {one['slots']}, {one['prefix']} | {one['group']} | {one['ms']:.3f} | {one['floor_ms']:.3f} "
            f"| {one['launches']:.0f} |"
            for one in apart
        ]
    if errors := record["errors"]:
        columns = "relative RMS error against fp32 | same best token | ms | torch's ms"
        lines += ["", f"| kernel | tokens | {columns} |", "|---|---|---|---|---|---|"]
        lines += [
            f"| {one['kernel']} | {one['tokens']} | {one['relative_rms']:.1e} "
            f"| {format(one['argmax_same'], '.1%') if 'argmax_same' in one else ''} "
            f"| {format(one['ms'], '.4f') if 'ms' in one else ''} "
            f"| {format(one['torch_ms'], '.4f') if 'torch_ms' in one else ''} |"
            for one in errors
        ]
    lines += [f"\nFailed: {one['what']}: {one['why']}" for one in record["failed"]]
    return "\n".join(lines) + "\n"


def picture(record: Record, prefix: int | None = None) -> str:
    """SVG: milliseconds a step against slots for one row and even routing, with the floor drawn in."""
    lines = [line for line in _of(record, "stopgap") if line["rows"] == 1 and line["routing"] == "even"]
    known = sorted({line["prefix"] for line in lines})
    prefix = prefix or (2048 if 2048 in known else max(known, default=0))
    points = []
    for line in lines:
        if line["prefix"] == prefix:
            points.append(Point("stopgap", f"{line['ms']:.2f}", line["slots"], line["ms"]))
            points.append(Point("floor", f"floor {line['floor_ms']:.2f}", line["slots"], line["floor_ms"]))
    for line in _of(record, "transformers"):
        if line["prefix"] == prefix and line["rows"] == 1:
            points.append(Point("transformers", f"transformers bf16 {line['ms']:.1f}", line["slots"], line["ms"]))
    return svg(points, f"slots, behind {prefix} tokens", f"ms a step, {record['device']}, {_weights(record)}")


def into(readme: Path, text: str) -> None:
    """Replace what stands between the marks of a file; raises `FillError` where they are missing."""
    whole = readme.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(whole):
        raise FillError(f"{readme} lacks the lines {BEGIN} and {END} between which the table goes")
    write_whole(readme, pattern.sub(lambda _: f"{BEGIN}\n{text}{END}", whole, count=1))


def file_name(record: Record) -> str:
    """A dated name with the device's: "2026-01-31-nvidia-h200.json"."""
    device = re.sub(r"[^a-z0-9]+", "-", str(record["device"]).lower()).strip("-")
    return f"{record['date']}-{device}.json"


def _of(record: Record, engine: str) -> list[dict[str, Any]]:
    steps: Iterable[dict[str, Any]] = record["steps"]
    return [line for line in steps if line["engine"] == engine]


def _weights(record: Record) -> str:
    names = {4: "int4 experts and int8 rest", 8: "int8", 16: "bf16"}
    return f"{names[record['bits']]}, {record['model']['layers']} layers of {record['model']['hidden']}"
