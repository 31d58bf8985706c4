"""The metrics against slow definitions and known answers."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopgap.infill.metrics import bootstrap, common_prefix, common_subsequence, paired, percentile, similarity


def by_definition(left: str, right: str) -> int:
    @functools.cache
    def longest(i: int, j: int) -> int:
        if i == len(left) or j == len(right):
            return 0
        if left[i] == right[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


@given(st.text("abc é", max_size=12), st.text("abc é", max_size=12))
def test_the_bit_parallel_subsequence_is_the_real_one(left: str, right: str) -> None:
    assert common_subsequence(left, right) == by_definition(left, right)


@pytest.mark.parametrize(
    ("left", "right", "value"),
    [
        ("", "", 1.0),
        ("", "x", 0.0),
        ("return x", "return x", 1.0),
        ("    return x\n", "return x", 1.0),
        ("abcd", "abxd", 0.75),
        ("ab", "ba", 0.5),
    ],
)
def test_edit_similarity(left: str, right: str, value: float) -> None:
    assert similarity(left, right) == value == similarity(right, left)


@pytest.mark.parametrize(
    ("left", "right", "length"), [("", "a", 0), ("ab", "ab", 2), ("abc", "abd", 2), ("ab", "a", 1)]
)
def test_common_prefix(left: str, right: str, length: int) -> None:
    assert common_prefix(left, right) == length == common_prefix(right, left)


def test_percentiles_lie_between_the_ranks() -> None:
    assert percentile([1, 2, 3, 4, 5], 0.5) == 3
    assert percentile([0, 10], 0.95) == pytest.approx(9.5)
    assert percentile([], 0.5) != percentile([], 0.5)


def test_the_interval_holds_the_mean_and_narrows_with_more_data() -> None:
    few = bootstrap([0, 1] * 10, [str(n) for n in range(20)], seed=1)
    many = bootstrap([0, 1] * 500, [str(n) for n in range(1000)], seed=1)
    assert few.low < few.mean == 0.5 < few.high
    assert many.high - many.low < (few.high - few.low) / 4


def test_holes_of_one_file_count_as_one_observation() -> None:
    values = [0.0] * 50 + [1.0] * 50
    apart = bootstrap(values, [str(n) for n in range(100)], seed=1)
    together = bootstrap(values, ["a"] * 50 + ["b"] * 50, seed=1)
    assert together.high - together.low > 5 * (apart.high - apart.low)


def test_intervals_depend_on_nothing_but_the_seed() -> None:
    values, names = [0.1, 0.9, 0.4, 0.7], list("abcd")
    assert bootstrap(values, names, seed=3) == bootstrap(values, names, seed=3) != bootstrap(values, names, seed=4)


def test_a_paired_difference_sees_what_two_intervals_hide() -> None:
    base = [n % 10 / 10 for n in range(200)]
    better = [value + 0.02 for value in base]
    names = [str(n) for n in range(200)]
    assert bootstrap(base, names, 0).high > bootstrap(better, names, 0).low
    assert paired(base, better, names, 0).low > 0
