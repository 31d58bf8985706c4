"""Replays of typing, and the score from which fills are shown."""

import random
from pathlib import Path

import pytest

from stopgap.infill.contract import show_score
from stopgap.infill.keystrokes import Passage, pauses, proposed, replays, thresholds

TEXT = """import os


def size(path):
    if path is None:
        return 0
    return os.stat(path).st_size


size('é')
"""
START, END = TEXT.index("def"), TEXT.index("\n\n\nsize")


@pytest.mark.parametrize("last", [False, True])
def test_what_was_typed_and_what_is_to_come_make_the_file(last: bool) -> None:
    samples = [
        s for seed in range(20) for s in pauses(Passage(TEXT, START, END, last), "python", "a.py", random.Random(seed))
    ]
    assert len(samples) > 100
    for sample in samples:
        assert sample.target == "cursor"
        assert sample.whole.decode() == (TEXT[:END] if last else TEXT)
        assert sample.source[: sample.start].decode() + sample.truth == TEXT[:END]


def test_enter_types_the_indent_too() -> None:
    samples = [
        s for seed in range(50) for s in pauses(Passage(TEXT, START, END, False), "python", "a.py", random.Random(seed))
    ]
    fresh = {sample.source[: sample.start].decode().split("\n")[-1] for sample in samples}
    assert "    " in fresh and "        " in fresh
    assert not fresh & {"", " ", "  ", "   "}


def test_people_pause_at_ends_of_lines_more_than_inside_words() -> None:
    samples = [
        s
        for seed in range(200)
        for s in pauses(Passage(TEXT, START, END, False), "python", "a.py", random.Random(seed))
    ]
    ends = [sample.source[: sample.start].decode().rstrip(" ")[-1] for sample in samples]
    inside = sum(end.isalnum() for end in ends)
    assert ends.count("\n") > 3 * 200 * 0.7 and inside < len(ends) / 2


def test_replays_are_seeded_bounded_and_of_every_file(tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "c.go"):
        (tmp_path / name).write_text(
            TEXT if name.endswith("py") else "package p\n\nfunc f() int {\n\treturn 1 + 2\n}\n"
        )
    (tmp_path / "empty.py").write_text("\n\n")
    names = [sample.name for sample in replays([tmp_path], 40, 5)]
    assert names == [sample.name for sample in replays([tmp_path], 40, 5)] and len(names) == 40
    assert names != [sample.name for sample in replays([tmp_path], 40, 6)]
    assert {name.split(":")[0] for name in names} == {"a.py", "b.py", "c.go"}


def test_replays_of_little_text_end(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    assert len(list(replays([tmp_path / "a.py"], 1000, 0))) < 10


def test_a_score_that_tells_good_from_bad_gets_a_threshold_between_them() -> None:
    good = [(0.9 - n / 1000, 10, 10) for n in range(50)]
    bad = [(0.3 - n / 1000, 1, 10) for n in range(150)]
    found = thresholds(good + bad, asked=400)
    best = proposed(found)
    assert best is not None and 0.3 < best.score < 0.9
    assert best.shown == 50 / 400 and best.accepted_prefix == 1.0 == best.whole and best.gain == 500
    assert found[0].shown == 0.5 and found[0].accepted_prefix == pytest.approx((500 + 150) / 2000)
    assert [one.score for one in found] == sorted(one.score for one in found)


def test_the_show_score_is_a_probability_and_nothing_unranked_is_sure() -> None:
    assert [show_score(score) for score in (0.0, 1.0, float("-inf"), -1e9)] == [1.0, 1.0, 0.0, 0.0]
    assert 0.0 < show_score(-5.0) < 0.01


def test_nothing_is_proposed_when_every_fill_is_mostly_wrong() -> None:
    assert proposed(thresholds([(0.4, 2, 10), (0.1, 0, 10)], asked=2)) is None
    assert proposed(thresholds([], asked=3)) is None


def test_equal_scores_are_shown_together() -> None:
    (only,) = thresholds([(0.4, 3, 4)] * 30, asked=30)
    assert only.shown == 1.0 and only.gain == 30 * 2
