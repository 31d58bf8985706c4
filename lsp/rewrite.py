"""Code actions for `textDocument/codeAction`, computed when one is resolved or run as a command.

The buffer is never touched before the user has chosen, and never when its text has moved on since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from lsprotocol import types as lsp

from stopgap.daemon import wire

from . import quiet
from .actions import KINDS, NO_INSTRUCTIONS, TITLES, Job, Kind, Offer, Result
from .document import Snapshot
from .edits import Edit
from .progress import Progress

if TYPE_CHECKING:
    from .server import Server

RUN = "stopgap.run"
"""The command behind every action; its argument is a `Choice` as an object."""
LSP_KINDS: dict[Kind, str] = {
    "hole": lsp.CodeActionKind.QuickFix.value,
    "repair": lsp.CodeActionKind.QuickFix.value,
    "all": "refactor.rewrite.stopgap",
    "function": "refactor.rewrite.stopgap",
    "selection": "refactor.rewrite.stopgap",
    "instruction": "refactor.rewrite.stopgap",
    "another": "refactor.rewrite.stopgap",
}
ANNOTATION = "stopgap"
MAX_INSTRUCTION = 4000
"""Characters; the wire's own limit is counted in bytes."""
MOVED_ON = "stopgap: the text changed meanwhile, so nothing was touched; ask again"


@dataclass(frozen=True, slots=True)
class Choice:
    """An action a user has chosen, as it travels through the client and back.

    `version` is that of the text the range refers to; None takes the text as it is now.
    """

    kind: Kind
    uri: str
    start: lsp.Position
    end: lsp.Position
    version: int | None = None
    instruction: str = ""

    def as_data(self) -> dict[str, Any]:
        span = [self.start.line, self.start.character, self.end.line, self.end.character]
        return {
            "stopgap": self.kind,
            "uri": self.uri,
            "range": span,
            "version": self.version,
            "instruction": self.instruction,
        }

    @classmethod
    def read(cls, data: object) -> Choice | None:
        """What `as_data` wrote, or a plain LSP range in its place; None if it is neither."""
        if not isinstance(data, Mapping) or data.get("stopgap") not in KINDS or not isinstance(data.get("uri"), str):
            return None
        span = data.get("range")
        try:
            if isinstance(span, Mapping):
                span = [span[end][unit] for end in ("start", "end") for unit in ("line", "character")]
            a, b, c, d = (int(number) for number in cast(Sequence[int], span))
        except (TypeError, ValueError, KeyError):
            return None
        version, instruction = data.get("version"), data.get("instruction")
        return cls(
            data["stopgap"],
            data["uri"],
            lsp.Position(a, b),
            lsp.Position(c, d),
            version if isinstance(version, int) else None,
            instruction[:MAX_INSTRUCTION] if isinstance(instruction, str) else "",
        )


async def code_action(ls: Server, params: lsp.CodeActionParams) -> list[lsp.CodeAction] | None:
    """What can be done here; no model is asked yet.

    VS Code asks "automatically" at every move of the cursor, for its light bulb: that should not shine on
    every function there is, so only quick fixes answer it.
    """
    snapshot = ls.asked_about()
    if snapshot is None:
        return None
    quick_only = params.context.trigger_kind == lsp.CodeActionTriggerKind.Automatic
    start, end = sorted((ls.offset(snapshot, params.range.start), ls.offset(snapshot, params.range.end)))
    if ls.link.name == "helix" and one_character(snapshot.data[start:end]):
        end = start  # its cursor is a selection of one character; there is no empty one
    refused = ls.refusal(snapshot)
    language = ls.language(snapshot)
    source = (
        ls.trees.source(snapshot.uri, snapshot.data, language, start, quiet.PARSE_MS if quick_only else None)
        if language is not None and language.module and not refused
        else None
    )
    offers = [] if refused else ls.actions.offers(snapshot, source, start, end, instructions=ls.link.instructions)
    wanted = params.context.only
    found = []
    for offer in offers:
        kind = LSP_KINDS[offer.kind]
        if wanted is not None and not any(kind == w or kind.startswith(f"{w}.") for w in map(_text, wanted)):
            continue
        if quick_only and kind != lsp.CodeActionKind.QuickFix.value:
            continue
        if offer.disabled and not ls.client.disabled_actions:
            continue
        # Only a model that is known to follow instructions: any other refuses a request with one.
        words = _messages(params.context.diagnostics, offer) if ls.link.instructions else ""
        found.append(_code_action(ls, snapshot, offer, kind, words))
    return found


def _code_action(ls: Server, snapshot: Snapshot, offer: Offer, kind: str, instruction: str) -> lsp.CodeAction:
    where = ls.range(snapshot, offer.start, offer.end)
    choice = Choice(offer.kind, snapshot.uri, where.start, where.end, snapshot.version, instruction)
    action = lsp.CodeAction(offer.title, kind=kind)
    if ls.client.tagged_actions:
        action.tags = [lsp.CodeActionTag.LlmGenerated]
    if offer.disabled:
        action.disabled = lsp.CodeActionDisabled(offer.disabled)
    elif ls.client.resolves_edits and offer.kind != "instruction":
        action.data = choice.as_data()
    else:  # asking the user for words takes a round trip that a resolve must not hold up
        action.command = lsp.Command(offer.title, RUN, arguments=[choice.as_data()])
    return action


