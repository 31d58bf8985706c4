"""Whole evaluations with engines that know the answer: tables, files, resuming, honest failures."""

import gzip
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from knower import Knower, Ticks
from rich.console import Console

from stopgap.infill import report
from stopgap.infill.contract import Draft, FillRequest, Outcome
from stopgap.infill.cuts import holes
from stopgap.infill.evaluation import run_eval
from stopgap.infill.keystrokes import replays
from stopgap.infill.metrics import Interval
from stopgap.infill.scoring import Contender
from stopgap.infill.suites import EvalError, humaneval
from stopgap.infill.summary import Report, Row, calibration

PYTHON = "import os\n\n\n" + "\n\n".join(
    f"def part_{n}(value, other):\n    if value > {n}:\n        return value * {n}\n    return os.sep.join(other)\n"
    for n in range(12)
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "parts.py").write_text(PYTHON)
    (folder / "app.js").write_text("function go(a, b) {\n  return a.map((x) => x + b);\n}\n" * 5)
    return folder


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    rows = [
        {
            "task_id": f"SingleLineInfilling/HumanEval/{n}/L0",
            "entry_point": "f",
            "prompt": f"def f(x):\n    # {n}\n",
            "suffix": "    return y\n",
            "canonical_solution": f"    y = x + {n}\n",
            "test": f"def check(c):\n    assert c(1) == {n + 1}\n",
        }
        for n in range(12)
    ]
    path = tmp_path / "HumanEval-SingleLineInfilling.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def values(result: Report, name: str) -> dict[str, float]:
    """The overall row of a contender, intervals as their means."""
    row: Row = next(row for row in result.rows if row.contender == name)
    return {
        key: value.mean if isinstance(value, Interval) else value
        for key, value in row.values.items()
        if value is not None
    }


def test_fills_that_pass_are_told_from_fills_that_do_not(problems: Path, tmp_path: Path) -> None:
    samples = humaneval(problems, None, 0)
    clock = Ticks()
    wrong = {sample.truth: "    y = x\n" for sample in samples[6:]} | {samples[1].truth: "    import os; os._exit(0)\n"}
    result = run_eval(
        "humaneval-infilling", [problems], clock=clock, engine=Knower(samples, clock, wrong), out=tmp_path / "out"
    )
    row = values(result, "knower")
    assert row["n"] == 12 and row["shown"] == 1 and row["passed"] == pytest.approx(5 / 12) == row["exact"]
    assert row["parses"] == 1 and row["adds_error"] == 0 and row["ms_p50"] == pytest.approx(40) and row["steps"] == 4
    assert result.main == "passed" and values(result, "random line")["passed"] == 0
    assert "| pass@1 |" in (tmp_path / "out" / "report.md").read_text()


def test_without_execution_exact_match_ranks(problems: Path) -> None:
    samples = humaneval(problems, None, 0)
    clock = Ticks()
    result = run_eval(
        "humaneval-infilling", [problems], clock=clock, engine=Knower(samples, clock), execute=False, limit=5
    )
    assert result.main == "exact" and "passed" not in values(result, "knower") and values(result, "knower")["n"] == 5


def test_quality_against_steps_and_budgets(tree: Path) -> None:
    samples = list(holes([tree], 60, 0))
    clock = Ticks()
    engine = Knower(samples, clock, steps=8)
    result = run_eval(
        "holes",
        [tree],
        clock=clock,
        engine=engine,
        steps=[2, 4, 8],
        budgets=[15, 75],
        with_baselines=False,
        limit=60,
    )
    names = ["knower · 2 steps", "knower · 4 steps", "knower · 8 steps", "knower · 15 ms", "knower · 75 ms"]
    assert [row.contender for row in result.rows] == names
    by_name = {name: values(result, name) for name in names}
    similarity = [by_name[name]["similarity"] for name in names]
    assert similarity[0] < similarity[1] < similarity[2] == 1.0 and similarity[3] < similarity[4]
    assert [by_name[name]["ms_p99"] for name in names] == pytest.approx([20, 40, 80, 20, 80])
    assert by_name["knower · 15 ms"]["late"] == 0 and "late" not in by_name["knower · 2 steps"]
    gained = {(a, b): d for a, b, d in result.against}
    assert gained["knower · 8 steps", "knower · 4 steps"].low > 0
    assert gained["knower · 75 ms", "knower · 15 ms"].low >= 0


class Lingers(Knower):
    """Spends 30 ms more on its last draft than it has."""

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        *drafts, outcome = super().fill(request, stop)
        yield from drafts
        self.clock.now += 0.030
        yield outcome


class SaysNothing(Knower):
    """Takes twice its budget and shows no draft on the way."""

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        self.clock.now += 2 * (request.budget_ms or 0) / 1000
        yield Outcome(request.start, request.end, "", (), reason="the time was up")


def test_an_answer_too_quick_to_measure_a_step_is_held_against_the_usual_one(tree: Path) -> None:
    """5 ms are over within the first step of 10 ms."""
    samples, clock = list(holes([tree], 20, 0)), Ticks()
    result = run_eval(
        "holes", [tree], clock=clock, engine=Knower(samples, clock), budgets=[5, 75], limit=20, with_baselines=False
    )
    quick = values(result, "knower · 5 ms")
    assert quick["late"] == 0 and quick["beyond_p99"] == pytest.approx(5)


@pytest.mark.parametrize(("engine", "late"), [(Knower, 0), (Lingers, 20), (SaysNothing, 20)])
def test_an_answer_later_than_budget_and_one_step_is_late(tree: Path, engine: type[Knower], late: int) -> None:
    clock = Ticks()
    slow = engine(list(holes([tree], 20, 0)), clock)
    result = run_eval("holes", [tree], clock=clock, engine=slow, budgets=[25], limit=20, with_baselines=False)
    assert values(result, "knower · 25 ms")["late"] == late


