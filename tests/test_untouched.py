"""Text outside the hole stays as it is, byte for byte, through an editor that counts in UTF-16: any file, any language.

The editor here knows a text as a string and edits as ranges, and shares nothing with what computes them.
"""

import random
import re
from pathlib import Path

import pytest
from test_holes import SAMPLES, disguised

from stopgap.infill import holes, languages
from stopgap.infill.contract import FillError, FillRequest, Target
from stopgap.infill.hole import snap
from stopgap.infill.source import newline, parse
from stopgap.infill.syntax import Gate
from stopgap.lsp.actions import _small
from stopgap.lsp.document import opened
from stopgap.lsp.ghost import ghost

FILLS = (
    "x",
    "x()",
    "return x",
    "x;",
    "é😀",
    "x = 1\nif x:\n    y = 2",
    "{ x: 1 }\ny",
    "<b>x</b>",
    "a: 1\nb: 2",
    "# 😀",
)
TWO_MB = 2_000_000


def huge(text: bytes) -> bytes:
    """The text so often that it has two megabytes."""
    return text * (TWO_MB // len(text) + 1)


def edited(text: str, start: tuple[int, int], end: tuple[int, int], new: str) -> str:
    """What an editor makes of an edit: lines end with CRLF, LF or CR, columns are units of UTF-16."""
    begins = [0, *(found.end() for found in re.finditer("\r\n|\n|\r", text))]

    def place(line: int, column: int) -> int:
        units, at = 0, begins[line]
        while units < column:
            units += 2 if ord(text[at]) > 0xFFFF else 1
            at += 1
        return at

    return text[: place(*start)] + new + text[place(*end) :]


@pytest.mark.parametrize("how", ["as it is", "crlf", "tabs", "bom and emoji", "no last newline", "huge"])
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_only_the_hole_changes(path: Path, how: str) -> None:
    language = languages.for_path(path.name)
    assert language is not None
    data = huge(path.read_bytes()) if how == "huge" else disguised(path.read_bytes(), how)
    text = data.decode()
    snapshot = opened("file:///x", 1, language.name, text)
    assert snapshot.data == data
    rng = random.Random(path.name + how)
    targets: list[Target] = ["cursor", "selection", "node", "body", "placeholder"]
    tried = 0
    for target in targets[:2] if how == "huge" else targets * 3:
        at = snap(data, rng.randrange(len(data)))
        source = parse(data, language, around=at)
        try:
            hole = holes.locate(source, FillRequest(data, language.name, at, at, target))
        except FillError:
            continue
        gate = Gate(source, hole, allow_unchecked=True)
        for fill in rng.sample(FILLS, 2 if how == "huge" else 5):
            made = gate.tidy(hole.wrap(fill.encode().replace(b"\n", newline(data))))
            if not gate.check(made).ok:
                continue
            tried += 1
            after = data[: hole.start] + made + data[hole.end :]
            changed = text
            for start, end, new in reversed(_small(data, after)):
                where = (snapshot.position(start, "utf-16"), snapshot.position(end, "utf-16"))
                changed = edited(changed, *where, new.decode())
            assert changed.encode() == after
            shown = ghost(data, at, (hole.start, hole.end), made.decode()) if target == "cursor" else None
            if shown is None:
                continue
            where = (snapshot.position(at - shown.back, "utf-16"), snapshot.position(at + shown.over, "utf-16"))
            got = edited(text, *where, shown.insert.decode()).encode()
            assert got.startswith(data[: hole.start]) and got.endswith(data[hole.end :])
            assert got[hole.start : len(got) - len(data) + hole.end].split() == made.split()
    assert tried or how == "huge"