async def resolve(ls: Server, action: lsp.CodeAction) -> lsp.CodeAction:
    """Compute the edit of a chosen action. Without one, the reason is shown and nothing happens."""
    choice = Choice.read(action.data)
    if choice is None:
        return action
    found = await compute(ls, choice)
    if found is not None:
        snapshot, result = found
        action.edit = workspace_edit(ls, snapshot, result.edits, choice.kind)
    return action


async def run(ls: Server, choice: Choice) -> bool:
    """Compute the edit of a choice and ask the client to apply it; whether it did."""
    if choice.kind == "instruction" and not choice.instruction and ls.link.instructions is not False:
        words = await ls.ask_for_words("What shall become of this code?")
        if not words:
            return False
        choice = replace(choice, instruction=words[:MAX_INSTRUCTION])
    found = await compute(ls, choice)
    if found is None:
        return False
    snapshot, result = found
    edit = workspace_edit(ls, snapshot, result.edits, choice.kind)
    label = f"stopgap: {TITLES[choice.kind]}"
    answer = await ls.workspace_apply_edit_async(lsp.ApplyWorkspaceEditParams(edit, label=label))
    if answer is not None and answer.applied:
        await ls.tell(wire.Feedback(result.fill, "accepted", snapshot.language_id[:64], len(result.text)))
        return True
    return False


async def compute(ls: Server, choice: Choice, *, token: str | int | None = None) -> tuple[Snapshot, Result] | None:
    """The edits of a choice, with progress that can be cancelled; None when the user has been told why not."""
    job = make_job(ls, choice)
    if isinstance(job, str):
        ls.say(job)
        return None
    async with Progress(ls, TITLES[choice.kind], asyncio.current_task(), token) as progress:
        try:
            result = await ls.actions.run(job, progress.watch(job.snapshot))
        except asyncio.CancelledError:
            if progress.cancelled:
                return None
            raise
    current = ls.documents.get(choice.uri)
    if current is None or current.version != job.snapshot.version:
        ls.say(MOVED_ON)
        return None
    if not result.edits:
        ls.say(f"stopgap: {result.reason}")
        return None
    return job.snapshot, result


def make_job(ls: Server, choice: Choice, seed: int = 0) -> Job | str:
    """The job of a choice on the text as it is now, or one line that says why there is none."""
    snapshot = ls.documents.get(choice.uri)
    if snapshot is None:
        return f"stopgap: {choice.uri} is not open"
    if choice.version is not None and snapshot.version != choice.version:
        return MOVED_ON
    if refused := ls.refusal(snapshot):
        return f"stopgap: {refused}"
    language = ls.language(snapshot)
    if language is None:
        return f"stopgap: no grammar for {snapshot.language_id}: nothing could check the result"
    if ls.link.instructions is False and (choice.kind == "instruction" or choice.instruction):
        return f"stopgap: {NO_INSTRUCTIONS}"
    start, end = sorted((ls.offset(snapshot, choice.start), ls.offset(snapshot, choice.end)))
    return Job(
        choice.kind,
        snapshot,
        language,
        start,
        end,
        path=ls.path_shown(snapshot),
        instruction=choice.instruction,
        budget_ms=ls.settings.rewrite_budget_ms,
        allow_unchecked=ls.settings.allow_unchecked,
        snippets=ls.context.snippets(snapshot, language, ls.documents, ls.rules),
        seed=seed,
    )


def workspace_edit(ls: Server, snapshot: Snapshot, edits: Sequence[Edit], kind: Kind) -> lsp.WorkspaceEdit:
    """Edits of exactly this version: a client that knows versions refuses them on any other."""
    plain = text_edits(ls, snapshot, edits)
    if not ls.client.document_changes:
        return lsp.WorkspaceEdit(changes={snapshot.uri: plain})
    document = lsp.OptionalVersionedTextDocumentIdentifier(snapshot.uri, snapshot.version)
    if not ls.client.annotations:
        return lsp.WorkspaceEdit(document_changes=[lsp.TextDocumentEdit(document, plain)])
    confirm = ls.settings.confirm_rewrites and kind in {"function", "selection", "instruction"}
    annotation = lsp.ChangeAnnotation(TITLES[kind], needs_confirmation=confirm, description="stopgap")
    annotated = [lsp.AnnotatedTextEdit(ANNOTATION, edit.range, edit.new_text) for edit in plain]
    return lsp.WorkspaceEdit(
        document_changes=[lsp.TextDocumentEdit(document, annotated)],
        change_annotations={ANNOTATION: annotation},
    )


def text_edits(ls: Server, snapshot: Snapshot, edits: Sequence[Edit]) -> list[lsp.TextEdit]:
    return [lsp.TextEdit(ls.range(snapshot, start, end), new.decode()) for start, end, new in edits]


def _messages(diagnostics: Sequence[lsp.Diagnostic], offer: Offer) -> str:
    """What the editor reports about the place, as words for a model that follows instructions.

    At a hole that is, say, the type that must be returned. Hints are left out: "not accessed", of an argument whose
    function is still to be written.
    """
    faults = (None, lsp.DiagnosticSeverity.Error, lsp.DiagnosticSeverity.Warning)
    told = [one.message.strip()[:200] for one in diagnostics if one.severity in faults][:3]
    if offer.kind not in {"hole", "repair", "function", "selection"} or not told:
        return ""
    return "Fix: " + "; ".join(told)


def one_character(text: bytes) -> bool:
    return text == b"\r\n" or len(text.decode("utf-8", "replace")) == 1


def _text(kind: lsp.CodeActionKind | str) -> str:
    return str(kind.value) if isinstance(kind, lsp.CodeActionKind) else kind
