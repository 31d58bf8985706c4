"""What a pass will take, learnt from passes whose time was made up."""

from typing import cast

import pytest
import torch

from stopgap.infill.pace import Pace
from stopgap.infill.prefix import PrefixCache
from stopgap.infill.work import Encode, Logits, Score

CACHE = cast(PrefixCache, None)


def encode(size: int) -> Encode:
    return Encode(CACHE, [0] * size)


def test_nothing_is_expected_of_a_pass_that_never_ran() -> None:
    pace = Pace()
    pace.learn(encode(100), 10)
    assert pace.ms(Score, 100) == 0


def test_a_pass_of_a_known_size_takes_as_long_again() -> None:
    pace = Pace()
    pace.learn(encode(100), 10)
    pace.learn(Logits(torch.empty(1, 1)), 3)
    assert pace.ms(Encode, 100) == pytest.approx(10)
    assert pace.ms(Logits, 1) == 3


def test_an_unknown_size_goes_by_the_nearest_one() -> None:
    pace = Pace()
    pace.learn(encode(1), 4)
    pace.learn(encode(100), 10)
    assert pace.ms(Encode, 200) == pytest.approx(20)
    assert pace.ms(Encode, 2) == pytest.approx(8)


def test_one_slow_pass_weighs_little_and_is_forgotten_though_none_runs_any_more() -> None:
    pace = Pace()
    for ms in (10, 10, 110):
        pace.learn(encode(100), ms)
    assert pace.ms(Encode, 100) == pytest.approx(40)
    for _ in range(30):
        pace.doubt(encode(100))
    assert pace.ms(Encode, 100) < 2
