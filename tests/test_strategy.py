"""Strategies varied by text, as `stopgap eval --vary` does."""

import pytest

from stopgap.infill.contract import FillError
from stopgap.infill.strategy import Strategy, vary


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ("tail=0", "tail", 0),
        ("denoise=false", "denoise", False),
        ("lengths=p50+p90", "lengths", ("p50", "p90")),
        ("lengths=none", "lengths", ()),
        ("rank=canvas", "rank", "canvas"),
        ("tail=0, end_bonus=0.5", "end_bonus", 0.5),
    ],
)
def test_a_field_is_set_and_the_rest_stays(changes: str, name: str, value: object) -> None:
    varied = vary(Strategy(), changes)
    assert getattr(varied, name) == value
    assert varied.rows == Strategy().rows


@pytest.mark.parametrize(
    ("canvas", "slots", "beside_8", "beside_widest"), [(64, 48, 32, 16), (40, 24, 32, 16), (4096, 96, 32, 32)]
)
def test_a_canvas_is_never_wider_than_the_model_was_trained_on(
    canvas: int, slots: int, beside_8: int, beside_widest: int
) -> None:
    fitted = Strategy().fitted(canvas)
    assert fitted.slots == slots
    assert (fitted.tail_beside(8), fitted.tail_beside(slots)) == (beside_8, beside_widest)
    assert all(hole + fitted.tail_beside(hole) <= canvas for hole in range(1, slots + 1))


def test_without_a_tail_the_hole_may_have_the_whole_canvas() -> None:
    assert Strategy(tail=0).fitted(64).slots == 64


def test_fields_of_the_schedule_are_reached_by_name() -> None:
    assert vary(Strategy(), "max_steps=3,bound=0.5").schedule.max_steps == 3
    assert vary(Strategy(), "max_steps=3,bound=0.5").schedule.bound == 0.5


@pytest.mark.parametrize("changes", ["nonsense=1", "tail", "tail=many", "denoise=perhaps", "schedule=1"])
def test_what_cannot_be_set_is_one_clear_line(changes: str) -> None:
    with pytest.raises(FillError) as error:
        vary(Strategy(), changes)
    assert "\n" not in str(error.value)
