"""The language server: LSP messages in, answers out; everything else is decided in the other files.

Request handlers are coroutines (a `$/cancelRequest` then raises at their await); the notifications that
change documents run at once and in order. pygls's own copy of the documents is not kept (see `document`).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
from importlib.metadata import version
from typing import Any, BinaryIO, cast

from lsprotocol import types as lsp
from pygls.io_ import StdinAsyncReader, StdoutWriter, run_async
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol, default_converter, lsp_method

from stopgap.infill import languages
from stopgap.infill.contract import FillError

from .document import Change, Documents, Encoding, Snapshot
from .ghost import Ghost
from .link import Health, Link
from .session import Query, Session
from .settings import Settings, merged

logger = logging.getLogger(__name__)


class Protocol(LanguageServerProtocol):
    """pygls's protocol with our documents in place of its own, and an answer to every request."""

    _server: Server

    @lsp_method(lsp.TEXT_DOCUMENT_DID_OPEN)
    def lsp_text_document__did_open(self, params: lsp.DidOpenTextDocumentParams) -> None:
        self._server.opened(params.text_document)

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: lsp.DidChangeTextDocumentParams) -> None:
        self._server.changed(params.text_document, params.content_changes)

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def lsp_text_document__did_close(self, params: lsp.DidCloseTextDocumentParams) -> None:
        self._server.closed(params.text_document.uri)

    @lsp_method(lsp.NOTEBOOK_DOCUMENT_DID_OPEN)
    def lsp_notebook_document__did_open(self, params: lsp.DidOpenNotebookDocumentParams) -> None:
        for cell in params.cell_text_documents:
            self._server.opened(cell)

    @lsp_method(lsp.NOTEBOOK_DOCUMENT_DID_CHANGE)
    def lsp_notebook_document__did_change(self, params: lsp.DidChangeNotebookDocumentParams) -> None:
        cells = params.change.cells
        if cells is None:
            return
        if cells.structure is not None:
            for cell in cells.structure.did_open or ():
                self._server.opened(cell)
            for closed in cells.structure.did_close or ():
                self._server.closed(closed.uri)
        for content in cells.text_content or ():
            self._server.changed(content.document, content.changes)

    @lsp_method(lsp.NOTEBOOK_DOCUMENT_DID_CLOSE)
    def lsp_notebook_document__did_close(self, params: lsp.DidCloseNotebookDocumentParams) -> None:
        for cell in params.cell_text_documents:
            self._server.closed(cell.uri)

    def structure_message(self, data: dict[str, Any]) -> Any:
        """Decode a message; a request that cannot be decoded is answered (pygls leaves it hanging)."""
        try:
            return super().structure_message(data)
        except Exception as error:
            if "id" in data and "method" in data:
                self._send_response(
                    data["id"],
                    error=lsp.ResponseError(lsp.ErrorCodes.InvalidParams.value, f"cannot read {data['method']}"),
                )
            raise error


def converter() -> Any:
    """pygls's converter, but lenient where a client's unknown value would cost the user an answer."""
    made = default_converter()  # type: ignore[no-untyped-call]
    # vscode-languageclient up to 9 counts from 0: its 0 is "invoked", its 1 is "automatic".
    made.register_structure_hook(
        lsp.InlineCompletionTriggerKind,
        lambda value, _: (
            lsp.InlineCompletionTriggerKind(value) if value in {1, 2} else lsp.InlineCompletionTriggerKind.Invoked
        ),
    )
    return made


class Server(LanguageServer):
    """One editor's server: the state, and how it reads and writes positions."""

    def __init__(self) -> None:
        super().__init__(
            "stopgap",
            version("stopgap"),
            protocol_cls=Protocol,
            converter_factory=converter,
            notebook_document_sync=lsp.NotebookDocumentSyncOptions(
                notebook_selector=[
                    lsp.NotebookDocumentFilterWithCells(cells=[lsp.NotebookCellLanguage(language="*")], notebook="*")
                ]
            ),
        )
        self.settings = Settings()
        self.documents = Documents()
        self.link = Link("lsp", self.on_health)
        self.session = Session(self.documents, self.link)

    # ---- the documents -------------------------------------------------------------------------------

    def opened(self, document: lsp.TextDocumentItem) -> None:
        self.documents.open(document.uri, document.version, document.language_id, document.text)

    def changed(
        self,
        document: lsp.VersionedTextDocumentIdentifier,
        changes: Any,
    ) -> None:
        read = [read_change(change) for change in changes]
        if self.documents.change(document.uri, document.version, read) is None:
            logger.warning("a change to %s, which is not open", document.uri)

    def closed(self, uri: str) -> None:
        self.documents.close(uri)
        self.session.forget(uri)

    # ---- what the user gets to know ------------------------------------------------------------------

    def on_health(self, health: Health) -> None:
        logger.info("%s", health)

    def report_server_error(self, error: Exception, source: Any) -> None:
        """Into the log: pygls shows every internal error as a popup."""
        logger.error("%s: %s", getattr(source, "__name__", source), error)

    # ---- positions -----------------------------------------------------------------------------------

    def range(self, snapshot: Snapshot, start: int, end: int) -> lsp.Range:
        encoding = self.documents.encoding
        return lsp.Range(
            lsp.Position(*snapshot.position(start, encoding)), lsp.Position(*snapshot.position(end, encoding))
        )

    def offset(self, snapshot: Snapshot, position: lsp.Position) -> int:
        return snapshot.offset((position.line, position.character), self.documents.encoding)


