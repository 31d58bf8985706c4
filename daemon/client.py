"""The one way to talk to the daemon: connect, start it if none runs, stream frames, cancel.

Knows nothing of how the daemon schedules or what an engine is. All methods belong to one event loop.

    client = await Client.connect("neovim")
    async with aclosing(client.fill(request)) as frames:
        async for frame in frames:
            match frame: case wire.Draft(): …; case wire.Done(): …; case wire.Error(): …
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from . import framing, transport, wire
from .config import Config, ConfigError, load
from .paths import PathsError, Place, place, told

PATIENCE_S = 20.0
"""How long `connect` waits for a daemon to start or to make room for its successor."""
_READ = 256 * 1024
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_Reply = TypeVar("_Reply", bound=wire.FromDaemon)


class DaemonError(Exception):
    """The daemon cannot be reached or refused; `str()` is one line for the user, with the remedy."""

    def __init__(self, message: str, code: wire.Code = "disconnected") -> None:
        super().__init__(message)
        self.code: wire.Code = code


class Client:
    """A connection that comes back by itself: each call connects, and spawns a daemon, if it has to.

    After failed attempts a call raises at once until a backoff of 0.5 s to 30 s has passed, so that an
    editor may ask at every keystroke without starting a process each time.
    """

    def __init__(self, name: str, *, spawn: bool = True, patience: float = PATIENCE_S) -> None:
        self._name = name
        self._spawn = spawn
        self._patience = patience
        self._connection: _Connection | None = None
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
        frames = connection.register(_id(message))
        try:
            await connection.send(message)
            answer = await frames.get()
        finally:
            connection.forget(_id(message))
        if isinstance(answer, wire.Error):
            raise DaemonError(answer.message, answer.code)
        if not isinstance(answer, reply):
            raise DaemonError(f"the daemon answered {type(answer).__name__}, not {reply.__name__}", "bad_frame")
        return answer

    async def _open(self) -> _Connection:
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
                self._connection = await _open(config, self._name, self._spawn, self._patience)
            except (ConfigError, PathsError, DaemonError) as error:
                pause = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
                self._failures += 1
                self._not_before = time.monotonic() + pause
                raise error if isinstance(error, DaemonError) else DaemonError(str(error), "bad_request") from None
            self._failures, self._not_before = 0, 0.0
            return self._connection


class _Connection:
    """One socket: who waits for which id, and the task that reads. The last frame for an id on a connection
    that breaks is an `Error` made up here, so that nobody waits for ever."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames = framing.Frames()
        self._waiting: dict[int, asyncio.Queue[wire.FromDaemon]] = {}
        self._lost: wire.Code = "disconnected"
        self._why = "the stopgap daemon went away; ask again to start a new one"
        self._task: asyncio.Task[None] | None = None
        self.closed = False
        self.welcome: wire.Welcome

    async def greet(self, hello: wire.Hello) -> None:
        """Exchanges Hello and Welcome and starts reading.

        Raises:
            DaemonError: the daemon refused.
            OSError, FrameError: nobody there, or not a daemon of ours.
        """
        await self.send(hello)
        while data := await self._reader.read(_READ):
            for body in self._frames.feed(data):
                message = framing.decode(body)
                if isinstance(message, wire.Error):
                    raise DaemonError(message.message, message.code)
                if isinstance(message, wire.Welcome):
                    self.welcome = message
                    self._task = asyncio.create_task(self._read())
                    return
        raise ConnectionResetError

    def register(self, request_id: int) -> asyncio.Queue[wire.FromDaemon]:
        """The queue into which every frame for `request_id` goes."""
        frames: asyncio.Queue[wire.FromDaemon] = asyncio.Queue()
        self._waiting[request_id] = frames
        if self.closed:
            frames.put_nowait(wire.Error(request_id, self._lost, self._why))
        return frames

    def forget(self, request_id: int) -> None:
        self._waiting.pop(request_id, None)

    async def send(self, message: wire.FromClient) -> None:
        """Raises FrameError if it is too long; a broken connection is told through the queues instead."""
        self._writer.write(framing.encode(message))
        with suppress(OSError):
            await self._writer.drain()

    def post(self, message: wire.FromClient) -> None:
        """Sends without waiting, which is all that a cancelled task can do."""
        if not self.closed and not self._writer.is_closing():
            self._writer.write(framing.encode(message))

    async def wait_closed(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(_READ):
                for body in self._frames.feed(data):
                    self._deliver(framing.decode(body))
        except OSError:
            pass
        except framing.FrameError as error:
            self._why = f"the daemon sent something unreadable ({error}); `stopgap daemon stop` and ask again"
        finally:
            self.closed = True
            self._writer.close()
            for request_id, frames in self._waiting.items():
                frames.put_nowait(wire.Error(request_id, self._lost, self._why))

    def _deliver(self, message: wire.Message) -> None:
        if isinstance(message, wire.Error) and message.id == 0:
            # "restarting": it has answered all it had read, so what is still open was lost on the way to it.
            self._lost, self._why = message.code, message.message
        elif isinstance(message, wire.FromDaemon) and (frames := self._waiting.get(_id(message))):
            frames.put_nowait(message)


async def _open(config: Config, name: str, spawn: bool, patience: float) -> _Connection:
    """Connects; starts a daemon and waits for its socket if there is none.

    Whoever holds the spawn lock starts the process, everyone else only retries; the daemon's own lock makes
    it the only one even if a spawner dies in between.
    """
    files = place(config.key)
    hello = wire.Hello(wire.PROTOCOL, version("stopgap"), config.hash, name)
    turn = transport.Lock(files.spawn_lock)
    process: subprocess.Popen[bytes] | None = None
    give_up = time.monotonic() + patience
    delay = 0.005
    try:
        while True:
            try:
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the greeting.
                async with asyncio.timeout(max(0.1, give_up - time.monotonic())):
                    return await _greeted(files.socket, hello)
            except transport.ABSENT:
                pass
            except DaemonError as error:
                if error.code != "restarting" or not spawn:
                    raise
            except TimeoutError:
                raise DaemonError(_mute(files)) from None
            except (OSError, framing.FrameError) as error:
                raise DaemonError(f"{files.socket}: {error}") from None
            if not spawn:
                raise DaemonError("no stopgap daemon is running; `stopgap daemon start` starts one")
            try:
                if process is None and turn.take():
                    process = _spawn(files)
            except OSError as error:
                raise DaemonError(f"the stopgap daemon cannot be started: {told(error)}") from None
            if process is not None and (code := process.poll()) is not None:
                if code:
                    raise DaemonError(f"the stopgap daemon did not start: {_last_line(files.errors)}")
                process = None  # it met another daemon that is coming or going: look again
            if time.monotonic() > give_up:
                raise DaemonError(_mute(files))
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.05)
    finally:
        turn.release()


