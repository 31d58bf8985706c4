"""What an evaluation asks about: a hole, the text that was really there, and HumanEval-Infilling's problems.

Knows nothing of engines, metrics or clocks; reads the files it is given, copies none, runs nothing.
"""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SHIPPED = "HumanEval-*Infilling*.jsonl.gz of github.com/openai/human-eval-infilling"


class EvalError(Exception):
    """An evaluation that cannot run as asked; `str()` is one line with the remedy."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One hole, cut out: `source` is the file without `truth`, which stood at byte `start`."""

    name: str
    group: str
    """The row it counts in: the benchmark's name, or the node type."""
    language: str
    source: bytes
    start: int
    truth: str
    cluster: str
    """Samples of one problem or file are not independent: intervals are drawn over clusters."""
    path: str = ""
    target: Literal["selection", "cursor"] = "selection"
    """`cursor`: `truth` is all that was typed from here on, and a fill need not be all of it."""
    test: str = ""
    """Python that is run after the filled source; empty: nothing to run."""
    sound_source: bytes = b""
    """The file before it was broken on purpose, hole cut out; empty when it was not broken."""
    sound_start: int = 0

    @property
    def whole(self) -> bytes:
        return self.source[: self.start] + self.truth.encode() + self.source[self.start :]

    def program(self, fill: str) -> str:
        return (self.source[: self.start] + fill.encode() + self.source[self.start :]).decode() + self.test


def humaneval(path: Path, limit: int | None, seed: int) -> list[Sample]:
    """The problems of one HumanEval-Infilling file (Bavarian et al. 2022), or of every such file in a folder.

    The hole is exactly what lies between prompt and suffix, indent and newline included. With `limit`, that
    many of each file, drawn by seed, in the file's order. EvalError when nothing usable is there.
    """
    files = sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise EvalError(f"no problems at {path}: give {SHIPPED}, or a folder of them")
    samples: list[Sample] = []
    for file in files:
        problems = [_problem(row, file) for row in _rows(file)]
        if not problems:
            raise EvalError(f"{file} is empty; give {SHIPPED}")
        samples += _drawn(problems, limit, seed)
    return samples


def _rows(file: Path) -> list[dict[str, str]]:
    try:
        raw = file.read_bytes()
        text = gzip.decompress(raw) if file.suffix == ".gz" else raw
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, EOFError, ValueError) as error:
        raise EvalError(f"cannot read {file}: {error}; give {SHIPPED}") from error


def _problem(row: dict[str, str], file: Path) -> Sample:
    try:
        suite, _, rest = row["task_id"].partition("/")
        return Sample(
            name=row["task_id"],
            group=suite,
            language="python",
            source=(row["prompt"] + row["suffix"]).encode(),
            start=len(row["prompt"].encode()),
            truth=row["canonical_solution"],
            cluster="/".join(rest.split("/")[:2]),
            test=f"\n{row['test']}\ncheck({row['entry_point']})\n",
        )
    except (KeyError, TypeError) as error:
        raise EvalError(f"{file} is not a HumanEval-Infilling file: no field {error}; give {SHIPPED}") from error


def _drawn(samples: list[Sample], limit: int | None, seed: int) -> list[Sample]:
    if limit is None or limit >= len(samples):
        return samples
    kept = sorted(random.Random(seed).sample(range(len(samples)), limit))
    return [samples[index] for index in kept]
