"""Why did nothing appear? What happened to the last requests, in memory only and without any of the code.

Knows nothing of sockets and threads; all calls come from one thread. Times are seconds of a monotonic clock
handed in by the caller.
"""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import wire

KEPT = 500
"""Timelines in memory."""
_HOUR = 3600.0
_MINUTE = 60.0
_SAMPLES = 4096
"""Durations in memory; beyond that the percentiles are those of the last so many answers of the hour."""

_PLAIN: dict[str, str] = {
    "fill": "A fill was offered.",
    "nothing": "Nothing was offered",
    "running": "It is still running.",
    "superseded": "A newer request for the same document replaced it: you typed on.",
    "cancelled": "The editor cancelled it.",
    "disconnected": "The editor closed the connection.",
    "busy": "The queue was full.",
    "deadline": "Its deadline passed before its turn came.",
    "paused": "The daemon is paused.",
    "no_model": "The model could not be loaded",
    "out_of_memory": "There was not enough memory",
    "crashed": "The engine failed; the log has the details under the trace id.",
    "bad_request": "It could not be served as asked",
    "restarting": "The daemon was restarting.",
}


@dataclass(slots=True)
class Trace:
    """One request's timeline as it grows."""

    id: str
    client: str
    language: str
    path: str
    kind: wire.Kind
    arrived: float
    events: list[wire.Event] = field(default_factory=list)
    outcome: str = "running"
    reason: str = ""
    milliseconds: float = 0.0

    def note(self, now: float, what: str) -> None:
        """Adds an event; a run-away request cannot fill the memory with them."""
        if len(self.events) < 1000:
            self.events.append(wire.Event((now - self.arrived) * 1000, what[:1000]))


class Traces:
    """The last `KEPT` requests and how those of the last hour ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ring: deque[Trace] = deque(maxlen=KEPT)
        self._answered: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        """(when, milliseconds)"""
        self._minutes: deque[tuple[float, Counter[str]]] = deque()
        """(begin, how the requests of that minute ended)"""

    def begin(self, client: str, request: wire.Fill) -> Trace:
        """A new timeline, kept from now on."""
        trace = Trace(secrets.token_hex(4), client, request.language, request.path, request.kind, self._clock())
        trace.note(trace.arrived, "queued")
        self._ring.append(trace)
        return trace

    def end(self, trace: Trace, outcome: str, reason: str = "") -> None:
        """Closes a timeline: "fill", "nothing", or the code of the error that ended it."""
        now = self._clock()
        trace.milliseconds = (now - trace.arrived) * 1000
        trace.outcome, trace.reason = outcome, reason[:1000]
        trace.note(now, {"fill": "answered", "nothing": "answered: nothing"}.get(outcome, outcome))
        if outcome in {"fill", "nothing"}:
            self._answered.append((now, trace.milliseconds))
        if not self._minutes or now - self._minutes[-1][0] >= _MINUTE:
            self._minutes.append((now, Counter()))
        self._minutes[-1][1][outcome] += 1

    def last(self, count: int, trace_id: str = "") -> tuple[wire.Timeline, ...]:
        """Newest last; only the one with `trace_id` if that is given."""
        now = self._clock()
        found = [one for one in self._ring if not trace_id or one.id == trace_id]
        return tuple(
            wire.Timeline(
                one.id,
                one.client,
                one.language,
                one.path,
                one.kind,
                now - one.arrived,
                one.milliseconds or (now - one.arrived) * 1000,
                one.outcome,
                one.reason,
                tuple(one.events),
            )
            for one in found[-max(count, 1) :]
        )

    def outcomes(self) -> tuple[tuple[str, int], ...]:
        """How the requests of the last hour ended, most frequent first."""
        self._forget()
        return tuple(sum((count for _, count in self._minutes), Counter[str]()).most_common())

    def percentiles(self) -> tuple[int, float, float]:
        """Requests of the last hour, and p50 and p95 of the milliseconds of those that were answered."""
        count = sum(number for _, number in self.outcomes())
        answered = sorted(milliseconds for _, milliseconds in self._answered)
        return count, percentile(answered, 0.50), percentile(answered, 0.95)

    def _forget(self) -> None:
        since = self._clock() - _HOUR
        while self._answered and self._answered[0][0] < since:
            self._answered.popleft()
        while self._minutes and self._minutes[0][0] < since:
            self._minutes.popleft()


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank; 0.0 for no samples."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def explain(line: wire.Timeline) -> str:
    """One request in plain words, its events below."""
    why = _PLAIN.get(line.outcome, line.outcome)
    if not why.endswith("."):
        why = f"{why}: {line.reason or 'no reason was given'}"
    where = f" in {line.path}" if line.path else ""
    head = (
        f"{line.trace}  {line.age_s:.0f} s ago, {line.client}, {line.kind}, {line.language}{where}, "
        f"{line.milliseconds:.0f} ms"
    )
    events = "".join(f"\n  {event.ms:8.1f} ms  {event.what}" for event in line.events)
    return f"{head}\n  {why}{events}"
