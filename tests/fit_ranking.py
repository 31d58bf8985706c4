"""Fits the weights by which a model's fills are ranked on held-out code, never on what is reported.

    python -P tests/fit_ranking.py FOLDER… --pools FILE [--model FOLDER] [--write]

Fills holes with the model and keeps of each fill its features and how near it comes to the truth, one line a hole in
`--pools` (a killed run goes on there; remove it for another model). Then the weights are those of a softmax over the
fills of a hole that comes closest to one over their worth, similarity and one more for the very text. Printed beside
them: what they choose in files they were not fitted on, what the likelihood alone chooses, and the best there was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stopgap.infill import cuts
from stopgap.infill.contract import FillError, Outcome
from stopgap.infill.engine import STARTER, InfillEngine, load_engine
from stopgap.infill.files import write_whole
from stopgap.infill.metrics import similarity
from stopgap.infill.ranking import FEATURES, Ranking, features
from stopgap.infill.scoring import Contender, put_in
from stopgap.infill.similar import Page
from stopgap.infill.suites import Sample

Floats = NDArray[np.float64]
HOLES: dict[cuts.Kind, int] = {"line": 240, "tail": 60}
SEED = 5
SHARPNESS = 6.0
"""What the worth is multiplied by before its softmax."""
DECAY = 0.02
"""Of the squared weights, their features scaled to unit variance."""


class Recorder(Ranking):
    """Ranks as it was told to and remembers on what grounds."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(FEATURES, 0.0) | {"likely": 1.0})
        self.given: dict[bytes, tuple[float, ...]] = {}

    def rank(self, page: Page, text: bytes, ways: int, likely: Sequence[float]) -> float:
        self.given[text.strip()] = features(page, text, ways, likely)
        return super().rank(page, text, ways, likely)


@dataclass(frozen=True, slots=True)
class Pool:
    """The fills of one hole: features [n, F], whether each is the truth [n], its similarity to it [n]."""

    file: str
    features: Floats
    exact: Floats
    similarity: Floats


def gathered(engine: InfillEngine, folders: Sequence[Path], path: Path) -> list[Pool]:
    known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    recorder = Recorder()
    engine.ranking = recorder
    asked = Contender("", engine, candidates=100)
    samples = itertools.chain.from_iterable(
        itertools.islice(cuts.holes(folders, count, SEED, (kind,)), count) for kind, count in HOLES.items()
    )
    with path.open("a", encoding="utf-8") as file:
        for sample in itertools.islice(samples, len(known), None):
            recorder.given.clear()
            try:
                *_, outcome = engine.fill(asked.request(sample, 0), lambda: False)
                assert isinstance(outcome, Outcome)
                rows = list(_rows(sample, outcome, recorder))
            except FillError:
                rows = []
            file.write(json.dumps({"file": sample.cluster, "fills": rows}) + "\n")
            file.flush()
            known.append("")
            print(f"\r{len(known)} of {sum(HOLES.values())} holes", end="", flush=True)
    print()
    return [
        Pool(made["file"], *(np.array([row[i] for row in made["fills"]], np.float64) for i in range(3)))
        for made in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def _rows(sample: Sample, outcome: Outcome, recorder: Recorder) -> Iterator[tuple[Sequence[float], bool, float]]:
    for fill in outcome.fills:
        if (given := recorder.given.get(fill.text.encode().strip())) is not None:
            text = put_in(sample, replace(outcome, fills=(fill,))) or ""
            yield given, text.rstrip() == sample.truth.rstrip(), similarity(text, sample.truth)


def fitted(pools: Sequence[Pool]) -> Floats:
    """One weight per feature: cross-entropy to the softmax of the fills' worth, over the holes with a choice."""
    pools = [pool for pool in pools if len(pool.exact) > 1]
    x = np.concatenate([pool.features for pool in pools])
    scale = x.std(axis=0) + 1e-6
    inputs = torch.tensor(x / scale)
    sizes = [len(pool.exact) for pool in pools]
    worth = torch.tensor(np.concatenate([pool.similarity + pool.exact for pool in pools]))
    aim = torch.cat([part.softmax(0) for part in torch.split(SHARPNESS * worth, sizes)])
    weights = torch.zeros(len(scale), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimiser.zero_grad()
        said = torch.cat([part.log_softmax(0) for part in torch.split(inputs @ weights, sizes)])
        value = -(aim * said).sum() / len(sizes) + DECAY * (weights**2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimiser.step(loss)
    return weights.detach().numpy() / scale


def chosen(pools: Sequence[Pool], weights: Floats) -> Floats:
    """[2] sums of exact matches and of similarities of the fills that `weights` put first."""
    total = np.zeros(2)
    for pool in pools:
        if len(pool.exact):
            best = int(np.argmax(pool.features @ weights))
            total += pool.exact[best], pool.similarity[best]
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--pools", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=STARTER)
    parser.add_argument("--write", action="store_true", help="put the weights on the model's card, stopgap.json")
    asked = parser.parse_args()
    engine = load_engine(
        str(asked.model), engine="stopgap", device="cpu", threads=1, clock=time.process_time, progress=lambda *_: None
    )
    pools = gathered(engine, asked.folders, asked.pools)
    likely = np.array([float(name == "likely") for name in FEATURES])
    left_out = np.zeros(2)
    for file in sorted({pool.file for pool in pools}):
        weights = fitted([pool for pool in pools if pool.file != file])
        left_out += chosen([pool for pool in pools if pool.file == file], weights)
    best = sum(np.array([pool.exact.max(), pool.similarity.max()]) for pool in pools if len(pool.exact))
    for name, total in (("likelihood", chosen(pools, likely)), ("fitted, left out", left_out), ("best there", best)):
        exact, alike = 100 * np.asarray(total) / len(pools)
        print(f"{name:18} exact {exact:5.1f} %  similarity {alike:5.1f} %")
    weights = {name: round(float(weight), 3) for name, weight in zip(FEATURES, fitted(pools), strict=True)}
    print(json.dumps(weights, indent=1))
    if asked.write:
        card = asked.model / "stopgap.json"
        made = json.loads(card.read_text(encoding="utf-8")) | {"ranking": weights}
        write_whole(card, json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
