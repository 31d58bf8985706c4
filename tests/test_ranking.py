"""What speaks for a fill besides its likelihood, and the weights on a model's card."""

import json

import pytest

from stopgap.infill.contract import FillError
from stopgap.infill.engine import STARTER
from stopgap.infill.ranking import FEATURES, Ranking, features, on_card
from stopgap.infill.similar import Page

PAGE = Page(b"open()\nread()\nclose()\n\nopen()\n", b"\nclose()\n")


def given(text: bytes, ways: int = 1, likely: tuple[float, ...] = (-1.0, -1.0, -2.0, 0.0)) -> dict[str, float]:
    return dict(zip(FEATURES, features(PAGE, text, ways, likely), strict=True))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("likely", b"read()", -2.0),
        ("found", b"read()", 1.0),
        ("found", b"write()", 0.0),
        ("doubles", b"open()", 1.0),
        ("doubles", b"read()", 0.0),
        ("foretells", b"close()", 1.0),
        ("foretells", b"read()", 0.0),
        ("alike", b"write()", 0.0),
    ],
)
def test_what_the_file_says_of_a_fill(name: str, text: bytes, value: float) -> None:
    assert given(text)[name] == value


def test_the_likelihood_is_over_the_root_of_the_length_so_that_neither_short_nor_long_fills_win_by_it() -> None:
    assert given(b"read()", likely=(-1.0,) * 4)["likely"] == -2.0
    assert given(b"read()", likely=(-1.0,) * 16)["likely"] == -4.0


def test_a_fill_that_came_in_several_ways_says_so() -> None:
    assert given(b"read()", ways=3)["agreed"] == 2.0


def test_the_first_line_of_many_is_what_the_file_is_asked_about() -> None:
    assert given(b"read()\nread()")["found"] == 1.0


def test_fills_are_ranked_by_the_weighted_sum() -> None:
    made = Ranking(dict.fromkeys(FEATURES, 0.0) | {"likely": 1.0, "found": 5.0})
    assert made.rank(PAGE, b"read()", 1, (-4.0,)) == 1.0
    assert made.rank(PAGE, b"write()", 1, (-0.5,)) == -0.5


def test_the_starters_card_has_weights_that_trust_the_model_and_like_places() -> None:
    made = on_card(json.loads((STARTER / "stopgap.json").read_text()))
    assert made is not None
    weights = dict(zip(FEATURES, made.weights, strict=True))
    assert weights["likely"] > 0 and weights["alike"] > 0
    assert made.rank(PAGE, b"read()", 1, (-2.0, -2.0)) > made.rank(PAGE, b"write()", 1, (-2.0, -2.0))


def test_a_card_without_weights_leaves_it_to_the_likelihood_and_one_with_wrong_ones_says_what_is_missing() -> None:
    assert on_card({"name": "other"}) is None
    for weights in ({"likely": 1.0}, [1.0]):
        with pytest.raises(FillError, match="one weight for each of likely, length, found"):
            on_card({"ranking": weights})
