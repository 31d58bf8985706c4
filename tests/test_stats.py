"""Counters that survive restarts and broken files."""

from __future__ import annotations

from pathlib import Path

import pytest

from stopgap.daemon import wire
from stopgap.daemon.stats import Acceptance


def test_counts_are_read_back(tmp_path: Path) -> None:
    file = tmp_path / "stats.json"
    first = Acceptance(file)
    for event, characters in (("shown", 0), ("accepted", 30), ("partial", 5), ("rejected", 0)):
        first.count(wire.Feedback(1, event, "go", characters))  # type: ignore[arg-type]
    first.count(wire.Feedback(1, "shown"))
    first.save()
    assert Acceptance(file).languages() == (
        wire.LanguageStats("go", 1, 1, 1, 1, 35),
        wire.LanguageStats("unknown", 1, 0, 0, 0, 0),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["stats.json"]


@pytest.mark.parametrize("text", ["", "{", "[3]", '[{"language": "go"}]', "7"])
def test_a_broken_file_starts_from_zero(tmp_path: Path, text: str) -> None:
    (tmp_path / "stats.json").write_text(text)
    assert Acceptance(tmp_path / "stats.json").languages() == ()


def test_made_up_languages_do_not_grow_the_file(tmp_path: Path) -> None:
    counters = Acceptance(tmp_path / "stats.json")
    for number in range(1000):
        counters.count(wire.Feedback(1, "shown", f"language{number}"))
    assert len(counters.languages()) <= 201
    assert sum(line.shown for line in counters.languages()) == 1000


def test_a_folder_that_cannot_be_written_costs_only_the_counters(tmp_path: Path) -> None:
    counters = Acceptance(tmp_path / "none" / "stats.json")
    counters.count(wire.Feedback(1, "shown", "go"))
    counters.save()
    assert len(counters.languages()) == 1
