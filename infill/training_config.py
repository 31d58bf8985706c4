"""The knobs of a training run, read from one TOML file, and the place a run has reached.

Knows names and numbers only: no tensors, no shards, no files but the config.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .learner import Shape
from .objective import Noise
from .prompt import InfillMarkers
from .shards import SPECIALS

MARKERS = InfillMarkers(*(SPECIALS.index(name) for name in ("<bos>", "<suf>", "<pre>", "<end>", "<del>")))
PAD = SPECIALS.index("<pad>")


class TrainingError(Exception):
    """A run that cannot start as configured; `str()` says what to change."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of training with one kind of batch; phases follow one another by positions seen."""

    until: float
    """Millions of encoder positions seen at which the phase ends."""
    length: int
    rows: int
    canvases: int = 0
    slots: int = 64
    canvas_loss: float = 1.0
    ar_loss: float = 1.0


@dataclass(frozen=True, slots=True)
class Config:
    seed: int = 1
    muon: bool = True
    """Muon for the matrices; False = AdamW for everything."""
    matrix_rate: float = 0.004
    """Muon's rate (matched to AdamW's update size)."""
    vector_rate: float = 0.004
    """AdamW's rate for the embedding and the norms."""
    decay: float = 0.02
    warmup: int = 100
    clip: float = 1.0
    hole_weight: float = 1.0
    self_conditioning: float = 0.5
    checkpoint_seconds: float = 120.0
    evaluate_seconds: float = 600.0
    compile: bool = True
    workers: int = 0
    """Processes that make rows ahead of the device; 0 makes them in line, which is right for a CPU."""
    phases: tuple[Phase, ...] = (Phase(1e9, 256, 16),)
    noise: Noise = field(default_factory=Noise)
    shape: Shape = field(default_factory=Shape)


def read_config(path: Path) -> tuple[Config, dict[str, Any]]:
    """The run's knobs and the whole TOML document (other stages read their own tables of it)."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"cannot read the training config {path}: {error}") from None
    table = dict(document.get("train", {}))
    try:
        phases = tuple(Phase(**p) for p in table.pop("phases"))
        noise = dict(table.pop("noise", {}))
        if "near" in noise:
            noise["near"] = tuple(noise["near"])
        shape = Shape(**table.pop("shape", {}))
        return Config(**table, phases=phases, noise=Noise(**noise), shape=shape), document
    except (TypeError, KeyError) as error:
        raise TrainingError(f"{path}, table [train]: {error}") from None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run stands; all of it is in the checkpoint."""

    step: int = 0
    positions: int = 0
    """Encoder positions seen, padding included."""
    slots: int = 0
    """Canvas slots seen, empty ones included."""
    holes: int = 0
    """Holes taken from the data order."""
    seconds: float = 0.0
    """Time in the loop, by the caller's clock."""

    def after(self, phase: Phase) -> Progress:
        """One step of `phase` further."""
        return replace(
            self,
            step=self.step + 1,
            positions=self.positions + phase.rows * phase.length,
            slots=self.slots + phase.rows * phase.canvases * phase.slots,
            holes=self.holes + phase.rows,
        )


def phase_at(config: Config, positions: int) -> Phase:
    """The phase that covers `positions`; the last one has no end."""
    for phase in config.phases:
        if positions < phase.until * 1e6:
            return phase
    return config.phases[-1]


def trained_length(config: Config, positions: int) -> int:
    """Longest rows of the phases that have begun."""
    begins = (0.0, *(phase.until for phase in config.phases))
    return max(p.length for p, begin in zip(config.phases, begins, strict=False) if begin * 1e6 <= positions)


def trained_slots(config: Config, positions: int) -> int:
    """Most slots of a canvas in the phases that have begun; of any phase, before the first with canvases."""
    begins = (0.0, *(phase.until for phase in config.phases))
    pairs = [(p, begin * 1e6 <= positions) for p, begin in zip(config.phases, begins, strict=False) if p.canvases]
    begun = [phase.slots for phase, has_begun in pairs if has_begun]
    return max(begun or [phase.slots for phase, _ in pairs] or [64])
