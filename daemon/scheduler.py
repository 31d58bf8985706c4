"""Which request gets the device for the next denoising step. Pure: no thread, no clock, no socket, no engine.

The rules, in order:
1. a newer interactive request ends the older ones of the same (client, document);
2. interactive work goes before rewrites, also between two steps of a rewrite, which is then suspended;
3. what has started goes on until it ends or rule 2 applies: time slices would make every answer late;
4. the client that has had the least device time goes next, then the nearest deadline, then who came first;
5. a request whose deadline passes while it waits is ended; a started one has it as its budget;
6. a full queue refuses ("busy") rather than answer everybody too late;
7. rewrites of one (client, document) that came together and may wait equally long go together, up to `together` of
   them, if the engine can run them in the same forward passes. For that a rewrite waits `LINGER_S` for others. A
   keystroke is never part of a batch, and suspends one like any rewrite.

The caller passes `now` (seconds of any monotonic clock) and keeps the calls from overlapping.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Kind = Literal["interactive", "rewrite"]
Reason = Literal["busy", "superseded", "cancelled", "disconnected", "deadline", "paused", "restarting"]
Key = tuple[int, int]
"""(connection, request id): unique while the request lives."""
Work = TypeVar("Work")
LINGER_S = 0.01
"""How long a rewrite waits for others to go with it; "Fill all holes" sends all it has at once."""
SPREAD_S = 1.0
"""How far the deadlines of a batch may lie apart: the most patient must not make the others late."""


@dataclass(slots=True, eq=False)
class Job(Generic[Work]):
    """A request as the scheduler sees it. `work` is the caller's and is never looked at."""

    key: Key
    document: str
    kind: Kind
    deadline: float | None
    """Seconds on the caller's clock."""
    work: Work
    arrived: float = 0.0
    started: bool = False
    ended: Reason | None = None
    """Set once; whoever runs the job asks for it between two steps."""
    batch: list[Job[Work]] = field(default_factory=list)
    """Of a started job: those that live and run with it, itself included."""

    @property
    def client(self) -> int:
        return self.key[0]


class Scheduler(Generic[Work]):
    """The live requests and the device time each client has had."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self.together = 1
        """Most jobs of a batch; 1 while there is no engine that can run several."""
        self._jobs: dict[Key, Job[Work]] = {}
        self._served: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job[Work]]:
        return iter(self._jobs.values())

    @property
    def waiting(self) -> int:
        return sum(not job.started for job in self._jobs.values())

    @property
    def running(self) -> int:
        """Started and not ended, the suspended ones included."""
        return len(self._jobs) - self.waiting

    def submit(self, job: Job[Work], now: float) -> list[Job[Work]]:
        """Takes a request in; returns those that ended by it, possibly `job` itself ("busy").

        Raises:
            ValueError: `job.key` is in use.
        """
        if job.key in self._jobs:
            raise ValueError(f"request id {job.key[1]} is in use")
        ended: list[Job[Work]] = []
        if job.kind == "interactive" and job.document:
            ended = [old for old in self._jobs.values() if self._outdated(old, job)]
            for old in ended:
                self._end(old, "superseded")
        job.arrived = now
        if self.waiting >= self._max_waiting:
            job.ended = "busy"
            return [*ended, job]
        # A newcomer, or one back from a long pause, starts level with the least served of those at work:
        # otherwise it would have to be compensated for all the time it asked for nothing.
        others = [self._served.get(one.client, 0.0) for one in self._jobs.values()]
        self._served[job.client] = max(self._served.get(job.client, 0.0), min(others, default=0.0))
        self._jobs[job.key] = job
        return ended

    def cancel(self, key: Key, reason: Reason = "cancelled") -> Job[Work] | None:
        """Ends one request; None if there is no such request (any more)."""
        job = self._jobs.get(key)
        if job is not None:
            self._end(job, reason)
        return job

    def drop_client(self, client: int) -> list[Job[Work]]:
        """Ends everything of a client that has gone."""
        gone = [job for job in self._jobs.values() if job.client == client]
        for job in gone:
            self._end(job, "disconnected")
        self._served.pop(client, None)
        return gone

    def drop_all(self, reason: Reason) -> list[Job[Work]]:
        """Ends everything."""
        gone = list(self._jobs.values())
        for job in gone:
            self._end(job, reason)
        return gone

    def expire(self, now: float) -> list[Job[Work]]:
        """Ends the waiting requests whose deadline has passed."""
        late = [
            job for job in self._jobs.values() if not job.started and job.deadline is not None and job.deadline <= now
        ]
        for job in late:
            self._end(job, "deadline")
        return late

    def next(self, now: float) -> list[Job[Work]]:
        """Who gets the next step, marked as started: one job or a whole batch; empty if nobody wants one now."""
        ready = [job for job in self._jobs.values() if job.started or self._ready_at(job) <= now]
        if not ready:
            return []
        job = min(ready, key=self._turn)
        if not job.started:
            for one in (batch := self._companions(job)):
                one.started, one.batch = True, batch
        return list(job.batch)

    def next_at(self) -> float | None:
        """When somebody who waits for others will want a step, if nobody comes or goes; None if nobody waits."""
        return min((self._ready_at(job) for job in self._jobs.values() if not job.started), default=None)

    def part(self, job: Job[Work]) -> None:
        """Takes a started job out of its batch: it goes on alone."""
        job.batch.remove(job)
        job.batch = [job]

    def charge(self, job: Job[Work], seconds: float) -> None:
        """Books device time to the job's client."""
        if job.client in self._served:
            self._served[job.client] += seconds

    def finish(self, job: Job[Work]) -> None:
        """Takes a job out that has come to its own end."""
        if self._jobs.get(job.key) is job:
            self._remove(job)

    def _outdated(self, old: Job[Work], new: Job[Work]) -> bool:
        return old.kind == "interactive" and old.client == new.client and old.document == new.document

    def _end(self, job: Job[Work], reason: Reason) -> None:
        job.ended = reason
        self._remove(job)

    def _remove(self, job: Job[Work]) -> None:
        del self._jobs[job.key]
        if job in job.batch:
            job.batch.remove(job)

    def _companions(self, job: Job[Work]) -> list[Job[Work]]:
        """The waiting jobs that can be started with `job`, which is the first of them, in the order they came."""
        if job.kind != "rewrite" or not job.document:
            return [job]
        others = [one for one in self._jobs.values() if one is not job and self._compatible(one, job)]
        return [job, *others][: self.together]

    def _compatible(self, one: Job[Work], other: Job[Work]) -> bool:
        if one.started or one.kind != "rewrite" or (one.client, one.document) != (other.client, other.document):
            return False
        if one.deadline is None or other.deadline is None:
            return one.deadline is other.deadline
        return abs(one.deadline - other.deadline) <= SPREAD_S

    def _ready_at(self, job: Job[Work]) -> float:
        """When a waiting job need not wait any longer for others to go with it."""
        if self.together == 1 or job.kind != "rewrite" or not job.document:
            return job.arrived
        return job.arrived + LINGER_S

    def _turn(self, job: Job[Work]) -> tuple[bool, bool, float, float, float]:
        deadline = float("inf") if job.deadline is None else job.deadline
        return (
            job.kind == "rewrite",
            not job.started,
            self._served.get(job.client, 0.0),
            deadline,
            job.arrived,
        )
