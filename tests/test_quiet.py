"""When automatic ghost text stays away; the places are lines of tests/data/lsp/quiet.txt."""

from pathlib import Path

import pytest

from stopgap.infill.languages import LANGUAGES
from stopgap.lsp.document import opened
from stopgap.lsp.quiet import MAX_PARSED, Trees, reason, surroundings
from stopgap.lsp.settings import Settings

CASES = (Path(__file__).parent / "data/lsp/quiet.txt").read_text(encoding="utf-8").split("\n\n")[1:]


def why(language: str, document: str, settings: Settings) -> str:
    text = document.replace("⏎", "\n")
    cursor = len(text[: text.index("|")].encode())
    snapshot = opened("u", 1, language, text.replace("|", ""))
    source = Trees().source("u", snapshot.data, LANGUAGES[language], cursor)
    assert source is not None
    return reason(snapshot, cursor, source, settings)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.split("\n")[0])
def test_automatic_ghost_text_stays_away(case: str) -> None:
    first, expected = case.rstrip("\n").split("\n-> ")
    language, document = first.split(": ", 1)
    assert why(language, document, Settings()) == ("" if expected == "show" else expected)


def test_comments_and_strings_are_settings() -> None:
    assert why("python", "x = 1  # so|", Settings(in_comments=True)) == ""
    assert why("python", 'x = "so|"', Settings(in_strings=True)) == ""
    assert why("python", 'x = "so|"', Settings(in_comments=True)) != ""


def test_automatic_off_is_quiet_everywhere() -> None:
    assert why("python", "x = |", Settings(automatic=False)) == "the setting automatic is off"


@pytest.mark.parametrize(("new", "quiet"), [("", True), ("a", False)], ids=["a deletion", "a replacement"])
def test_after_deleting_within_a_line_nothing_is_shown(new: str, quiet: bool) -> None:
    snapshot = opened("u", 1, "python", "x = ab").changed(2, [(((0, 5), (0, 6)), new)], "utf-16")
    assert (reason(snapshot, 5 + len(new), None, Settings()) == "you have just deleted something") is quiet


def test_after_deleting_whole_lines_ghost_text_is_welcome() -> None:
    snapshot = opened("u", 1, "python", "x\ny\n\nz").changed(2, [(((0, 0), (2, 0)), "")], "utf-16")
    assert reason(snapshot, 0, None, Settings()) == ""


def test_a_large_file_is_not_parsed_for_this() -> None:
    assert Trees().source("u", b"x\n" * MAX_PARSED, LANGUAGES["python"], 0) is None


def test_the_tree_follows_the_text() -> None:
    trees = Trees()
    for text in (b"x = 1", b"x = '1'", b"x = '12'"):
        source = trees.source("u", text, LANGUAGES["python"], 6)
    assert source is not None
    assert surroundings(source, 6) == "string"
