"""The engine on a model that knows the text by heart: `python tests/overfitted.py --holes 400` prints the shares.

What is missed here is the engine's fault or the training's, never the task's. Knows the fixture, no deadline: the
clock stands still, so that every run says the same.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from overfit_text import texts

from stopgap.infill import cuts, engine, filling
from stopgap.infill.canvas import Row
from stopgap.infill.contract import FillRequest, Outcome
from stopgap.infill.engine import InfillEngine, told_length
from stopgap.infill.languages import LANGUAGES
from stopgap.infill.sampler import Schedule
from stopgap.infill.scoring import Contender, Score, ask, score
from stopgap.infill.shards import FIRST_TEXT_ID
from stopgap.infill.strategy import Strategy
from stopgap.infill.suites import Sample
from stopgap.infill.work import Work

FIXTURE = Path(__file__).parent / "data" / "overfitted"
PYTHON = LANGUAGES["python"]
WIDEST = 36
"""Slots of the widest hole asked for: one canvas with room for some of what follows."""

PURE = Strategy(drafts=0, retrieved=0, renamed=0)
"""Diffusion from noise alone."""
SPREAD = replace(PURE, lengths=("p50", "p75", "p90", "p99"))
"""The same where no length is told. The quantiles are those of all Python, and noise never grows: two holes in five of
this text are wider than p75, the widest the shipped strategy tries beside its drafts."""


def load(folder: Path = FIXTURE, strategy: Strategy | None = None) -> InfillEngine:
    """The fixture in fp32, whatever the processor would prefer, on one thread."""
    from stopgap.infill.tokenizer import Tokenizer
    from stopgap.infill.weights import load_model, read_json

    model = load_model(folder, int8=False, threads=1)
    tokenizer, card = Tokenizer(folder / "tokenizer.json"), dict(read_json(folder / "stopgap.json"))
    return InfillEngine(model, tokenizer, card, clock=lambda: 0.0, strategy=strategy)


def with_strategy(known: InfillEngine, strategy: Strategy) -> InfillEngine:
    return InfillEngine(known.model, known.tokenizer, known.card, clock=known.clock, strategy=strategy)


def sources() -> dict[str, bytes]:
    """The modules the fixture was taught."""
    return {name: text.encode() for name, text in texts().items()}


# -- holes ------------------------------------------------------------------------------------------


def node_holes(seed: int) -> Iterator[Sample]:
    """Nodes, lines, rests of lines and bodies, the files in turn, without end."""
    draw = random.Random(seed)
    while True:
        for name, text in sources().items():
            yield from cuts.cut(PYTHON, name, text, draw, cuts.KINDS, 2)


def inside_holes(seed: int) -> Iterator[Sample]:
    """From inside a word to the end of its line."""
    draw = random.Random(seed)
    while True:
        for name, text in sources().items():
            yield _inside(name, text, draw)


def samples_of(name: str, text: bytes, draw: random.Random, each: int) -> list[Sample]:
    """`each` holes of a module of either kind above, a few node holes less where a cut comes to nothing."""
    return cuts.cut(PYTHON, name, text, draw, cuts.KINDS, each) + [_inside(name, text, draw) for _ in range(each)]


def _inside(name: str, text: bytes, draw: random.Random) -> Sample:
    start = draw.choice([at.start() + 1 for at in re.finditer(rb"\w(?=\w)", text)])
    truth = text[start : text.index(b"\n", start)]
    source = text[:start] + text[start + len(truth) :]
    return Sample(f"{name}:{start}", "inside", "python", source, start, truth.decode(), name, name)


def holes(known: InfillEngine, kind: Callable[[int], Iterator[Sample]], count: int, seed: int = 0) -> list[Sample]:
    """The first `count` different holes of a kind that fit one canvas."""
    found: dict[str, Sample] = {}
    for sample in kind(seed):
        if len(found) == count:
            break
        if len(known.tokenizer.encode(sample.truth.encode())) <= WIDEST and sample.truth.strip():
            found.setdefault(sample.name, sample)
    return list(found.values())


# -- answers ----------------------------------------------------------------------------------------


def answers(
    known: InfillEngine, samples: Sequence[Sample], *, told: bool = False, max_steps: int | None = None
) -> list[Score]:
    """One score for each hole; with `told` the engine knows how many slots the truth has."""

    def engine_for(sample: Sample) -> InfillEngine:
        return told_length(known, sample.source, sample.start, sample.truth) if told else known

    contender = Contender("overfitted", known, max_steps=max_steps, engine_for=engine_for)
    return [score(contender, sample, ask(contender, sample, 0, known.clock)) for sample in samples]


def exact(scores: Sequence[Score]) -> float:
    return sum(one.exact for one in scores) / len(scores)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of canvases that were spoilt until the gate refused them."""

    tried: int = 0
    passes: int = 0
    right: int = 0


