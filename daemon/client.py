"""The one way to talk to the daemon: connect, start it if none runs, stream frames, cancel.

Knows nothing of sockets and processes (`connection`, `spawn`), nor how the daemon schedules or what an engine is. All
methods belong to one event loop.

    client = await Client.connect("neovim")
    async with aclosing(client.fill(request)) as frames:
        async for frame in frames:
            match frame: case wire.Draft(): …; case wire.Done(): …; case wire.Error(): …
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator
from typing import TypeVar

from . import framing, wire
from .config import ConfigError, load
from .connection import Connection, DaemonError, id_of
from .paths import PathsError
from .spawn import connection_to

__all__ = ["PATIENCE_S", "Client", "DaemonError"]

PATIENCE_S = 20.0
"""How long `connect` waits for a daemon to start or to make room for its successor."""
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_Reply = TypeVar("_Reply", bound=wire.FromDaemon)


class Client:
    """A connection that comes back by itself: each call connects, and spawns a daemon, if it has to.

    After failed attempts a call raises at once until a backoff of 0.5 s to 30 s has passed, so that an
    editor may ask at every keystroke without starting a process each time.
    """

    def __init__(self, name: str, *, spawn: bool = True, patience: float = PATIENCE_S) -> None:
        self._name = name
        self._spawn = spawn
        self._patience = patience
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._ids = 0
        self._failures = 0
        self._not_before = 0.0

    @classmethod
    async def connect(cls, name: str, *, spawn: bool = True, patience: float = PATIENCE_S) -> Client:
        """A client that is connected.

        Args:
            name: who is asking, for `stopgap status` ("cli", "neovim", …).
            spawn: start a daemon if none runs.
            patience: seconds to wait for a daemon to come up.

        Raises:
            DaemonError: no daemon, and it could not be started; another protocol version; bad settings.
        """
        client = cls(name, spawn=spawn, patience=patience)
        await client._open()
        return client

    @property
    def connected(self) -> bool:
        return self._connection is not None and not self._connection.closed

    @property
    def welcome(self) -> wire.Welcome:
        """What the daemon of the current connection said of itself; connect first."""
        if self._connection is None:
            raise DaemonError("not connected")
        return self._connection.welcome

    async def fill(self, request: wire.Fill) -> AsyncGenerator[wire.FillFrame, None]:
        """Yields `Progress` and, if wanted, `Draft` frames, then exactly one `Done` or `Error`.

        Never raises for what the daemon or the network does: a lost or unreachable daemon is an
        `Error(code="disconnected")`. Cancelling the task that iterates, or closing the generator, cancels
        the request in the daemon. `request.id` is replaced.
        """
        for last_try in (False, True):
            request = dataclasses.replace(request, id=self._next_id())
            try:
                connection = await self._open()
            except DaemonError as error:
                yield wire.Error(request.id, error.code, str(error))
                return
            frames = connection.register(request.id)
            try:
                await connection.send(request)
            except framing.FrameError as error:
                connection.forget(request.id)
                yield wire.Error(request.id, "bad_request", str(error))
                return
            ended = False
            try:
                while not ended:
                    frame = await frames.get()
                    ended = isinstance(frame, wire.Done | wire.Error)
                    if isinstance(frame, wire.Error) and frame.code == "restarting" and not last_try:
                        break  # it makes room for its successor: ask that one
                    if isinstance(frame, wire.FillFrame):
                        yield frame
                else:
                    return
                if self._connection is connection:
                    self._connection = None  # not closed: it still answers what runs, then closes itself
            finally:
                connection.forget(request.id)
                if not ended:
                    connection.post(wire.Cancel(request.id))

    async def cancel(self, request_id: int) -> None:
        """Ends a fill by the id of one of its frames; its terminal frame still arrives in `fill`."""
        if self._connection is not None:
            self._connection.post(wire.Cancel(request_id))

    async def feedback(self, event: wire.Feedback) -> None:
        """Counts a fill as shown, accepted, … for `stopgap stats`; lost without a connection."""
        if self._connection is not None:
            self._connection.post(event)

    async def status(self) -> wire.Status:
        return await self._ask(wire.StatusRequest(self._next_id()), wire.Status)

    async def pause(self) -> wire.Status:
        """Returns once the device memory is free; fills answer "paused" until `resume`."""
        return await self._ask(wire.Pause(self._next_id()), wire.Status)

    async def resume(self) -> wire.Status:
        return await self._ask(wire.Resume(self._next_id()), wire.Status)

    async def load(self) -> wire.Status:
        """Returns once the model is in memory."""
        return await self._ask(wire.Load(self._next_id()), wire.Status)

    async def unload(self) -> wire.Status:
        """Returns once the device memory is free; the next fill loads the model again."""
        return await self._ask(wire.Unload(self._next_id()), wire.Status)

    async def why(self, last: int = 10, trace: str = "") -> tuple[wire.Timeline, ...]:
        """Timelines of the last requests of all clients, newest last."""
        return (await self._ask(wire.TraceRequest(self._next_id(), last, trace), wire.Traces)).timelines

    async def stats(self) -> wire.Stats:
        return await self._ask(wire.StatsRequest(self._next_id()), wire.Stats)

    async def shutdown(self) -> None:
        """Asks the daemon to answer what runs and exit; returns when the connection has closed."""
        connection = await self._open()
        await self._ask(wire.Shutdown(self._next_id()), wire.Ok)
        await connection.wait_closed()

    async def close(self) -> None:
        """Closes the connection; the daemon cancels what is left of ours. A later call connects again."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    async def _ask(self, message: wire.FromClient, reply: type[_Reply]) -> _Reply:
        connection = await self._open()
        frames = connection.register(id_of(message))
        try:
            await connection.send(message)
            answer = await frames.get()
        finally:
            connection.forget(id_of(message))
        if isinstance(answer, wire.Error):
            raise DaemonError(answer.message, answer.code)
        if not isinstance(answer, reply):
            raise DaemonError(f"the daemon answered {type(answer).__name__}, not {reply.__name__}", "bad_frame")
        return answer

    async def _open(self) -> Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        async with self._connecting:
            if self._connection is not None:
                if not self._connection.closed:
                    return self._connection
                await self._connection.close()
                self._connection = None
            if time.monotonic() < self._not_before:
                raise DaemonError("the stopgap daemon is not reachable; `stopgap daemon start` says why")
            try:
                config = load()
                self._connection = await connection_to(config, self._name, self._spawn, self._patience)
            except (ConfigError, PathsError, DaemonError) as error:
                pause = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
                self._failures += 1
                self._not_before = time.monotonic() + pause
                raise error if isinstance(error, DaemonError) else DaemonError(str(error), "bad_request") from None
            self._failures, self._not_before = 0, 0.0
            return self._connection
