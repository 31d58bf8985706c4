"""The one connection from this editor to the daemon, and what there is to say about it.

Knows nothing of documents or LSP. `daemon.client` reconnects with a backoff by itself; this file turns what
comes back into a state the user can be told about once per change, and never raises into a handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from stopgap.daemon import wire
from stopgap.daemon.client import Client, DaemonError

State = Literal["starting", "loading", "ready", "paused", "offline", "error"]
_OF_ERROR: dict[wire.Code, State] = {
    "disconnected": "offline",
    "restarting": "starting",
    "paused": "paused",
    "no_model": "error",
    "version": "error",
    "bad_frame": "error",
}
_OF_MODEL: dict[wire.State, State] = {
    "cold": "ready",  # the next fill loads it
    "loading": "loading",
    "ready": "ready",
    "paused": "paused",
}


@dataclass(frozen=True, slots=True)
class Health:
    """What the status item of an editor shows. `fraction` is that of loading the model, 0..1."""

    state: State
    message: str = ""
    model: str = ""
    fraction: float | None = None


class Fills(Protocol):
    """What a session needs of a link."""

    async def fill(
        self, request: wire.Fill, watch: Callable[[wire.FillFrame], None] | None = None
    ) -> wire.Done | wire.Error: ...


class Link:
    """Created before the connection exists; the first request makes it."""

    def __init__(self, name: str, on_change: Callable[[Health], None]) -> None:
        self.name = name
        """Who is asking, for `stopgap status`; changes to it count until the first request."""
        self._made: Client | None = None
        self._on_change = on_change
        self.health = Health("starting")
        self.instructions: bool | None = None
        """Whether the model follows instructions; None until a daemon with the model in memory has said so."""
        self._known = ""
        """The model that `instructions` speaks of; what is known of it stays true while it is out of memory."""
        self._question: asyncio.Task[None] | None = None

    @property
    def _client(self) -> Client:
        if self._made is None:
            self._made = Client(self.name)
        return self._made

    async def fill(
        self, request: wire.Fill, watch: Callable[[wire.FillFrame], None] | None = None
    ) -> wire.Done | wire.Error:
        """The terminal frame. Cancelling the awaiting task cancels the request in the daemon."""
        frames: AsyncGenerator[wire.FillFrame, None] = self._client.fill(request)
        last: wire.Done | wire.Error | None = None
        async with aclosing(frames):
            async for frame in frames:
                self._learn(frame)
                if watch is not None:
                    watch(frame)
                if isinstance(frame, wire.Done | wire.Error):
                    last = frame
        return last or wire.Error(0, "disconnected", "the daemon went away")

    async def status(self) -> wire.Status | None:
        """The daemon's status, or None when it cannot be reached (`health` then says why)."""
        return self._status(await self._ask(self._client.status))

    async def pause(self) -> wire.Status | None:
        return self._status(await self._ask(self._client.pause))

    async def resume(self) -> wire.Status | None:
        return self._status(await self._ask(self._client.resume))

    async def why(self, last: int) -> tuple[wire.Timeline, ...]:
        try:
            return await self._client.why(last)
        except DaemonError as error:
            self._change(Health(_OF_ERROR.get(error.code, "offline"), str(error)))
            return ()

    async def feedback(self, event: wire.Feedback) -> None:
        await self._client.feedback(event)

    async def close(self) -> None:
        self._on_change = lambda health: None  # what breaks off now is no news, and the editor is gone
        if self._question is not None:
            self._question.cancel()
            await asyncio.wait({self._question})
        if self._made is not None:
            await self._made.close()

    async def _ask(self, call: Callable[[], Awaitable[wire.Status]]) -> wire.Status | None:
        try:
            return await call()
        except DaemonError as error:
            self._change(Health(_OF_ERROR.get(error.code, "offline"), str(error)))
            return None

    def _status(self, status: wire.Status | None) -> wire.Status | None:
        if status is not None:
            self._hear(status)
            self._change(Health(_OF_MODEL[status.state], status.note, status.model))
        return status

    def _learn(self, frame: wire.FillFrame) -> None:
        if isinstance(frame, wire.Progress):
            self._change(Health("loading", frame.what, self.health.model, round(frame.fraction, 2)))
        elif isinstance(frame, wire.Draft):
            self._change(Health("ready", "", self.health.model))
        elif isinstance(frame, wire.Done):
            self._change(Health("ready", "", frame.model or self.health.model))
            unknown = self.instructions is None or frame.model not in {"", self._known}
            if unknown and (self._question is None or self._question.done()):
                self._question = asyncio.create_task(self._ask_about_model())
        elif isinstance(frame, wire.Error) and frame.code in _OF_ERROR:
            self._change(Health(_OF_ERROR[frame.code], frame.message, self.health.model))

    async def _ask_about_model(self) -> None:
        """A fill says which model made it, and nothing else about that model."""
        with suppress(DaemonError):  # the next fill asks again
            self._hear(await self._client.status())

    def _hear(self, status: wire.Status) -> None:
        """What a status says of the model. A daemon that has none in memory does not know, which is no "no"."""
        if status.state == "ready":
            self._known, self.instructions = status.model, status.instructions
        elif status.model != self._known:
            self._known, self.instructions = "", None

    def _change(self, health: Health) -> None:
        if health != self.health:
            self.health = health
            self._on_change(health)
