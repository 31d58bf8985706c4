"""Who gets the next step, played through with a clock that only moves when told to."""

from __future__ import annotations

import random

import pytest

from stopgap.daemon.scheduler import LINGER_S, SPREAD_S, Job, Kind, Scheduler


class FakeClock:
    """Seconds; moves when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0


class Desk:
    """A scheduler with jobs named by a word such as "a1": client a, request 1."""

    def __init__(self, max_waiting: int = 100) -> None:
        self.clock = FakeClock()
        self.scheduler: Scheduler[str] = Scheduler(max_waiting)
        self.jobs: dict[str, Job[str]] = {}

    def submit(
        self, name: str, document: str = "", kind: Kind = "interactive", deadline: float | None = None
    ) -> list[str]:
        key = (ord(name[0]), int(name[1:]))
        self.jobs[name] = job = Job(key, document, kind, deadline, name)
        return [ended.work for ended in self.scheduler.submit(job, self.clock.now)]

    def step(self, seconds: float = 1.0) -> str:
        """One step of whoever is next: the name, "" if nobody waits."""
        batch = self.scheduler.next(self.clock.now)
        if not batch:
            return ""
        self.clock.now += seconds
        self.scheduler.charge(batch[0], seconds)
        return " ".join(job.work for job in batch)

    def finish(self, name: str) -> None:
        self.scheduler.finish(self.jobs[name])

    def run(self, seconds: float = 1.0) -> list[str]:
        """Everything to its end, one step each."""
        order = []
        while name := self.step(seconds):
            self.finish(name)
            order.append(name)
        return order


def test_a_newer_request_for_the_same_document_ends_the_older() -> None:
    desk = Desk()
    desk.submit("a1", "x.py")
    assert desk.submit("a2", "x.py") == ["a1"]
    assert desk.jobs["a1"].ended == "superseded"
    assert desk.run() == ["a2"]


def test_a_started_request_is_superseded_too() -> None:
    desk = Desk()
    desk.submit("a1", "x.py")
    assert desk.step() == "a1"
    assert desk.submit("a2", "x.py") == ["a1"]
    assert desk.step() == "a2"


@pytest.mark.parametrize(
    ("name", "document", "kind"),
    [("b1", "x.py", "interactive"), ("a2", "y.py", "interactive"), ("a2", "x.py", "rewrite")],
    ids=["another client", "another document", "a rewrite"],
)
def test_only_interactive_requests_of_one_client_and_document_compete(name: str, document: str, kind: Kind) -> None:
    desk = Desk()
    desk.submit("a1", "x.py")
    assert desk.submit(name, document, kind) == []


def test_requests_without_a_document_do_not_compete() -> None:
    desk = Desk()
    desk.submit("a1")
    assert desk.submit("a2") == []


def test_a_keystroke_suspends_a_rewrite_between_two_steps() -> None:
    desk = Desk()
    desk.submit("a1", kind="rewrite")
    assert [desk.step(), desk.step()] == ["a1", "a1"]
    desk.submit("b1")
    assert desk.step() == "b1"
    desk.finish("b1")
    assert desk.step() == "a1"


def batching(most: int = 4) -> Desk:
    desk = Desk()
    desk.scheduler.together = most
    return desk


def test_rewrites_of_one_document_go_together_and_go_on_together() -> None:
    desk = batching()
    for name in ("a1", "a2", "a3"):
        desk.submit(name, "x.py", "rewrite")
    desk.clock.now = LINGER_S
    assert [desk.step(), desk.step()] == ["a1 a2 a3"] * 2
    desk.finish("a1")
    desk.scheduler.cancel(desk.jobs["a2"].key)
    assert desk.step() == "a3"


@pytest.mark.parametrize(
    ("name", "document", "kind", "deadline"),
    [
        ("b1", "x.py", "rewrite", 9.0),
        ("a2", "y.py", "rewrite", 9.0),
        ("a2", "", "rewrite", 9.0),
        ("a2", "x.py", "rewrite", 9.0 + 2 * SPREAD_S),
        ("a2", "x.py", "rewrite", None),
    ],
    ids=["another client", "another document", "no document", "more patient", "no deadline"],
)
def test_what_does_not_belong_together_goes_alone(name: str, document: str, kind: Kind, deadline: float | None) -> None:
    desk = batching()
    desk.submit("a1", "x.py", "rewrite", deadline=9.0)
    desk.submit(name, document, kind, deadline)
    desk.clock.now = LINGER_S
    assert sorted(desk.run()) == sorted(["a1", name])


def test_a_rewrite_waits_a_moment_for_others_and_a_keystroke_does_not() -> None:
    desk = batching()
    desk.submit("a1", "x.py", "rewrite")
    assert desk.step() == ""
    assert desk.scheduler.next_at() == LINGER_S
    desk.submit("a2", "x.py")
    assert desk.step(0.0) == "a2"
    desk.finish("a2")
    desk.clock.now = LINGER_S
    assert desk.step() == "a1"


def test_a_keystroke_suspends_a_batch_and_is_no_part_of_it() -> None:
    desk = batching()
    desk.submit("a1", "x.py", "rewrite")
    desk.submit("a2", "x.py", "rewrite")
    desk.clock.now = LINGER_S
    assert desk.step() == "a1 a2"
    desk.submit("a3", "x.py")
    assert desk.step() == "a3"
    desk.finish("a3")
    assert desk.step() == "a1 a2"


def test_a_batch_is_bounded_and_who_is_left_forms_the_next() -> None:
    desk = batching(most=2)
    for number in range(1, 6):
        desk.submit(f"a{number}", "x.py", "rewrite")
    desk.clock.now = LINGER_S
    order = []
    while batch := desk.step():
        order.append(batch)
        for name in batch.split():
            desk.finish(name)
    assert order == ["a1 a2", "a3 a4", "a5"]


def test_a_started_batch_takes_nobody_in() -> None:
    desk = batching()
    desk.submit("a1", "x.py", "rewrite")
    desk.clock.now = LINGER_S
    assert desk.step() == "a1"
    desk.submit("a2", "x.py", "rewrite")
    assert desk.step() == "a1"


def test_what_leaves_its_batch_goes_on_alone() -> None:
    desk = batching()
    desk.submit("a1", "x.py", "rewrite")
    desk.submit("a2", "x.py", "rewrite")
    desk.clock.now = LINGER_S
    assert desk.step() == "a1 a2"
    for name in ("a1", "a2"):
        desk.scheduler.part(desk.jobs[name])
    assert desk.run() == ["a1", "a2"]


def test_without_an_engine_that_can_nothing_goes_together_and_nobody_waits() -> None:
    desk = Desk()
    desk.submit("a1", "x.py", "rewrite")
    desk.submit("a2", "x.py", "rewrite")
    assert desk.run() == ["a1", "a2"]


def test_what_has_started_goes_on_before_others_of_its_kind() -> None:
    desk = Desk()
    desk.submit("a1")
    assert desk.step(5.0) == "a1"
    desk.submit("b1", deadline=6.0)
    assert desk.step() == "a1"


def test_the_client_that_had_less_of_the_device_goes_first() -> None:
    desk = Desk()
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        desk.submit(name)
    assert desk.run() == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_newcomer_is_not_compensated_for_the_time_it_was_away() -> None:
    desk = Desk()
    for number in range(1, 9):
        desk.submit(f"a{number}")
    for number in range(1, 5):
        assert desk.step(10.0) == f"a{number}"
        desk.finish(f"a{number}")
    for number in range(1, 4):
        desk.submit(f"b{number}")
    assert desk.run(10.0) == ["a5", "b1", "a6", "b2", "a7", "b3", "a8"]


def test_the_nearest_deadline_of_a_client_goes_first() -> None:
    desk = Desk()
    desk.submit("a1", deadline=9.0)
    desk.submit("a2")
    desk.submit("a3", deadline=3.0)
    assert desk.run(0.1) == ["a3", "a1", "a2"]


def test_a_deadline_ends_who_waits_but_not_who_has_started() -> None:
    desk = Desk()
    desk.submit("a1", deadline=1.0)
    assert desk.step(2.0) == "a1"
    desk.submit("b1", deadline=1.5)
    desk.submit("c1", deadline=3.0)
    assert [job.work for job in desk.scheduler.expire(desk.clock.now)] == ["b1"]
    assert desk.jobs["b1"].ended == "deadline"
    assert desk.jobs["a1"].ended is None


def test_a_full_queue_refuses_the_newcomer_and_keeps_the_others() -> None:
    desk = Desk(max_waiting=2)
    desk.submit("a1")
    desk.submit("a2")
    assert desk.submit("b1") == ["b1"]
    assert desk.jobs["b1"].ended == "busy"
    assert desk.run() == ["a1", "a2"]


def test_a_newer_request_takes_the_place_of_the_older_in_a_full_queue() -> None:
    desk = Desk(max_waiting=1)
    desk.submit("a1", "x.py")
    assert desk.submit("a2", "x.py") == ["a1"]
    assert desk.jobs["a2"].ended is None


def test_cancelling_twice_is_cancelling_once() -> None:
    desk = Desk()
    desk.submit("a1")
    key = desk.jobs["a1"].key
    assert desk.scheduler.cancel(key) is desk.jobs["a1"]
    assert desk.scheduler.cancel(key) is None
    assert desk.step() == ""


def test_a_client_that_goes_takes_all_its_work_with_it() -> None:
    desk = Desk()
    for name in ("a1", "b1", "a2"):
        desk.submit(name)
    desk.step()
    assert sorted(job.work for job in desk.scheduler.drop_client(ord("a"))) == ["a1", "a2"]
    assert desk.run() == ["b1"]


def test_an_id_in_use_is_an_error() -> None:
    desk = Desk()
    desk.submit("a1")
    with pytest.raises(ValueError, match="in use"):
        desk.submit("a1")


def test_whatever_happens_every_request_ends_once_and_nobody_starves() -> None:
    dice = random.Random(5)
    desk = Desk(max_waiting=30)
    ended: list[str] = []
    waited: dict[str, int] = {}
    number = 0
    for _ in range(20_000):
        match dice.randrange(6):
            case 0 | 1:
                number += 1
                name = f"{dice.choice('abcd')}{number}"
                kind: Kind = "rewrite" if dice.random() < 0.2 else "interactive"
                deadline = desk.clock.now + dice.random() * 20 if dice.random() < 0.3 else None
                ended += desk.submit(name, dice.choice(["", "x", "y"]), kind, deadline)
                waited[name] = 0
            case 2:
                victims = list(desk.scheduler)
                if victims and desk.scheduler.cancel(dice.choice(victims).key):
                    ended += [job.work for job in victims if job.ended]
            case 3:
                ended += [job.work for job in desk.scheduler.expire(desk.clock.now)]
            case _:
                if (name := desk.step(dice.random())) and dice.random() < 0.6:
                    desk.finish(name)
                    ended.append(name)
        assert desk.scheduler.waiting <= 30
        assert sum(job.started for job in desk.scheduler) <= 2, "at most one of each kind is under way"
    ended += desk.run()
    assert sorted(ended) == sorted(waited)
