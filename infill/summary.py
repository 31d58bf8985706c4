"""Sums scores up: one row of numbers per contender and group. Formats nothing, asks nothing.

A share is over all samples, shown or not, unless its column says so; its interval is a 95 % bootstrap over
problems or files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from . import keystrokes
from .contract import show_score
from .metrics import Interval, bootstrap, paired, percentile
from .scoring import Score

MIN_GROUP = 10
"""A group with fewer samples gets no row of its own."""

Value = Interval | float | int | None
Style = Literal["share", "count", "number"]


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    key: str
    style: Style
    value: Callable[[Sequence[Score], int], Value]
    """Of the scores and a seed."""


def _share(key: str) -> Callable[[Sequence[Score], int], Value]:
    """Mean of a field with its interval; None where no score has the field."""

    def value(scores: Sequence[Score], seed: int) -> Value:
        having = [one for one in scores if getattr(one, key) is not None]
        if not having:
            return None
        return bootstrap([float(getattr(one, key)) for one in having], [one.cluster for one in having], seed)

    return value


def _count(key: str) -> Callable[[Sequence[Score], int], Value]:
    def value(scores: Sequence[Score], _: int) -> Value:
        values = [getattr(one, key) for one in scores]
        return None if all(one is None for one in values) else sum(map(bool, values))

    return value


def _ms(share: float) -> Callable[[Sequence[Score], int], Value]:
    return lambda scores, _: percentile([one.ms for one in scores], share)


def _of_shown(key: str) -> Callable[[Sequence[Score], int], Value]:
    """Mean of a field over the offered fills only."""

    def value(scores: Sequence[Score], _: int) -> Value:
        offered = [float(getattr(one, key)) for one in scores if one.shown]
        return sum(offered) / len(offered) if offered else None

    return value


def _mean_steps(scores: Sequence[Score], _: int) -> Value:
    steps = [one.steps for one in scores if one.shown]
    return sum(steps) / len(steps) if any(steps) else None


def _accepted(scores: Sequence[Score], _: int) -> Value:
    length = sum(len(one.fill) for one in scores)
    return sum(one.accepted for one in scores) / length if length else None


def _whole(scores: Sequence[Score], _: int) -> Value:
    offered = [one.accepted == len(one.fill) for one in scores if one.shown]
    return sum(offered) / len(offered) if offered else None


def _late(scores: Sequence[Score], _: int) -> Value:
    """Answers later than their budget and one step."""
    if all(one.budget_ms is None for one in scores):
        return None
    return sum(one.budget_ms is not None and one.ms > one.budget_ms + (one.step_ms or 0.0) for one in scores)


def _beyond(scores: Sequence[Score], _: int) -> Value:
    """Milliseconds from the deadline to the answer, 99th percentile."""
    over = [one.ms - one.budget_ms for one in scores if one.budget_ms is not None]
    return max(0.0, percentile(over, 0.99)) if over else None


BEFORE = (
    Column("n", "n", "count", lambda scores, _: len(scores)),
    Column("shown", "shown", "share", _share("shown")),
)
HOLE = (
    Column("pass@1", "passed", "share", _share("passed")),
    Column("exact", "exact", "share", _share("exact")),
    Column("exact of shown", "exact_of_shown", "share", _of_shown("exact")),
    Column("edit similarity", "similarity", "share", _share("similarity")),
    Column("parses", "parses", "share", _share("parses")),
)
LENGTH = (
    Column("right length, characters", "right_characters", "share", _share("right_characters")),
    Column("right length, tokens", "right_tokens", "share", _share("right_tokens")),
    Column("right length, lines", "right_lines", "share", _share("right_lines")),
)
TYPING = (
    Column("accepted prefix", "accepted_prefix", "share", _accepted),
    Column("whole fill typed", "whole", "share", _whole),
    Column("right characters a pause", "right_a_pause", "number", lambda s, _: sum(o.accepted for o in s) / len(s)),
)
AFTER = (
    Column("adds an error", "adds_error", "count", _count("adds_error")),
    Column("adds one to the unbroken file", "adds_error_sound", "count", _count("adds_error_sound")),
    Column("outside the hole", "outside", "count", _count("outside")),
    Column("crashed", "crashed", "count", lambda s, _: sum(one.why.startswith("crashed") for one in s)),
    Column("steps", "steps", "number", _mean_steps),
    Column("ms p50", "ms_p50", "number", _ms(0.5)),
    Column("ms p95", "ms_p95", "number", _ms(0.95)),
    Column("ms p99", "ms_p99", "number", _ms(0.99)),
    Column("ms after the deadline p99", "beyond_p99", "number", _beyond),
    Column("late", "late", "count", _late),
)
"""`adds an error` must be 0 for anything that has a gate."""


def columns(suite: str) -> tuple[Column, ...]:
    return BEFORE + (TYPING if suite == "typing" else HOLE + LENGTH) + AFTER


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: the values by column key."""

    contender: str
    group: str
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Report:
    """A finished (or interrupted) evaluation."""

    suite: str
    question: Mapping[str, object]
    rows: tuple[Row, ...]
    """One per contender, over everything."""
    groups: tuple[Row, ...]
    """Per node type or benchmark, and per language where there are several."""
    against: tuple[tuple[str, str, Interval], ...]
    """(row, earlier row, difference of the main metric) on the same samples."""
    scores: tuple[Score, ...]
    seed: int
    interrupted: bool

    @property
    def main(self) -> str:
        """The column that ranks: pass@1 where fills were run, else exact match, else accepted prefix."""
        if self.suite == "typing":
            return "accepted_prefix"
        return "passed" if any(row.values.get("passed") is not None for row in self.rows) else "exact"


