"""The worker thread with the scripted engine in this process: what runs when, and what failures leave behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stopgap.daemon import wire
from stopgap.daemon.config import Config
from stopgap.daemon.scheduler import Job
from stopgap.daemon.timeline import Traces
from stopgap.daemon.worker import Item, Note, Task, Worker

from .conftest import FAKE_ENGINE
from .fake_engine import FakeEngine


class Bench:
    """A running worker, and everything it said."""

    def __init__(self, worker_options: dict[str, Any], **settings: Any) -> None:
        self.said: list[tuple[str, Item]] = []
        self.died = threading.Event()
        self.traces = Traces(time.monotonic)
        self.worker = Worker(Config(**settings), self._hear, self.died.set, **worker_options)
        self.jobs: dict[str, Job[Task]] = {}

    def _hear(self, job: Job[Task], item: Item) -> None:
        self.said.append((job.work.request.path, item))

    def submit(self, name: str, script: str = "", document: str | None = None, **fields: Any) -> Job[Task]:
        """`document` is what the scheduler sees; the engine gets `name`."""
        fields = {"document": name, "path": name, "id": len(self.jobs) + 1, **fields}
        fill = wire.Fill(b"x", "python", 0, 1, instruction=script, **fields)
        wait = fill.deadline_ms
        deadline = None if wait is None else time.monotonic() + wait / 1000
        seen = name if document is None else document
        job = Job((1, fill.id), seen, fill.kind, deadline, Task(fill, self.traces.begin("test", fill)))
        self.jobs[name] = job
        self.worker.submit(job)
        return job

    def terminal(self, name: str) -> wire.Done | wire.Error:
        """The terminal frame of a request, once it is there."""
        wait_for(lambda: self.frames(name, wire.Done) + self.frames(name, wire.Error))
        (frame,) = self.frames(name, wire.Done) + self.frames(name, wire.Error)
        assert isinstance(frame, wire.Done | wire.Error)
        return frame

    def frames(self, name: str, kind: type) -> list[Item]:
        return [item for who, item in self.said if who == name and isinstance(item, kind)]

    def notes(self, name: str) -> list[str]:
        return [item.what for who, item in self.said if who == name and isinstance(item, Note)]

    @property
    def engine(self) -> FakeEngine:
        engine = self.worker._engine
        assert engine is not None and type(engine).__name__ == "FakeEngine"
        return engine  # type: ignore[return-value]


def wait_for(true: Callable[[], object]) -> None:
    """Until it is true; the test's own time limit ends it otherwise."""
    while not true():
        time.sleep(0.001)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    monkeypatch.setenv("STOPGAP_ENGINE_FACTORY", FAKE_ENGINE)
    made: list[Bench] = []

    def make(worker_options: dict[str, Any] | None = None, **settings: Any) -> Bench:
        made.append(Bench(worker_options or {}, **settings))
        made[-1].worker.start()
        return made[-1]

    yield make
    for one in made:
        assert one.worker.stop(5.0)


Make = Callable[..., Bench]


def test_a_keystroke_runs_between_two_steps_of_a_rewrite(bench: Make) -> None:
    here = bench()
    here.submit("rewrite", "steps=30 step_ms=5", kind="rewrite")
    wait_for(lambda: "started" in here.notes("rewrite"))
    here.submit("key", "steps=3 step_ms=5")
    here.terminal("key")
    here.terminal("rewrite")
    order = [line.split(":")[0] for line in here.engine.log]
    first = order.index("key")
    assert order[first : first + 3] == ["key"] * 3
    assert first > 0 and order.count("rewrite") == 30
    assert any(note.startswith("goes on after") for note in here.notes("rewrite"))


def test_a_cancelled_request_costs_at_most_the_step_under_way(bench: Make) -> None:
    here = bench()
    job = here.submit("long", "steps=100000 step_ms=5")
    wait_for(lambda: "started" in here.notes("long"))
    wait_for(lambda: len(here.engine.log) >= 3)
    here.worker.cancel(job.key)
    steps = len(here.engine.log)
    here.submit("next")
    here.terminal("next")
    assert len([line for line in here.engine.log if line.startswith("long")]) <= steps + 1
    assert not here.frames("long", wire.Done)


def test_a_cancelled_suspended_rewrite_is_closed(bench: Make) -> None:
    here = bench()
    rewrite = here.submit("rewrite", "steps=1000 step_ms=2", kind="rewrite")
    wait_for(lambda: "started" in here.notes("rewrite"))
    here.submit("key", "steps=20 step_ms=5")
    wait_for(lambda: "started" in here.notes("key"))
    here.worker.cancel(rewrite.key)
    wait_for(lambda: any(note.startswith("device free") for note in here.notes("rewrite")))
    here.terminal("key")


