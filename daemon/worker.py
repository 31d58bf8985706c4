"""The one thread that owns the device: loads the engine, gives each step to whom the scheduler says.

Knows nothing of sockets and frames on their way. The event loop calls the public methods; results leave
through `emit`, which is called on the worker thread. Of the daemon's processes and threads only this one touches torch.

A run is a generator that takes one denoising step per `next`, for one request or for a batch of them. Several may be
alive: a keystroke suspends a rewrite simply by not asking for its next step. A request that was cancelled is dropped
after the step under way; the others of its batch go on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from stopgap.infill import contract

from . import memory, wire
from .config import Config
from .convert import to_contract, to_done, to_draft
from .engines import make_engine
from .scheduler import Job, Key, Reason, Scheduler
from .timeline import Trace

log = logging.getLogger("stopgap.worker")

_HEADROOM_CHECK_S = 5.0
_TOGETHER = 4
"""Most requests of a batch: each makes the others later, and on a CPU eight gain no more than four (x1.23, x1.21)."""
_TELLING = 1000
"""Characters of an engine's message that are passed on."""


@dataclass(slots=True)
class Task:
    """What the scheduler carries for a request."""

    request: wire.Fill
    trace: Trace
    drafted: float = -math.inf


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the request's timeline."""

    what: str


Item = wire.Progress | wire.Draft | wire.Done | wire.Error | Note
Emit = Callable[[Job[Task], Item], None]
"""Takes what happened to a job; called on the worker thread, in order."""


Said = tuple[int, contract.Draft | contract.Outcome | contract.FillError]
"""The number of a run's job, and what the engine has to say of it."""


@dataclass(slots=True, eq=False)
class _Run:
    """A started request, or a batch: the generator, and what each has cost."""

    jobs: list[Job[Task]]
    steps: Iterator[Said | None]
    queued_ms: list[float]
    counts: list[int]
    """Steps so far, per job."""
    alone: bool = False
    """Whether it is the second try of one request."""


