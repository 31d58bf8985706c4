"""Writes an evaluation down: tables, JSON, a plot and unedited sample fills. Computes no number.

Files are written under a new name first and then put in place.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import plot
from .files import write_whole
from .metrics import Interval
from .scoring import Score
from .summary import Report, Row, Style, Value, calibration, columns

SAMPLES_PER_GROUP = 10


def cell(value: Value, style: Style, brief: bool = False) -> str:
    """A table cell: shares in per cent, with their interval unless `brief`."""
    if value is None:
        return ""
    if isinstance(value, Interval):
        around = "" if brief else f" ({100 * value.low:.1f}–{100 * value.high:.1f})"
        return f"{100 * value.mean:.1f} %{around}"
    if math.isnan(value):
        return "–"
    return {"share": f"{100 * value:.1f} %", "count": f"{value:.0f}", "number": f"{value:.1f}"}[style]


def _grid(suite: str, rows: Sequence[Row], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; a column that is empty everywhere is left out."""
    kept = [one for one in columns(suite) if any(row.values[one.key] is not None for row in rows)]
    return ["", *(one.title for one in kept)], [
        [row.contender, *(cell(row.values[one.key], one.style, brief) for one in kept)] for row in rows
    ]


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [headings, ["---", *["--:"] * (len(headings) - 1)], *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in out)


def show(report: Report, console: Console) -> None:
    """The main table, on its side: contenders are few, columns are many. Intervals are in report.md."""
    headings, lines = _grid(report.suite, report.rows, brief=True)
    table = Table(title=f"{report.suite}, seed {report.seed}{', interrupted' * report.interrupted}")
    table.add_column("", no_wrap=True)
    for line in lines:
        table.add_column(line[0], justify="right")
    for at, heading in enumerate(headings[1:], 1):
        table.add_row(heading, *(line[at] for line in lines))
    console.print(table)


def tables(report: Report) -> str:
    """Everything as Markdown."""
    out = [f"# {report.suite}\n\n"]
    if report.interrupted:
        out.append("Interrupted: these are partial results.\n\n")
    out.append("".join(f"- {key}: {value}\n" for key, value in report.question.items() if value or value == 0))
    out.append("\nIntervals are 95 %, bootstrapped over problems or files.\n\n")
    out.append(_markdown(*_grid(report.suite, report.rows)))
    if report.against:
        out.append(f"\n## Differences in {_title(report)}\n\nOn the same samples; clear of 0 is a real difference.\n\n")
        out.append(
            _markdown(["row", "against", "difference"], [[a, b, cell(d, "share")] for a, b, d in report.against])
        )
    for group in dict.fromkeys(row.group for row in report.groups):
        out.append(f"\n## {group}\n\n")
        out.append(_markdown(*_grid(report.suite, [row for row in report.groups if row.group == group])))
    if report.suite == "typing":
        out.extend(_threshold_tables(report))
    return "".join(out)


def _threshold_tables(report: Report) -> list[str]:
    headings = ["show score at least", "shown", "accepted prefix", "whole fill typed", "gain"]
    out = []
    for found in calibration(report):
        if len(found.thresholds) < 2:
            continue  # a contender without a score of its own
        lines = [
            [
                f"{one.score:.3f}" + " ←" * (one == found.proposed),
                *(cell(value, "share") for value in (one.shown, one.accepted_prefix, one.whole)),
                str(one.gain),
            ]
            for one in found.thresholds
        ]
        out.append(f"\n## Show threshold: {found.contender}\n\n{_markdown(headings, lines)}")
        out.append(
            "\n← proposed showThreshold: most characters right minus wrong.\n"
            if found.proposed
            else "\nNo threshold gains.\n"
        )
    return out


def fills(report: Report) -> str:
    """The first ten samples of each group in an order drawn by seed, with every contender's fill, unedited."""
    out = [f"# Sample fills, {report.suite}, seed {report.seed}\n\nUnedited: drawn by seed, nobody picked.\n"]
    for group in sorted({one.group for one in report.scores}):
        mine = [one for one in report.scores if one.group == group]
        names = sorted({one.sample for one in mine})
        random.Random(report.seed).shuffle(names)
        out.append(f"\n## {group}\n")
        for name in names[:SAMPLES_PER_GROUP]:
            answers = [one for one in mine if one.sample == name]
            first = answers[0]
            out.append(f"\n### {name}\n\nbefore:\n{_block(first.before)}after:\n{_block(first.after)}")
            out.append(f"truth:\n{_block(first.truth)}")
            for one in answers:
                verdict = "nothing shown: " + one.why if not one.shown else _verdict(one)
                out.append(f"{one.contender} ({verdict}):\n{_block(one.fill) if one.shown else ''}\n")
    return "".join(out)


def _verdict(one: Score) -> str:
    parts = ["exact" if one.exact else f"similarity {100 * one.similarity:.0f} %"]
    parts += ["passes" if one.passed else "fails"] if one.passed is not None else []
    parts += ["adds an error"] if one.adds_error else []
    return ", ".join([*parts, f"{one.steps} steps", f"{one.ms:.0f} ms"])


def _block(text: str) -> str:
    fence = "`" * max(3, max((len(run) for run in _ticks(text)), default=0) + 1)
    return f"{fence}text\n{text}\n{fence}\n"


def _ticks(text: str) -> list[str]:
    return [run for run in "".join(c if c == "`" else " " for c in text).split() if run]


def write(report: Report, folder: Path) -> None:
    """report.json, report.md, fills.md, plot.svg and, for typing, calibration.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    document = asdict(report)
    del document["scores"]  # they are in samples.jsonl
    write_whole(folder / "report.json", json.dumps(document, indent=1, allow_nan=True) + "\n")
    write_whole(folder / "report.md", tables(report))
    write_whole(folder / "fills.md", fills(report))
    if report.suite == "typing":
        write_whole(folder / "calibration.json", json.dumps([asdict(one) for one in calibration(report)]) + "\n")
    points = [
        plot.Point(
            _series(report, row), row.contender, _number(row.values["ms_p50"]), 100 * _number(row.values[report.main])
        )
        for row in report.rows
    ]
    write_whole(folder / "plot.svg", plot.svg(points, "milliseconds (median)", f"{_title(report)} (%)"))


def _title(report: Report) -> str:
    return next(one.title for one in columns(report.suite) if one.key == report.main)


def _series(report: Report, row: Row) -> str:
    return next(one.series for one in report.scores if one.contender == row.contender)


def _number(value: Value) -> float:
    return value.mean if isinstance(value, Interval) else float(value or 0)
