"""What a language's own reader says of a text, where Python has one: its compiler, json and tomllib.

Grammars let pass what these refuse: wrong indentation, `01` and raw tabs in JSON, a key twice in TOML. Knows no
holes, no fills and no trees.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass

from . import pythonic
from .pythonic import FULL, NOT

NAMES = {"python": "Python", "json": "JSON", "toml": "TOML"}
"""The languages that have a reader, and what a user knows it by."""

_TOML_BYTES = 32 * 1024
"""Longer files count as good: tomllib takes a millisecond for three kilobytes."""
_TOML_LINE = re.compile(r" ?\(at (?:line (\d+), column \d+|end of document)\)")


@dataclass(frozen=True, slots=True)
class Problem:
    """What a reader stumbles over; `line` counts from 1, 0 where it does not say."""

    message: str
    line: int = 0


def read(language: str, text: bytes, want: int = FULL) -> tuple[int, Problem | None]:
    """How far the reader of `language` gets with a text (`pythonic.FULL`, `SYNTAX`, `NOT`), and what stopped it."""
    try:
        if language == "python":
            level, error = pythonic.compiles(text, want)
            return level, Problem(error.msg, error.lineno or 1) if error is not None else None
        if language == "json":
            json.loads(text, parse_constant=_no_constant)
        elif len(text) <= _TOML_BYTES:
            tomllib.loads(text.decode("utf-8-sig").replace("\r\n", "\n"))
    except json.JSONDecodeError as error:
        return NOT, Problem(error.msg, error.lineno)
    except tomllib.TOMLDecodeError as error:
        found = _TOML_LINE.search(str(error))
        return NOT, Problem(_TOML_LINE.sub("", str(error)), int(found[1] or 0) if found else 0)
    except (ValueError, RecursionError) as error:
        return NOT, Problem(str(error) or type(error).__name__)
    return FULL, None


def _no_constant(name: str) -> object:
    """json takes NaN and Infinity, which no other reader does."""
    raise ValueError(f"{name} is no number")
