"""When automatic ghost text stays away: places where a suggestion is a nuisance whatever it says.

Each rule returns its reason, for "why nothing?". Knows nothing of the model; how sure that was is the
threshold's business. Ghost text that was asked for by hand is not held back here.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tree_sitter import Node

from stopgap.infill import holes
from stopgap.infill.contract import FillError
from stopgap.infill.languages import Language

from .document import Snapshot
from .ghost import is_inert
from .settings import Settings

Where = Literal["comment", "string", "code"]

PARSE_MS = 3.0
"""A parse that takes longer is given up. After an edit of sound text it takes 0.5 ms; around a syntax error in
the middle of 2,000 lines of Python 10 to 45 ms at every key, which is no time to spend on this question."""
PAUSE_S = 0.5
"""After a parse that was given up the line alone is read for so long."""
MAX_PARSED = 512 * 1024
_ESCAPED = rb"\\.?"
"""A regular expression; the other marks are plain text."""


@dataclass(slots=True)
class Trees:
    """The last parse of each open document; the next one reuses its tree."""

    clock: Callable[[], float] = time.monotonic
    _sources: dict[str, holes.Source] = field(default_factory=dict)
    _not_before: dict[str, float] = field(default_factory=dict)

    def source(
        self, uri: str, data: bytes, language: Language, cursor: int, budget_ms: float | None = PARSE_MS
    ) -> holes.Source | None:
        """The parsed text, or None: no grammar, or not within the budget (None means any time)."""
        if budget_ms is not None and (len(data) > MAX_PARSED or self.clock() < self._not_before.get(uri, 0.0)):
            return None
        try:
            source = holes.parse(
                data,
                language,
                around=cursor,
                previous=self._sources.get(uri),
                budget_ms=budget_ms,
                clock=self.clock,
            )
        except FillError:
            return None
        if source.tree is None:
            self._not_before[uri] = self.clock() + PAUSE_S
            return None
        self._sources[uri] = source
        return source

    def where(self, uri: str, data: bytes, language: Language, cursor: int) -> Where:
        """What the cursor is in: by the tree if there is time for one, else by reading the line."""
        if language.name == "markdown" or not language.module:
            return "code"
        source = self.source(uri, data, language, cursor)
        if source is not None:
            return surroundings(source, cursor)
        start = data.rfind(b"\n", 0, cursor) + 1
        last = self._sources.get(uri)
        known = last is not None and last.language is language and last.text[:start] == data[:start]
        begins: Where = surroundings(last, start) if known and last is not None and start else "code"
        return read_line(data[start:cursor], language, begins)

    def forget(self, uri: str) -> None:
        self._sources.pop(uri, None)
        self._not_before.pop(uri, None)


def reason(snapshot: Snapshot, cursor: int, where: Where, settings: Settings) -> str:
    """Why nothing is shown at this place, or an empty string; `where` is what the cursor is in."""
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
    if where == "comment" and not settings.in_comments:
        return "inside a comment (setting inComments)"
    if where == "string" and not settings.in_strings:
        return "inside a string (setting inStrings)"
    return ""


def surroundings(source: holes.Source, cursor: int) -> Where:
    """What the cursor is in, by the syntax around it."""
    language = source.language
    if source.tree is None:
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


def read_line(before: bytes, language: Language, begins: Where) -> Where:
    """What the end of a piece of a line is in, given what its start is in; knows marks, not syntax."""
    comment, (opener, closer) = language.line_comment.encode(), map(str.encode, language.block_comment)
    long_quotes = (b'"""', b"'''") if language.name == "python" else ()
    quotes = (*long_quotes, b'"', b"`", *(() if language.name == "rust" else (b"'",)))
    inside, at = {"comment": closer, "string": b"", "code": None}[begins], 0
    while True:
        if inside is None:
            wanted: tuple[bytes, ...] = (comment, opener, *quotes)
        else:
            wanted = (_ESCAPED, inside) if inside else (_ESCAPED, *quotes)
        match = _any_of(wanted).search(before, at)
        if match is None:
            break
        mark, at = match[0], match.end()
        if inside is not None:
            inside = inside if mark.startswith(b"\\") else None
        elif comment and mark == comment:
            return "comment"
        else:
            inside = closer if mark == opener else mark
    if inside is None:
        return "code"
    return "comment" if inside and inside == closer else "string"


@functools.cache
def _any_of(marks: tuple[bytes, ...]) -> re.Pattern[bytes]:
    """Finds the next of some marks, the first of them where two begin together."""
    return re.compile(b"|".join(mark if mark == _ESCAPED else re.escape(mark) for mark in marks if mark), re.DOTALL)


def _closes(source: holes.Source, node: Node, closer: str) -> bool:
    """Whether a comment ends by its own mark rather than with its line."""
    return bool(closer) and source.text[: node.end_byte].endswith(closer.encode())


def _is_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_" or byte >= b"\x80"
