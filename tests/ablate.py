"""What a choice of the training is worth: `python -P tests/ablate.py NAME=VALUE... --seconds 150 --seeds 3 --out FILE`.

Every variant of `infill/data/starter.toml` trains for the same processor time with the rates falling to zero, from the
same checkpoint or from scratch, and is then judged on holes of the held-out packages. One JSON line a run; runs that
are in FILE already are left out, so an interrupted table goes on. A variant's changes are joined by commas:
"phase.canvases=8,phase.rows=6", "noise.full=0.2", "muon=false".
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from rich.console import Console

from stopgap.infill import heldout
from stopgap.infill.pipeline import default_config, default_folder
from stopgap.infill.shards import Shard
from stopgap.infill.training import Trainer, append_line
from stopgap.infill.training_config import MARKERS, Config, Phase, read_config

LOSSES = ("ar", "canvas t1", "canvas t1 refined", "canvas t5")


def changed(config: Config, changes: str) -> Config:
    """`config` with "name=value" pairs set, values as JSON; `phase.` is the only phase, `noise.` the noise."""
    parts: dict[str, dict[str, Any]] = {"": {}, "phase": {}, "noise": {}}
    for change in changes.split(",") if changes != "as it is" else []:
        name, _, value = change.partition("=")
        owner, _, field = name.rpartition(".")
        parts[owner][field] = json.loads(value.replace("+", ","))
    if "near" in parts["noise"]:
        parts["noise"]["near"] = tuple(parts["noise"]["near"])
    phase = replace(config.phases[0], **parts["phase"])
    return replace(config, noise=replace(config.noise, **parts["noise"]), phases=(phase,), **parts[""])


def run(config: Config, start: Path | None, seconds: float, train: Shard, packages: Shard) -> dict[str, float]:
    """Train for `seconds` of processor time, compiling left out; held-out losses in nats."""
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        warm = Trainer(config, train, Path(folder), device)
        for _ in range(6):  # with and without self-conditioning, so that both are compiled
            warm.step(0.0)
        trainer = Trainer(config, train, start.parent if start else Path(folder), device)
        if start:
            trainer.load([start.name])
        trainer.folder = Path(folder)
        before = trainer.progress.positions
        trainer.run(seconds, time.process_time, lambda _: None, decay=True)
        found = heldout.losses(trainer.learner, packages, MARKERS, 256, 256)
        return {"positions": float(trainer.progress.positions - before), **found}


def table(points: list[dict[str, Any]]) -> str:
    """Markdown: mean over seeds, and the range where there are several."""
    lines = [f"| variant | seeds | positions | {' | '.join(LOSSES)} |", "|---|--:|--:|" + "--:|" * len(LOSSES)]
    for variant in dict.fromkeys(point["variant"] for point in points):
        some = [point for point in points if point["variant"] == variant]
        cells = [variant, str(len(some)), f"{mean(p['positions'] for p in some) / 1000:.0f} k"]
        for name in LOSSES:
            values = [p[name] for p in some]
            cells.append(f"{mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the table."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("variants", nargs="*", metavar="NAME=VALUE")
    reader.add_argument("--from", dest="start", type=Path, help="a checkpoint; from scratch without it")
    reader.add_argument("--seconds", type=float, default=150)
    reader.add_argument("--seeds", type=int, default=1)
    reader.add_argument("--canvases", type=int, default=4, help="canvases a row in rows of 256; 0 = next token only")
    reader.add_argument("--out", type=Path, required=True)
    given = reader.parse_args()
    torch.set_num_threads(1)
    folder, console = default_folder(), Console()
    base, _ = read_config(default_config())
    base = replace(base, phases=(Phase(until=1e9, length=256, rows=12, canvases=given.canvases, slots=64),))
    done = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    train, packages = Shard.load(folder / "train.npz"), Shard.load(folder / "heldout-package.npz")
    for seed in range(1, given.seeds + 1):
        for variant in ("as it is", *given.variants):
            if any(point["variant"] == variant and point["seed"] == seed for point in done):
                continue
            config = replace(changed(base, variant), seed=seed)
            point = {"variant": variant, "seed": seed, **run(config, given.start, given.seconds, train, packages)}
            append_line(given.out, point)
            done.append(point)
            console.print({k: round(v, 3) if isinstance(v, float) else v for k, v in point.items()})
    console.print(table(done), soft_wrap=True)


if __name__ == "__main__":
    main()