def read_change(change: lsp.TextDocumentContentChangeEvent) -> Change:
    if isinstance(change, lsp.TextDocumentContentChangePartial):
        start, end = change.range.start, change.range.end
        return ((start.line, start.character), (end.line, end.character)), change.text
    return None, change.text


@functools.lru_cache(maxsize=256)
def language_of(language_id: str, path: str) -> languages.Language | None:
    """The client's idea of a document's language wins over the file name."""
    try:
        return languages.by_name(language_id)
    except FillError:
        return languages.for_path(path) if path else None


# ---- requests ----------------------------------------------------------------------------------------


def initialize(ls: Server, params: lsp.InitializeParams) -> None:
    ls.documents.encoding = cast(Encoding, str(ls.workspace.position_encoding or "utf-16"))
    ls.settings = merged(ls.settings, params.initialization_options)


async def inline_completion(ls: Server, params: lsp.InlineCompletionParams) -> list[lsp.InlineCompletionItem] | None:
    """Ghost text. `[]` clears what an editor shows; null, for overtaken requests, changes nothing there."""
    snapshot = ls.documents.get(params.text_document.uri)
    if snapshot is None or not ls.settings.enabled:
        return []
    invoked = params.context.trigger_kind == lsp.InlineCompletionTriggerKind.Invoked
    language = language_of(snapshot.language_id, snapshot.uri)
    if language is None:
        return []
    selected = params.context.selected_completion_info
    data, cursor = snapshot.data, ls.offset(snapshot, params.position)
    base = snapshot
    if selected is not None:
        first, last = ls.offset(snapshot, selected.range.start), ls.offset(snapshot, selected.range.end)
        data = data[:first] + selected.text.encode() + data[last:]
        cursor = first + len(selected.text.encode())
    query = Query(
        snapshot.uri,
        snapshot.version,
        data,
        cursor,
        language.name,
        wanted=ls.settings.candidates if invoked else 1,
        budget_ms=ls.settings.invoked_budget_ms if invoked else ls.settings.budget_ms,
    )
    found = await ls.session.ask(query)
    if found is None:
        return None
    return [item(ls, base, cursor, g) for g in found]


def item(ls: Server, snapshot: Snapshot, cursor: int, ghost: Ghost) -> lsp.InlineCompletionItem:
    start = snapshot.line_start(cursor)
    text = snapshot.data[start : cursor - ghost.back] + ghost.insert
    return lsp.InlineCompletionItem(text.decode(), range=ls.range(snapshot, start, cursor + ghost.over))


def make() -> Server:
    """The server with its features, not started."""
    server = Server()
    server.feature(lsp.INITIALIZE)(initialize)
    # Without options pygls does not advertise the capability, and no editor ever asks.
    server.feature(lsp.TEXT_DOCUMENT_INLINE_COMPLETION, lsp.InlineCompletionOptions())(inline_completion)
    return server


async def serve(server: Server, stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Read messages until the client closes the stream."""
    server.protocol.set_writer(StdoutWriter(stdout))
    await run_async(
        threading.Event(),
        StdinAsyncReader(stdin, server.thread_pool),
        server.protocol,
        logger,
        server.report_server_error,
    )


def main() -> None:
    """`stopgap lsp`: serve one editor on standard input and output."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not break the protocol
    logging.basicConfig(level=os.environ.get("STOPGAP_LSP_LOG", "WARNING").upper(), stream=sys.stderr)
    asyncio.run(serve(make(), stdin, stdout))
