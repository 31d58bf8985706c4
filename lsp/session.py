"""Who still wants an answer: at most one request per document is alive, and this file decides which.

A request is answered with ghost texts, with nothing (`()`), or with None when a newer request or a newer
version of the text has overtaken it. Editors cannot be relied on for this: Neovim 0.12 cancels nothing and
shows whatever arrives last. Knows nothing of LSP types, settings or rules for staying quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from stopgap.daemon import wire
from stopgap.infill.contract import show_score

from .document import Documents
from .ghost import Ghost, ghost
from .link import Fills
from .typed import TypedThrough

WHOLE_FILE = 1024 * 1024
"""Bytes up to which a file is sent whole."""
WINDOW = 256 * 1024
"""Bytes sent of a larger one, half before and half behind the cursor, cut at line starts."""


@dataclass(frozen=True, slots=True)
class Query:
    """One place in one text that ghost text is wanted for.

    `data` and `cursor` are the text as it will be, which differs from the document of that version when an
    entry of the completion menu is selected but not yet accepted.
    """

    uri: str
    version: int
    data: bytes
    cursor: int
    language: str
    path: str = ""
    wanted: int = 1
    budget_ms: float = 600.0
    allow_unchecked: bool = False
    prepare_next: bool = True
    snippets: tuple[wire.Snippet, ...] = ()

    @property
    def place(self) -> tuple[bytes, int, int]:
        return self.data, self.cursor, self.wanted


@dataclass(slots=True)
class _Errand:
    query: Query
    task: asyncio.Task[tuple[Ghost, ...]]

    def answers(self, query: Query) -> bool:
        return not self.task.done() and self.query.place == query.place


@dataclass(slots=True)
class _Desk:
    """Everything about one document: whose turn it is, what runs, what is known."""

    turn: int = 0
    running: _Errand | None = None
    ahead: _Errand | None = None
    memory: TypedThrough = field(default_factory=TypedThrough)


class Session:
    """The requests for ghost text of one editor."""

    def __init__(
        self, documents: Documents, link: Fills, on_nothing: Callable[[str, str], None] = lambda uri, why: None
    ) -> None:
        """`on_nothing` is told the document and the reason when a request came to no ghost text."""
        self._documents = documents
        self._link = link
        self._on_nothing = on_nothing
        self._desks: dict[str, _Desk] = {}

    def known(self, uri: str, data: bytes, cursor: int, wanted: int = 1) -> tuple[Ghost, ...] | None:
        """The remembered answer, without overtaking anything."""
        desk = self._desks.get(uri)
        return desk.memory.get(data, cursor, wanted) if desk else None

    async def ask(self, query: Query) -> tuple[Ghost, ...] | None:
        """Ghost texts, best first; `()` for nothing to show; None if this request has been overtaken.

        Cancelling the awaiting task cancels the request in the daemon, unless a newer one joined it.
        """
        desk = self._desks.setdefault(query.uri, _Desk())
        desk.turn = turn = desk.turn + 1
        if not self._is_current(query):
            return None
        found = desk.memory.get(query.data, query.cursor, query.wanted)
        if found is not None:
            _cancel(desk.running)
            self._prepare(desk, query, found)
            return found
        errand = self._errand(desk, query)
        try:
            await asyncio.wait({errand.task})
        except asyncio.CancelledError:
            if turn == desk.turn:
                errand.task.cancel()
            raise
        if turn != desk.turn or errand.task.cancelled() or not self._is_current(query):
            return None
        found = errand.task.result()
        self._prepare(desk, query, found)
        return found

    def overtake(self, uri: str) -> None:
        """No answer is wanted for this document any more (it is quiet there now); memory stays."""
        desk = self._desks.get(uri)
        if desk is not None:
            desk.turn += 1
            _cancel(desk.running)

    def forget(self, uri: str) -> None:
        """The document was closed."""
        desk = self._desks.pop(uri, None)
        if desk is not None:
            desk.turn += 1
            _cancel(desk.running)
            _cancel(desk.ahead)

    def forget_all(self) -> None:
        for uri in list(self._desks):
            self.forget(uri)

    def _errand(self, desk: _Desk, query: Query) -> _Errand:
        """What will answer the query: a request that runs already for just this place, or a new one."""
        for errand in (desk.running, desk.ahead):
            if errand is not None and errand.answers(query):
                if errand is desk.ahead:
                    _cancel(desk.running)
                    desk.running, desk.ahead = errand, None
                return errand
        _cancel(desk.running)
        _cancel(desk.ahead)
        desk.ahead = None
        desk.running = _Errand(query, asyncio.create_task(self._fetch(desk, query, "interactive")))
        return desk.running

    def _prepare(self, desk: _Desk, query: Query, found: tuple[Ghost, ...]) -> None:
        """Fill the place behind the first ghost text while the user reads it."""
        if not query.prepare_next or not found:
            return
        shown = found[0]
        before = query.data[: query.cursor - shown.back] + shown.insert
        data = before + query.data[query.cursor + shown.over :]
        then = replace(query, data=data, cursor=len(before), wanted=1)
        if desk.memory.get(then.data, then.cursor) is not None:
            return
        if desk.ahead is not None and desk.ahead.answers(then):
            return
        _cancel(desk.ahead)
        desk.ahead = _Errand(then, asyncio.create_task(self._fetch(desk, then, "rewrite")))

    async def _fetch(self, desk: _Desk, query: Query, kind: wire.Kind) -> tuple[Ghost, ...]:
        """Ask the daemon, and remember what it said unless it failed."""
        offset, source = window(query.data, query.cursor)
        at = query.cursor - offset
        end = await self._link.fill(
            wire.Fill(
                source=source,
                language=query.language,
                start=at,
                end=at,
                path=query.path,
                snippets=query.snippets,
                candidates=query.wanted,
                budget_ms=query.budget_ms,
                allow_unchecked=query.allow_unchecked,
                document=query.uri[-1024:],
                kind=kind,
            )
        )
        if isinstance(end, wire.Error):
            self._on_nothing(query.uri, end.message)
            return ()
        found: dict[bytes, Ghost] = {}
        for fill in end.fills:
            shown = ghost(
                query.data,
                query.cursor,
                (end.start + offset, end.end + offset),
                fill.text,
                score=show_score(fill.score),
                checked=fill.checked,
            )
            if shown is not None:
                found.setdefault(shown.insert, replace(shown, fill=end.id))
        answer = tuple(found.values())
        if not answer and kind == "interactive":
            self._on_nothing(query.uri, end.reason or "the fill would change what is there already")
        if answer or end.stopped not in {"cancelled", "budget"}:  # with more time there may be something
            desk.memory.put(query.data, query.cursor, answer)
        return answer

    def _is_current(self, query: Query) -> bool:
        snapshot = self._documents.get(query.uri)
        return snapshot is not None and snapshot.version == query.version


def window(data: bytes, cursor: int) -> tuple[int, bytes]:
    """The part of a file to send, and where it begins in the file."""
    if len(data) <= WHOLE_FILE:
        return 0, data
    low = data.rfind(b"\n", 0, max(cursor - WINDOW // 2, 0)) + 1
    high = data.find(b"\n", min(cursor + WINDOW // 2, len(data)))
    high = len(data) if high < 0 else high + 1
    if high - low > 2 * WINDOW:  # lines longer than the window: cut anywhere but inside a character
        low, high = max(low, cursor - WINDOW // 2), min(high, cursor + WINDOW // 2)
        while low < cursor and data[low] & 0xC0 == 0x80:
            low += 1
        while high > cursor and high < len(data) and data[high] & 0xC0 == 0x80:
            high -= 1
    return low, data[low:high]


def _cancel(errand: _Errand | None) -> None:
    if errand is not None:
        errand.task.cancel()
