"""When automatic ghost text stays away; the places are lines of tests/data/lsp/quiet.txt."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopgap.infill.languages import LANGUAGES
from stopgap.lsp.document import opened
from stopgap.lsp.quiet import MAX_PARSED, PAUSE_S, Trees, read_line, reason, surroundings
from stopgap.lsp.settings import Settings

CASES = (Path(__file__).parent / "data/lsp/quiet.txt").read_text(encoding="utf-8").split("\n\n")[1:]


LONG = "\nx = 1" * 3000
"""Enough text for a parse to look at the clock."""


def why(document: str, language: str = "python", *, late: bool = False, **settings: bool) -> str:
    """The reason at `|`. `late`: parsing takes longer than there is time; the last parse is of this text."""
    text = document.replace("⏎", "\n") + (LONG if late else "")
    cursor = len(text[: text.index("|")].encode())
    snapshot = opened("u", 1, language, text.replace("|", ""))
    trees = Trees(itertools.count().__next__ if late else lambda: 0.0)
    if late:
        trees.source("u", snapshot.data, LANGUAGES[language], cursor, None)
    where = trees.where("u", snapshot.data + b"\n" if late else snapshot.data, LANGUAGES[language], cursor)
    return reason(snapshot, cursor, where, Settings(**settings))


@pytest.mark.parametrize("late", [False, True], ids=["by the tree", "by the line"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.split("\n")[0])
def test_automatic_ghost_text_stays_away(case: str, late: bool) -> None:
    first, expected = case.rstrip("\n").split("\n-> ")
    language, document = first.split(": ", 1)
    by_tree, _, by_line = expected.partition(" | by the line: ")
    expected = by_line if late and by_line else by_tree
    assert why(document, language, late=late) == ("" if expected == "show" else expected)


def test_comments_and_strings_are_settings() -> None:
    assert why("x = 1  # so|", in_comments=True) == ""
    assert why('x = "so|"', in_strings=True) == ""
    assert why('x = "so|"', in_comments=True) != ""


def test_automatic_off_is_quiet_everywhere() -> None:
    assert why("x = |", automatic=False) == "the setting automatic is off"


@pytest.mark.parametrize(("new", "quiet"), [("", True), ("a", False)], ids=["a deletion", "a replacement"])
def test_after_deleting_within_a_line_nothing_is_shown(new: str, quiet: bool) -> None:
    snapshot = opened("u", 1, "python", "x = ab").changed(2, [(((0, 5), (0, 6)), new)], "utf-16")
    assert (reason(snapshot, 5 + len(new), "code", Settings()) == "you have just deleted something") is quiet


def test_after_deleting_whole_lines_ghost_text_is_welcome() -> None:
    snapshot = opened("u", 1, "python", "x\ny\n\nz").changed(2, [(((0, 0), (2, 0)), "")], "utf-16")
    assert reason(snapshot, 0, "code", Settings()) == ""


def test_a_large_file_is_not_parsed_for_this() -> None:
    assert Trees().source("u", b"x\n" * MAX_PARSED, LANGUAGES["python"], 0) is None


def test_the_tree_follows_the_text() -> None:
    trees = Trees()
    for text in (b"x = 1", b"x = '1'", b"x = '12'"):
        source = trees.source("u", text, LANGUAGES["python"], 6)
    assert source is not None
    assert surroundings(source, 6) == "string"


def test_after_a_parse_that_took_too_long_the_next_ones_are_not_tried() -> None:
    language, text = LANGUAGES["python"], f"x = ({LONG}".encode()
    now = itertools.count(0.0, PAUSE_S / 100)
    trees = Trees(now.__next__)
    assert trees.source("u", text, language, 5) is None
    begun = next(now)
    assert trees.source("u", text, language, 5) is None
    assert next(now) - begun < 3 * PAUSE_S / 100, "it was tried again"


@given(st.text(alphabet="ab \"'`#/*\\\n{}", max_size=30))
def test_reading_any_line_ends(text: str) -> None:
    for language in LANGUAGES.values():
        assert read_line(text.encode(), language, "code") in {"comment", "string", "code"}
