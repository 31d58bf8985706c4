"""The search for block sizes finds the bottom of a valley, and runs from end to end in Triton's interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tune_kernels import STEPS, climb, main, neighbours

pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")

from stopgap.kernels import tuned
from stopgap.kernels.tuned import Blocks

START = Blocks(16, 32, 4, 4, 3)


def cost(cut: Blocks) -> float:
    """A valley whose bottom is at outputs 128, 5 stages and 8 warps with a slice each."""
    if cut.stages == 2:
        return float("inf")
    return 10.0 + abs(cut.outputs - 128) / 16 + abs(cut.stages - 5) + abs(cut.warps - 8) + cut.rows / 16


def test_a_valley_is_walked_to_its_bottom() -> None:
    best, ms, before, tried = climb(START, cost, lambda: True)
    assert (best, ms, before) == (Blocks(16, 128, 8, 8, 5), 11.0, cost(START))
    assert tried < 40


def test_what_is_fixed_stays_and_time_ends_the_search() -> None:
    assert all(cut.rows == 16 for cut in neighbours(START, ("rows",)))
    asked = iter([True, True] + [False] * 99)
    assert climb(START, cost, lambda: next(asked))[3] <= 3


def test_every_neighbour_is_a_cut_that_the_kernels_take() -> None:
    for cut in neighbours(START):
        assert all(value in STEPS[name] for name, value in cut._asdict().items())
        assert cut.slices in (1, cut.warps)


@pytest.mark.slow
def test_the_whole_search_runs_in_the_interpreter(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    found = main(["--device", "cpu", "--small", "--seconds", "0", "--out", str(tmp_path), "--table", str(folder)])
    (path,) = tmp_path.glob("*.json")
    assert json.loads(path.read_text())["found"] == json.loads(json.dumps(found))
    assert [line["table"] for line in found] == ["experts", "products"]
    assert all(line["ms"] <= line["ms_before"] < float("inf") for line in found)
    best = tuned.read(folder / "interpreter.toml")
    assert [cut._asdict() for cut in (*best.experts.values(), *best.products.values())] == [
        line["best"] for line in found
    ]
