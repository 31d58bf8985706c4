"""Timelines, in plain words and without code."""

from __future__ import annotations

from typing import get_args

import pytest

from stopgap.daemon import wire
from stopgap.daemon.timeline import KEPT, Traces, explain, percentile

REQUEST = wire.Fill(b"secret = 1", "python", 0, 0, path="a.py")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_timeline_reads_as_a_story() -> None:
    clock = Clock()
    traces = Traces(clock)
    trace = traces.begin("neovim", REQUEST)
    clock.now += 0.010
    trace.note(clock.now, "started")
    clock.now += 0.020
    traces.end(trace, "nothing", "every candidate added a syntax error")
    clock.now += 5
    (line,) = traces.last(1)
    assert explain(line).splitlines() == [
        f"{trace.id}  5 s ago, neovim, interactive, python in a.py, 30 ms",
        "  Nothing was offered: every candidate added a syntax error",
        "       0.0 ms  queued",
        "      10.0 ms  started",
        "      30.0 ms  answered: nothing",
    ]
    assert "secret" not in explain(line)


@pytest.mark.parametrize("code", get_args(wire.Code))
def test_every_way_to_end_has_its_words(code: str) -> None:
    if code in {"bad_frame", "version"}:
        pytest.skip("ends a connection, not a request")
    line = wire.Timeline("ab", "c", "go", "", "rewrite", 0, 0, code, "the reason", ())
    words = explain(line).splitlines()[1]
    assert words.strip() != code and words.rstrip().endswith((".", "the reason", "you typed on."))


def test_only_the_last_requests_are_kept_and_one_can_be_asked_for() -> None:
    traces = Traces(Clock())
    ids = []
    for _ in range(KEPT + 5):
        trace = traces.begin("c", REQUEST)
        traces.end(trace, "fill")
        ids.append(trace.id)
    assert [line.trace for line in traces.last(10_000)] == ids[5:]
    assert [line.trace for line in traces.last(2)] == ids[-2:]
    assert [line.trace for line in traces.last(1, ids[10])] == [ids[10]]


def test_percentiles_are_those_of_the_last_hour_and_of_answers_only() -> None:
    clock = Clock()
    traces = Traces(clock)
    for ms, outcome in [(900, "fill"), (1000, "superseded")]:
        trace = traces.begin("c", REQUEST)
        clock.now += ms / 1000
        traces.end(trace, outcome)
    clock.now += 3600
    assert traces.percentiles() == (0, 0.0, 0.0)
    for ms in range(1, 101):
        trace = traces.begin("c", REQUEST)
        clock.now += ms / 1000
        traces.end(trace, "fill")
    count, p50, p95 = traces.percentiles()
    assert count == 100 and (round(p50), round(p95)) == (51, 96)
    assert traces.outcomes() == (("fill", 100),)


def test_a_run_away_request_cannot_fill_the_memory() -> None:
    traces = Traces(Clock())
    trace = traces.begin("c", REQUEST)
    for _ in range(5000):
        trace.note(100.0, "x" * 5000)
    assert len(trace.events) == 1000 and len(trace.events[1].what) == 1000


def test_percentile_of_nothing_is_zero() -> None:
    assert percentile([], 0.5) == 0.0
    assert percentile([7.0], 0.99) == 7.0