def summed_up(
    suite: str, question: Mapping[str, object], scores: Sequence[Score], seed: int, interrupted: bool = False
) -> Report:
    """Scores of all contenders, in the order in which their rows are wanted."""
    # Where an answer took fewer than two steps, a step is what it usually is: short budgets have no other measure.
    steps = [one.step_ms for one in scores if one.step_ms is not None]
    usual = percentile(steps, 0.5) if steps else None
    timed = [one if one.step_ms is not None else replace(one, step_ms=usual) for one in scores]
    names = list(dict.fromkeys(one.contender for one in scores))
    by_name = {name: [one for one in timed if one.contender == name] for name in names}
    rows = tuple(_row(suite, name, "all", by_name[name], seed) for name in names)
    groups = []
    for key in ("group", "language"):
        kinds = sorted({getattr(one, key) for one in scores})
        for kind in kinds if len(kinds) > 1 else ():
            for name in names:
                some = [one for one in by_name[name] if getattr(one, key) == kind]
                if len(some) >= MIN_GROUP:
                    groups.append(_row(suite, name, f"{key} {kind}", some, seed))
    report = Report(suite, question, rows, tuple(groups), (), tuple(scores), seed, interrupted)
    if suite == "typing":
        return report
    pairs = [(later, names[0]) for later in names[1:]]
    pairs += [
        (after, before)
        for before, after in itertools.pairwise(names[1:])
        if by_name[before][0].series == by_name[after][0].series
    ]
    against = tuple((a, b, _difference(by_name[b], by_name[a], report.main, seed)) for a, b in pairs)
    return replace(report, against=against)


def _row(suite: str, name: str, group: str, scores: Sequence[Score], seed: int) -> Row:
    return Row(name, group, {column.key: column.value(scores, seed) for column in columns(suite)})


def _difference(left: Sequence[Score], right: Sequence[Score], key: str, seed: int) -> Interval:
    """Over the samples both have: an interrupted run may lack the last of one."""
    other = {one.sample: one for one in right}
    both = [(one, other[one.sample]) for one in left if one.sample in other]
    before, after = ([float(getattr(pair[side], key) or 0) for pair in both] for side in (0, 1))
    return paired(before, after, [one.cluster for one, _ in both], seed)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well a contender's own score tells good fills from bad ones, from a typing run."""

    contender: str
    offers: tuple[tuple[float, int, int], ...]
    """(show score, characters accepted, characters offered) of each fill."""
    thresholds: tuple[keystrokes.Threshold, ...]
    proposed: keystrokes.Threshold | None


def calibration(report: Report) -> tuple[Calibration, ...]:
    """One per contender of a typing run."""
    found = []
    for row in report.rows:
        mine = [one for one in report.scores if one.contender == row.contender]
        offers = tuple(
            (show_score(one.score), one.accepted, len(one.fill)) for one in mine if one.score is not None and one.fill
        )
        steps = tuple(keystrokes.thresholds(offers, len(mine)))
        found.append(Calibration(row.contender, offers, steps, keystrokes.proposed(steps)))
    return tuple(found)
