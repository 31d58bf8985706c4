"""Positions and incremental sync, held to a model that does everything the slow way."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stopgap.lsp.document import Documents, Encoding, Position, Snapshot, opened

ENCODINGS: tuple[Encoding, ...] = ("utf-8", "utf-16", "utf-32")
TEXT = st.text(alphabet=st.sampled_from([*list("ab \n\r\x0c\t"), "é", "漢", "😀", "\u2028", "\x85"]), max_size=40)


def units(text: str, encoding: Encoding) -> int:
    codec = {"utf-8": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}[encoding]
    return len(text.encode(codec)) // {"utf-8": 1, "utf-16": 2, "utf-32": 4}[encoding]


def lines(text: str) -> list[str]:
    return re.split(r"(?<=\n)|(?<=\r)(?!\n)", text)


def slow_position(text: str, index: int, encoding: Encoding) -> Position:
    seen = 0
    rows = lines(text)
    for row, line in enumerate(rows):
        if index < seen + len(line) or row + 1 == len(rows):
            return row, units(line[: index - seen].rstrip("\r\n"), encoding)
        seen += len(line)
    raise AssertionError


def slow_replace(text: str, first: int, last: int, new: str) -> str:
    return text[:first] + new + text[last:]


def on_a_boundary(text: str, index: int) -> int:
    """Clients cannot point between CR and LF."""
    return index - 1 if text[max(index - 1, 0) : index + 1] == "\r\n" else index


@given(TEXT, st.data(), st.sampled_from(ENCODINGS))
def test_every_offset_survives_the_way_to_a_position_and_back(
    text: str, data: st.DataObject, encoding: Encoding
) -> None:
    index = on_a_boundary(text, data.draw(st.integers(0, len(text))))
    snapshot = opened("u", 1, "", text)
    offset = len(text[:index].encode())
    position = snapshot.position(offset, encoding)
    assert position == slow_position(text, index, encoding)
    assert snapshot.offset(position, encoding) == offset


@given(
    TEXT,
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), TEXT), max_size=6),
    st.sampled_from(ENCODINGS),
)
@settings(max_examples=300)
def test_a_chain_of_edits_ends_in_the_text_and_lines_of_a_fresh_document(
    text: str, edits: list[tuple[int, int, str]], encoding: Encoding
) -> None:
    snapshot = opened("u", 1, "", text)
    for a, b, new in edits:
        first, last = sorted(on_a_boundary(text, min(i, len(text))) for i in (a, b))
        span = (slow_position(text, first, encoding), slow_position(text, last, encoding))
        snapshot = snapshot.changed(snapshot.version + 1, [(span, new)], encoding)
        text = slow_replace(text, first, last, new)
        assert snapshot.data.decode() == text
        assert snapshot.starts == opened("u", 1, "", text).starts
    assert snapshot.version == 1 + len(edits)


@pytest.mark.parametrize(
    ("encoding", "character", "offset"),
    [
        ("utf-8", 2, 1),
        ("utf-16", 2, 1),
        ("utf-16", 3, 5),
        ("utf-32", 2, 5),
        ("utf-16", 99, 6),
        ("utf-8", 99, 6),
    ],
)
def test_a_position_inside_or_beyond_a_character_is_clamped(encoding: Encoding, character: int, offset: int) -> None:
    assert opened("u", 1, "", "a😀b\r\nc").offset((0, character), encoding) == offset


def test_a_line_beyond_the_end_is_the_end() -> None:
    assert opened("u", 1, "", "a\nb").offset((9, 0), "utf-16") == 3


def test_form_feeds_and_unicode_line_separators_do_not_end_a_line() -> None:
    snapshot = opened("u", 1, "", "a\fb\u2028c\x85d\ne")
    assert len(snapshot.starts) == 2


def test_the_end_of_a_line_stands_before_either_line_ending() -> None:
    snapshot = opened("u", 1, "", "ab\r\ncd\nef\rgh")
    ends = [snapshot.line_end(start) for start in snapshot.starts]
    assert [snapshot.data[a:b] for a, b in zip(snapshot.starts, ends, strict=True)] == [
        b"ab",
        b"cd",
        b"ef",
        b"gh",
    ]


def test_half_a_surrogate_pair_becomes_one_replacement_character() -> None:
    snapshot = opened("u", 1, "", "a\ud83db")
    assert snapshot.data.decode() == "a\ufffdb"
    assert snapshot.offset((0, 2), "utf-16") == 4


def test_a_range_given_backwards_is_read_forwards() -> None:
    snapshot = opened("u", 1, "", "hello").changed(2, [(((0, 4), (0, 1)), "")], "utf-16")
    assert snapshot.data == b"ho"


def test_several_changes_in_one_message_build_on_each_other() -> None:
    snapshot = opened("u", 1, "", "abc").changed(2, [(((0, 0), (0, 1)), "xy"), (((0, 2), (0, 3)), "")], "utf-16")
    assert snapshot.data == b"xyc"


def test_a_change_to_a_document_that_was_never_opened_is_dropped() -> None:
    assert Documents().change("nowhere", 2, [(None, "x")]) is None


def test_the_document_edited_last_comes_first() -> None:
    documents = Documents()
    for uri in ("a", "b", "c"):
        documents.open(uri, 1, "python", "")
    documents.change("a", 2, [(None, "x")])
    assert [snapshot.uri for snapshot in documents] == ["a", "c", "b"]


def test_a_snapshot_keeps_its_text_when_the_document_moves_on() -> None:
    documents = Documents()
    before: Snapshot = documents.open("a", 1, "python", "one")
    documents.change("a", 2, [(None, "two")])
    assert (before.version, before.data) == (1, b"one")
