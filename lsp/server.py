"""The language server: LSP messages in, answers out; everything else is decided in the other files.

Request handlers are coroutines: a `$/cancelRequest` then raises at their await.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException
from pygls.io_ import StdinAsyncReader, StdoutWriter, run_async
from pygls.lsp.server import LanguageServer

from stopgap.daemon import wire
from stopgap.infill import languages
from stopgap.infill.contract import FillError

from . import extensions, inline, rewrite
from .actions import Actions
from .document import Change, Documents, Encoding, Snapshot
from .link import Health, Link
from .protocol import Client, StopgapProtocol, asked_about, converter
from .quiet import Trees
from .rules import Rules, path_of
from .session import Session
from .settings import Settings, merged
from .workspace import Context

logger = logging.getLogger(__name__)

MAX_HEADER = 64 * 1024
"""Bytes of one header line; bodies may be longer."""


class Server(LanguageServer):
    """One editor's server: all its state, and how it speaks to the editor."""

    def __init__(self) -> None:
        super().__init__(
            "stopgap",
            version("stopgap"),
            protocol_cls=StopgapProtocol,
            converter_factory=converter,
            notebook_document_sync=lsp.NotebookDocumentSyncOptions(
                notebook_selector=[
                    lsp.NotebookDocumentFilterWithCells(cells=[lsp.NotebookCellLanguage(language="*")], notebook="*")
                ]
            ),
        )
        self.settings = Settings()
        self.client = Client()
        self.folders: tuple[Path, ...] = ()
        self.rules = Rules(self.settings)
        self.documents = Documents()
        self.trees = Trees()
        self.context = Context(time.monotonic)
        self.link = Link("lsp", self.on_health)
        self.session = Session(self.documents, self.link, on_nothing=self.note_uri)
        self.actions = Actions(self.link)
        self.notes: deque[tuple[str, str]] = deque(maxlen=100)
        """File name and reason of the last places where nothing was shown; kept in memory only."""
        self._called = False
        self._shown = 0
        self._warned = False
        self._chores: set[asyncio.Task[Any]] = set()

    def configure(self, given: object) -> None:
        """Take settings from the client; a wrong entry is named once and changes nothing."""
        self.settings = merged(self.settings, given)
        self.rules = Rules(self.settings, self.folders)
        for line in self.settings.unknown:
            self.say(f"stopgap: {line}", lsp.MessageType.Warning)

    def chore(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something in the background; asyncio itself keeps only weak references to tasks."""
        task = asyncio.get_running_loop().create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    # ---- the documents -------------------------------------------------------------------------------

    def opened(self, document: lsp.TextDocumentItem) -> None:
        snapshot = self.documents.open(document.uri, document.version, document.language_id, document.text)
        language = self.language(snapshot)
        if language is None or not language.module or self.refusal(snapshot):
            return
        # Both take longer than a keystroke may: the first parse, and starting the daemon.
        asyncio.get_running_loop().call_later(0.05, self._prepare, document.uri, language)
        if not self._called and self.settings.enabled and self.settings.automatic:
            self._called = True
            self.chore(self.link.status())

    def _prepare(self, uri: str, language: languages.Language) -> None:
        snapshot = self.documents.get(uri)
        if snapshot is not None:
            self.trees.source(uri, snapshot.data, language, 0, None)

    def changed(self, document: lsp.VersionedTextDocumentIdentifier, changes: Any) -> None:
        read = [read_change(change) for change in changes]
        if self.documents.change(document.uri, document.version, read) is None:
            logger.warning("a change to %s, which is not open", document.uri)

    def closed(self, uri: str) -> None:
        for keeper in (self.session, self.trees, self.context, self.actions):
            keeper.forget(uri)
        self.documents.close(uri)

    def snapshot(self, uri: str) -> Snapshot | None:
        return self.documents.get(uri)

    def asked_about(self) -> Snapshot | None:
        """The document of the request being handled, as it was when the request arrived."""
        return asked_about.get()

    def language(self, snapshot: Snapshot) -> languages.Language | None:
        found = language_of(snapshot.language_id, snapshot.uri)
        if found is None and self.settings.allow_unchecked and snapshot.language_id:
            return languages.plain(snapshot.language_id[:64])
        return found

    def refusal(self, snapshot: Snapshot) -> str:
        """Why this document is out of bounds, or an empty string."""
        return self.rules.refusal(path_of(snapshot.uri))

    def path_shown(self, snapshot: Snapshot) -> str:
        """The document's path as the daemon may see it: from its workspace folder on."""
        path = path_of(snapshot.uri)
        if path is None:
            return ""
        folder = self.rules.folder(path)
        return (path.relative_to(folder).as_posix() if folder else path.name)[-1024:]

    # ---- what the user gets to know ------------------------------------------------------------------

    def on_health(self, health: Health) -> None:
        """One notification per change; an editor without a status item gets one message per session."""
        logger.info("%s", health)
        if self.settings.status:
            self.protocol.notify(extensions.STATUS, extensions.status_of(self.link))
        elif health.state in {"offline", "error"} and not self._warned:
            self._warned = True
            self.say(f"stopgap: {health.message}", lsp.MessageType.Warning)

    def say(self, text: str, kind: lsp.MessageType = lsp.MessageType.Info) -> None:
        self.window_show_message(lsp.ShowMessageParams(kind, text))

    def note(self, snapshot: Snapshot, reason: str) -> None:
        self.note_uri(snapshot.uri, reason)

    def note_uri(self, uri: str, reason: str) -> None:
        self.notes.append((uri.rpartition("/")[2], reason))

    async def tell(self, event: wire.Feedback) -> None:
        """Count what became of a fill; that it was shown, once."""
        if event.id == 0 or (event.event == "shown" and event.id == self._shown):
            return
        if event.event == "shown":
            self._shown = event.id
        await self.link.feedback(event)

    def send_draft(self, snapshot: Snapshot, draft: wire.Draft, token: str | int) -> None:
        if self.settings.drafts:
            self.protocol.notify(extensions.DRAFT, extensions.draft_of(self, snapshot, draft, token))

    async def ask_for_words(self, prompt: str) -> str:
        """What the user types at a prompt; empty if they cancel or the client cannot ask."""
        if not self.settings.input:
            self.say("stopgap: this editor cannot ask for an instruction; run stopgap.run with one")
            return ""
        answer = await self.protocol.send_request_async(extensions.INPUT, {"prompt": prompt})
        return answer if isinstance(answer, str) else ""

    def report_server_error(self, error: Exception, source: Any) -> None:
        """Into the log: pygls shows every internal error as a popup."""
        level = logging.WARNING if isinstance(error, JsonRpcException) else logging.ERROR
        logger.log(level, "%s: %s", getattr(source, "__name__", source), error, exc_info=error)

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
def language_of(language_id: str, uri: str) -> languages.Language | None:
    """The client's idea of a document's language wins over the file name."""
    try:
        return languages.by_name(language_id)
    except FillError:
        path = path_of(uri)
        return languages.for_path(path.name) if path else None


Answer = TypeVar("Answer")


def quietly(
    handler: Callable[[Server, Any], Awaitable[Answer]],
) -> Callable[[Server, Any], Coroutine[Any, Any, Answer | None]]:
    """A handler whose bugs go into the log: an error reply at every key is worse than no ghost text."""

    async def guarded(ls: Server, params: Any) -> Answer | None:
        try:
            return await handler(ls, params)
        except Exception:
            logger.exception("%s failed", handler.__qualname__)
            return None

    return guarded


# ---- the life of a connection --------------------------------------------------------------------------


def initialize(ls: Server, params: lsp.InitializeParams) -> None:
    ls.documents.encoding = cast(Encoding, str(ls.workspace.position_encoding or "utf-16"))
    ls.client = Client.of(params.capabilities)
    if params.client_info is not None:
        ls.link.name = params.client_info.name[:64]
    uris = [folder.uri for folder in params.workspace_folders or ()] or [params.root_uri or ""]
    ls.folders = tuple(path for path in map(path_of, uris) if path is not None)
    # Messages may not be sent before the reply to this request: `initialized` says what was wrong.
    ls.settings = merged(ls.settings, params.initialization_options)
    ls.rules = Rules(ls.settings, ls.folders)
    if ls.settings.completion == "always" or (ls.settings.completion == "auto" and not ls.client.inline):
        options = lsp.CompletionOptions(trigger_characters=list(".([{ ,="))
        ls.feature(lsp.TEXT_DOCUMENT_COMPLETION, options)(quietly(inline.completion))


async def initialized(ls: Server, params: lsp.InitializedParams) -> None:
    for line in ls.settings.unknown:
        ls.say(f"stopgap: {line}", lsp.MessageType.Warning)


def shutdown(ls: Server, params: None) -> None:
    """Not a coroutine: `exit` may already stand behind it in the pipe, and would find no shutdown."""
    ls.session.forget_all()


async def did_change_configuration(ls: Server, params: lsp.DidChangeConfigurationParams) -> None:
    """Settings come with the notification, or are fetched by clients that send none with it."""
    given = params.settings
    if not given and ls.client.configuration:
        items = [lsp.ConfigurationItem(section="stopgap")]
        fetched = await ls.workspace_configuration_async(lsp.ConfigurationParams(items))
        given = fetched[0] if fetched else None
    ls.configure(given)


async def did_change_folders(ls: Server, params: lsp.DidChangeWorkspaceFoldersParams) -> None:
    gone = {path_of(folder.uri) for folder in params.event.removed}
    new = [path for folder in params.event.added if (path := path_of(folder.uri)) is not None]
    kept = [folder for folder in ls.folders if folder not in gone and folder not in new]
    ls.folders = (*kept, *new)
    ls.rules = Rules(ls.settings, ls.folders)


def make() -> Server:
    """The server with its features, not started."""
    server = Server()
    feature = server.feature
    feature(lsp.INITIALIZE)(initialize)
    feature(lsp.INITIALIZED)(initialized)
    feature(lsp.SHUTDOWN)(shutdown)
    feature(lsp.WORKSPACE_DID_CHANGE_CONFIGURATION)(did_change_configuration)
    feature(lsp.WORKSPACE_DID_CHANGE_WORKSPACE_FOLDERS)(did_change_folders)
    # Without options pygls does not advertise the capability, and no editor ever asks.
    feature(lsp.TEXT_DOCUMENT_INLINE_COMPLETION, lsp.InlineCompletionOptions())(quietly(inline.inline_completion))
    kinds = sorted(set(rewrite.LSP_KINDS.values()))
    feature(lsp.TEXT_DOCUMENT_CODE_ACTION, lsp.CodeActionOptions(code_action_kinds=kinds, resolve_provider=True))(
        quietly(rewrite.code_action)
    )
    feature(lsp.CODE_ACTION_RESOLVE)(rewrite.resolve)
    feature(extensions.STATUS)(extensions.status)
    feature(extensions.PAUSE)(extensions.pause)
    feature(extensions.RESUME)(extensions.resume)
    feature(extensions.WHY)(extensions.why)
    feature(extensions.FILL)(extensions.fill)
    for method in extensions.EVENTS:
        feature(method)(functools.partial(extensions.event, server, method))
    _commands(server)
    return server


def _commands(server: Server) -> None:
    @server.command(rewrite.RUN)
    async def run(*arguments: Any) -> bool:
        choice = rewrite.Choice.read(arguments[0] if arguments else None)
        if choice is None:
            server.say("stopgap: stopgap.run wants {stopgap: action, uri, range}")
            return False
        return await rewrite.run(server, choice)

    @server.command(inline.ACCEPTED)
    async def accepted(*arguments: Any) -> None:
        keys = ("fill", "language", "characters")
        await extensions.event(server, "stopgap/didAccept", dict(zip(keys, arguments, strict=False)))

    @server.command("stopgap.pause")
    async def pause(*_: Any) -> Any:
        return await extensions.pause(server, None)

    @server.command("stopgap.resume")
    async def resume(*_: Any) -> Any:
        return await extensions.resume(server, None)

    @server.command("stopgap.status")
    async def status(*_: Any) -> Any:
        return await extensions.status(server, None)

    @server.command("stopgap.why")
    async def why(*_: Any) -> list[str]:
        return await extensions.why_lines(server, 10)


async def serve(server: Server, stdin: BinaryIO, stdout: BinaryIO) -> None:
    """Read messages until the client closes the stream."""
    server.protocol.set_writer(StdoutWriter(stdout))
    stop = threading.Event()
    reader = await _reader(server, stdin)
    try:
        await run_async(stop, reader, server.protocol, error_handler=server.report_server_error)
    finally:
        await server.link.close()


async def _reader(server: Server, stdin: BinaryIO) -> Any:
    """A pipe is read by the event loop: pygls's own reader asks a thread for every line of a header."""
    reader = asyncio.StreamReader(limit=MAX_HEADER)
    if sys.platform == "win32":  # its event loop cannot read the pipes an editor makes
        return StdinAsyncReader(stdin, server.thread_pool)
    try:
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, stdin)
    except (ValueError, OSError):  # a file
        return StdinAsyncReader(stdin, server.thread_pool)
    return reader


def main() -> None:
    """`stopgap lsp`: serve one editor on standard input and output. STOPGAP_LSP_LOG=DEBUG logs to stderr."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not break the protocol
    gc.freeze()  # 3,000 LSP types that never die: walking them would stop the server for 20 ms now and then
    level = os.environ.get("STOPGAP_LSP_LOG", "").upper()
    if level not in ("", *(levels := ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))):
        raise FillError(f"STOPGAP_LSP_LOG={level}: one of {', '.join(levels)} was expected")
    logging.basicConfig(level=level or "ERROR", stream=sys.stderr)
    if not level:  # what pygls calls an error is mostly a client's oddity, and we report our own
        logging.getLogger("pygls").setLevel(logging.CRITICAL)
    asyncio.run(serve(make(), stdin, stdout))
