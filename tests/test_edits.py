"""Minimal edits: they lead to the new text, and leave alone what is the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopgap.lsp.edits import apply, edits

TEXT = st.lists(
    st.sampled_from(["a", "b", "foo", " ", "    ", "\n", "\r\n", "(", ")", "é", "😀", "\f"]), max_size=30
).map(lambda parts: "".join(parts).encode())


@given(TEXT, TEXT)
def test_the_edits_lead_to_the_new_text_and_never_cut_a_character(old: bytes, new: bytes) -> None:
    found = edits(old, new)
    assert apply(old, found) == new
    for start, end, text in found:
        old[:start].decode(), old[start:end].decode(), text.decode()


@given(TEXT, TEXT)
def test_edits_are_in_order_and_apart(old: bytes, new: bytes) -> None:
    found = edits(old, new, offset=7)
    ends = [7, *(end for _, end, _ in found)]
    assert all(end <= start <= own for end, (start, own, _) in zip(ends, found, strict=False))


@given(TEXT)
def test_equal_texts_need_no_edit(text: bytes) -> None:
    assert edits(text, text) == []


BODY = b"def f(a):\n    x = g(a)\n    for i in x:\n        print(i)\n    return x\n"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"g(a)", b"h(a)", [(b"g", b"h")]),
        (b"    return x\n", b"    return x + 1\n", [(b"", b" + 1")]),
        (b"print(i)", b"yield i", [(b"print(", b"yield "), (b")", b"")]),
        (b"    for i in x:\n", b"", [(b"    for i in x:\n", b"")]),
    ],
)
def test_only_what_differs_is_touched(old: bytes, new: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    found = edits(BODY, BODY.replace(old, new))
    assert [(BODY[start:end], text) for start, end, text in found] == expected


def test_lines_that_have_little_in_common_are_replaced_whole() -> None:
    assert edits(b"    pass\n", b"    return [x for x in y]\n") == [(4, 8, b"return [x for x in y]")]


def test_a_huge_block_is_one_edit() -> None:
    old, new = b" ".join([b"a"] * 9000), b" ".join([b"b"] * 9000)
    assert edits(old, new) == [(0, len(old), new)]