class Worker:
    """Owns scheduler, engine and thread. `_wake` guards the scheduler and whatever else both threads touch."""

    def __init__(
        self,
        config: Config,
        emit: Emit,
        died: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        free_device_bytes: Callable[[], int | None] = memory.free_device_bytes,
    ) -> None:
        """`died` is called on the worker thread when it cannot go on: the process must be replaced."""
        self._config, self._emit, self._died, self._clock = config, emit, died, clock
        self._free_device_bytes = free_device_bytes
        self.state: wire.State = "cold"
        self.info: contract.EngineInfo | None = None
        """Of the engine in memory, refreshed after each request; None while there is none."""
        self.failure = ""
        """Why the model could not be loaded the last time."""
        self.paused = False
        self._wake = threading.Condition()
        self._scheduler: Scheduler[Task] = Scheduler(config.max_queue)
        self._wanted: list[Callable[[], None]] = []
        """Who waits for the model to be in memory (`load`)."""
        self._unwanted: list[Callable[[], None]] = []
        """Who waits for the memory to be free (`unload`, `pause`)."""
        self._stopping = False
        # Everything below belongs to the worker thread.
        self._engine: contract.Engine | None = None
        self._runs: dict[Job[Task], _Run] = {}
        self._on_device: _Run | None = None
        """Had the last step and has not ended."""
        self._last_used = 0.0
        self._caches_dropped = False
        self._thread = threading.Thread(target=self._main, name="stopgap-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience: float) -> bool:
        """Ends the thread after the step under way; False if that took longer than `patience` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def submit(self, job: Job[Task]) -> list[Job[Task]]:
        """Queues a request; returns the jobs that ended by it (`Scheduler.submit`)."""
        with self._wake:
            ended = self._scheduler.submit(job, self._clock())
            self._wake.notify()
            return ended

    def cancel(self, key: Key) -> Job[Task] | None:
        """Ends a request; the device is free of it after the step under way."""
        with self._wake:
            self._wake.notify()
            return self._scheduler.cancel(key)

    def drop_client(self, client: int) -> list[Job[Task]]:
        with self._wake:
            self._wake.notify()
            return self._scheduler.drop_client(client)

    def drop_all(self, reason: Reason) -> list[Job[Task]]:
        with self._wake:
            self._wake.notify()
            return self._scheduler.drop_all(reason)

    def expire(self) -> list[Job[Task]]:
        with self._wake:
            return self._scheduler.expire(self._clock())

    def counts(self) -> tuple[int, int]:
        """Requests waiting and started."""
        with self._wake:
            return self._scheduler.waiting, self._scheduler.running

    def pause(self, freed: Callable[[], None]) -> list[Job[Task]]:
        """Ends everything and frees the memory; `freed` is called on the worker thread."""
        with self._wake:
            self.paused = True
            self._unwanted += [*self._wanted, freed]
            self._wanted = []
            self._wake.notify()
            return self._scheduler.drop_all("paused")

    def resume(self) -> None:
        with self._wake:
            self.paused = False
            if self.state == "paused":
                self.state = "cold"
            self._wake.notify()

    def load(self, loaded: Callable[[], None]) -> None:
        """Brings the model into memory; `loaded` is called afterwards, also if that failed or is forbidden."""
        with self._wake:
            if self._engine is None and not self.paused:
                self._wanted.append(loaded)
                self._wake.notify()
                return
        loaded()

    def unload(self, freed: Callable[[], None]) -> None:
        """Frees the memory as soon as no request is started; `freed` is called on the worker thread."""
        with self._wake:
            self._unwanted.append(freed)
            self._wake.notify()

    def _main(self) -> None:
        try:
            while (turn := self._next_turn()) is not None:
                turn()
                self._sweep()
        except BaseException as error:
            log.critical("the worker thread failed: %s", memory.describe(error))
            self._died()

    def _next_turn(self) -> Callable[[], None] | None:
        """Blocks until there is something to do; None to end the thread."""
        with self._wake:
            while not self._stopping:
                if self._unwanted and not self._scheduler.running:
                    return self._free
                if self._engine is None and not self.paused and (self._wanted or len(self._scheduler)):
                    return self._load
                jobs = [] if self.paused else self._scheduler.next(self._clock())
                if jobs:
                    return lambda: self._advance(jobs)
                if any(job.ended for job in self._runs):
                    return lambda: None  # only sweep
                ready = None if self.paused else self._scheduler.next_at()
                if ready is not None:
                    self._wake.wait(max(0.001, ready - self._clock()))
                    continue
                patience = self._patience()
                if not self._wake.wait(patience) and patience is not None:
                    return self._housekeeping
            return None

    def _patience(self) -> float | None:
        """Seconds until the idle engine wants attention; None for never."""
        if self._engine is None:
            return None
        waits = []
        if self._config.idle_minutes:
            waits.append(self._last_used + self._config.idle_minutes * 60 - self._clock())
        if self._config.headroom_mb and self._free_device_bytes() is not None:
            waits.append(_HEADROOM_CHECK_S)
        return max(0.01, min(waits)) if waits else None

    def _housekeeping(self) -> None:
        idle = self._clock() - self._last_used
        if self._config.idle_minutes and idle >= self._config.idle_minutes * 60:
            log.info("unloading the model after %.0f idle minutes", idle / 60)
            self._unload()
        elif self._engine is not None and self._short_of_headroom():
            if self._caches_dropped:
                log.info("unloading the model: another process needs the device memory")
                self._unload()
            else:
                log.info("dropping caches: another process needs the device memory")
                self._engine.drop_caches()
                self._caches_dropped = True
                memory.trim()

    def _short_of_headroom(self) -> bool:
        free = self._free_device_bytes() if self._config.headroom_mb else None
        return free is not None and free < self._config.headroom_mb << 20

    def _advance(self, jobs: list[Job[Task]]) -> None:
        """One denoising step of one request or of a batch, and what follows from it."""
        run = self._runs.get(jobs[0]) or self._begin(jobs)
        if self._on_device is not run:
            for job, count in zip(run.jobs, run.counts, strict=True):
                if count and job.ended is None:
                    self._emit(job, Note(f"goes on after {count} steps"))
            for job in self._on_device.jobs if self._on_device is not None else ():
                if job in self._runs and job.ended is None:
                    self._emit(job, Note("suspended for a keystroke"))
            self._on_device = run
        started = self._clock()
        try:
            said = next(run.steps)
            if said is not None:
                self._hear(run, *said)
        except Exception as error:
            self._failed(run, error)
        finally:
            self._last_used = self._clock()
            with self._wake:
                self._scheduler.charge(jobs[0], self._last_used - started)
            if any(job not in self._runs for job in jobs):
                self._look()

    def _begin(self, jobs: list[Job[Task]]) -> _Run:
        others = len(jobs) - 1
        batched = f", batched with {others} other{'s' if others > 1 else ''}" if others else ""
        for job in jobs:
            self._emit(job, Note(f"started{batched}"))
        now = self._clock()
        steps = self._steps(jobs[0]) if len(jobs) == 1 else self._steps_of_many(jobs)
        run = _Run(jobs, steps, [(now - job.arrived) * 1000 for job in jobs], [0] * len(jobs))
        self._runs.update(dict.fromkeys(jobs, run))
        self._caches_dropped = False
        return run

    def _steps(self, job: Job[Task], candidates: int | None = None) -> Iterator[Said]:
        # A generator of its own, so that what `Engine.fill` raises comes out of `next` like everything else.
        assert self._engine is not None
        asked, stop = self._asked(job)
        if candidates is not None:
            asked = replace(asked, candidates=candidates)
        for item in self._engine.fill(asked, stop):
            yield 0, item

    def _steps_of_many(self, jobs: list[Job[Task]]) -> Iterator[Said | None]:
        assert isinstance(self._engine, contract.Together)
        requests, stops = zip(*map(self._asked, jobs), strict=True)
        yield from self._engine.fill_many(requests, stops)

    def _asked(self, job: Job[Task]) -> tuple[contract.FillRequest, Callable[[], bool]]:
        budget = job.work.request.budget_ms
        if job.deadline is not None:
            left = max(1.0, (job.deadline - self._clock()) * 1000)
            budget = left if budget is None else min(budget, left)
        return to_contract(job.work.request, budget), lambda: job.ended is not None or self._stopping

    def _hear(self, run: _Run, number: int, item: contract.Draft | contract.Outcome | contract.FillError) -> None:
        job = run.jobs[number]
        run.counts[number] += 1
        if isinstance(item, contract.FillError):
            self._refuse(run, job, "bad_request", str(item)[:_TELLING])
        elif isinstance(item, contract.Outcome):
            if self._end(run, job):
                self._emit(job, to_done(job.key[1], item, run.queued_ms[number], job.work.trace.id))
        elif job.work.request.want_drafts and job.ended is None:
            now = self._clock()
            if now - job.work.drafted >= 1 / wire.DRAFTS_PER_SECOND:
                job.work.drafted = now
                self._emit(job, to_draft(job.key[1], item))

    def _failed(self, run: _Run, error: Exception) -> None:
        """The engine raised something: the end of every request of the run, or of its first try."""
        jobs = [job for job in run.jobs if self._runs.get(job) is run]
        traces = ", ".join(job.work.trace.id for job in jobs)
        if isinstance(error, contract.FillError):
            for job in jobs:
                self._refuse(run, job, "bad_request", str(error)[:_TELLING])
        elif memory.is_out_of_memory(error):
            memory.forget_frames(error)
            log.warning("out of memory in request %s after %d steps", traces, max(run.counts))
            self._drop_caches()
            for job in jobs:
                if run.alone or job.ended is not None:
                    message = "not enough memory for this request even without caches; use a smaller model or selection"
                    self._refuse(run, job, "out_of_memory", message)
                else:
                    self._once_more(run, job)
        else:
            log.error("request %s: the engine failed: %s", traces, memory.describe(error))
            memory.forget_frames(error)
            self._drop_caches()
            for job in jobs:
                trace = job.work.trace.id
                message = f"the engine failed ({type(error).__name__}); `stopgap why {trace}` and the log say more"
                self._refuse(run, job, "crashed", message)
        if memory.is_device_lost(error):
            # A CUDA context does not come back from this; only a new process has a working one.
            raise RuntimeError("the device is lost")

    def _once_more(self, run: _Run, job: Job[Task]) -> None:
        """Tries a request again by itself and with one candidate, for want of memory."""
        number = run.jobs.index(job)
        self._emit(job, Note("out of memory: caches dropped, once more with one candidate"))
        with self._wake:
            self._scheduler.part(job)
        steps = self._steps(job, candidates=1)
        again = _Run([job], steps, [run.queued_ms[number]], [run.counts[number]], alone=True)
        self._runs[job] = again
        if self._on_device is run:
            self._on_device = again

    def _refuse(self, run: _Run, job: Job[Task], code: wire.Code, message: str) -> None:
        if self._end(run, job):
            self._emit(job, wire.Error(job.key[1], code, message, job.work.trace.id))

    def _end(self, run: _Run, job: Job[Task]) -> bool:
        """Takes a request out of its run; False if somebody else ended it meanwhile."""
        with self._wake:
            alive = job.ended is None
            self._scheduler.finish(job)
        self._leave(run, job)
        return alive

    def _leave(self, run: _Run, job: Job[Task]) -> None:
        """The run ends with its last request."""
        self._runs.pop(job, None)
        if run not in self._runs.values():
            self._close(run)

    def _look(self) -> None:
        """Refreshes `info`; after a failed step even that may fail."""
        try:
            self.info = self._engine.info() if self._engine is not None else None
        except Exception as error:
            log.error("asking the engine failed: %s", memory.describe(error))

    def _sweep(self) -> None:
        """Closes the runs whose requests were ended from outside."""
        for job, run in list(self._runs.items()):
            if job.ended is not None:
                self._leave(run, job)
                self._emit(job, Note(f"device free after {run.counts[run.jobs.index(job)]} steps"))

    def _close(self, run: _Run) -> None:
        if self._on_device is run:
            self._on_device = None
        close = getattr(run.steps, "close", None)
        try:
            if close is not None:
                close()
        except Exception as error:
            log.error("request %s: closing failed: %s", run.jobs[0].work.trace.id, memory.describe(error))

    def _drop_caches(self) -> None:
        if self._engine is not None:
            try:
                self._engine.drop_caches()
            except Exception as error:
                log.error("dropping caches failed: %s", memory.describe(error))
        memory.trim()

    def _load(self) -> None:
        """Loads the engine; if that fails, everyone who waits is told. Nobody has been started before it."""
        self.state, self.failure = "loading", ""
        told: dict[Key, str] = {}

        def progress(what: str, fraction: float) -> None:
            with self._wake:
                waiting = list(self._scheduler)
            for one in waiting:
                if told.get(one.key) != what:
                    told[one.key] = what
                    self._emit(one, Note(f"loading the model: {what}"))
                self._emit(one, wire.Progress(one.key[1], what[:_TELLING], min(1.0, max(0.0, fraction))))

        began = self._clock()
        try:
            self._engine = make_engine(self._config, self._clock, progress)
            self.info = self._engine.info()
            memory.set_aside()
        except Exception as error:
            expected = isinstance(error, contract.FillError)
            self.failure = str(error)[:_TELLING] if expected else f"{type(error).__name__}: {str(error)[:_TELLING]}"
            log.error("the model could not be loaded: %s", self.failure if expected else memory.describe(error))
            memory.forget_frames(error)
            self._engine, self.info = None, None
            memory.trim()
            with self._wake:
                waiting = list(self._scheduler)
                for one in waiting:
                    self._scheduler.finish(one)
            for one in waiting:
                message = f"the model cannot be loaded: {self.failure}"
                self._emit(one, wire.Error(one.key[1], "no_model", message[:_TELLING], one.work.trace.id))
        self.state = "cold" if self._engine is None else "ready"
        self._last_used = self._clock()
        log.info("model %s after %.1f s", self.state, self._clock() - began)
        with self._wake:
            self._scheduler.together = _TOGETHER if isinstance(self._engine, contract.Together) else 1
            callers, self._wanted = self._wanted, []
        for loaded in callers:
            loaded()

    def _free(self) -> None:
        self._unload()
        with self._wake:
            waiting, self._unwanted = self._unwanted, []
        for freed in waiting:
            freed()

    def _unload(self) -> None:
        for run in set(self._runs.values()):
            self._close(run)
        self._runs.clear()
        self._engine, self.info = None, None
        memory.trim()
        with self._wake:
            self.state = "paused" if self.paused else "cold"
