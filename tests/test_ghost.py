"""Ghost text from fills: cases as text in tests/data/lsp/ghost.txt, and properties over random ones."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopgap.lsp.ghost import Ghost, ghost, is_inert

CASES = (Path(__file__).parent / "data/lsp/ghost.txt").read_text(encoding="utf-8").split("\n=== ")[1:]


def hole(document: str) -> tuple[bytes, int, tuple[int, int]]:
    """The document without its marks, the cursor, and the hole."""
    start = len(document[: document.index("«")].replace("|", "").encode())
    cursor = len(document[: document.index("|")].replace("«", "").replace("»", "").encode())
    end = len(document[: document.index("»")].replace("«", "").replace("|", "").encode())
    return document.replace("«", "").replace("»", "").replace("|", "").encode(), cursor, (start, end)


def accepted(data: bytes, cursor: int, shown: Ghost) -> bytes:
    return data[: cursor - shown.back] + shown.insert + data[cursor + shown.over :]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.split("\n")[0])
def test_a_fill_becomes_ghost_text(case: str) -> None:
    _, case = case.split("\n", 1)
    document, _, case = case.partition("\n--- fill\n")
    nothing = case.rstrip("\n").endswith("--- nothing")
    fill, _, after = case.rpartition("\n--- nothing") if nothing else case.rpartition("\n--- accepted\n")
    data, cursor, span = hole(document)
    shown = ghost(data, cursor, span, fill, checked=False)
    if nothing:
        assert shown is None
    else:
        assert shown is not None
        assert accepted(data, cursor, shown).decode().rstrip("\n") == after.rstrip("\n")


def test_a_fill_that_the_gate_has_checked_is_shown_as_it_was_checked() -> None:
    shown = ghost(b"x = 1\n", 0, (0, 0), "y = 2\nx = 1\n")
    assert shown is None  # several lines before code; cut to one line it would be another fill
    shown = ghost(b"\nx = 1\n", 0, (0, 0), "y = 2\nx = 1")
    assert shown is not None
    assert shown.insert == b"y = 2\nx = 1"


def test_the_documents_line_ending_is_used() -> None:
    shown = ghost(b"if x:\r\n    \r\ny", 11, (11, 11), "a\n    b")
    assert shown is not None
    assert shown.insert == b"a\r\n    b"


@pytest.mark.parametrize(("text", "closes"), [("", b"f(x)"), (")", b"f(x"), ("))", b"f(x")])
def test_a_bracket_the_fill_did_not_open_is_not_repeated_when_unchecked(text: str, closes: bytes) -> None:
    shown = ghost(b"g(" + text.encode(), 2, (2, 2), "f(x)" + text, checked=False)
    assert shown is not None
    assert shown.insert == b"f(x)"


def test_a_bracket_the_fill_did_open_is_kept() -> None:
    shown = ghost(b"g()", 2, (2, 2), "f(x)", checked=False)
    assert shown is not None
    assert shown.insert == b"f(x)"


@pytest.mark.parametrize(("rest", "inert"), [("", True), (")", True), ('"]),', True), ("):", True), ("x", False)])
def test_only_closing_text_behind_the_cursor_is_inert(rest: str, inert: bool) -> None:
    assert is_inert(rest.encode()) is inert


TEXT = st.text(alphabet="ab()\n é", max_size=12)


@given(st.tuples(TEXT, TEXT, TEXT, TEXT), TEXT, st.sampled_from(["", "typed", "over", "both"]))
def test_nothing_outside_the_hole_and_nothing_typed_is_ever_lost(
    document: tuple[str, str, str, str], new: str, keeps: str
) -> None:
    head, typed, over, tail = document
    fill = (typed if keeps in {"typed", "both"} else "") + new + (over if keeps in {"over", "both"} else "")
    data = (head + typed + over + tail).encode()
    cursor = len((head + typed).encode())
    shown = ghost(data, cursor, (len(head.encode()), cursor + len(over.encode())), fill)
    if shown is None:
        return
    after = accepted(data, cursor, shown).decode()
    assert after.startswith(head + (typed if typed.strip(" ") else ""))
    assert after.endswith(tail)
    left = iter(after[len(head) :])
    assert all(character in left for character in typed + over if character != " ")
