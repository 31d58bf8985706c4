"""What daemon and clients say to each other: the messages and their bounds.

A client says `Hello` first; every `Fill` is answered by any number of `Progress` and `Draft` frames and then exactly
one terminal frame, `Done` or `Error`. These declarations are all there is: `framing` reads them to check what comes.

Knows nothing of bytes on their way, sockets, the engine or the scheduler: standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

PROTOCOL = 1
"""Raised when a peer of the other version could misunderstand a message; `Hello` itself never changes."""

MAX_SOURCE = 4 * 1024 * 1024
"""Bytes of one document; larger files must be cut to a window around the hole by the caller."""


@dataclass(frozen=True, slots=True)
class Max:
    """Bound on the length of a string or bytes (in bytes) or of an array (in elements)."""

    size: int


Name = Annotated[str, Max(256)]
Line = Annotated[str, Max(4096)]
Text = Annotated[str, Max(1024 * 1024)]
Target = Literal["cursor", "selection", "placeholder", "body", "node", "error"]
Kind = Literal["interactive", "rewrite"]
State = Literal["cold", "loading", "ready", "paused"]
"""Of the model: not in memory, on its way, in memory, kept out of memory until `Resume`."""
Code = Literal[
    "bad_frame",  # not a message of this protocol; the connection is closed
    "version",  # other protocol; the connection is closed
    "restarting",  # settings or installation changed on disk; connect again
    "bad_request",  # cannot be served as it stands; the message says the remedy
    "busy",  # the queue is full
    "cancelled",  # by this client
    "superseded",  # a newer request for the same document came
    "deadline",  # `deadline_ms` passed before the request had its turn
    "paused",  # by `stopgap daemon pause`, or running on battery
    "no_model",  # the model cannot be loaded
    "out_of_memory",  # also after dropping every cache
    "crashed",  # the engine failed on this request; `trace` finds it in the log
    "disconnected",  # made up by the client when the daemon went away
]


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of a connection. `config` is `Config.hash` as the client sees it."""

    protocol: int
    version: Name
    config: Name
    client: Name
    """Who is asking, for `stopgap status` and `stopgap why`: "cli", "neovim", "vscode"."""


@dataclass(frozen=True, slots=True)
class Welcome:
    protocol: int
    version: Name
    config: Name
    pid: int
    model: Line
    state: State
    note: Line = ""
    """One line for the user, e.g. that this daemon was started with other settings."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """Mirrors `contract.Snippet`."""

    path: Line
    text: Annotated[str, Max(256 * 1024)]


@dataclass(frozen=True, slots=True)
class Fill:
    """Mirrors `contract.FillRequest` field by field, plus what the daemon needs to schedule it.

    `id` is unique among the requests of one connection; `Client.fill` chooses it. A newer `interactive`
    request with the same non-empty `document` ends an older one ("superseded"); `rewrite` waits for
    interactive work, is never superseded, and suits prefetching and several holes of one file.
    `deadline_ms` counts from the arrival at the daemon, waiting included.
    """

    source: Annotated[bytes, Max(MAX_SOURCE)]
    language: Name
    start: int
    end: int
    target: Target = "cursor"
    path: Line = ""
    snippets: Annotated[tuple[Snippet, ...], Max(64)] = ()
    instruction: Annotated[str, Max(16 * 1024)] = ""
    candidates: int = 1
    budget_ms: float | None = None
    max_steps: int | None = None
    seed: int = 0
    allow_unchecked: bool = False
    document: Line = ""
    id: int = 0
    kind: Kind = "interactive"
    want_drafts: bool = False
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Mirrors `contract.Draft`; sent only if the request wants drafts, at most `DRAFTS_PER_SECOND`."""

    id: int
    step: int
    max_steps: int
    start: int
    end: int
    text: Text
    settled: Annotated[tuple[tuple[int, int], ...], Max(4096)] = ()


DRAFTS_PER_SECOND = 30


@dataclass(frozen=True, slots=True)
class Progress:
    """Why a request has not started: the model is being loaded. `fraction` is 0..1."""

    id: int
    what: Line
    fraction: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """Mirrors `contract.Fill`: one text for the hole."""

    text: Text
    score: float
    checked: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """Mirrors `contract.Event`; in `Timeline`, `ms` counts from the arrival at the daemon."""

    ms: float
    what: Line


