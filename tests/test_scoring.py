"""One answer and what is counted about it."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from knower import Knower, Ticks

from stopgap.infill.contract import Draft, EngineInfo, Fill, FillError, FillRequest, Outcome
from stopgap.infill.scoring import Contender, Score, ask, score
from stopgap.infill.suites import Sample

HOLE = Sample(
    name="one",
    group="call",
    language="python",
    source="é = \ny = 2\n".encode(),
    start=5,
    truth="f(1, 2)",
    cluster="file",
    test="\nassert y == 2\n",
)


def scored(sample: Sample, said: str, run: Callable[[str], bool] | None = None, **how: float) -> Score:
    """The score of an engine that says `said` in four steps of 10 ms."""
    clock = Ticks()
    engine = Knower([sample], clock, {sample.truth: said})
    contender = Contender("knower", engine, budget_ms=how.get("budget_ms"), max_steps=int(how.get("steps", 4)))
    return score(contender, sample, ask(contender, sample, 0, clock), run, len)


def test_the_truth_scores_in_full() -> None:
    one = scored(HOLE, "f(1, 2)", run=lambda program: program == "é = f(1, 2)\ny = 2\n\nassert y == 2\n")
    assert one.exact and one.similarity == 1.0 and one.accepted == 7 and one.parses and one.passed
    assert one.right_characters and one.right_lines and one.right_tokens
    assert not (one.adds_error or one.outside or one.why)
    assert one.steps == 4 and one.ms == pytest.approx(40)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("f(1, 2", {"parses", "exact", "right_characters", "right_tokens"}),
        ("f(1, 3)", {"exact"}),
        ("f(1,\n2)", {"exact", "right_lines"}),
        ("g(1)", {"exact", "right_characters", "right_tokens"}),
    ],
)
def test_what_is_wrong_is_told_apart(said: str, wrong: set[str]) -> None:
    one = scored(HOLE, said)
    keys = ("parses", "exact", "right_characters", "right_tokens", "right_lines")
    assert {key for key in keys if not getattr(one, key)} == wrong
    assert one.adds_error == ("parses" in wrong) and one.passed is None


@pytest.mark.parametrize(("suffix", "exact"), [("", True), ("\n", True), ("y = 2\n", False)])
def test_a_line_end_that_is_not_needed_is_not_asked_for(suffix: str, exact: bool) -> None:
    sample = dataclasses.replace(HOLE, source=f"# .\n{suffix}".encode(), start=4, truth="x = f(1)\n")
    one = scored(sample, "x = f(1)")
    assert one.exact is exact is one.parses and one.right_characters


def test_nothing_shown_is_not_run_and_not_blamed() -> None:
    one = scored(HOLE, "", run=lambda _: pytest.fail("there is nothing to run"))
    assert not one.shown and one.passed is False and not one.adds_error and one.why == "no time"
    assert one.similarity == 0 and one.score is None


def test_a_step_is_the_time_from_draft_to_draft() -> None:
    assert scored(HOLE, "f(1, 2)", budget_ms=25).step_ms == pytest.approx(10)
    assert scored(HOLE, "f(1, 2)", steps=1).step_ms is None
    assert scored(HOLE, "f(1, 2)", steps=2).fill == "f(1"


class Says:
    """An engine with one prepared answer, or trouble."""

    def __init__(self, answer: Outcome | Exception | None) -> None:
        self.answer = answer

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            yield self.answer

    def info(self) -> EngineInfo:
        return EngineInfo("says", "cpu", "none", "none", 0, 0, 0, False)

    def drop_caches(self) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (FillError("no grammar"), "refused: no grammar"),
        (ValueError("shape"), "crashed: ValueError: shape"),
        (None, "crashed: the engine ended without an outcome"),
    ],
)
def test_trouble_is_an_answer_too(answer: Outcome | Exception | None, why: str) -> None:
    contender = Contender("says", Says(answer))
    one = score(contender, HOLE, ask(contender, HOLE, 0, Ticks()))
    assert one.why == why and not one.shown


def answered(sample: Sample, start: int, end: int, text: str) -> Score:
    contender = Contender("says", Says(Outcome(start, end, "", (Fill(text, -1.0),))))
    return score(contender, sample, ask(contender, sample, 0, Ticks()))


def test_a_changed_byte_outside_the_hole_is_seen() -> None:
    one = answered(HOLE, 2, 5, "+= f(1, 2)")
    assert one.outside and one.shown and not one.exact and not one.adds_error


def test_a_wider_range_that_keeps_what_was_there_is_the_same_answer() -> None:
    one = answered(HOLE, 0, 6, "é = f(1, 2)\n")
    assert one.exact and not one.outside


TYPED = dataclasses.replace(HOLE, target="cursor", source=b"x = na\nmore()\n", start=6, truth="me(1)\ny = 2", test="")


@pytest.mark.parametrize(
    ("start", "end", "text", "fill", "accepted"),
    [
        (6, 6, "me(1)", "me(1)", 5),
        (6, 6, "me(2)", "me(2)", 3),
        (4, 6, "name(1)", "me(1)", 5),  # the token was written anew
        (6, 6, "x", "x", 0),
        (6, 6, "me(1)\ny = 2", "me(1)\ny = 2", 11),
    ],
)
def test_at_a_cursor_counts_what_follows_it(start: int, end: int, text: str, fill: str, accepted: int) -> None:
    one = answered(TYPED, start, end, text)
    assert (one.fill, one.accepted, one.outside) == (fill, accepted, False)


def test_at_a_cursor_the_typed_text_must_stay() -> None:
    assert answered(TYPED, 4, 6, "other").outside


def test_at_a_cursor_only_a_fill_that_breaks_the_text_as_it_stands_is_blamed() -> None:
    assert not answered(TYPED, 6, 6, "me(1)").adds_error
    assert answered(TYPED, 6, 6, "me(1").adds_error


def test_a_fill_that_fits_only_the_broken_file_is_told_apart() -> None:
    broken = dataclasses.replace(
        HOLE, source=b"f((\nx = \n", start=8, truth="1", sound_source=b"f()\nx = \n", sound_start=8
    )
    assert scored(broken, "1").adds_error_sound is False
    assert scored(broken, "1)").adds_error_sound is True


def test_an_engine_may_be_chosen_by_the_truth() -> None:
    clock = Ticks()
    right, blank = Knower([HOLE], clock), Says(Outcome(5, 5, "", ()))
    told = Contender("told", blank, engine_for=lambda sample: right if len(sample.truth) == 7 else blank)
    assert score(told, HOLE, ask(told, HOLE, 0, clock)).exact


def test_the_request_is_a_selection_for_holes_and_names_a_document_while_typing() -> None:
    contender = Contender("says", Says(None), max_steps=8, budget_ms=50, candidates=3)
    hole, typed = contender.request(HOLE, 4), contender.request(TYPED, 4)
    assert (hole.target, hole.document, hole.start, hole.end) == ("selection", "", 5, 5)
    assert (hole.max_steps, hole.budget_ms, hole.candidates, hole.seed) == (8, 50, 3, 4)
    assert (typed.target, typed.document) == ("cursor", "says:file")
