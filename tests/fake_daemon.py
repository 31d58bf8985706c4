"""A small real daemon for tests of its clients: the real socket, the real wire, no model and no scheduler."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from stopgap.daemon import framing, transport, wire
from stopgap.daemon.config import load
from stopgap.daemon.paths import place

Answer = Callable[[wire.Fill], wire.Done | wire.Error | Awaitable[wire.Done | wire.Error]]

STATUS = wire.Status(
    id=0, pid=1, version="0", uptime_s=1.0, state="ready", model="fake", engine="fake", device="cpu",
    dtype="fp32", kernels="reference", parameters=1, weight_bytes=1, cache_bytes=0, rss_bytes=1, device_bytes=0,
    instructions=True, languages=(), clients=1, waiting=0, running=0, requests=0, p50_ms=0.0, p95_ms=0.0,
    socket="", log="", debug_log=False,
)  # fmt: skip


def done(fill: wire.Fill, *texts: str, start: int | None = None, end: int | None = None) -> wire.Done:
    """An outcome with these texts for the hole, by default the cursor's place or the selection."""
    return wire.Done(
        id=fill.id,
        start=fill.start if start is None else start,
        end=fill.end if end is None else end,
        node_type="line",
        fills=tuple(wire.Candidate(text, -0.1) for text in texts),
        reason="" if texts else "the fake has no fill",
        stopped="stable",
        model="fake",
    )


class FakeDaemon:
    """Listens where the client of `env` looks, in a thread of its own, and keeps what it was sent."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self.env = {
            "STOPGAP_RUNTIME_DIR": str(folder / "run"),
            "STOPGAP_STATE_DIR": str(folder / "state"),
            "STOPGAP_CONFIG": str(folder / "config.toml"),
        }
        self.answer = answer
        self.fills: list[wire.Fill] = []
        self.cancelled: list[int] = []
        self.feedback: list[wire.Feedback] = []
        self.status = STATUS
        self.before: tuple[wire.Progress, ...] = ()
        """Progress frames sent before every outcome, their ids replaced."""
        self.drafts: tuple[wire.Draft, ...] = ()
        """Sent before every outcome of a request that wants drafts, their ids replaced."""
        self._stop = threading.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> "FakeDaemon":
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    async def _serve(self) -> None:
        environ = {**os.environ, **self.env}
        before = dict(os.environ)
        os.environ.update(self.env)
        try:
            self._config = load(environ)
            socket = place(self._config.key).socket
        finally:
            os.environ.clear()
            os.environ.update(before)
        connections: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self._talk(reader, writer)
            finally:
                connections.discard(task)

        server = await transport.listen(socket, accept)
        self._up.set()
        while not self._stop.is_set():
            await asyncio.sleep(0.005)
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        socket.unlink(missing_ok=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = framing.Frames()
        running: dict[int, asyncio.Task[None]] = {}

        def send(message: wire.Message) -> None:
            if not writer.is_closing():
                writer.write(framing.encode(message))

        async def fill(request: wire.Fill) -> None:
            for progress in self.before:
                send(replace(progress, id=request.id))
            for draft in self.drafts if request.want_drafts else ():
                send(replace(draft, id=request.id))
            try:
                end = self.answer(request)
                send(await end if isinstance(end, Awaitable) else end)
            except asyncio.CancelledError:
                send(wire.Error(request.id, "cancelled", "cancelled by the client"))

        def handle(message: wire.Message) -> None:
            match message:
                case wire.Hello():
                    send(wire.Welcome(wire.PROTOCOL, "0", self._config.hash, os.getpid(), "fake", "ready"))
                case wire.Fill():
                    self.fills.append(message)
                    task = running[message.id] = asyncio.create_task(fill(message))
                    task.add_done_callback(lambda _, number=message.id: running.pop(number))
                case wire.Cancel():
                    self.cancelled.append(message.id)
                    if message.id in running:
                        running[message.id].cancel()
                case wire.Feedback():
                    self.feedback.append(message)
                case wire.StatusRequest() | wire.Resume():
                    send(replace(self.status, id=message.id))
                case wire.Pause():
                    send(replace(self.status, id=message.id, state="paused"))
                case wire.TraceRequest():
                    line = wire.Timeline(
                        "t1", "lsp", "python", "a.py", "interactive", 1.0, 2.0, "nothing", "no fill", ()
                    )
                    send(wire.Traces(message.id, (line,)))

        try:
            with suppress(ConnectionError):
                while data := await reader.read(65536):
                    for body in frames.feed(data):
                        handle(framing.decode(body))
        finally:
            for task in running.values():
                task.cancel()
            writer.close()
