"""Lines of the file that may stand in the hole: found on either side of it, put in like surroundings, renamed."""

import pytest

from stopgap.infill.similar import WIDEST, Page

SHAPES = b"""\
def area(shape):
    width = shape.width
    height = shape.height
    return width * height


def edge(shape):
    width = shape.width
    <>
    return 2 * (width + height)


def walls(box):
    width = box.width
    depth = box.depth
"""
BRANCHES = b"""\
if red:
    stop()
if amber:
<>
if green:
    drive()
"""


def page(text: bytes, typed: bytes = b"") -> Page:
    before, after = text.split(b"<>")
    return Page(before + typed, after)


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        (b"", b"height = shape.height"),
        (b"hei", b"ght = shape.height"),
        (b"dep", b"th = box.depth"),
        (b"nothing like this", None),
    ],
)
def test_the_line_in_the_most_similar_place_comes_first(typed: bytes, first: bytes | None) -> None:
    found = page(SHAPES, typed).similar(3)
    assert (found[0].text if found else None) == first


def test_lines_behind_the_hole_count_as_much_as_those_before() -> None:
    made = page(b"start()\nlog(1)\n<>\nstop()\n\nstart()\nlog(1)\nrun()\nstop()\n")
    assert made.similar(1)[0].text == b"run()"


def test_similar_lines_are_not_doubled() -> None:
    assert [line.text for line in Page(b"a = 1\na = 1\na = 1\n", b"\n").similar(5)] == [b"a = 1"]


def test_a_line_at_a_whole_line_s_place_is_indented_as_it_was_below_the_line_above_it() -> None:
    made = Page(*BRANCHES.split(b"<>\n"))
    assert made.fresh
    assert {b"    stop()", b"    drive()"} <= {line.text for line in made.similar(9)}


@pytest.mark.parametrize("after", [b"\nx = 1\n", b"\r\nx = 1\r\n", b""])
def test_an_empty_line_is_no_place_for_another_line_end(after: bytes) -> None:
    assert not Page(b"def f():\n", after).fresh


@pytest.mark.parametrize(
    ("text", "typed", "renamed"),
    [
        (b"a.left = left\nb.right = <>\n", b"", b"right"),
        (b"def wide(box):\n    return box.width\n\ndef high(cup):\n    <>\n", b"return cup.", None),
        (b"x = read(one)\nprint(x)\ny = read(two)\n<>\n", b"", b"print(y)"),
        (b"x = [1]\ny = {<>\n", b"", None),
    ],
)
def test_a_line_is_renamed_as_what_stands_beside_it(text: bytes, typed: bytes, renamed: bytes | None) -> None:
    assert (renamed in {line.text for line in page(text, typed).renamed(4)}) == (renamed is not None)
    assert renamed or not page(text, typed).renamed(4)


def test_how_alike_a_text_is_is_that_of_the_best_line_it_stands_on() -> None:
    made = page(SHAPES)
    best = made.similar(1)[0]
    assert made.alike(best.text) == (True, best.likeness)
    assert made.alike(best.text + b"\n    more()") == (True, best.likeness), "up to the line end"
    assert made.alike(b"nowhere()") == (False, 0.0)


def test_a_line_too_long_to_be_written_by_hand_is_left_out() -> None:
    assert Page(b"x = '" + b"a" * WIDEST + b"'\n", b"\n").similar(3) == []


def test_the_neighbours_are_the_nearest_lines_with_something_in_them() -> None:
    made = page(SHAPES)
    assert (made.neighbour(-1), made.neighbour(1)) == (b"width = shape.width", b"return 2 * (width + height)")
    assert (Page(b"", b"").neighbour(-1), Page(b"", b"").neighbour(1)) == (b"", b"")