def test_out_of_memory_drops_the_caches_and_tries_once_more(bench: Make) -> None:
    here = bench()
    here.submit("tight", "steps=4 fail_at=2 error=MemoryError times=1", candidates=4)
    done = here.terminal("tight")
    assert isinstance(done, wire.Done) and len(done.fills) == 1, "the second try is a smaller one"
    assert here.engine.dropped == 1


def test_out_of_memory_twice_is_a_clear_error_and_the_worker_goes_on(bench: Make) -> None:
    here = bench()
    here.submit("tight", "steps=4 fail_at=2 error=MemoryError times=2")
    error = here.terminal("tight")
    assert isinstance(error, wire.Error) and error.code == "out_of_memory"
    here.submit("next")
    assert isinstance(here.terminal("next"), wire.Done)


def test_a_crash_names_its_trace_and_not_the_users_code(bench: Make, caplog: pytest.LogCaptureFixture) -> None:
    here = bench()
    job = here.submit("broken", "fail_at=1 error=ValueError")
    error = here.terminal("broken")
    assert isinstance(error, wire.Error) and error.code == "crashed"
    assert error.trace == job.work.trace.id and error.trace in caplog.text
    assert "ValueError" in error.message and "near" not in error.message + caplog.text


def test_a_lost_device_ends_the_worker_so_that_the_process_is_replaced(
    bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tmp_path / "lost.py"
    engine.write_text(
        "class Lost:\n"
        "    def fill(self, request, stop):\n"
        "        raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "        yield\n"
        "    def info(self):\n"
        "        from stopgap.infill.contract import EngineInfo\n"
        "        return EngineInfo('lost', 'cuda', '', '', 0, 0, 0, False)\n"
        "    def drop_caches(self): raise RuntimeError('CUDA error: again')\n"
        "def load(model, **_): return Lost()\n"
    )
    monkeypatch.setenv("STOPGAP_ENGINE_FACTORY", f"{engine}:load")
    here = bench()
    here.submit("unlucky")
    error = here.terminal("unlucky")
    assert isinstance(error, wire.Error) and error.code == "crashed"
    assert here.died.wait(5)


def test_an_engine_that_ends_without_an_outcome_has_crashed(bench: Make) -> None:
    here = bench()
    here.submit("first")
    here.terminal("first")
    here.engine.fill = lambda _request, _stop: iter(())  # type: ignore[method-assign]
    here.submit("empty")
    error = here.terminal("empty")
    assert isinstance(error, wire.Error) and error.code == "crashed"


def test_drafts_go_only_to_who_wants_them_and_not_too_often(bench: Make) -> None:
    here = bench()
    here.submit("quiet", "steps=50 step_ms=1")
    here.submit("watching", "steps=100 step_ms=2", want_drafts=True)
    here.terminal("quiet")
    begin = time.monotonic()
    here.terminal("watching")
    seconds = time.monotonic() - begin
    assert not here.frames("quiet", wire.Draft)
    assert 1 <= len(here.frames("watching", wire.Draft)) <= 2 + seconds * wire.DRAFTS_PER_SECOND


def test_the_deadline_becomes_the_budget_of_a_started_request(bench: Make) -> None:
    here = bench()
    here.submit("first")
    here.terminal("first")
    asked: list[float | None] = []
    fill = here.engine.fill
    here.engine.fill = lambda request, stop: asked.append(request.budget_ms) or fill(request, stop)  # type: ignore[method-assign, func-returns-value]
    for name, fields in {
        "no deadline": {"budget_ms": 70.0},
        "near": {"deadline_ms": 5000.0},
        "nearer budget": {"deadline_ms": 5000.0, "budget_ms": 100.0},
    }.items():
        here.submit(name, **fields)
        here.terminal(name)
    assert asked[0] == 70.0 and asked[2] == 100.0
    assert asked[1] is not None and 0 < asked[1] <= 5000.0


def test_another_process_in_need_gets_the_caches_first_and_then_the_weights(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stopgap.daemon.worker._HEADROOM_CHECK_S", 0.01)
    free = [8 << 30]
    here = bench({"free_device_bytes": lambda: free[0]}, headroom_mb=1024)
    here.submit("first")
    here.terminal("first")
    time.sleep(0.05)
    assert here.worker.state == "ready" and here.engine.dropped == 0
    engine = here.engine
    free[0] = 1 << 29
    wait_for(lambda: here.worker.state == "cold")
    assert engine.dropped == 1
    free[0] = 8 << 30
    here.submit("second")
    assert isinstance(here.terminal("second"), wire.Done)


def test_unload_waits_for_what_runs(bench: Make) -> None:
    here = bench()
    here.submit("running", "steps=20 step_ms=5")
    wait_for(lambda: "started" in here.notes("running"))
    freed = threading.Event()
    here.worker.unload(freed.set)
    assert freed.wait(10)
    assert isinstance(here.terminal("running"), wire.Done)
    assert here.worker.state == "cold" and here.worker.info is None


def test_load_after_pause_is_answered_and_loads_nothing(bench: Make) -> None:
    here = bench()
    freed, loaded = threading.Event(), threading.Event()
    here.worker.pause(freed.set)
    assert freed.wait(10)
    here.worker.load(loaded.set)
    assert loaded.wait(10) and here.worker.state == "paused"


def together(here: Bench, scripts: dict[str, str]) -> None:
    """Rewrites of one document, all queued before the worker looks; the model is in memory."""
    here.submit("warm up")
    here.terminal("warm up")
    with here.worker._wake:
        for name, script in scripts.items():
            here.submit(name, script, "x.py", kind="rewrite")


def test_rewrites_of_one_document_run_as_a_batch_and_each_has_its_own_end(bench: Make) -> None:
    here = bench()
    together(here, {"short": "steps=2", "long": "steps=9 text=return", "wrong": "error=FillError"})
    short, long, wrong = (here.terminal(name) for name in ("short", "long", "wrong"))
    assert here.engine.batches == [["short", "long", "wrong"]]
    assert isinstance(short, wire.Done) and short.fills[0].text == "pass" and short.steps == 2
    assert isinstance(long, wire.Done) and long.fills[0].text == "return" and long.steps == 9
    assert isinstance(wrong, wire.Error) and wrong.code == "bad_request"
    assert here.notes("long") == ["started, batched with 2 others"]
    traces = {name: here.jobs[name].work.trace.id for name in ("short", "long", "wrong")}
    assert {"short": short.trace, "long": long.trace, "wrong": wrong.trace} == traces


def test_cancelling_one_of_a_batch_leaves_the_others_running(bench: Make) -> None:
    here = bench()
    together(here, {"one": "steps=1000 step_ms=1", "two": "steps=40 step_ms=1"})
    wait_for(lambda: "one:3" in here.engine.log)
    here.worker.cancel(here.jobs["one"].key)
    steps = len([line for line in here.engine.log if line.startswith("one")])
    assert isinstance(here.terminal("two"), wire.Done)
    assert len([line for line in here.engine.log if line.startswith("one")]) <= steps + 1
    assert not here.frames("one", wire.Done) + here.frames("one", wire.Error)
    assert any(note.startswith("device free after") for note in here.notes("one"))


def test_a_keystroke_runs_between_two_steps_of_a_batch(bench: Make) -> None:
    here = bench()
    together(here, {"one": "steps=60 step_ms=2", "two": "steps=60 step_ms=2"})
    wait_for(lambda: "one:3" in here.engine.log)
    here.submit("key", "steps=3", "x.py")
    here.terminal("key")
    behind = here.engine.log.index("key:1")
    assert here.engine.log[behind : behind + 3] == ["key:1", "key:2", "key:3"] and behind < 100
    assert all(isinstance(here.terminal(name), wire.Done) for name in ("one", "two"))
    assert all("suspended for a keystroke" in here.notes(name) for name in ("one", "two"))


def test_a_crash_fails_the_requests_of_its_batch_and_no_others(bench: Make) -> None:
    here = bench()
    together(here, {"good": "steps=9", "broken": "steps=9 fail_at=3 error=ValueError"})
    here.submit("bystander", "steps=3", "y.py", kind="rewrite")
    for name in ("good", "broken"):
        error = here.terminal(name)
        assert isinstance(error, wire.Error) and error.code == "crashed"
        assert error.trace == here.jobs[name].work.trace.id
    assert isinstance(here.terminal("bystander"), wire.Done)


def test_a_batch_that_does_not_fit_into_memory_goes_on_one_by_one(bench: Make) -> None:
    here = bench()
    together(here, {"wide": "steps=4 fail_at=2 error=MemoryError times=1", "other": "steps=4"})
    assert all(isinstance(here.terminal(name), wire.Done) for name in ("wide", "other"))
    assert here.engine.dropped == 1
    assert any("out of memory" in note for note in here.notes("other"))


def test_an_engine_without_batches_is_driven_one_by_one(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeEngine, "fill_many")
    here = bench()
    engine = FakeEngine()
    monkeypatch.setattr("stopgap.daemon.engines._factory", lambda _name: lambda *_args, **_options: engine)
    together(here, {"one": "steps=2", "two": "steps=2"})
    assert all(isinstance(here.terminal(name), wire.Done) for name in ("one", "two"))
    assert engine.log == ["warm up:1", "one:1", "one:2", "two:1", "two:2"]
    assert "started" in here.notes("two")
