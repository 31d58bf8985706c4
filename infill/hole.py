"""What a hole is, how long its fill may be, and the pieces both ways of finding one are made of.

Knows neither requests nor cursor rules.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from tree_sitter import Node

from .source import BOM, Source, indent_at, newline, unit

Scope = Literal["token", "line", "statement", "block", "node", "selection", "placeholder", "error"]


@dataclass(frozen=True, slots=True)
class LengthPrior:
    """Quantiles of likely fill lengths, in bytes."""

    p10: int
    p50: int
    p75: int
    p90: int
    p99: int


@dataclass(frozen=True, slots=True)
class Hole:
    """The byte range `start..end` of the source that a fill replaces; empty for an insertion."""

    start: int
    end: int
    node_type: str
    """What the fill should become: a tree-sitter kind, or a plain word (`expression`, `block`, `line`)."""
    scope: Scope
    indent: bytes
    """The indentation that new lines of the fill start with."""
    lengths: LengthPrior
    single_line: bool
    lead: bytes = b""
    """What every fill must begin with (such as the line break after `{`): prompt with it, then keep it."""
    tail: bytes = b""
    """What every fill must end with (such as the line break before `}`)."""

    def wrap(self, core: bytes) -> bytes:
        """The fill as it goes into the file, from the text the model wrote between `lead` and `tail`."""
        return self.lead + core + self.tail


def lengths_of(language: str, kind: str, scope: str, replaced: int = 0) -> LengthPrior:
    """Likely lengths in bytes for a fill: measured for the kind, else the scope, else any language.

    Where `replaced` bytes make way, their number is the best single guess and becomes the centre.
    """
    table = _lengths()
    names = [kind, scope, "statement"] if scope not in ("token", "line") else [scope, kind]
    rows = [table.get(one, {}).get(name) for name in names for one in (language, "*")]
    row = next(found for found in [*rows, table["*"]["statement"]] if found)
    if not replaced:
        return LengthPrior(*row[:5])
    return LengthPrior(
        max(1, replaced // 2), replaced, replaced * 5 // 4 + 2, replaced * 7 // 4 + 8, max(replaced * 3, row[3])
    )


def make(
    source: Source,
    start: int,
    end: int,
    kind: str,
    scope: Scope,
    *,
    indent: bytes | None = None,
    lead: bytes = b"",
    tail: bytes = b"",
    replaced: int = 0,
    single_line: bool = False,
) -> Hole:
    blank = indent_at(source.text, start) if indent is None else indent
    prior = lengths_of(source.language.name, kind, scope, replaced)
    return Hole(start, end, kind, scope, blank, prior, single_line, lead, tail)


def between_braces(source: Source, body: Node, outer: bytes, scope: Scope) -> Hole | None:
    """Between the braces of an empty body: the blanks there make way for an indented block."""
    children = body.children
    if len(children) < 2 or children[-1].type != "}" or children[-1].is_missing:
        return None
    start, end = children[0].end_byte, children[-1].start_byte
    if source.text[start:end].strip():
        return None
    inner = outer + unit(source, start)
    line = newline(source.text)
    return make(source, start, end, "block", scope, lead=line + inner, tail=line + outer, indent=inner)


def members(source: Source, body: Node) -> list[Node]:
    return [one for one in body.named_children if one.type not in source.language.comments]


def smallest(source: Source, start: int, end: int) -> Node | None:
    if source.tree is None:
        return None
    return source.tree.root_node.named_descendant_for_byte_range(start, end)


def trim(text: bytes, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    kept = piece.strip()
    if not kept:
        return start, end
    start += len(piece) - len(piece.lstrip())
    return start, start + len(kept)


def snap(text: bytes, offset: int) -> int:
    """Back to the start of the character, before a CRLF, behind the BOM."""
    while 0 < offset < len(text) and text[offset] & 0xC0 == 0x80:
        offset -= 1
    if 0 < offset < len(text) and text[offset - 1 : offset + 1] == b"\r\n":
        offset -= 1
    return max(offset, 3) if text.startswith(BOM) else offset


@functools.cache
def _lengths() -> dict[str, dict[str, list[int]]]:
    """`lengths.json`: language -> kind -> p10, p50, p75, p90, p99, count; `*` stands for all languages."""
    text = resources.files("stopgap.infill").joinpath("data/lengths.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, list[int]]] = json.loads(text)["lengths"]
    return table
