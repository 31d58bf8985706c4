"""What stopgap says beyond the Language Server Protocol, for clients that want more than the stock ones.

A client opts in by `initializationOptions`: `status`, `drafts`, `input` (see `settings`). Positions and
ranges are LSP ones in the negotiated encoding; all other numbers are counts unless a unit is named.

Requests from the client
    stopgap/status   {} -> Status
        The daemon's state, asked anew (connects, and starts a daemon if none runs).
    stopgap/pause, stopgap/resume   {} -> Status
        Free the model's memory for every editor of this user, and take it back.
    stopgap/why   {last?: 10, textDocument?} -> {lines: string[]}
        Why nothing appeared: the reasons of this server, then the timelines of the daemon; newest last.
    stopgap/fill   {action, textDocument, range, instruction?, seed?, token?} -> Preview | {reason}
        An action's result without applying it. `action` is one of hole, all, function, selection,
        instruction, repair, another. With `token`, drafts come as `stopgap/draft`. Cancel with
        `$/cancelRequest`.
        Preview = {version, edits: TextEdit[], range, text, score: 0..1, fill}

Notifications from the client: what became of a ghost text or a preview (`fill` is in the arguments of the
item's command and in Preview); counted on this machine, by language, never with text (`stopgap stats`)
    stopgap/didShow, stopgap/didReject   {fill, language}
    stopgap/didAccept, stopgap/didAcceptPartially   {fill, language, characters}

Requests to the client
    stopgap/input   {prompt} -> string | null            (option `input`)

Notifications to the client
    stopgap/status   Status                              (option `status`)
        Status = {state: starting|loading|ready|paused|offline|error, message, model, fraction: 0..1|null,
        instructions: whether the model follows them, null while no model is known}
    stopgap/draft   Draft                                (option `drafts`)
        Draft = {token, textDocument: {uri, version}, range, text, settled: [from, to][], step, steps}
        `settled` are utf-16 ranges of `text` that have stopped changing; all else is still noise.

Commands (workspace/executeCommand)
    stopgap.run   [{stopgap: action, uri, range, version?, instruction?}] -> whether it was applied
    stopgap.accepted   [fill, language, characters]
    stopgap.pause, stopgap.resume, stopgap.status, stopgap.why   []
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stopgap.daemon import wire

from .document import Snapshot
from .link import Link
from .progress import Progress
from .rewrite import Choice, make_job, text_edits

if TYPE_CHECKING:
    from .server import Server

STATUS = "stopgap/status"
PAUSE = "stopgap/pause"
RESUME = "stopgap/resume"
WHY = "stopgap/why"
FILL = "stopgap/fill"
DRAFT = "stopgap/draft"
INPUT = "stopgap/input"
EVENTS = {
    "stopgap/didShow": "shown",
    "stopgap/didAccept": "accepted",
    "stopgap/didAcceptPartially": "partial",
    "stopgap/didReject": "rejected",
}


def status_of(link: Link) -> dict[str, Any]:
    health = link.health
    return {
        "state": health.state,
        "message": health.message,
        "model": health.model,
        "fraction": health.fraction,
        "instructions": link.instructions,
    }


async def status(ls: Server, params: Any) -> dict[str, Any]:
    await ls.link.status()
    return status_of(ls.link)


async def pause(ls: Server, params: Any) -> dict[str, Any]:
    await ls.link.pause()
    return status_of(ls.link)


async def resume(ls: Server, params: Any) -> dict[str, Any]:
    await ls.link.resume()
    return status_of(ls.link)


async def why(ls: Server, params: Any) -> dict[str, list[str]]:
    given = params if isinstance(params, Mapping) else {}
    last = given.get("last", 10)
    return {"lines": await why_lines(ls, last if isinstance(last, int) and 0 < last <= 100 else 10)}


async def why_lines(ls: Server, last: int) -> list[str]:
    lines = [f"{name}: {reason}" for name, reason in list(ls.notes)[-last:]]
    for timeline in await ls.link.why(last):
        steps = ", ".join(f"{event.ms:.0f} ms {event.what}" for event in timeline.events)
        head = f"{timeline.path or timeline.language}, {timeline.age_s:.0f} s ago: {timeline.outcome}"
        lines.append(" · ".join(part for part in (head, timeline.reason, steps) if part))
    return lines


async def fill(ls: Server, params: Any) -> dict[str, Any]:
    """`stopgap/fill`: what an action would do, for a client that shows it before the user decides."""
    given = params if isinstance(params, Mapping) else {}
    document = given.get("textDocument")
    choice = Choice.read(
        {
            "stopgap": given.get("action"),
            "uri": document.get("uri") if isinstance(document, Mapping) else None,
            "range": given.get("range"),
            "instruction": given.get("instruction"),
        }
    )
    if choice is None:
        return {"reason": "stopgap/fill wants action, textDocument and range"}
    seed = given.get("seed")
    job = make_job(ls, choice, seed & 0x7FFFFFFF if isinstance(seed, int) else 0)
    if isinstance(job, str):
        return {"reason": job}
    token = given.get("token")
    watch = Progress(ls, "", None, token if isinstance(token, str | int) else None).watch(job.snapshot)
    result = await ls.actions.run(job, watch)
    if not result.edits:
        return {"reason": result.reason}
    return {
        "version": job.snapshot.version,
        "edits": text_edits(ls, job.snapshot, result.edits),
        "range": ls.range(job.snapshot, result.start, result.end),
        "text": result.text,
        "score": result.score,
        "fill": result.fill,
    }


def draft_of(ls: Server, snapshot: Snapshot, draft: wire.Draft, token: str | int) -> dict[str, Any]:
    units = [0]
    for character in draft.text:
        units.append(units[-1] + (2 if ord(character) > 0xFFFF else 1))
    last = len(units) - 1
    return {
        "token": token,
        "textDocument": {"uri": snapshot.uri, "version": snapshot.version},
        "range": ls.range(snapshot, draft.start, draft.end),
        "text": draft.text,
        "settled": [[units[min(a, last)], units[min(b, last)]] for a, b in draft.settled],
        "step": draft.step,
        "steps": draft.max_steps,
    }


async def event(ls: Server, method: str, params: Any) -> None:
    given = params if isinstance(params, Mapping) else {}
    number, language, characters = (given.get(key) for key in ("fill", "language", "characters"))
    if not isinstance(number, int):
        return
    await ls.tell(
        wire.Feedback(
            number,
            EVENTS[method],  # type: ignore[arg-type]
            language[:64] if isinstance(language, str) else "",
            characters if isinstance(characters, int) and characters > 0 else 0,
        )
    )
