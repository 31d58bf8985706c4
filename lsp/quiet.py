"""When automatic ghost text stays away: places where a suggestion is a nuisance whatever it says.

Each rule returns its reason, for "why nothing?". Knows nothing of the model; how sure that was is the
threshold's business. Ghost text that was asked for by hand is not held back here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from tree_sitter import Node

from stopgap.infill import holes
from stopgap.infill.contract import FillError
from stopgap.infill.languages import Language

from .document import Snapshot
from .ghost import is_inert
from .settings import Settings

PARSE_MS = 8.0
"""A parse that takes longer is given up and the comment and string rules are skipped for this keystroke."""
MAX_PARSED = 512 * 1024


@dataclass(slots=True)
class Trees:
    """The last parse of each open document; the next one reuses its tree."""

    _sources: dict[str, holes.Source] = field(default_factory=dict)

    def source(
        self, uri: str, data: bytes, language: Language, cursor: int, budget_ms: float | None = PARSE_MS
    ) -> holes.Source | None:
        """The parsed text, or None: no grammar, or not within the budget (None means any time)."""
        if budget_ms is not None and len(data) > MAX_PARSED:
            return None
        try:
            source = holes.parse(
                data,
                language,
                around=cursor,
                previous=self._sources.get(uri),
                budget_ms=budget_ms,
                clock=time.monotonic,
            )
        except FillError:
            return None
        if source.tree is None:
            return None
        self._sources[uri] = source
        return source

    def forget(self, uri: str) -> None:
        self._sources.pop(uri, None)


def reason(snapshot: Snapshot, cursor: int, source: holes.Source | None, settings: Settings) -> str:
    """Why nothing is shown at this place, or an empty string."""
    if not settings.automatic:
        return "the setting automatic is off"
    edit = snapshot.edit
    if edit is not None and edit.removed and not edit.inserted and b"\n" not in edit.removed:
        return "you have just deleted something"
    rest = snapshot.data[cursor : snapshot.line_end(cursor)]
    before = snapshot.data[snapshot.line_start(cursor) : cursor]
    if _is_word(before[-1:]) and _is_word(rest[:1]):
        return "the cursor is inside a word"
    if not is_inert(rest):
        return "the line goes on behind the cursor"
    if source is not None and not (settings.in_comments and settings.in_strings):
        where = surroundings(source, cursor)
        if where == "comment" and not settings.in_comments:
            return "inside a comment (setting inComments)"
        if where == "string" and not settings.in_strings:
            return "inside a string (setting inStrings)"
    return ""


def surroundings(source: holes.Source, cursor: int) -> str:
    """ "comment", "string" or "code", by the syntax around the cursor."""
    language = source.language
    if source.tree is None or not language.strings | language.comments or language.name == "markdown":
        return "code"
    at = max(cursor - 1, 0)
    node: Node | None = source.tree.root_node.descendant_for_byte_range(at, cursor)
    while node is not None:
        if "interpolation" in node.type or "substitution" in node.type:
            return "code"
        if node.type in language.comments and node.start_byte < cursor:
            closed = _closes(source, node, language.block_comment[1])
            if cursor < node.end_byte or (cursor == node.end_byte and not closed):
                return "comment"
        if node.type in language.strings and node.start_byte < cursor < node.end_byte:
            return "string"
        node = node.parent
    return "code"


def _closes(source: holes.Source, node: Node, closer: str) -> bool:
    """Whether a comment ends by its own mark rather than with its line."""
    return bool(closer) and source.text[: node.end_byte].endswith(closer.encode())


def _is_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_" or byte >= b"\x80"
