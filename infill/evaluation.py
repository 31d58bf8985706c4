"""`stopgap eval`: asks engines to fill holes whose text is known, and keeps what came of each.

The loop is `run_eval`: for every sample, for every contender, `ask` and `score`, one line in the ledger.
Knows no model, no torch, no clock of its own. Fills are executed by `sandbox`, judged by `referee`, summed up
by `summary` and written down by `report`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import baselines, cuts, keystrokes, report, suites
from .contract import Engine
from .sandbox import Sandbox, SandboxError
from .scoring import Contender, Score, ask, score
from .suites import EvalError, Sample
from .summary import Report, summed_up

Suite = Literal["humaneval-infilling", "holes", "typing"]
DEFAULT_LIMIT = 1000


class Ledger:
    """Every score so far, one JSON line each, flushed as it comes: a killed run resumes where it stopped.

    The first line says what was asked of what; a ledger of another question is refused, never mixed in.
    """

    def __init__(self, path: Path | None, question: Mapping[str, object]) -> None:
        self.scores: dict[tuple[str, str], Score] = {}
        self._path = path
        head = json.dumps(question, sort_keys=True)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # last: torn or ""
        if kept and kept[0] != head:
            raise EvalError(f"{path} holds the results of another run: remove it or choose another --out")
        for line in kept[1:]:
            self._keep(Score(**json.loads(line)))
        text = "".join(f"{line}\n" for line in kept or [head])
        path.with_suffix(".new").write_text(text, encoding="utf-8")
        path.with_suffix(".new").replace(path)
        self._file = path.open("a", encoding="utf-8")

    def _keep(self, one: Score) -> None:
        self.scores[one.contender, one.sample] = one

    def add(self, one: Score) -> None:
        self._keep(one)
        if self._path is not None:
            self._file.write(json.dumps(asdict(one)) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._path is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def line_up(
    engine: Engine | None,
    *,
    steps: Sequence[int] = (),
    budgets: Sequence[float] = (),
    with_baselines: bool = True,
    extra: Sequence[Contender] = (),
    clock: Callable[[], float],
) -> list[Contender]:
    """The rows: the engine as it is (or per step cap and per budget), then `extra`, then the baselines."""
    rows: list[Contender] = []
    if engine is not None:
        name = engine.info().model
        rows += [Contender(f"{name} · {cap} steps", engine, max_steps=cap, series=f"{name}, by steps") for cap in steps]
        rows += [Contender(f"{name} · {ms:g} ms", engine, budget_ms=ms, series=f"{name}, by budget") for ms in budgets]
        rows = rows or [Contender(name, engine)]
    rows += extra
    if with_baselines:
        choices: tuple[baselines.Choice, ...] = ("retrieval, both sides", "retrieval", "previous line", "random line")
        copiers = {choice: baselines.Copier(choice, clock) for choice in choices}
        rows += [Contender(f"{choice}, gated", baselines.Gated(copiers[choice])) for choice in choices[:2]]
        rows += [Contender(choice, copier) for choice, copier in copiers.items()]
    if not rows:
        raise EvalError("nothing to evaluate: give an engine or keep the baselines")
    if len({row.name for row in rows}) < len(rows):
        raise EvalError(f"two rows have the same name: {', '.join(row.name for row in rows)}")
    return rows


def samples_of(
    suite: Suite,
    paths: Sequence[Path],
    limit: int | None,
    seed: int,
    *,
    kinds: Sequence[cuts.Kind] = ("node",),
    broken: bool = False,
    languages: Sequence[str] = (),
) -> tuple[Iterable[Sample], int]:
    """The samples of a suite, as a stream where they are cut on the way, and how many to expect."""
    if suite == "humaneval-infilling":
        problems = list(itertools.chain.from_iterable(suites.humaneval(path, limit, seed) for path in paths))
        return problems, len(problems)
    count = DEFAULT_LIMIT if limit is None else limit
    if suite == "holes":
        return cuts.holes(paths, count, seed, kinds, broken, languages), count
    if suite == "typing":
        return keystrokes.replays(paths, count, seed), count
    raise EvalError(f"unknown suite {suite!r}: humaneval-infilling, holes or typing")


def run_eval(
    suite: Suite,
    paths: Sequence[Path],
    *,
    clock: Callable[[], float],
    engine: Engine | None = None,
    extra: Sequence[Contender] = (),
    steps: Sequence[int] = (),
    budgets: Sequence[float] = (),
    with_baselines: bool = True,
    limit: int | None = None,
    seed: int = 0,
    kinds: Sequence[cuts.Kind] = ("node",),
    broken: bool = False,
    languages: Sequence[str] = (),
    execute: bool = True,
    tokens: Callable[[str], int] | None = None,
    out: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Ask every contender about every sample and sum up.

    `clock` is monotonic, in seconds. With `out`, a folder: samples.jsonl (one line per answer, resumed from if
    the same run was interrupted), report.json, report.md, fills.md and plot.svg. Ctrl-C ends the run and
    reports what there is. Progress goes to `console`, none if it is None. EvalError on bad input.
    """
    rows = line_up(engine, steps=steps, budgets=budgets, with_baselines=with_baselines, extra=extra, clock=clock)
    samples, expected = samples_of(suite, paths, limit, seed, kinds=kinds, broken=broken, languages=languages)
    question = {
        "suite": suite,
        "paths": [path.name for path in paths],
        "limit": limit,
        "seed": seed,
        "kinds": list(kinds) if suite == "holes" else [],
        "broken": broken,
        "languages": list(languages),
        "execute": execute and suite == "humaneval-infilling",
        "model": engine.info().model if engine is not None else "",
    }
    with ExitStack() as stack:
        run: Callable[[str], bool] | None = None
        if question["execute"]:
            try:
                sandbox = stack.enter_context(Sandbox())
            except SandboxError as error:
                raise EvalError(str(error)) from error
            run = lambda program: sandbox.run(program).passed  # noqa: E731
        ledger = Ledger(out / "samples.jsonl" if out else None, question)
        stack.callback(ledger.close)
        interrupted = False
        try:
            for sample, row in _turns(samples, rows, expected, console, clock):
                if (row.name, sample.name) not in ledger.scores:
                    ledger.add(score(row, sample, ask(row, sample, seed, clock), run, tokens))
        except KeyboardInterrupt:
            interrupted = True
    order = {row.name: at for at, row in enumerate(rows)}
    kept = sorted(
        (one for one in ledger.scores.values() if one.contender in order), key=lambda one: order[one.contender]
    )
    summary = summed_up(suite, question, kept, seed, interrupted)
    if out is not None:
        report.write(summary, out)
    return summary


def _turns(
    samples: Iterable[Sample],
    rows: Sequence[Contender],
    expected: int,
    console: Console | None,
    clock: Callable[[], float],
) -> Iterator[tuple[Sample, Contender]]:
    """Every sample with every row, behind a progress bar; the rows in turn, so that a stop leaves them even."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, get_time=clock, disable=console is None) as bar:
        task = bar.add_task("eval", total=expected * len(rows))
        for sample in samples:
            for row in rows:
                yield sample, row
                bar.advance(task)
