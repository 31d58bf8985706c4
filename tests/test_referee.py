"""What counts as a fill that adds a syntax error."""

import pytest

from stopgap.infill.languages import by_name
from stopgap.infill.referee import Splice, adds_error, faults, sound


def splice(marked: str, fill: str) -> Splice:
    """`marked` has the replaced text between `‹` and `›`."""
    before, _, rest = marked.partition("‹")
    inside, _, after = rest.partition("›")
    start = len(before.encode())
    return Splice((before + inside + after).encode(), start, start + len(inside.encode()), fill.encode())


@pytest.mark.parametrize(
    ("language", "marked", "fill"),
    [
        ("python", "x = ‹1›\n", "f(2)"),
        ("python", "# é\nx = ‹1›\n", "'ü'"),
        ("python", "if x:\n    ‹pass›\n", "return_ = 1\n    y = 2"),
        ("javascript", "f(‹a›);\n", "b, c"),
        ("json", '{"a": ‹1›}', "[1, 2]"),
        ("python", "def f(:\n    x = ‹1›\n", "2"),  # broken before, not by this
        ("javascript", "let = ;\nf(‹a›);\n", "b"),
        ("go", "package p\nfunc f() { ‹return› }\n", "x := 1"),
    ],
)
def test_a_harmless_fill_is_not_blamed(language: str, marked: str, fill: str) -> None:
    assert not adds_error(by_name(language), splice(marked, fill))


@pytest.mark.parametrize(
    ("language", "marked", "fill"),
    [
        ("python", "x = ‹1›\n", "f(2"),
        ("python", "x = ‹1›\n", ""),
        ("python", "if x:\n    ‹pass›\n", "a = 1\n   b = 2"),  # an indent no tree-sitter grammar minds
        ("python", "x = 1\n‹y = 2›\n", "return 1"),  # parses; does not compile
        ("python", "def f(a):\n    ‹pass›\n", "nonlocal a"),
        ("python", "x = ‹1›\ny = 2\n", "'''"),  # swallows the rest
        ("javascript", "f(‹a›);\n", "b)"),
        ("json", '{"a": ‹1›}', "1,"),
        ("javascript", "let = ;\nf(‹a›);\n", "b))"),
        ("rust", "fn f() { ‹g();› }\n", "g(;"),
    ],
)
def test_a_fill_that_breaks_the_file_is_seen(language: str, marked: str, fill: str) -> None:
    assert adds_error(by_name(language), splice(marked, fill))


def test_an_old_fault_moves_with_the_text_before_it() -> None:
    one = splice("x = ‹1›\ny = (\n", "'a much longer text than before'")
    old = faults(by_name("python"), one.whole)
    assert tuple(one.moved(*fault) for fault in old) == faults(by_name("python"), one.result)


def test_a_range_around_the_hole_grows_with_the_fill() -> None:
    one = Splice(b"0123456789", 4, 6, b"abcde")
    assert one.moved(2, 8) == (2, 11)
    assert one.moved(0, 3) == (0, 3)
    assert one.moved(7, 9) == (10, 12)
    assert one.moved(5, 9) == (4, 12)
    assert one.moved(1, 5) == (1, 9)


@pytest.mark.parametrize(
    ("text", "is_sound"),
    [(b"x = 1\n", True), (b"x = (\n", False), (b"return 1\n", False), (b"x = '\\d'\n", True), (b"x = '\x00'", False)],
)
def test_sound_python_also_compiles(text: bytes, is_sound: bool) -> None:
    assert sound(by_name("python"), text) == is_sound
