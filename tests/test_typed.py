"""The typed-through cache: every answer it gives, once accepted, is the text the fill was checked in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stopgap.lsp.ghost import Ghost
from stopgap.lsp.typed import MAX_BYTES, TypedThrough


def cached(document: str, *inserts: str) -> TypedThrough:
    """A cache that knows the ghost texts at `|`."""
    memory = TypedThrough()
    head, tail = document.encode().split(b"|")
    memory.put(head + tail, len(head), tuple(Ghost(insert.encode()) for insert in inserts))
    return memory


def asked(memory: TypedThrough, document: str, wanted: int = 1) -> list[str] | None:
    """The documents that accepting each remembered ghost would give."""
    head, tail = document.encode().split(b"|")
    found = memory.get(head + tail, len(head), wanted)
    if found is None:
        return None
    return [(head[: len(head) - g.back] + g.insert + tail[g.over :]).decode() for g in found]


@pytest.mark.parametrize(
    ("before", "insert", "now", "accepted"),
    [
        ("x = |", "foo(1)", "x = fo|", "x = foo(1)"),
        ("x = |\ny", "foo(1)\nbar", "x = foo(1)\nb|\ny", "x = foo(1)\nbar\ny"),
        ("x = |", "foo(1)", "x = ba|", None),
        ("x = |", "foo(1)", "x = foo(1)|", None),
        ("x = |\ny", "foo(1)", "x = f|\nz", None),
        ("x = |", "foo(1)", "y = f|", None),
        ("x = a|", "b", "x = |", None),
    ],
)
def test_consistent_typing_is_answered_and_nothing_else(
    before: str, insert: str, now: str, accepted: str | None
) -> None:
    found = asked(cached(before, insert), now)
    assert found == ([accepted] if accepted else None)


def test_the_bracket_an_editor_closed_by_itself_is_replaced() -> None:
    assert asked(cached("x = |\n", "foo(a, b)[0]"), "x = foo(|)\n") == ["x = foo(a, b)[0]\n"]


def test_a_bracket_that_ends_the_fill_is_left_alone() -> None:
    memory = cached("x = |\n", "foo(a)")
    found = memory.get(b"x = foo()\n", 8)
    assert found is not None
    assert (found[0].insert, found[0].over) == (b"a", 0)


def test_a_bracket_the_fill_does_not_have_is_a_miss() -> None:
    assert asked(cached("x = |\n", "a + b"), "x = a|)\n") is None


@pytest.mark.parametrize("indent", ["", "  ", "    ", "        ", "\t"])
def test_another_indentation_of_the_line_being_typed_is_tolerated(indent: str) -> None:
    memory = cached("if x:|\n", "\n    foo(1)\n    bar(2)")
    assert asked(memory, f"if x:\n{indent}fo|\n") == ["if x:\n    foo(1)\n    bar(2)\n"]


@pytest.mark.parametrize("indent", ["", "  ", "      "])
def test_the_indentation_the_request_was_made_at_may_change(indent: str) -> None:
    assert asked(cached("if x:\n    |\n", "foo(1)"), f"if x:\n{indent}f|\n") == ["if x:\n    foo(1)\n"]


def test_a_ghost_with_its_own_indentation_keeps_it() -> None:
    memory = TypedThrough()
    memory.put(b"if x:\n        \n", 14, (Ghost(b"    foo", back=8),))
    assert asked(memory, "if x:\n        |\n") == ["if x:\n    foo\n"]
    assert asked(memory, "if x:\n    f|\n") == ["if x:\n    foo\n"]


def test_indentation_within_a_line_is_not_ignored() -> None:
    assert asked(cached("x = |", "  foo"), "x =  foo|") is None
    assert asked(cached("x =|", " foo"), "x =\tf|") is None


def test_no_answer_is_remembered_for_the_same_place_only() -> None:
    memory = cached("x = |")
    assert asked(memory, "x = |") == []
    assert asked(memory, "x = a|") is None


def test_asking_for_several_is_not_answered_with_one() -> None:
    memory = cached("x = |", "foo(1)", "fa")
    assert asked(memory, "x = |", wanted=2) == ["x = foo(1)", "x = fa"]
    assert asked(memory, "x = fo|", wanted=2) is None
    assert asked(cached("x = |"), "x = |", wanted=2) is None


def test_the_newest_answer_wins() -> None:
    memory = cached("x = |", "old")
    memory.put(b"x = ", 4, (Ghost(b"new"),))
    assert asked(memory, "x = |") == ["x = new"]


def test_memory_is_bounded_but_the_newest_answer_is_always_kept() -> None:
    memory = TypedThrough()
    for name in (b"a", b"b"):
        memory.put(name * (MAX_BYTES // 2 + 1), 0, (Ghost(b"x"),))
    assert memory.get(b"a" * (MAX_BYTES // 2 + 1), 0) is None
    assert memory.get(b"b" * (MAX_BYTES // 2 + 1), 0) is not None


LINES = st.text(alphabet="ab( )\n\t", max_size=20)


@given(LINES, LINES, LINES, st.data())
def test_typing_any_part_leads_to_the_same_document(head: str, insert: str, tail: str, data: st.DataObject) -> None:
    memory = TypedThrough()
    memory.put((head + tail).encode(), len(head), (Ghost(insert.encode()),))
    count = data.draw(st.integers(0, len(insert)))
    found = memory.get((head + insert[:count] + tail).encode(), len(head) + count)
    if insert[count:].strip():
        assert found is not None
        at = head + insert[:count]
        assert (at[: len(at) - found[0].back] + found[0].insert.decode() + tail) == head + insert + tail
    else:
        assert found is None
