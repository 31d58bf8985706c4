"""Trains the test fixture: `python tests/overfit.py --minutes 20` writes tests/data/overfitted.

A starter is taught `overfit_text` by heart: it knows how canvases work already, and only has the text to learn. What
the engine makes of such a model says how good the engine is, since the model knows every answer. It is asked in
training what the tests ask, in the engine's own words: prompts, tails and healed seams are those of a fill. Minutes are
processor time; a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from overfitted import FIXTURE, PURE, WIDEST, load, samples_of, sources
from safetensors.torch import load_file

from stopgap.infill import pipeline
from stopgap.infill.checkpoints import open_source
from stopgap.infill.engine import STARTER, InfillEngine
from stopgap.infill.feed import Feed, order
from stopgap.infill.holes import locate
from stopgap.infill.importing import import_model
from stopgap.infill.learner import from_checkpoint
from stopgap.infill.objective import Rng, Rows, spoil
from stopgap.infill.scoring import Contender
from stopgap.infill.shards import Shard
from stopgap.infill.suites import Sample
from stopgap.infill.training import Trainer
from stopgap.infill.training_config import MARKERS, PAD, Config, Phase, Progress, phase_at, read_config

CONFIG = Path(__file__).with_suffix(".toml")
DECAY = 0.5
"""Share of the time in which the rates fall to zero."""
FIRST = 3.0
"""Loss weight of a hole's first slot: it goes on with an open word, and what the others say follows from it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the engine shows a model of one hole, and what should come back."""

    prompt: list[int]
    truth: list[int]
    """Ids of the hole, with what its first token repeats (token healing)."""
    tail: list[int]


def question(engine: InfillEngine, sample: Sample) -> Question:
    """As `InfillEngine` and `Filling` do it."""
    request = Contender("overfit", engine).request(sample, 0)
    source = engine._parse(request)
    hole = locate(source, request)
    prompt = engine._prompt(source, hole, request, engine.tokenizer.bytes_per_token(source.text[: hole.start]))
    core = sample.truth.encode().removeprefix(hole.lead).removesuffix(hole.tail)
    return Question(prompt.ids, engine.tokenizer.encode(prompt.overlap + core), prompt.tail)


def questions(length: int, each: int, seed: int) -> list[Question]:
    """About `each` holes a module of either kind that the tests ask for, by an engine that shows `length` tokens."""
    starter = load(STARTER)
    card = starter.card | {"context_length": length}
    engine = InfillEngine(starter.model, starter.tokenizer, card, clock=starter.clock, strategy=PURE)
    draw = random.Random(seed)
    samples = [sample for name, text in sources().items() for sample in samples_of(name, text, draw, each)]
    made = [question(engine, sample) for sample in samples if sample.truth.strip()]
    return [one for one in made if len(one.truth) <= WIDEST]


class Questions(Feed):
    """Rows of questions in place of windows of a shard."""

    def __init__(self, known: Sequence[Question], config: Config) -> None:
        none = np.zeros(0, dtype=np.int64)
        super().__init__(Shard(**{field.name: none for field in fields(Shard)}), config)
        self.known, self.config = known, config

    def take(self, progress: Progress) -> tuple[Rows, bool]:
        phase = phase_at(self.config, progress.positions)
        rng = np.random.default_rng((self.config.seed, 7, progress.step))
        asked = order(len(self.known), self.config.seed, progress.holes, phase.rows)
        made = rows([self.known[index] for index in asked], phase, self.config, rng)
        return made, bool(rng.random() < self.config.self_conditioning)