def test_every_language_and_common_type_has_a_row(tree: Path) -> None:
    clock = Ticks()
    result = run_eval("holes", [tree], clock=clock, kinds=("node", "line"), limit=200)
    groups = {row.group for row in result.groups}
    assert {"language python", "language javascript", "group single line"} <= groups
    assert all(isinstance(row.values["n"], int) and row.values["n"] >= 10 for row in result.groups)


def test_the_broken_suite_counts_against_the_unbroken_file(tree: Path) -> None:
    samples = list(holes([tree], 40, 0, broken=True))
    clock = Ticks()
    honest = Knower(samples, clock)
    spoiler = Knower(samples, clock, {sample.truth: sample.truth + "))" for sample in samples}, name="spoiler")
    result = run_eval(
        "holes", [tree], clock=clock, engine=honest, extra=[Contender("spoiler", spoiler)], broken=True, limit=40
    )
    assert values(result, "knower")["adds_error"] == 0 == values(result, "knower")["adds_error_sound"]
    assert values(result, "spoiler")["adds_error_sound"] > 20


def test_typing_proposes_a_threshold(tree: Path, tmp_path: Path) -> None:
    samples = list(replays([tree], 120, 0))
    clock = Ticks()
    wrong = {sample.truth: "zzz" for sample in samples[::2]}
    engine = Knower(samples, clock, wrong, first_line=True)
    result = run_eval("typing", [tree], clock=clock, engine=engine, limit=120, out=tmp_path / "out")
    mine = calibration(result)[0]
    assert mine.proposed is not None and 0 < mine.proposed.score <= 1
    assert mine.proposed.accepted_prefix == 1.0 and 0.3 < mine.proposed.shown < 0.7
    written = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert written[0]["contender"] == "knower" and len(written[0]["offers"]) == len(mine.offers)
    assert "Show threshold: knower" in (tmp_path / "out" / "report.md").read_text()
    assert len({request.document for request in engine.asked}) > 1


def test_the_same_seed_gives_the_same_report(tree: Path) -> None:
    first, second = (run_eval("holes", [tree], clock=Ticks(), limit=30, seed=3) for _ in range(2))
    assert first == second


def test_files_are_complete_and_readable(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    samples = list(holes([tree], 30, 0))
    clock = Ticks()
    result = run_eval("holes", [tree], clock=clock, engine=Knower(samples, clock), steps=[2, 4], limit=30, out=out)
    assert {path.name for path in out.iterdir()} == {
        "samples.jsonl",
        "report.json",
        "report.md",
        "fills.md",
        "plot.svg",
    }
    assert len(json.loads((out / "report.json").read_text())["rows"]) == len(result.rows) == 8
    assert ET.fromstring((out / "plot.svg").read_text()).tag.endswith("svg")
    fills = (out / "fills.md").read_text()
    group = max({sample.group for sample in samples}, key=lambda g: sum(s.group == g for s in samples))
    section = fills.split(f"\n## {group}\n")[1].split("\n## ")[0]
    assert section.count("\n### ") == min(10, sum(sample.group == group for sample in samples))
    with (tmp_path / "shown.txt").open("w") as file:
        report.show(result, Console(width=80, file=file))
    assert "edit similarity" in (tmp_path / "shown.txt").read_text()


class Stops(Knower):
    """Ctrl-C in the middle of a run."""

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        if len(self.asked) == 7:
            raise KeyboardInterrupt
        return super().fill(request, stop)


def test_an_interrupted_run_reports_what_it_has_and_resumes(tree: Path, tmp_path: Path) -> None:
    samples = list(holes([tree], 20, 0))
    clock, out = Ticks(), tmp_path / "out"
    partial = run_eval("holes", [tree], clock=clock, engine=Stops(samples, clock), limit=20, out=out)
    assert partial.interrupted and values(partial, "knower")["n"] == 7
    assert "partial results" in (out / "report.md").read_text()
    with (out / "samples.jsonl").open("a") as ledger:
        ledger.write('{"contender": "kno')  # and the machine went down
    engine = Knower(samples, clock)
    full = run_eval("holes", [tree], clock=clock, engine=engine, limit=20, out=out)
    assert not full.interrupted and values(full, "knower")["n"] == 20 and len(engine.asked) == 13
    again = Knower(samples, clock)
    assert run_eval("holes", [tree], clock=clock, engine=again, limit=20, out=out) == full and not again.asked


def test_the_results_of_another_run_are_not_mixed_in(tree: Path, tmp_path: Path) -> None:
    run_eval("holes", [tree], clock=Ticks(), limit=3, out=tmp_path / "out")
    with pytest.raises(EvalError, match="another run"):
        run_eval("holes", [tree], clock=Ticks(), limit=3, seed=1, out=tmp_path / "out")


def test_a_crashing_engine_is_counted_not_hidden(tree: Path) -> None:
    clock = Ticks()
    result = run_eval("holes", [tree], clock=clock, engine=Knower([], clock), limit=5, with_baselines=False)
    row = values(result, "knower")
    assert row["crashed"] == 5 and row["shown"] == 0


def test_requests_that_make_no_sense_are_refused(tree: Path) -> None:
    with pytest.raises(EvalError, match="unknown suite"):
        run_eval("poems", [tree], clock=Ticks())  # type: ignore[arg-type]
    with pytest.raises(EvalError, match="nothing to evaluate"):
        run_eval("holes", [tree], clock=Ticks(), with_baselines=False)
    clock = Ticks()
    twice = [Contender("same", Knower([], clock)), Contender("same", Knower([], clock))]
    with pytest.raises(EvalError, match="same name"):
        run_eval("holes", [tree], clock=clock, extra=twice)
