"""Ghost text for `textDocument/inlineCompletion`, and for `textDocument/completion` in editors without it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lsprotocol import types as lsp

from stopgap.daemon import wire

from . import quiet
from .document import Snapshot, opened
from .ghost import Ghost
from .session import Query

if TYPE_CHECKING:
    from .server import Server

ACCEPTED = "stopgap.accepted"
"""The command an editor runs after it has inserted an item."""
_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]*\Z")


async def inline_completion(ls: Server, params: lsp.InlineCompletionParams) -> list[lsp.InlineCompletionItem] | None:
    """Ghost texts. `[]` clears what an editor shows; null, for overtaken requests, changes nothing there."""
    snapshot = ls.asked_about()
    if snapshot is None:
        return []
    data, cursor = snapshot.data, ls.offset(snapshot, params.position)
    start, end = snapshot.line_start(cursor), cursor
    selected = params.context.selected_completion_info
    if selected is not None:
        # The text as it will be once the menu's entry is taken; items must then replace the same range.
        start, end = ls.offset(snapshot, selected.range.start), ls.offset(snapshot, selected.range.end)
        chosen = selected.text.encode("utf-8", "replace")
        data, cursor = data[:start] + chosen + data[end:], start + len(chosen)
    invoked = params.context.trigger_kind == lsp.InlineCompletionTriggerKind.Invoked
    found = await ask(ls, snapshot, data, cursor, invoked=invoked)
    if found is None:
        return None
    items = []
    # Neovim 0.12 lays a text with a range over what stands behind the cursor, brackets and all, and its
    # buffers hold no carriage returns.
    neovim = ls.link.name == "Neovim"
    for ghost in found:
        if selected is not None and (ghost.over or ghost.back):
            continue
        at = cursor if neovim and selected is None and not (ghost.back or ghost.over) else start
        text = data[at : cursor - ghost.back] + ghost.insert
        if neovim:
            text = text.replace(b"\r\n", b"\n")
        where = ls.range(snapshot, at, end + ghost.over)
        items.append(lsp.InlineCompletionItem(text.decode(), range=where, command=accepted(ghost, snapshot)))
    return items


async def completion(ls: Server, params: lsp.CompletionParams) -> lsp.CompletionList | None:
    """The same in a completion menu: one entry, below what language servers have to say."""
    snapshot = ls.asked_about()
    if snapshot is None:
        return None
    cursor = ls.offset(snapshot, params.position)
    found = await ask(ls, snapshot, snapshot.data, cursor, invoked=False)
    items = [menu_item(ls, snapshot, cursor, ghost) for ghost in found or () if not ghost.back]
    return lsp.CompletionList(is_incomplete=True, items=items)


def menu_item(ls: Server, snapshot: Snapshot, cursor: int, ghost: Ghost) -> lsp.CompletionItem:
    word = _WORD.search(snapshot.data[snapshot.line_start(cursor) : cursor])
    start = cursor - len(word[0] if word else b"")
    text = (snapshot.data[start:cursor] + ghost.insert).decode()
    first, _, more = text.partition("\n")
    return lsp.CompletionItem(
        label=first.strip()[:60] + (" …" if more or len(first.strip()) > 60 else ""),
        kind=lsp.CompletionItemKind.Snippet,
        detail="stopgap",
        documentation=lsp.MarkupContent(lsp.MarkupKind.Markdown, f"```{snapshot.language_id}\n{text}\n```"),
        sort_text="\uffff",
        filter_text=text.split("\n", 1)[0],
        insert_text_format=lsp.InsertTextFormat.PlainText,
        insert_text_mode=lsp.InsertTextMode.AsIs,
        text_edit=lsp.TextEdit(ls.range(snapshot, start, cursor + ghost.over), text),
        command=accepted(ghost, snapshot),
    )


def accepted(ghost: Ghost, snapshot: Snapshot) -> lsp.Command:
    arguments = [ghost.fill, snapshot.language_id, len(ghost.insert.decode())]
    return lsp.Command("stopgap: accepted", ACCEPTED, arguments=arguments)


async def ask(ls: Server, snapshot: Snapshot, data: bytes, cursor: int, *, invoked: bool) -> tuple[Ghost, ...] | None:
    """Ghost texts at a place, or None for a request that was overtaken; notes why there are none."""
    settings = ls.settings
    wanted = settings.candidates if invoked else 1
    language = ls.language(snapshot)
    why = ls.refusal(snapshot)
    if not settings.enabled:
        why = "the setting enabled is off"
    elif snapshot.language_id in settings.disabled_languages:
        why = f"the setting disabledLanguages has {snapshot.language_id}"
    elif language is None:
        why = f"stopgap has no grammar for {snapshot.language_id} (setting allowUnchecked)"
    if why or language is None:
        return _nothing(ls, snapshot, why)
    known = ls.session.known(snapshot.uri, data, cursor)
    # What continues a text already shown passed the rules where it began.
    if not invoked and known is None:
        where = ls.trees.where(snapshot.uri, data, language, cursor)
        there = snapshot if data is snapshot.data else opened(snapshot.uri, 0, snapshot.language_id, data)
        why = quiet.reason(there, cursor, where, settings)
        if why:
            return _nothing(ls, snapshot, why)
    query = Query(
        snapshot.uri,
        snapshot.version,
        data,
        cursor,
        language.name,
        path=ls.path_shown(snapshot),
        wanted=wanted,
        budget_ms=settings.invoked_budget_ms if invoked else settings.budget_ms,
        allow_unchecked=settings.allow_unchecked,
        prepare_next=settings.prepare_next,
        snippets=ls.context.snippets(snapshot, language, ls.documents, ls.rules),
    )
    found = await ls.session.ask(query)
    if invoked and known and found == ():
        return known  # more was asked for than there is: what is on screen stays
    if not found or invoked:
        return found
    sure = tuple(ghost for ghost in found if ghost.score >= settings.show_threshold)[:1]
    if not sure:
        return _nothing(ls, snapshot, f"the model was not sure enough ({found[0].score:.2f}; setting showThreshold)")
    await ls.tell(wire.Feedback(sure[0].fill, "shown", snapshot.language_id[:64]))
    return sure


def _nothing(ls: Server, snapshot: Snapshot, why: str) -> tuple[Ghost, ...]:
    ls.note(snapshot, why)
    ls.session.overtake(snapshot.uri)
    return ()
