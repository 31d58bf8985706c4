"""The gate: cases as text in data/syntax, and an opponent who tries to get errors past it.

A case is `=== language: what it shows`, the text with ‸ for the cursor (or ‹ › around what is replaced), and
after `---` one fill per line as a Python literal, with `→` what tidying makes of it and `✗` why it is refused.
"""

import ast
import json
import random
from pathlib import Path

import pytest
from adversary import compiles, count_flaws, run, wound
from test_holes import DATA, SAMPLES, cases, locate, marked

from stopgap.infill import languages
from stopgap.infill.source import parse, unparsed
from stopgap.infill.syntax import Gate


def judged(gate: Gate, fill: str) -> str:
    """The line a case expects for a fill."""
    text = gate.hole.wrap(fill.encode())
    tidy = gate.tidy(text)
    verdict = gate.check(tidy)
    line = repr(fill)
    if tidy != text:
        line += f" → {tidy.decode()!r}"
    if not verdict.ok:
        line += f" ✗ {verdict.reason}"
        if verdict.span is not None:
            line += f" @ {tidy[slice(*verdict.span)].decode()!r}"
    return line


@pytest.mark.parametrize(("title", "text", "expected"), [pytest.param(*case, id=case[0]) for case in cases("syntax")])
def test_the_gate_judges_as_the_case_says(title: str, text: str, expected: str) -> None:
    language = title.partition(":")[0]
    source, start, end = marked(text)
    hole = locate(language, "cursor" if start == end else "selection", source, start, end)
    gate = Gate(parse(source, languages.by_name(language)), hole)
    lines = expected.split("\n")
    fills = [ast.literal_eval(line.split(" → ")[0].split(" ✗ ")[0]) for line in lines]
    assert [judged(gate, fill) for fill in fills] == lines


@pytest.mark.parametrize("broken", [False, True], ids=["intact", "broken elsewhere"])
def test_no_spoilt_fill_gets_past_the_gate_and_few_true_ones_are_refused(broken: bool) -> None:
    tallies = run([DATA / "samples"], 6, 7, only=set(), broken=broken)
    assert len(tallies) >= (15 if broken else 20)
    assert sum(one.bad for one in tallies.values()) > 500
    assert {name: one.accepted_bad for name, one in tallies.items() if one.accepted_bad} == {}
    refused = sum(one.refused for one in tallies.values()) / sum(one.truths for one in tallies.values())
    assert refused <= (0.4 if broken else 0.05)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_what_is_accepted_parses_afresh(path: Path) -> None:
    language = languages.for_path(path.name)
    assert language is not None
    text, rng = path.read_bytes(), random.Random(path.name)
    source = parse(text, language)
    for _ in range(8):
        at = rng.randrange(len(text) + 1)
        gate = Gate(source, locate(language.name, "cursor", text, at, at))
        for fill in (b"x", b"x;", b"(x)", b"{ x }", b"x\n", b"# x", b"// x", b'"x"', b"x = 1", b"x: 1,"):
            made = gate.tidy(fill)
            if gate.check(made).ok:
                after = text[: gate.hole.start] + made + text[gate.hole.end :]
                assert count_flaws(after, language) == 0
                assert language.name != "python" or compiles(after)


def test_without_a_tree_only_who_allows_it_gets_an_unchecked_fill() -> None:
    text = b"to be or "
    hole = locate("python", "cursor", text, len(text), len(text))
    source = unparsed(text, languages.plain("klingon"), "no grammar for klingon")
    assert Gate(source, hole).check(b"not").reason == "no grammar for klingon"
    allowed = Gate(source, hole, allow_unchecked=True)
    assert allowed.check(b"not").ok and not allowed.checked
    assert not allowed.check(b"  \n").ok


def test_a_check_over_its_budget_says_no() -> None:
    text = b"x = [1, 2, 3]\n" * 4000
    source = parse(text + b"y = ", languages.by_name("python"))
    hole = locate("python", "cursor", source.text, len(source.text), len(source.text))
    ticks = iter(range(10**6))
    verdict = Gate(source, hole, clock=lambda: next(ticks), budget_ms=2000).check(b"1")
    assert (verdict.ok, verdict.reason) == (False, "the syntax check took longer than 2000 ms")


