"""Neutral texts for a hole, tried to learn what the file is like apart from it. Knows no tree and no verdicts."""

from __future__ import annotations

import re

from .halves import missing
from .holes import Hole
from .source import Source, indent_at, line_start, unit


def fillers(source: Source, hole: Hole) -> list[bytes]:
    """Innocent fills, likeliest first, at each likely indentation where the hole begins a line and so decides about it.

    What completes a torn pair comes before what the language says is neutral.
    """
    halves = missing(source.language.name, source.text[: hole.start], source.text[hole.end :])
    plain = [indent + one.encode() for one in source.language.fillers for indent in indents(source, hole)]
    return list(dict.fromkeys(hole.wrap(one) for one in (*halves, *plain)))


def indents(source: Source, hole: Hole) -> list[bytes]:
    """Indentations that what begins in the hole may have."""
    text = source.text
    if hole.lead or line_start(text, hole.start) != hole.start:
        return [b""]
    above = indent_at(text, line_start(text, max(0, hole.start - 1)))
    below = re.match(rb"\s*?([ \t]*)(?=\S|\Z)", text[hole.end :])
    step = unit(source, hole.start)
    found = [above + step, above, below[1] if below else b"", *([above[: -len(step)]] if above else [])]
    return list(dict.fromkeys(found))