@dataclass(frozen=True, slots=True)
class Done:
    """Mirrors `contract.Outcome`; terminal. `fills` is best first; if it is empty, `reason` says why."""

    id: int
    start: int
    end: int
    node_type: Name
    fills: Annotated[tuple[Candidate, ...], Max(64)]
    reason: Line = ""
    steps: int = 0
    slots: int = 0
    milliseconds: float = 0.0
    model: Line = ""
    prefix_tokens: int = 0
    prefix_reused: int = 0
    stopped: Literal["", "stable", "budget", "cancelled", "steps"] = ""
    events: Annotated[tuple[Event, ...], Max(4096)] = ()
    queued_ms: float = 0.0
    """Milliseconds between arrival and the first step, loading the model included."""
    trace: Name = ""


@dataclass(frozen=True, slots=True)
class Error:
    """Terminal for the request `id`; id 0 concerns the connection. `message` is one line with the remedy."""

    id: int
    code: Code
    message: Line
    trace: Name = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the fill `id`; its terminal frame still comes (code "cancelled") unless it was already sent."""

    id: int


@dataclass(frozen=True, slots=True)
class Feedback:
    """What became of a fill that was shown. Counted, never stored with its text."""

    id: int
    event: Literal["shown", "accepted", "partial", "rejected"]
    language: Name = ""
    characters: int = 0
    """How many characters the user took; 0 for shown and rejected."""


@dataclass(frozen=True, slots=True)
class StatusRequest:
    id: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Free the device memory and refuse fills until `Resume`; answered by `Status` once it is freed."""

    id: int


@dataclass(frozen=True, slots=True)
class Resume:
    id: int


@dataclass(frozen=True, slots=True)
class Load:
    """Load the model now, e.g. when an editor gets the focus; answered by `Status` once it is in memory."""

    id: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Free the device memory; the next fill loads the model again."""

    id: int


@dataclass(frozen=True, slots=True)
class Status:
    """Answers StatusRequest, Pause, Resume, Load and Unload. Sizes in bytes, times in milliseconds."""

    id: int
    pid: int
    version: Name
    uptime_s: float
    state: State
    model: Line
    engine: Name
    device: Name
    dtype: Name
    kernels: Name
    parameters: int
    weight_bytes: int
    cache_bytes: int
    rss_bytes: int
    device_bytes: int
    """What this process holds on the accelerator; 0 on a CPU."""
    instructions: bool
    languages: Annotated[tuple[Name, ...], Max(256)]
    clients: int
    waiting: int
    running: int
    requests: int
    """Fills of the last hour, also those that ended without a fill."""
    p50_ms: float
    p95_ms: float
    socket: Line
    log: Line
    debug_log: bool
    """Whether the log may contain the user's code."""
    note: Line = ""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Timelines of the last requests, newest last; `trace` asks for one by its id."""

    id: int
    last: int = 10
    trace: Name = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened to one request; offsets in milliseconds from its arrival. No code in it."""

    trace: Name
    client: Name
    language: Name
    path: Line
    kind: Kind
    age_s: float
    milliseconds: float
    outcome: Name
    """"fill", "nothing", "running", or an error code."""
    reason: Line
    events: Annotated[tuple[Event, ...], Max(4096)]


@dataclass(frozen=True, slots=True)
class Traces:
    id: int
    timelines: Annotated[tuple[Timeline, ...], Max(1024)]


@dataclass(frozen=True, slots=True)
class StatsRequest:
    id: int


@dataclass(frozen=True, slots=True)
class LanguageStats:
    language: Name
    shown: int
    accepted: int
    partial: int
    rejected: int
    characters: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Acceptance per language over all time, kept on this machine only, and outcomes of the last hour."""

    id: int
    languages: Annotated[tuple[LanguageStats, ...], Max(256)]
    outcomes: Annotated[tuple[tuple[Name, int], ...], Max(64)]
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Answer what runs, then exit; answered by `Ok` before the socket goes."""

    id: int


@dataclass(frozen=True, slots=True)
class Ok:
    id: int


FromClient = (
    Hello
    | Fill
    | Cancel
    | Feedback
    | StatusRequest
    | Pause
    | Resume
    | Load
    | Unload
    | TraceRequest
    | StatsRequest
    | Shutdown
)
FromDaemon = Welcome | Draft | Progress | Done | Error | Status | Traces | Stats | Ok
Message = FromClient | FromDaemon
FillFrame = Progress | Draft | Done | Error
"""What answers a fill; `Done` and `Error` are terminal."""
