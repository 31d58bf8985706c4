"""pygls's protocol as we need it: our documents in place of its own, an answer to every request.

pygls keeps a workspace that splits lines where the protocol does not (see `document`), leaves requests
that it cannot decode without a reply, and names what is not in its tables. Knows nothing of fills.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from lsprotocol import types as lsp
from pygls.protocol import (
    JsonRPCNotification,
    JsonRPCRequestMessage,
    JsonRPCResponseMessage,
    LanguageServerProtocol,
    default_converter,
)

from .document import Snapshot

asked_about: ContextVar[Snapshot | None] = ContextVar("asked_about", default=None)
"""The text as it was when the request being handled arrived."""


class Texts(Protocol):
    """The server, as far as the messages about documents concern it."""

    def opened(self, document: lsp.TextDocumentItem) -> None: ...

    def changed(self, document: lsp.VersionedTextDocumentIdentifier, changes: Any) -> None: ...

    def closed(self, uri: str) -> None: ...

    def snapshot(self, uri: str) -> Snapshot | None: ...


class StopgapProtocol(LanguageServerProtocol):
    """Reads messages; those that change documents are handled at once and in order."""

    _server: Any

    @property
    def _texts(self) -> Texts:
        texts: Texts = self._server
        return texts

    def _register_builtin_features(self) -> None:
        super()._register_builtin_features()  # type: ignore[no-untyped-call]
        handlers: dict[str, Callable[[Any], None]] = {
            lsp.TEXT_DOCUMENT_DID_OPEN: self._did_open,
            lsp.TEXT_DOCUMENT_DID_CHANGE: self._did_change,
            lsp.TEXT_DOCUMENT_DID_CLOSE: self._did_close,
            lsp.NOTEBOOK_DOCUMENT_DID_OPEN: self._notebook_did_open,
            lsp.NOTEBOOK_DOCUMENT_DID_CHANGE: self._notebook_did_change,
            lsp.NOTEBOOK_DOCUMENT_DID_CLOSE: self._notebook_did_close,
        }
        for method, handler in handlers.items():
            self.fm.add_builtin_feature(method, handler)

    def _did_open(self, params: lsp.DidOpenTextDocumentParams) -> None:
        self._texts.opened(params.text_document)

    def _did_change(self, params: lsp.DidChangeTextDocumentParams) -> None:
        self._texts.changed(params.text_document, params.content_changes)

    def _did_close(self, params: lsp.DidCloseTextDocumentParams) -> None:
        self._texts.closed(params.text_document.uri)

    def _notebook_did_open(self, params: lsp.DidOpenNotebookDocumentParams) -> None:
        for cell in params.cell_text_documents:
            self._texts.opened(cell)

    def _notebook_did_change(self, params: lsp.DidChangeNotebookDocumentParams) -> None:
        cells = params.change.cells
        if cells is None:
            return
        if cells.structure is not None:
            for cell in cells.structure.did_open or ():
                self._texts.opened(cell)
            for closed in cells.structure.did_close or ():
                self._texts.closed(closed.uri)
        for content in cells.text_content or ():
            self._texts.changed(content.document, content.changes)

    def _notebook_did_close(self, params: lsp.DidCloseNotebookDocumentParams) -> None:
        for cell in params.cell_text_documents:
            self._texts.closed(cell.uri)

    def _handle_request(self, msg_id: Any, method_name: str, params: Any) -> None:
        """A coroutine begins one turn of the loop after its message came, and more changes may come first."""
        document = getattr(params, "text_document", None)
        if document is not None:
            asked_about.set(self._texts.snapshot(document.uri))
        super()._handle_request(msg_id, method_name, params)

    def _run_generator(self, future: Any, *, gen: Any, result_future: Any) -> None:
        """Run a command. pygls runs its handler under an id of its own, which no `$/cancelRequest` reaches."""
        before = set(self._request_futures)
        super()._run_generator(future, gen=gen, result_future=result_future)
        for number in self._request_futures.keys() - before:
            inner = self._request_futures.pop(number)
            result_future.add_done_callback(lambda outer, inner=inner: outer.cancelled() and inner.cancel())

    def _handle_response(self, msg_id: Any, result: Any | None = None, error: lsp.ResponseError | None = None) -> None:
        """Give the client's answer to whoever asked, unless they have stopped waiting for it.

        A task that is cancelled (by `$/cancelRequest`, or by a progress bar that came too late) cancels the
        future of its own request to the client, and the client knows nothing of that. pygls would set the
        answer all the same, and print the InvalidStateError with its traceback on stderr.
        """
        future = self._request_futures.get(msg_id)
        if future is not None and future.cancelled():
            del self._request_futures[msg_id]
            return
        super()._handle_response(msg_id, result, error)

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
            lsp.InlineCompletionTriggerKind(value) if value in (1, 2) else lsp.InlineCompletionTriggerKind.Invoked
        ),
    )
    # Parameters of our own methods stay plain objects; pygls would make named tuples of them.
    for kind in (JsonRPCRequestMessage, JsonRPCNotification):
        made.register_structure_hook(kind, lambda message, cls: cls(**{"params": None, **message}))
    made.register_structure_hook(JsonRPCResponseMessage, lambda message, cls: cls(**{"result": None, **message}))
    return made


@dataclass(frozen=True, slots=True)
class Client:
    """What the editor can do, read once from its capabilities."""

    inline: bool = False
    resolves_edits: bool = False
    disabled_actions: bool = False
    tagged_actions: bool = False
    document_changes: bool = False
    annotations: bool = False
    progress: bool = False
    configuration: bool = False

    @classmethod
    def of(cls, capabilities: lsp.ClientCapabilities) -> Client:
        def has(*path: str) -> Any:
            value: Any = capabilities
            for name in path:
                value = getattr(value, name, None)
            return value

        action = ("text_document", "code_action")
        return cls(
            inline=has("text_document", "inline_completion") is not None,
            resolves_edits="edit" in (has(*action, "resolve_support", "properties") or ())
            and bool(has(*action, "data_support")),
            disabled_actions=bool(has(*action, "disabled_support")),
            tagged_actions=lsp.CodeActionTag.LlmGenerated in (has(*action, "tag_support", "value_set") or ()),
            document_changes=bool(has("workspace", "workspace_edit", "document_changes")),
            annotations=bool(has(*action, "honors_change_annotations"))
            and has("workspace", "workspace_edit", "change_annotation_support") is not None,
            progress=bool(has("window", "work_done_progress")),
            configuration=bool(has("workspace", "configuration")),
        )
