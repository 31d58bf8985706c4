"""Which bytes a request means: cases as text in data/holes, laws for any text at all.

A case is `=== language target: what it shows`, the text with ‸ for the cursor or ‹ › around the range, and
after `---` the hole: scope, node type, and what is not the default.
"""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stopgap.infill import holes, languages
from stopgap.infill.contract import FillError, FillRequest, Target
from stopgap.infill.holes import Hole
from stopgap.infill.source import Source, parse, point

DATA = Path(__file__).parent / "data"


def cases(folder: str) -> list[tuple[str, str, str]]:
    """(title, text, expectation) of every case in a folder."""
    found = []
    for path in sorted((DATA / folder).glob("[!p]*.txt")):
        for case in path.read_text(encoding="utf-8").split("\n=== ")[1:]:
            title, _, rest = case.partition("\n")
            text, _, expected = rest.partition("\n---\n")
            found.append((title, text, expected.strip("\n")))
    return found


def marked(text: str) -> tuple[bytes, int, int]:
    """The text without its marks, and the range they mark; `\\r` and `\\t` are written out."""
    text = text.replace("\\r", "\r").replace("\\t", "\t")
    if "‸" in text:
        before, _, after = text.partition("‸")
        at = len(before.encode())
        return (before + after).encode(), at, at
    before, _, rest = text.partition("‹")
    inside, _, after = rest.partition("›")
    start = len(before.encode())
    return (before + inside + after).encode(), start, start + len(inside.encode())


def describe(text: bytes, hole: Hole) -> str:
    """What a case expects, as one line."""
    words = [hole.scope, hole.node_type]
    if hole.start < hole.end:
        words.append(f"replaces {text[hole.start : hole.end].decode()!r}")
    words += [f"{k} {getattr(hole, k).decode()!r}" for k in ("indent", "lead", "tail") if getattr(hole, k)]
    return " ".join(words + ["on one line"] * hole.single_line)


def locate(language: str, target: Target, text: bytes, start: int, end: int) -> Hole:
    source = parse(text, languages.by_name(language))
    return holes.locate(source, FillRequest(text, language, start, end, target))


@pytest.mark.parametrize(("title", "text", "expected"), [pytest.param(*case, id=case[0]) for case in cases("holes")])
def test_the_hole_is_the_one_the_case_names(title: str, text: str, expected: str) -> None:
    language, target = title.partition(":")[0].split()
    source, start, end = marked(text)
    try:
        found = describe(source, locate(language, target, source, start, end))  # type: ignore[arg-type]
    except FillError as error:
        found = f"no: {error}"
    assert found == expected


def test_every_placeholder_of_a_file_is_found_in_order() -> None:
    text = (DATA / "holes" / "placeholders.py.txt").read_bytes()
    found = holes.placeholders(parse(text, languages.by_name("python")))
    assert [text[h.start : h.end] or text[h.start - 6 : h.start] for h in found] == [
        b"pass",
        b"...",
        b'raise NotImplementedError("later")',
        b"# TODO: count them"[-6:],
    ]


def test_lengths_come_from_the_kind_then_the_scope_then_any_language() -> None:
    python = holes.lengths_of("python", "argument_list", "node")
    assert python.p10 <= python.p50 <= python.p75 <= python.p90 <= python.p99
    assert holes.lengths_of("python", "no_such_kind", "block") == holes.lengths_of("python", "block", "block")
    assert holes.lengths_of("klingon", "block", "block").p50 > 0
    assert holes.lengths_of("python", "argument_list", "line") == holes.lengths_of("python", "x", "line")


def test_lengths_centre_on_what_is_replaced() -> None:
    prior = holes.lengths_of("python", "call", "node", replaced=40)
    assert prior.p10 < prior.p50 == 40 < prior.p75 < prior.p90 < prior.p99


def test_a_range_outside_the_file_is_one_clear_line() -> None:
    with pytest.raises(FillError, match=r"the range 0\.\.9 lies outside the file \(0\.\.5 bytes\)"):
        locate("python", "cursor", b"x = 1", 0, 9)


def test_without_a_tree_the_cursor_and_a_selection_still_work() -> None:
    source = Source(b"to be\nor \n", languages.plain("klingon"), None, why="no grammar")
    hole = holes.locate(source, FillRequest(source.text, "klingon", 9, 9))
    assert (hole.start, hole.scope) == (9, "line")
    assert holes.locate(source, FillRequest(source.text, "klingon", 0, 5, "selection")).end == 5
    with pytest.raises(FillError, match="only the cursor and a selection can be filled here: no grammar"):
        holes.locate(source, FillRequest(source.text, "klingon", 0, 0, "body"))