def repaired(known: InfillEngine, samples: Sequence[Sample], seed: int) -> Repaired:
    """Canvases that hold the truth but for one slot, which breaks the file: only rounds of repair run on them."""
    draw = random.Random(seed)
    mender = with_strategy(known, replace(PURE, schedule=Schedule(max_steps=0)))
    sum_ = Repaired()
    for sample in samples:
        tried: list[list[int]] = []
        request = FillRequest(sample.source, "python", sample.start, sample.start, "selection")
        with mock.patch.object(engine, "Filling", _seeded(sample.truth.encode(), draw, tried)):
            *_, outcome = mender.fill(request, lambda: False)
        assert isinstance(outcome, Outcome)
        if tried:
            passes = bool(outcome.fills)
            right = passes and outcome.fills[0].text.rstrip() == sample.truth.rstrip()
            sum_ = Repaired(sum_.tried + 1, sum_.passes + passes, sum_.right + right)
    return sum_


def _seeded(truth: bytes, draw: random.Random, tried: list[list[int]]) -> type[filling.Filling]:
    """A filling whose only seed is the truth with a wrong slot that the gate refuses; `tried` gets it.

    The slot that repeats an open word is left as it is: a draft that is spoilt there has no text to be repaired.
    """

    class Spoilt(filling.Filling):
        def _seed(self, *_: object) -> Generator[Work, None, list[Row]]:
            yield from ()
            right = self.tokenizer.encode(self.prompt.overlap + self._core(truth))
            slots = range(1 if self.prompt.overlap else 0, len(right))
            for _attempt in range(20 if slots else 0):
                bad = list(right)
                bad[draw.choice(slots)] = draw.randrange(FIRST_TEXT_ID, len(self.tokenizer))
                if not self.judge.verdict(bad).ok:
                    tried.append(bad)
                    row = self._row(bad, "draft")
                    row.draft = bad
                    return [row]
            return []

    return Spoilt


def main() -> None:
    """Print every share."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--holes", type=int, default=400)
    reader.add_argument("--model", type=Path, default=FIXTURE)
    given = reader.parse_args()
    torch.set_num_threads(1)
    shipped = load(given.model)
    pure, spread = (with_strategy(shipped, one) for one in (PURE, SPREAD))
    for name, kind in (("nodes, lines, rests, bodies", node_holes), ("from inside a word", inside_holes)):
        samples = holes(shipped, kind, given.holes)
        rows = [
            ("noise, true length", answers(pure, samples, told=True)),
            ("noise, length unknown", answers(spread, samples)),
            ("all ways", answers(shipped, samples)),
            ("noise, true length, 8 steps", answers(pure, samples, told=True, max_steps=8)),
            ("noise, true length, 32 steps", answers(pure, samples, told=True, max_steps=32)),
        ]
        for what, scores in rows:
            shown = sum(one.shown for one in scores) / len(scores)
            steps = sum(one.steps for one in scores) / len(scores)
            found = f"exact {100 * exact(scores):5.1f} %  shown {100 * shown:5.1f} %  steps {steps:.1f}"
            print(f"{name:28} {what:30} {found}", flush=True)
    mended = repaired(shipped, holes(shipped, node_holes, given.holes), 0)
    print(f"repair: {mended.tried} spoilt, {mended.passes} pass the gate again, {mended.right} are right again")


if __name__ == "__main__":
    main()
