"""The step benchmark: it runs on any model, and the number of operations a step may not creep up."""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path

import pytest
from tiny_models import build, random_shape, save

from stopgap.infill import bench


def test_every_engine_has_a_line_for_both_canvases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "operations", lambda: "operations")
    folder, ticks = save(build(9, **random_shape(9)), tmp_path), count()
    table = bench.step(
        folder,
        clock=lambda: float(next(ticks)),
        own_clock=lambda: 0.5 * next(ticks),
        prefix_tokens=20,
        free_slots=4,
        repeats=3,
    )
    assert "4 free + 0 clamped slots" in table and "4 free + 4 clamped slots" in table
    engines = ["transformers, float32", "transformers, bfloat16", "stopgap, float32", "stopgap, int8"]
    lines = re.findall(r"^ +(\S+, \S+) +2000\.00 +1\.00x +1000\.00 +1\.00x$", table, flags=re.MULTILINE)
    assert lines == engines * 2


@pytest.mark.slow
def test_a_step_stays_below_1500_operations_on_a_gpus_path() -> None:
    """On 30 layers of 128 experts; transformers takes about 5,400 in the same count."""
    found = re.search(r"transformers (\d+), stopgap (\d+) on a GPU", bench.operations())
    assert found
    theirs, ours = map(int, found.groups())
    assert ours <= 1500 and theirs > 3 * ours
