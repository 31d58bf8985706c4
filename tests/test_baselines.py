"""The engines without a model: what they copy."""

import time

import pytest

from stopgap.infill.baselines import Choice, Copier, Gated
from stopgap.infill.contract import FillRequest, Outcome


def fill(choice: Choice, marked: str, seed: int = 0, gated: bool = False) -> str:
    """The fill at `|`; empty when nothing was offered."""
    before, _, after = marked.partition("|")
    source, at = (before + after).encode(), len(before.encode())
    request = FillRequest(source, "python", at, at, "selection", seed=seed)
    copier = Copier(choice, time.monotonic)
    (outcome,) = (Gated(copier) if gated else copier).fill(request, lambda: False)
    assert isinstance(outcome, Outcome) and (outcome.start, outcome.end) == (at, at)
    assert bool(outcome.reason) != bool(outcome.fills)
    return outcome.fills[0].text if outcome.fills else ""


CLASS = """class A:
    def one(self):
        value = self.first
        return check(value)

    def two(self):
        value = self.second
        # é
        return check(value, 2)

    def three(self):
        value = self.third
"""


def test_retrieval_takes_the_line_in_the_most_similar_place() -> None:
    assert fill("retrieval", CLASS + "        |\n\n    def four(self):\n") == "return check(value)"


def test_the_previous_line_is_the_last_that_says_something() -> None:
    assert fill("previous line", CLASS + "\n\n        |\n") == "value = self.third"


def test_a_missing_whole_line_is_given_with_indent_and_end() -> None:
    assert fill("previous line", CLASS + "|        return None\n") == "        value = self.third\n"


def test_an_empty_line_is_given_without_a_second_end() -> None:
    assert fill("previous line", CLASS + "|\n        return None\n") == "        value = self.third"


@pytest.mark.parametrize(
    ("marked", "text"),
    [
        ("total = add(price, tax)\nother = add(|\n", "price, tax)"),
        ("total = add(price, tax)\nother = add(|)\n", "price, tax"),
        ("x.append(1)\nitems.append(|)\n", "1"),
    ],
)
def test_inside_a_line_the_part_after_the_best_match_is_taken(marked: str, text: str) -> None:
    assert fill("retrieval", marked) == text


def test_the_random_line_depends_on_the_seed_only() -> None:
    marked = "".join(f"line_{n}()\n" for n in range(50)) + "|\n"
    seen = {fill("random line", marked, seed) for seed in range(8)}
    assert len(seen) > 4 and fill("random line", marked, 3) == fill("random line", marked, 3)


def test_a_like_place_behind_the_hole_counts_where_both_sides_are_looked_at() -> None:
    marked = "def a(x):\n    open(x)\n    |\n    close(x)\n\n\ndef b(x):\n    open(x)\n    read(x)\n    close(x)\n"
    assert fill("retrieval, both sides", marked) == "read(x)"


@pytest.mark.parametrize("choice", ["random line", "previous line", "retrieval"])
def test_nothing_before_the_hole_means_nothing_is_offered(choice: Choice) -> None:
    assert fill(choice, "|") == "" == fill(choice, "\n\n  |x\n")


def test_the_gate_keeps_what_fits_and_drops_what_breaks_the_file() -> None:
    assert fill("retrieval", CLASS + "        |\n\n    def four(self):\n", gated=True) == "return check(value)"
    assert fill("previous line", "def f(x):\n    if x:\n        |\n", gated=False) == "if x:"
    assert fill("previous line", "def f(x):\n    if x:\n        |\n", gated=True) == ""
