"""The daemon's event loop: connections, who still wants which answer, and when to go away.

Knows nothing of torch or of how a fill is made. One place, `Server._settle`, sends terminal frames: a request
is in `_live` until then, and whatever comes later for it is dropped there.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from . import config as settings
from . import framing, memory, power, transport, wire
from .config import Config, ConfigError
from .paths import Place
from .scheduler import Job, Key
from .stats import Acceptance
from .timeline import Traces
from .worker import Item, Note, Task, Worker

log = logging.getLogger("stopgap.server")

MAX_CLIENTS = 64
_READ = 256 * 1024
_SLOW_DRAFTS = 256 * 1024
"""Bytes a client may leave unread before it gets no more drafts."""
_SLOW_CLIENT = 16 * 1024 * 1024
"""Bytes a client may leave unread before it is disconnected."""
_HELLO_S = 5.0
_DRAIN_S = 15.0
"""How long running requests may take before the daemon leaves; less than a client's patience (`client.PATIENCE_S`)."""
_TICK_S = 30.0

_WHY: dict[str, str] = {
    "busy": "too many requests are waiting; ask again in a moment",
    "superseded": "a newer request for the same document came",
    "cancelled": "cancelled",
    "disconnected": "the client has gone",
    "deadline": "the deadline passed before its turn came",
    "paused": "stopgap is paused; `stopgap daemon resume` wakes it",
    "restarting": "the daemon is restarting; ask again",
}


@dataclass(slots=True, eq=False)
class _Connection:
    """One client."""

    number: int
    writer: asyncio.StreamWriter
    name: str = ""
    """Empty until its Hello."""


