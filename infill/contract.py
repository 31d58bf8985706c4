"""What crosses the border of `infill`: a request goes in, drafts come out, exactly one outcome ends it.

Knows nothing of torch, tree-sitter, sockets, clients, threads or clocks; standard library only, so that
every other file may import it for free. All offsets are byte offsets into UTF-8 text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

Target = Literal["cursor", "selection", "placeholder", "body", "node", "error"]
"""What the caller points at; `holes.locate` turns it into the byte range that is filled.

cursor       `start == end`; the range is chosen from the syntax node at the cursor.
selection    exactly `start..end`.
placeholder  the placeholder (`pass`, `...`, `todo!()`) or empty body that covers or touches `start`.
body         the body of the innermost function around `start`.
node         the smallest named node that covers `start..end`.
error        the ERROR or MISSING node that covers or touches `start`.
"""


class FillError(Exception):
    """A request that cannot be served as it stands; `str()` is one line for the user, with the remedy."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A piece of another file that may help; the caller has already decided it may be read."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class FillRequest:
    """One hole to fill.

    `budget_ms` counts from the moment the engine starts on the request; None means until stable.
    `candidates` is how many distinct fills the caller can show; the engine may return fewer.
    """

    source: bytes
    language: str
    start: int
    end: int
    target: Target = "cursor"
    path: str = ""
    snippets: tuple[Snippet, ...] = ()
    instruction: str = ""
    candidates: int = 1
    budget_ms: float | None = None
    max_steps: int | None = None
    seed: int = 0
    allow_unchecked: bool = False
    document: str = ""
    """Names the document for prefix reuse and warm starts across requests; empty means no reuse."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The canvas after one denoising step: never checked, only for watching it settle."""

    step: int
    max_steps: int
    start: int
    end: int
    text: str
    settled: tuple[tuple[int, int], ...] = ()
    """Character ranges of `text` that have stopped changing."""


@dataclass(frozen=True, slots=True)
class Fill:
    """One text for the hole. `checked` is False only if the caller allowed it and no grammar is installed."""

    text: str
    score: float
    """Mean log-probability per token under the model, natural log; closer to 0 is surer."""
    checked: bool = True


def show_score(score: float) -> float:
    """How sure the model was of a fill, 0..1, from `Fill.score`: the geometric mean of its token probabilities.

    What the setting `showThreshold` is compared with and `stopgap eval typing` reports. A fill that the time
    ran out on before it was ranked (minus infinity) gets 0.
    """
    return math.exp(min(score, 0.0))


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a request's timeline: `ms` since the engine started on it."""

    ms: float
    what: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. `fills` is best first; when it is empty, `reason` says why in plain words."""

    start: int
    end: int
    node_type: str
    fills: tuple[Fill, ...]
    reason: str = ""
    steps: int = 0
    slots: int = 0
    milliseconds: float = 0.0
    model: str = ""
    prefix_tokens: int = 0
    prefix_reused: int = 0
    stopped: Literal["", "stable", "budget", "cancelled", "steps"] = ""
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What `stopgap status` shows of the engine; sizes in bytes."""

    model: str
    device: str
    dtype: str
    kernels: str
    parameters: int
    weight_bytes: int
    cache_bytes: int
    instructions: bool
    """Whether the model follows instructions ("Rewrite with instruction…")."""
    languages: tuple[str, ...] = field(default=())
    """Languages the model was trained for; empty means any."""
    notice: str = ""
    """One line if the engine had to restrict itself, such as a shorter context for want of memory."""


class Engine(Protocol):
    """The façade the daemon's worker drives; one thread at a time.

    `fill` yields zero or more `Draft` and then exactly one `Outcome`. Between two yields at most one
    denoising step runs; `stop()` is asked at every step, and a True answer ends the request at once with
    `stopped="cancelled"`. Several `fill` generators may be alive at the same time and be advanced in turn
    (a keystroke preempts a rewrite). A `FillError` may be raised before the first yield.
    """

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]: ...

    def info(self) -> EngineInfo: ...

    def drop_caches(self) -> None:
        """Give back every prefix cache and warm start; weights stay."""
        ...


@runtime_checkable
class Together(Engine, Protocol):
    """An engine that can run several requests in the same forward passes; others are driven one by one."""

    def fill_many(
        self, requests: Sequence[FillRequest], stops: Sequence[Callable[[], bool]]
    ) -> Iterator[tuple[int, Draft | Outcome | FillError] | None]:
        """What `fill` yields for each request, with the request's number; None whenever nothing is to be told.

        Each number ends with its own Outcome, or with the FillError that `fill` would have raised, and is not seen
        again; a True `stops[number]()` ends that one only. Between two yields at most one forward pass runs. Every
        fill is the one `fill` would have made, up to rounding: a hole sees the other holes of its file as they stand
        in `source`, so whoever applies several fills has to check them together. Any other exception ends all.
        """
        ...
