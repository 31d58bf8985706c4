"""From the wire's messages to the engine's contract and back, cut to the wire's bounds.

Knows nothing of scheduling; the two sides mirror each other field by field (tests/test_wire.py holds that).
"""

from __future__ import annotations

import math

from stopgap.infill import contract

from . import wire

_TELLING = 1000
"""Characters of an engine's message that are passed on."""


def to_contract(request: wire.Fill, budget_ms: float | None) -> contract.FillRequest:
    """The engine's half of a request."""
    return contract.FillRequest(
        source=request.source,
        language=request.language,
        start=request.start,
        end=request.end,
        target=request.target,
        path=request.path,
        snippets=tuple(contract.Snippet(one.path, one.text) for one in request.snippets),
        instruction=request.instruction,
        candidates=request.candidates,
        budget_ms=budget_ms,
        max_steps=request.max_steps,
        seed=request.seed,
        allow_unchecked=request.allow_unchecked,
        document=request.document,
    )


def to_draft(request_id: int, draft: contract.Draft) -> wire.Draft:
    return wire.Draft(request_id, draft.step, draft.max_steps, draft.start, draft.end, draft.text, draft.settled[:4096])


def to_done(request_id: int, outcome: contract.Outcome, queued_ms: float, trace: str) -> wire.Done:
    """The terminal frame of an outcome, cut to the wire's bounds."""
    return wire.Done(
        id=request_id,
        start=outcome.start,
        end=outcome.end,
        node_type=outcome.node_type,
        fills=tuple(
            wire.Candidate(one.text, one.score if math.isfinite(one.score) else -1e9, one.checked)
            for one in outcome.fills[:64]
        ),
        reason=outcome.reason[:_TELLING],
        steps=outcome.steps,
        slots=outcome.slots,
        milliseconds=outcome.milliseconds,
        model=outcome.model,
        prefix_tokens=outcome.prefix_tokens,
        prefix_reused=outcome.prefix_reused,
        stopped=outcome.stopped,
        events=tuple(wire.Event(event.ms, event.what[:_TELLING]) for event in outcome.events[:1000]),
        queued_ms=queued_ms,
        trace=trace,
    )
