"""The curves of a training run as one SVG, drawn from the points `training` logged. Standard library only."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, EDGE = 460, 260, 44
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea")
Points = Sequence[tuple[float, float]]


def read_points(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def series(points: Sequence[dict[str, Any]], key: str, heldout: bool) -> list[tuple[float, float]]:
    """(millions of encoder positions, value) of one logged number."""
    return [
        (p["positions"] / 1e6, float(p[key]))
        for p in points
        if bool(p.get("heldout")) == heldout and "positions" in p and key in p
    ]


def panel(title: str, named: Mapping[str, Points], levels: Mapping[str, float], left: int) -> str:
    """One chart of lines over positions seen, with dashed `levels`, as an SVG group shifted by `left`."""
    values = [y for points in named.values() for _, y in points] + list(levels.values())
    right = max((x for points in named.values() for x, _ in points), default=1.0) or 1.0
    low, high = min(values, default=0.0), max(values, default=1.0)
    high = high if high > low else low + 1

    def place(x: float, y: float) -> str:
        across = EDGE + x / right * (WIDTH - 2 * EDGE)
        down = HEIGHT - EDGE - (y - low) / (high - low) * (HEIGHT - 2 * EDGE)
        return f"{across:.1f},{down:.1f}"

    out = [f'<g transform="translate({left},0)"><text x="{EDGE}" y="20" font-weight="bold">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        y = low + share * (high - low)
        across, down = place(0, y).split(",")
        end = place(right, y).split(",")[0]
        out.append(f'<line x1="{across}" x2="{end}" y1="{down}" y2="{down}" stroke="#ddd"/>')
        out.append(f'<text x="{EDGE - 4}" y="{down}" text-anchor="end">{y:.3g}</text>')
        across = place(share * right, low).split(",")[0]
        out.append(f'<text x="{across}" y="{HEIGHT - EDGE + 16}" text-anchor="middle">{share * right:.3g}</text>')
    out.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">million positions</text>')
    for i, (name, points) in enumerate(named.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.append(f'<text x="{WIDTH - EDGE}" y="{36 + 14 * i}" text-anchor="end" fill="{colour}">{name}</text>')
    for name, y in levels.items():
        down = place(0, y).split(",")[1]
        out.append(
            f'<line x1="{EDGE}" x2="{WIDTH - EDGE}" y1="{down}" y2="{down}" stroke="#888" stroke-dasharray="4 3"/>'
            f'<text x="{EDGE + 4}" y="{float(down) - 3:.1f}" fill="#666">{name}</text>'
        )
    return "\n".join([*out, "</g>"])


def draw(points: Sequence[dict[str, Any]], levels: Mapping[str, float]) -> str:
    """Losses while training, held-out losses, and exact match of drafts beside the copying baselines."""
    training = {"next token": series(points, "ar", False), "canvas": series(points, "canvas", False)}
    losses = {
        name: series(points, key, True)
        for name, key in (
            ("next token", "ar"),
            ("canvas, all noise", "canvas t1"),
            ("the same, refined", "canvas t1 refined"),
            ("canvas, half noise", "canvas t5"),
        )
    }
    exact = {"drafts": series(points, "exact", True), "their first line": series(points, "exact first line", True)}
    panels = [
        panel("training loss, nats", {k: v for k, v in training.items() if v}, {}, 0),
        panel("held-out loss, nats", losses, {}, WIDTH),
        panel("held-out lines, exact %", exact, levels, 2 * WIDTH),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * WIDTH}" height="{HEIGHT}" font-family="sans-serif"'
    return f'{head} font-size="11"><rect width="100%" height="100%" fill="white"/>\n' + "\n".join(panels) + "\n</svg>\n"


def main() -> None:
    """`train_plots CURVE.jsonl OUT.svg [NAME=LEVEL...]`"""
    curve, out, *levels = sys.argv[1:]
    named = {name: float(value) for name, _, value in (level.partition("=") for level in levels)}
    Path(out).write_text(draw(read_points(Path(curve)), named), encoding="utf-8")


if __name__ == "__main__":
    main()