def test_a_function_is_found_from_its_first_line_and_from_inside() -> None:
    text = b"x = 1\n\n@cached\ndef f(a):\n    '''Doc.'''\n    b = a\n    return b\n"
    source = parse(text, languages.by_name("python"))
    for at in (text.index(b"def"), text.index(b"return")):
        function = holes.function_at(source, at)
        assert function is not None
        assert text[slice(*function.body)] == b"b = a\n    return b"
    assert holes.function_at(source, 0) is None


SAMPLES = sorted((DATA / "samples").iterdir())


def disguised(text: bytes, how: str) -> bytes:
    if how == "crlf":
        return text.replace(b"\n", b"\r\n")
    if how == "tabs":
        return text.replace(b"    ", b"\t").replace(b"  ", b"\t")
    if how == "bom and emoji":
        return b"\xef\xbb\xbf" + text.replace(b"a", "😀".encode(), 3)
    if how == "no last newline":
        return text.rstrip()
    return text


@pytest.mark.parametrize("how", ["as it is", "crlf", "tabs", "bom and emoji", "no last newline", "broken"])
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_cursor_anywhere_swallows_blanks_at_most(path: Path, how: str) -> None:
    language = languages.for_path(path.name)
    assert language is not None
    text = disguised(path.read_bytes(), how)
    rng = random.Random(path.name + how)
    for _ in range(25):
        if how == "broken":
            at = rng.randrange(len(text))
            text = text[:at] + text[at + rng.randrange(6) :]
        source = parse(text, language)
        at = rng.randrange(len(text) + 1)
        hole = holes.locate(source, FillRequest(text, language.name, at, at))
        assert abs(hole.start - at) <= 3 and hole.start <= hole.end
        assert not text[hole.start : hole.end].strip()
        assert b"\n" not in text[hole.start : hole.end] or hole.tail
        assert not (0 < hole.start < len(text) and text[hole.start] & 0xC0 == 0x80 and how != "broken")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(languages.LANGUAGES)), st.text("ab {}()\"'\n\r\t:;#/é😀=<>", max_size=60), st.data())
def test_no_text_makes_locate_fail_in_another_way(language: str, text: str, data: st.DataObject) -> None:
    body = text.encode()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, len(body)))
    target = data.draw(st.sampled_from(["cursor", "selection", "placeholder", "body", "node", "error"]))
    try:
        hole = locate(language, target, body, start, end)
    except FillError as error:
        assert "\n" not in str(error)
    else:
        assert 0 <= hole.start <= hole.end <= len(body)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_parsing_from_an_earlier_state_gives_the_tree_of_a_fresh_parse(path: Path) -> None:
    language = languages.for_path(path.name)
    assert language is not None
    rng = random.Random(path.name)
    source = parse(path.read_bytes(), language)
    for _ in range(30):
        a = rng.randrange(len(source.text))
        b = min(len(source.text), a + rng.randrange(4))
        piece = rng.choice((b"", b"x", b"(", b"}", b"\n", b'"', source.text[b : b + 9]))
        text = source.text[:a] + piece + source.text[b:]
        source = parse(text, language, previous=source)
        fresh = parse(text, language)
        assert source.tree is not None and fresh.tree is not None
        assert str(source.tree.root_node) == str(fresh.tree.root_node)
        if source.tree.root_node.has_error and rng.random() < 0.7:
            source = parse(path.read_bytes(), language)


def test_a_parse_over_its_budget_comes_back_without_a_tree_and_says_so() -> None:
    ticks = iter(range(10**6))
    text = b"x = [1, 2, 3]\n" * 4000
    source = parse(text, languages.by_name("python"), budget_ms=5000, clock=lambda: next(ticks))
    assert source.tree is None
    assert source.why == "the file could not be parsed within 5000 ms"
    with pytest.raises(TypeError, match="a budget needs a clock"):
        parse(text, languages.by_name("python"), budget_ms=5)


def test_a_huge_file_is_parsed_around_the_cursor_only() -> None:
    item = b"def f(a):\n    if a:\n        return a\n    return None\n\n\n"
    text = item * (2_000_000 // len(item))
    at = text.index(b"return None", 1_000_000)
    source = parse(text, languages.by_name("python"), around=at)
    assert source.tree is not None and not source.tree.root_node.has_error
    assert source.window[0] < at < source.window[1] and source.window[1] - source.window[0] < 200_000
    hole = holes.locate(source, FillRequest(text, "python", at, at, "body"))
    assert text[hole.start : hole.end] == b"if a:\n        return a\n    return None"
    assert point(text, at)[1] == 4
