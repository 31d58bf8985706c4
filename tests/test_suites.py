"""Reading HumanEval-Infilling files: exact holes, seeded choice, clear refusals."""

import gzip
import json
from pathlib import Path

import pytest

from stopgap.infill.sandbox import Sandbox
from stopgap.infill.suites import EvalError, humaneval

ROWS = [
    {
        "task_id": f"SingleLineInfilling/HumanEval/{n}/L{line}",
        "entry_point": "double",
        "prompt": 'def double(x):\n    """ é """\n',
        "suffix": "    return y\n" if line else "",
        "canonical_solution": "    y = 2 * x\n" if line else "    return 2 * x\n",
        "test": "\ndef check(candidate):\n    assert candidate(4) == 8\n",
    }
    for n in range(6)
    for line in range(2)
]


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "HumanEval-SingleLineInfilling.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return path


def test_the_hole_is_exactly_between_prompt_and_suffix(problems: Path) -> None:
    for sample, row in zip(humaneval(problems, None, 0), ROWS, strict=True):
        assert sample.source[: sample.start].decode() == row["prompt"]
        assert sample.source[sample.start :].decode() == row["suffix"]
        assert sample.whole.decode() == row["prompt"] + row["canonical_solution"] + row["suffix"]
        assert (sample.group, sample.target, sample.language) == ("SingleLineInfilling", "selection", "python")


def test_lines_of_one_problem_are_one_cluster(problems: Path) -> None:
    assert len({sample.cluster for sample in humaneval(problems, None, 0)}) == 6


def test_the_truth_passes_and_a_wrong_fill_does_not(problems: Path) -> None:
    with Sandbox(timeout_s=1) as cell:
        for sample in humaneval(problems, None, 0)[:2]:
            assert cell.run(sample.program(sample.truth)).passed
            assert not cell.run(sample.program("    return x\n")).passed
            assert not cell.run(sample.program("    raise SystemExit\n")).passed


def test_a_limit_draws_by_seed_and_keeps_the_order(problems: Path) -> None:
    names = [sample.name for sample in humaneval(problems, None, 0)]
    drawn = [sample.name for sample in humaneval(problems, 5, 1)]
    assert len(drawn) == 5 and sorted(drawn, key=names.index) == drawn
    assert drawn == [sample.name for sample in humaneval(problems, 5, 1)]
    assert drawn != [sample.name for sample in humaneval(problems, 5, 2)]


def test_a_folder_means_every_file_in_it(problems: Path) -> None:
    (problems.parent / "HumanEval-MultiLineInfilling.jsonl").write_text(json.dumps(ROWS[0]) + "\n\n")
    assert len(humaneval(problems.parent, None, 0)) == 13
    assert len(humaneval(problems.parent, 3, 0)) == 4


@pytest.mark.parametrize(
    "content", [None, b"", b"not gzip", gzip.compress(b"not json\n"), gzip.compress(b'{"task_id": "x"}\n')]
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "problems.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvalError, match="human-eval-infilling") as refusal:
        humaneval(path, None, 0)
    assert "\n" not in str(refusal.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="no problems at"):
        humaneval(tmp_path, None, 0)
