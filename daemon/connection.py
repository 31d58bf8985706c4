"""One connection to a daemon: the greeting, who waits for which id, and the task that reads.

Knows nothing of where a daemon is, of starting one, or of what its answers mean.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from . import framing, wire

_READ = 256 * 1024


class DaemonError(Exception):
    """The daemon cannot be reached or refused; `str()` is one line for the user, with the remedy."""

    def __init__(self, message: str, code: wire.Code = "disconnected") -> None:
        super().__init__(message)
        self.code: wire.Code = code


class Connection:
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
        elif isinstance(message, wire.FromDaemon) and (frames := self._waiting.get(id_of(message))):
            frames.put_nowait(message)


def id_of(message: wire.Message) -> int:
    """The request that a message belongs to; 0 if it concerns the connection."""
    found = getattr(message, "id", 0)
    return found if isinstance(found, int) else 0