class Server:
    """Everything that lives on the event loop."""

    def __init__(self, config: Config, files: Place, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._files, self._clock = config, files, clock
        self._started = clock()
        self._loop = asyncio.get_running_loop()
        self._version = installed_version()
        self._connections: dict[int, _Connection] = {}
        self._numbers = itertools.count(1)
        self._live: dict[Key, Job[Task]] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._traces = Traces(clock)
        self._acceptance = Acceptance(files.stats)
        self._leaving = asyncio.Event()
        self._gone = asyncio.Event()
        self._last_client = clock()
        self._on_battery = False
        self._worked = False
        """Whether requests have ended since the last look around."""
        self._inode = 0
        self._worker = Worker(config, self._from_worker, self._worker_died, clock)
        self._listening: asyncio.Server | None = None

    async def run(self) -> None:
        """Serves until told to leave; the caller holds the lock, so a socket file found here is stale."""
        self._files.socket.unlink(missing_ok=True)
        self._listening = await transport.listen(self._files.socket, self._accept)
        self._inode = self._files.socket.stat().st_ino
        self._worker.start()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError):
                self._loop.add_signal_handler(number, self.leave)
        if sys.platform != "win32":
            self._loop.add_signal_handler(signal.SIGHUP, self.look_around)
        log.info("serving %s as process %d", self._config.model, os.getpid())
        while not self._leaving.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _TICK_S)
            self.look_around()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._gone.wait(), _DRAIN_S)
        # Before the connections close: a client that sees the end must not find the socket of the dead.
        self._files.socket.unlink(missing_ok=True)
        self._listening.close()
        for job in self._worker.drop_all("restarting"):
            self._settle(job, wire.Error(job.key[1], "restarting", _WHY["restarting"], job.work.trace.id))
        for connection in list(self._connections.values()):
            self._send(connection, wire.Error(0, "restarting", _WHY["restarting"]))
            self._hang_up(connection)
        self._acceptance.save()
        await asyncio.sleep(0)

    def stop_worker(self, patience: float) -> bool:
        """False if the worker is still inside a step after `patience` seconds."""
        return self._worker.stop(patience)

    def leave(self) -> None:
        """Refuses new fills, answers what runs, then ends `run`."""
        if not self._leaving.is_set():
            log.info("leaving")
            self._leaving.set()
        if not self._live:
            self._gone.set()

    def look_around(self) -> None:
        """Every half minute, and on SIGHUP: is the socket still there, does anybody need us, are we on mains?"""
        try:
            mine = self._files.socket.stat().st_ino == self._inode
        except FileNotFoundError:
            mine = False
        if not mine:
            # Something (a cleaner of /tmp, an eager user) removed it: nobody new can reach this process.
            log.warning("the socket is gone")
            self.leave()
        idle = self._clock() - self._last_client
        if self._config.exit_minutes and not self._connections and idle > self._config.exit_minutes * 60:
            log.info("nobody connected for %.0f minutes", idle / 60)
            self.leave()
        self._acceptance.save()
        if self._worked and not self._live:
            self._worked = False
            memory.tidy()
        if self._config.pause_on_battery:
            self._follow_battery(power.on_battery())

    def _follow_battery(self, now: bool) -> None:
        if now != self._on_battery:
            self._on_battery = now
            log.info("now %s battery", "on" if now else "off")
            if now:
                self._pause(lambda: None)
            else:
                self._worker.resume()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not transport.peer_is_me(writer):
            log.warning("a process of another user tried to connect")
            writer.close()
            return
        connection = _Connection(next(self._numbers), writer)
        if len(self._connections) >= MAX_CLIENTS:
            self._send(connection, wire.Error(0, "busy", f"more than {MAX_CLIENTS} clients are connected"))
            writer.close()
            return
        self._connections[connection.number] = connection
        mute = self._loop.call_later(_HELLO_S, self._expect_hello, connection)
        frames = framing.Frames()
        try:
            while data := await reader.read(_READ):
                for body in frames.feed(data):
                    self._received(connection, framing.decode(body))
                    if connection.number not in self._connections:
                        return  # refused: what came behind its Hello is not for us
        except framing.FrameError as error:
            log.info("closing connection %d: %s", connection.number, error)
            self._send(connection, wire.Error(0, "bad_frame", str(error)[:1000]))
        except OSError:
            pass
        except Exception as error:
            log.error("connection %d: %s", connection.number, memory.describe(error))
        finally:
            mute.cancel()
            self._hang_up(connection)

    def _expect_hello(self, connection: _Connection) -> None:
        if not connection.name:
            self._send(connection, wire.Error(0, "bad_frame", "no Hello"))
            self._hang_up(connection)

    def _hang_up(self, connection: _Connection) -> None:
        if self._connections.pop(connection.number, None) is None:
            return
        self._last_client = self._clock()
        for job in self._worker.drop_client(connection.number):
            self._settle(job, wire.Error(job.key[1], "disconnected", _WHY["disconnected"]))
        connection.writer.close()

    def _received(self, connection: _Connection, message: wire.Message) -> None:
        if not connection.name and not isinstance(message, wire.Hello):
            raise framing.FrameError("the first message must be Hello")
        match message:
            case wire.Hello():
                self._hello(connection, message)
            case wire.Fill():
                self._fill(connection, message)
            case wire.Cancel():
                if job := self._worker.cancel((connection.number, message.id)):
                    self._refuse(job, "cancelled")
            case wire.Feedback():
                self._acceptance.count(message)
            case wire.StatusRequest():
                self._send_status(connection, message.id)
            case wire.Pause():
                self._pause(self._later(self._send_status, connection, message.id))
            case wire.Resume():
                self._worker.resume()
                self._send_status(connection, message.id)
            case wire.Load():
                self._worker.load(self._later(self._loaded, connection, message.id))
            case wire.Unload():
                self._worker.unload(self._later(self._send_status, connection, message.id))
            case wire.TraceRequest():
                timelines = self._traces.last(min(message.last, 500), message.trace)
                self._send(connection, wire.Traces(message.id, timelines))
            case wire.StatsRequest():
                _, p50, p95 = self._traces.percentiles()
                languages, outcomes = self._acceptance.languages(), self._traces.outcomes()
                self._send(connection, wire.Stats(message.id, languages, outcomes, p50, p95))
            case wire.Shutdown():
                self._send(connection, wire.Ok(message.id))
                self.leave()
            case _:
                raise framing.FrameError(f"{type(message).__name__} is for clients")

    def _later(
        self, call: Callable[[_Connection, int], None], connection: _Connection, message_id: int
    ) -> Callable[[], None]:
        return lambda: self._on_loop(lambda: call(connection, message_id))

    def _on_loop(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is left to be told
            self._loop.call_soon_threadsafe(call)

    def _hello(self, connection: _Connection, hello: wire.Hello) -> None:
        connection.name = hello.client or "unnamed"
        if hello.protocol < wire.PROTOCOL:
            ours = f"the daemon speaks protocol {wire.PROTOCOL} (stopgap {self._version})"
            message = f"{ours}, this client {hello.protocol} (stopgap {hello.version}); restart the editor"
            self._send(connection, wire.Error(0, "version", message))
            self._hang_up(connection)
            return
        note = ""
        if (reason := self._outdated(hello)) or self._leaving.is_set():
            log.info("making room for a successor: %s", reason or "leaving")
            self._send(connection, wire.Error(0, "restarting", reason or _WHY["restarting"]))
            self.leave()
            self._hang_up(connection)
            return
        if hello.config != self._config.hash:
            note = "this daemon was started with other STOPGAP_ variables; `stopgap daemon stop` ends it"
        welcome = wire.Welcome(
            wire.PROTOCOL,
            self._version,
            self._config.hash,
            os.getpid(),
            self._config.model,
            self._worker.state,
            note,
        )
        self._send(connection, welcome)

    def _outdated(self, hello: wire.Hello) -> str:
        """Why this process should make room for a new one, "" if it should not.

        What counts is the disk: a client with other STOPGAP_ variables must not restart the daemon that
        the next client would restart again.
        """
        if hello.protocol > wire.PROTOCOL or installed_version() != self._version:
            return "stopgap was updated"
        if hello.config != self._config.hash:
            try:
                if settings.load().hash != self._config.hash:
                    return "the settings changed"
            except ConfigError as error:
                log.warning("the settings changed, but cannot be used: %s", error)
        return ""

    def _fill(self, connection: _Connection, request: wire.Fill) -> None:
        key = (connection.number, request.id)
        if request.id <= 0 or key in self._live:
            raise framing.FrameError(f"Fill.id {request.id} is in use or not positive")
        trace = self._traces.begin(connection.name, request)
        if self._config.debug_log:
            log.debug("request %s: %r", trace.id, request)
        now = self._clock()
        wait = request.deadline_ms
        deadline = None if wait is None else now + wait / 1000
        job = Job(key, request.document, request.kind, deadline, Task(request, trace))
        self._live[key] = job
        if not 0 <= request.start <= request.end <= len(request.source):
            size = len(request.source)
            message = f"the range {request.start}..{request.end} is not inside the source of {size} bytes"
            self._settle(job, wire.Error(request.id, "bad_request", message, trace.id))
        elif self._leaving.is_set():
            self._refuse(job, "restarting")
        elif self._worker.paused:
            why = "paused while running on battery" if self._on_battery else _WHY["paused"]
            self._settle(job, wire.Error(request.id, "paused", why, trace.id))
        else:
            for ended in self._worker.submit(job):
                self._refuse(ended, ended.ended or "cancelled")
            if wait is not None and key in self._live:
                # A timer may fire a clock tick early, and would then find nothing that has expired.
                self._timers[key] = self._loop.call_later(max(0.0, wait / 1000) + 0.001, self._expire)

    def _expire(self) -> None:
        for job in self._worker.expire():
            self._refuse(job, "deadline")

    def _pause(self, freed: Callable[[], None]) -> None:
        for job in self._worker.pause(freed):
            self._refuse(job, "paused")

    def _refuse(self, job: Job[Task], code: wire.Code) -> None:
        self._settle(job, wire.Error(job.key[1], code, _WHY[code], job.work.trace.id))

    def _from_worker(self, job: Job[Task], item: Item) -> None:
        self._on_loop(lambda: self._deliver(job, item))

    def _deliver(self, job: Job[Task], item: Item) -> None:
        if isinstance(item, Note):
            job.work.trace.note(self._clock(), item.what)
        elif isinstance(item, wire.Done | wire.Error):
            self._settle(job, item)
        elif (
            self._live.get(job.key) is job
            and (connection := self._connections.get(job.client))
            and connection.writer.transport.get_write_buffer_size() < _SLOW_DRAFTS
        ):
            self._send(connection, item)

    def _settle(self, job: Job[Task], frame: wire.Done | wire.Error) -> None:
        """Ends a request: the first terminal frame is sent and traced, any other is dropped."""
        if self._live.get(job.key) is not job:
            return
        del self._live[job.key]
        self._worked = True
        if timer := self._timers.pop(job.key, None):
            timer.cancel()
        trace = job.work.trace
        if isinstance(frame, wire.Done):
            offset = frame.queued_ms
            trace.events.extend(wire.Event(offset + event.ms, event.what) for event in frame.events)
            self._traces.end(trace, "fill" if frame.fills else "nothing", frame.reason)
        else:
            self._traces.end(trace, frame.code, frame.message)
        if connection := self._connections.get(job.client):
            self._send(connection, frame)
        if self._leaving.is_set() and not self._live:
            self._gone.set()

    def _send(self, connection: _Connection, message: wire.FromDaemon) -> None:
        if connection.writer.is_closing():
            return
        try:
            data = framing.encode(message)
        except framing.FrameError as error:
            log.error("a frame that cannot be sent: %s", error)
            data = framing.encode(wire.Error(getattr(message, "id", 0), "crashed", str(error)))
        connection.writer.write(data)
        if connection.writer.transport.get_write_buffer_size() > _SLOW_CLIENT:
            log.warning("connection %d does not read; closing it", connection.number)
            connection.writer.transport.abort()

    def _loaded(self, connection: _Connection, message_id: int) -> None:
        if self._worker.failure:
            message = f"the model cannot be loaded: {self._worker.failure}"
            self._send(connection, wire.Error(message_id, "no_model", message[:1000]))
        else:
            self._send_status(connection, message_id)

    def _send_status(self, connection: _Connection, message_id: int) -> None:
        info, held = self._worker.info, memory.memory()
        requests, p50, p95 = self._traces.percentiles()
        waiting, running = self._worker.counts()
        status = wire.Status(
            id=message_id,
            pid=os.getpid(),
            version=self._version,
            uptime_s=self._clock() - self._started,
            state=self._worker.state,
            model=info.model if info else self._config.model,
            engine=self._config.engine,
            device=info.device if info else self._config.device,
            dtype=info.dtype if info else "",
            kernels=info.kernels if info else "",
            parameters=info.parameters if info else 0,
            weight_bytes=info.weight_bytes if info else 0,
            cache_bytes=info.cache_bytes if info else 0,
            rss_bytes=held.rss,
            device_bytes=held.device,
            instructions=bool(info and info.instructions),
            languages=info.languages if info else (),
            clients=len(self._connections),
            waiting=waiting,
            running=running,
            requests=requests,
            p50_ms=p50,
            p95_ms=p95,
            socket=str(self._files.socket),
            log=str(self._files.log),
            debug_log=self._config.debug_log,
            note=self._worker.failure or (info.notice if info else "")[:1000],
        )
        self._send(connection, status)

    def _worker_died(self) -> None:
        self._on_loop(self._abandon)

    def _abandon(self) -> None:
        """Without its worker this process can only make room for one that has one."""
        for job in list(self._live.values()):
            self._settle(job, wire.Error(job.key[1], "crashed", "the daemon failed; ask again", job.work.trace.id))
        self.leave()


def installed_version() -> str:
    """The version on disk now; differs from the running one after an update."""
    try:
        return version("stopgap")
    except PackageNotFoundError:
        return "0"