def rows(asked: Sequence[Question], phase: Phase, config: Config, rng: Rng) -> Rows:
    """`objective.rows`' arrays, a row a question: its first canvas has no spare slot, the others have some or many."""
    near, shape = config.noise.near, (len(asked), phase.canvases, phase.slots)
    length = max(len(one.prompt) + len(one.truth) for one in asked)
    ids = np.full((len(asked), length + 1), PAD, dtype=np.int64)
    weight = np.zeros((len(asked), length), dtype=np.float32)
    truth = np.full(shape, PAD, dtype=np.int64)
    hole, used, spare = (np.zeros(shape, dtype=np.bool_) for _ in range(3))
    cut = np.ones(shape[:2], dtype=np.int64)
    for row, one in enumerate(asked):
        at, size = len(one.prompt), len(one.truth)
        ids[row, : at + size + 1] = [*one.prompt, *one.truth, MARKERS.end]
        weight[row, : at - 1] = 1.0
        weight[row, at - 1 : at + size] = config.hole_weight
        cut[row] = at
        for k in range(phase.canvases):
            most = phase.slots - near[0] - size
            some = min(most, 3 + size) if rng.random() < 0.7 else most
            free = size + (int(rng.integers(0, some + 1)) if k else 0)
            tail = one.tail[: min(phase.slots - free, int(rng.integers(near[0], near[1] + 1)))]
            truth[row, k, : free + len(tail)] = [*one.truth, *[MARKERS.delete] * (free - size), *tail]
            hole[row, k, :free] = True
            spare[row, k, size + 1 : free] = True
            used[row, k, : free + len(tail)] = True
    weight[np.isin(ids[:, 1:], (MARKERS.bos, MARKERS.suffix, MARKERS.prefix, PAD))] = 0.0
    canvas, spoilt = spoil(truth, hole, config.noise, config.shape.vocabulary, rng)
    noisy = np.where(spoilt, 1.0, config.noise.clean_weight)
    canvas_weight = noisy * np.where(spare, config.noise.spare_weight, 1.0) * hole
    canvas_weight[..., 0] *= FIRST
    return Rows(ids, weight, canvas, truth, canvas_weight.astype(np.float32), hole, used, cut)


def train(minutes: float, folder: Path, out: Path, weights: Path = STARTER) -> None:
    """All of it in `folder`, which may hold an unfinished run, else from `weights`; the packed model goes to `out`."""
    knobs, document = read_config(CONFIG)
    folder.mkdir(parents=True, exist_ok=True)
    known = questions(knobs.phases[-1].length, document["holes"]["each"], document["holes"]["seed"])
    print(f"{len(known)} questions, {sum(len(one.truth) for one in known) / len(known):.1f} slots each", flush=True)
    feed = Questions(known, knobs)
    trainer = Trainer(knobs, feed.shard, folder, torch.device("cpu"))
    trainer.feed = feed
    if not trainer.load():
        from_checkpoint(trainer.learner, load_file(weights / "model.safetensors"))

    def log(point: dict[str, Any]) -> None:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in point.items()}, flush=True)

    stable = 60 * minutes * (1 - DECAY) - trainer.progress.seconds
    if stable > 0:
        begun = trainer.progress.seconds
        trainer.run(stable, time.process_time, log)
        if trainer.progress.seconds - begun < stable:
            return  # told to stop; the same command goes on from here
    trainer.run(60 * minutes * DECAY, time.process_time, log, decay=True)
    save(trainer, out)


def save(trainer: Trainer, out: Path) -> None:
    """What the trainer holds, in int8."""
    whole = trainer.folder / "export"
    pipeline.export(trainer, STARTER / "tokenizer.json", whole)
    card = json.loads((whole / "stopgap.json").read_text(encoding="utf-8"))
    (whole / "stopgap.json").write_text(json.dumps(card | {"name": "overfitted"}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    import_model(
        open_source(whole), out, 8, clock=time.process_time, progress=lambda _: None, origin="tests/overfit.py"
    )


def main() -> None:
    """Read the options and train."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--minutes", type=float, default=20, help="processor time")
    reader.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stopgap-overfit")
    reader.add_argument("--out", type=Path, default=FIXTURE)
    reader.add_argument("--weights", type=Path, default=STARTER, help="a starter's folder to begin from")
    given = reader.parse_args()
    torch.set_num_threads(1)
    train(given.minutes, given.folder, given.out, given.weights)


if __name__ == "__main__":
    main()
