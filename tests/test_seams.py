"""What the engine feeds the model is what training rows are made of, id for id: a model meets no seam it never saw."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from overfit_text import texts
from overfitted import load, with_strategy
from tokenizers import Tokenizer

from stopgap.infill import objective, shards
from stopgap.infill.contract import FillRequest
from stopgap.infill.corpus import SourceFile
from stopgap.infill.engine import STARTER, InfillEngine
from stopgap.infill.holes import locate, parse
from stopgap.infill.languages import LANGUAGES
from stopgap.infill.strategy import Strategy
from stopgap.infill.training_config import MARKERS

LONG = 4096
ASKED = tuple(kind for kind in shards.KINDS if kind != "span")
"""Spans also end within an indentation, which the engine always leaves whole."""


@pytest.fixture(scope="module")
def engine() -> InfillEngine:
    """One that shows all of a small file, so that there is one right answer to what it shows."""
    strategy = Strategy(context=LONG)
    starter = load(STARTER)
    card = starter.card | {"context_length": 2 * LONG}
    return InfillEngine(starter.model, starter.tokenizer, card, clock=starter.clock, strategy=strategy)


@pytest.mark.parametrize(
    ("heal", "kinds"), [(True, ASKED), (False, tuple(kind for kind in ASKED if kind != "rows"))], ids=["healed", "raw"]
)
def test_the_engine_asks_what_a_training_row_asks(engine: InfillEngine, heal: bool, kinds: tuple[str, ...]) -> None:
    text = texts()["graph.py"]
    source, weights = text.encode(), dict.fromkeys(kinds, 1.0)
    library = Tokenizer.from_file(str(STARTER / "tokenizer.json"))
    shard = shards.build(
        [SourceFile("p", "graph.py", "train", text)], library, weights, 4, LONG, LONG, seed=3, healed=float(heal)
    )
    spans = shards.holes(source, len(shard.tokens) // 4, weights, LONG, random.Random(3))
    assert len(spans) == len(shard) > 100
    asked = with_strategy(engine, replace(engine.strategy, heal=heal))
    for index, (start, end, _) in enumerate(spans):
        row = objective.window(shard, index, LONG, MARKERS, np.random.default_rng(index))
        request = FillRequest(source, "python", start, end, "selection")
        parsed = parse(source, LANGUAGES["python"], around=start)
        hole = locate(parsed, request)
        prompt = asked._prompt(parsed, hole, request, bytes_per_token=1.0)
        assert prompt.ids == row.ids[: row.hole_at], source[start:end]
        core = source[start:end].removesuffix(hole.tail) if hole.tail else source[start:end]
        truth = engine.tokenizer.encode(prompt.overlap + core)
        assert [*truth, MARKERS.end] == row.ids[row.hole_at :], source[start:end]
        pieces = shard.pieces[slice(*shard.cuts[index, 2:])]
        assert prompt.tail == [*pieces, *shard.tokens[shard.hole_after[index] :]], source[start:end]
