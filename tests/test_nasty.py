"""Fills meant to do harm, in 21 languages: what the gate offers of them, a reader that shares nothing with it takes.

A case is `=== language`, the text with ‸ for the cursor, and after `---` one fill per line with `\\n` for a line
break; the first is harmless and has to be offered.
"""

import json
import tomllib
from pathlib import Path

import pytest
from adversary import compiles, count_flaws

from stopgap.infill import holes, languages
from stopgap.infill.contract import FillRequest
from stopgap.infill.source import parse
from stopgap.infill.syntax import Gate

CASES = [
    (path.stem, *case.partition("\n")[::2])
    for path in sorted((Path(__file__).parent / "data" / "nasty").glob("*.txt"))
    for case in path.read_text(encoding="utf-8").split("\n=== ")[1:]
]


def read(language: str, text: bytes) -> bool:
    """Whether who knows the language takes the text: its own reader where Python has one, else a fresh parse."""
    try:
        if language == "json":
            json.loads(text)
        if language == "toml":
            tomllib.loads(text.decode())
    except ValueError:
        return False
    return not count_flaws(text, languages.by_name(language)) and (language != "python" or compiles(text))


@pytest.mark.parametrize(("language", "case"), [case[1:] for case in CASES], ids=lambda case: case[:20])
def test_what_is_offered_can_be_read(language: str, case: str) -> None:
    marked, _, fills = case.partition("\n---\n")
    before, _, after = (piece.encode() for piece in marked.partition("‸"))
    text, at = before + after, len(before)
    source = parse(text, languages.by_name(language))
    gate = Gate(source, holes.locate(source, FillRequest(text, language, at, at)))
    offered = []
    for fill in filter(None, fills.split("\n")):
        made = gate.tidy(gate.hole.wrap(fill.replace("\\n", "\n").replace("\\\\", "\\").encode()))
        if gate.check(made).ok:
            offered.append((fill, made, read(language, text[: gate.hole.start] + made + text[gate.hole.end :])))
    assert offered[0][0] == fills.split("\n")[0]
    assert [(fill, made) for fill, made, taken in offered if not taken] == []


def test_there_are_hundreds_of_them() -> None:
    assert sum(case.count("\n") for _, _, case in CASES) > 700
    assert {language for _, language, _ in CASES} == set(languages.LANGUAGES)