async def _greeted(socket: Path, hello: wire.Hello) -> _Connection:
    reader, writer = await transport.connect(socket)
    try:
        connection = _Connection(reader, writer)
        await connection.greet(hello)
    except BaseException:
        writer.close()
        raise
    return connection


_children: list[subprocess.Popen[bytes]] = []
"""Daemons started by this process; kept so that a dead one is reaped instead of staying a zombie."""


@atexit.register
def _let_go() -> None:
    """A daemon outlives who started it, which `Popen` would call a process that nobody waited for."""
    for child in _children:
        if child.poll() is None:
            child.returncode = 0


def daemon_command() -> Sequence[str]:
    """How to run the daemon in the foreground. -P: a `json.py` in the working folder must not run in it."""
    return [sys.executable, "-P", "-m", "stopgap.daemon.resident"]


def _spawn(files: Place) -> subprocess.Popen[bytes]:
    _children[:] = [child for child in _children if child.poll() is None]
    with files.errors.open("wb") as errors:
        process = subprocess.Popen(
            daemon_command(),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    _children.append(process)
    return process


def _mute(files: Place) -> str:
    pid = transport.holder(files.lock)
    who = f"process {pid} " if pid else ""
    return f"the stopgap daemon {who}does not answer; see {files.log} or run `stopgap daemon stop`"


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:500]
    return f"it left no message in {path}"


def _id(message: wire.Message) -> int:
    found = getattr(message, "id", 0)
    return found if isinstance(found, int) else 0
