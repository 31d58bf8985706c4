"""How many launches a captured step is: a bound, so that what was fused stays fused."""

from __future__ import annotations

from dataclasses import replace

import count_launches
import pytest
import torch
from count_launches import by_part, count, report

from stopgap.infill.planner import real_model
from stopgap.kernels import path

SINGLE = ("gated", "heads", "attention", "combine", "choose", "group", "gate_up", "down", "add")
A_LAYER = {"matmul_kernel": 3, "mm": 1, "residual_kernel": 2} | {f"{name}_kernel": 1 for name in SINGLE}
"""What may be launched for one layer: another fusion lowers a number here."""


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    monkeypatch.setenv(path.SWITCH, "triton")


@pytest.mark.parametrize("sliding", [True, False])
def test_a_layer_of_the_26b_is_fifteen_launches_and_copies_no_prefix(sliding: bool) -> None:
    config = real_model()
    first, *_ = config.layers
    another = next(shape for shape in config.layers if shape.sliding == sliding)
    one, two = (count(replace(config, layers=layers), slots=32, prefix=512) for layers in ((first,), (first, another)))
    found = {name: kind.count - (one[name].count if name in one else 0) for name, kind in two.items()}
    assert {name: number for name, number in found.items() if number} == A_LAYER
    assert sum(A_LAYER.values()) == 15


def test_what_a_step_does_beside_its_layers_depends_on_none_of_its_sizes() -> None:
    few = replace(real_model(), layers=real_model().layers[:1])
    sizes = ((16, 512, 1), (64, 1024, 4))
    small, large = (count(few, slots=slots, prefix=prefix, rows=rows) for slots, prefix, rows in sizes)
    own = {name: kind.count for name, kind in small.items()}
    # With so many rows of queries the keys are not cut into spans.
    assert own == {name: kind.count for name, kind in large.items()} | {"combine_kernel": 1}
    assert sum(own.values()) <= 185


def test_the_report_adds_up() -> None:
    few = replace(real_model(), layers=real_model().layers[:1])
    kinds = count(few, slots=16, prefix=512)
    parts = by_part(kinds)
    assert sum(part.count for part in parts.values()) == sum(kind.count for kind in kinds.values())
    assert f"{sum(kind.count for kind in kinds.values())} launches" in report(kinds)


def test_views_are_no_launches_and_copies_are() -> None:
    kinds: count_launches.Kinds = {}
    x = torch.zeros(4, 3, 2)
    with torch.inference_mode(), count_launches._Launches(kinds):
        x.view(12, 2).transpose(0, 1)
        x[:, :2].reshape(8, 2)
        x.add_(1)
    assert {name: kind.count for name, kind in kinds.items()} == {"reshape": 1, "add_": 1}