def test_a_hole_in_a_huge_file_is_judged() -> None:
    item = b"def f(a):\n    return a\n\n\n"
    text = item * (2_000_000 // len(item)) + b"def last(b):\n    \n"
    source = parse(text, languages.by_name("python"), around=len(text))
    hole = locate("python", "cursor", text, len(text) - 1, len(text) - 1)
    gate = Gate(source, hole)
    assert gate.check(b"return b").ok
    assert not gate.check(b"return (b").ok
    assert not gate.check(b"return b\n      return 2").ok


@pytest.mark.parametrize(
    ("language", "text", "word"),
    [
        ("bash", "if true; then\n  cat > x <<EOF\none\ntwo\n‸\nfi\necho done\n", "EOF"),
        ("bash", "cat <<-'END'\n\tone\n‸\necho done\n", "END"),
        ("php", "<?php\n$a = <<<EOT\none\n‸;\necho $a;\n", "EOT"),
        ("ruby", "x = foo(<<~EOS)\n  one\n‸\ny = 1\ndef a\n  1\nend\n", "EOS"),
    ],
)
def test_where_the_end_of_a_heredoc_is_missing_only_that_is_accepted(language: str, text: str, word: str) -> None:
    start = text.encode().index("‸".encode())
    raw = text.replace("‸", "").encode()
    source = parse(raw, languages.by_name(language))
    gate = Gate(source, locate(language, "selection", raw, start, start))
    assert gate.check(word.encode()).ok
    assert not gate.check(b"three").ok


@pytest.mark.parametrize("fill", ["<<~EOS", "foo(<<-EOS)", "<<~EOS\n  one\n"])
def test_ruby_s_grammar_ends_a_heredoc_with_the_file_and_the_gate_does_not(fill: str) -> None:
    raw = b"def a\n  x = \n  b\nend\ny = 1\n"
    gate = Gate(parse(raw, languages.by_name("ruby")), locate("ruby", "cursor", raw, 12, 12))
    assert not gate.check(fill.encode()).ok
    assert gate.check(b"<<~EOS\n  one\n  EOS").ok


@pytest.mark.parametrize("above", ["", "    def a(self):\n        return 1\n\n"])
@pytest.mark.parametrize(
    ("body", "good", "bad"), [("await x", "async def b():", "def b():"), ("return 2", "def b():", "if x:")]
)
def test_a_missing_def_line_is_told_by_the_body_it_leaves(above: str, body: str, good: str, bad: str) -> None:
    before = f"class A:\n{above}    ".encode()
    raw = before + f"\n        {body}\n".encode()
    gate = Gate(parse(raw, languages.by_name("python")), locate("python", "selection", raw, len(before), len(before)))
    assert gate.check(good.encode()).ok
    assert not gate.check(bad.encode()).ok


def test_a_flaw_over_half_the_file_is_no_excuse_where_another_fill_leaves_a_small_one() -> None:
    above = b"class A {\n    string f() {\n        return V;\n    }\n\n"
    before = above + b"    static implicit operator K\n    {\n        return "
    raw = before + b";\n    }\n}"
    gate = Gate(parse(raw, languages.by_name("c-sharp")), locate("c-sharp", "selection", raw, len(before), len(before)))
    assert not gate.check(b"V;").ok


@pytest.mark.parametrize(("before", "after"), [("int f(int a)", ""), ("namespace n\n{\nint f(int a)", "}\n")])
def test_a_function_of_cpp_keeps_the_body_on_the_next_line(before: str, after: str) -> None:
    raw = f"{before}\n{{\n    return 1;\n}}\n{after}".encode()
    at = len(before)
    gate = Gate(parse(raw, languages.by_name("cpp")), locate("cpp", "selection", raw, at, at))
    assert gate.check(b" noexcept").ok
    assert not gate.check(b";").ok
    assert not gate.check(b" { return 2; }").ok


def test_a_broken_page_is_not_broken_as_a_whole() -> None:
    before = b"<table>\ntr><td><b>G</b></td><td>M</td></tr>\n<tr><td><b>G</b></td><td>M</td></tr>\n"
    raw = before + b"\n<p>\n<img src='x'><p>\n<img src='y'>\n"
    gate = Gate(parse(raw, languages.by_name("html")), locate("html", "selection", raw, len(before), len(before)))
    assert not gate.check(b"<tr><td>2</td></tr>").ok


@pytest.mark.parametrize(
    ("language", "before", "opener"),
    [("ruby", b"unless a\n  raise ", b"<<-WARN"), ("bash", b"if a; then\n  cat ", b"<<WARN")],
)
def test_the_body_of_a_heredoc_tells_that_its_opener_is_missing(language: str, before: bytes, opener: bytes) -> None:
    after = b"\nGems 2.0 or newer is (required to protect.\nWARN\n" + (b"end\n" if language == "ruby" else b"fi\n")
    raw, at = before + after, len(before)
    gate = Gate(parse(raw, languages.by_name(language)), locate(language, "selection", raw, at, at))
    assert gate.check(opener).ok
    assert not gate.check(b"x").ok


def test_the_end_tag_tells_that_its_beginning_is_missing() -> None:
    before, after = b"<!-- page -->\n", b"\n<HEAD>\n</HEAD>\n<BODY>\n<P>x\n</BODY>\n</html>\n"
    gate = Gate(
        parse(before + after, languages.by_name("html")),
        locate("html", "selection", before + after, len(before), len(before)),
    )
    assert gate.check(b"<HTML>").ok
    assert not gate.check(b"<!-- a -->").ok


def test_an_unfinished_last_line_passes_where_the_caller_says_so() -> None:
    text = b"def f(x):\n    \n"
    gate = Gate(parse(text, languages.by_name("python")), locate("python", "cursor", text, 14, 14))
    assert not gate.check(b"y = 1\n    return (x +").ok
    assert gate.check(b"y = 1\n    return x +", complete=False).reason != "a syntax error"


def test_a_broken_file_stays_as_broken_as_it_was() -> None:
    """Fills offered in a wounded file never raise the number of errors, by a fresh count."""
    rng = random.Random(3)
    for path in SAMPLES:
        language = languages.for_path(path.name)
        assert language is not None
        text = wound(path.read_bytes(), rng)
        source = parse(text, language)
        before = count_flaws(text, language)
        for _ in range(4):
            at = rng.randrange(len(text) + 1)
            gate = Gate(source, locate(language.name, "cursor", text, at, at))
            for fill in (b"x", b"x)", b"}", b'"', b"(x", b"return x", json.dumps("x").encode()):
                made = gate.tidy(fill)
                if gate.check(made).ok:
                    after = text[: gate.hole.start] + made + text[gate.hole.end :]
                    assert count_flaws(after, language) <= before
