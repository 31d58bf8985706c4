"""A small scatter plot as SVG, time on a logarithmic axis. Knows only points."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 64, 24, 20, 48
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#7f7f7f")


@dataclass(frozen=True, slots=True)
class Point:
    """`series` joins points with a line, in order of `x`; `x` must not be negative."""

    series: str
    label: str
    x: float
    y: float


def svg(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """The picture; an empty frame when there are no points. `y` starts at 0."""
    xs = [max(point.x, 0.01) for point in points] or [1.0]
    low = math.floor(math.log10(min(xs)))
    high = max(low + 1, math.ceil(math.log10(max(xs))))
    top = 10 * math.ceil(max([point.y for point in points] + [1.0]) / 10)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(max(x, 0.01)) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

    def line(a: tuple[float, float], b: tuple[float, float], colour: str, width: float = 1) -> str:
        ends = f'x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"'
        return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="11"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    ]
    for power in range(low, high + 1):
        at = place(10.0**power, 0)
        out += [line(at, place(10.0**power, top), "#ddd"), text(at[0], at[1] + 16, f"{10.0**power:g}")]
    for tick in range(0, 6):
        at = place(10.0**low, top * tick / 5)
        out += [
            line(at, place(10.0**high, top * tick / 5), "#ddd"),
            text(at[0] - 6, at[1] + 4, f"{top * tick / 5:g}", "end"),
        ]
    for index, series in enumerate(dict.fromkeys(point.series for point in points)):
        colour = COLOURS[index % len(COLOURS)]
        mine = sorted((point for point in points if point.series == series), key=lambda point: point.x)
        for a, b in itertools.pairwise(mine):
            out.append(line(place(a.x, a.y), place(b.x, b.y), colour, 1.5))
        for point in mine:
            x, y = place(point.x, point.y)
            anchor = "end" if x > WIDTH * 0.7 else "start"
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            out.append(text(x + (-7 if anchor == "end" else 7), y - 6, point.label, anchor))
    out += [text(WIDTH / 2, HEIGHT - 8, x_title), text(LEFT, 12, y_title, "start"), "</svg>\n"]
    return "\n".join(out)
