"""No fill that adds a syntax error: `python -P tests/proof.py DIR... --count 10000 [--broken] --out FOLDER`.

The shipped engine with the shipped model fills random nodes of real files, the languages in turn, and
`infill/referee`, which shares nothing with the gate, judges every fill that was offered. To be through in minutes
the model sees little and thinks briefly: that makes its fills worse, which is what a gate is for. Goes on where an
interrupted run with the same FOLDER stopped; the budget is processor time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console

from stopgap.infill.engine import load_engine
from stopgap.infill.evaluation import run_eval
from stopgap.infill.sampler import Schedule
from stopgap.infill.scoring import Contender, Score
from stopgap.infill.strategy import Strategy

BRIEF = Strategy(context=96, shortest=6, rows=3, repairs=1, repair_steps=2, schedule=Schedule(max_steps=3))


def table(scores: list[Score]) -> str:
    """Markdown: holes, offered fills and added errors of each language and of all together."""
    lines = ["| language | holes | offered | % | add an error | add one to the unbroken file | outside | crashed |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in [*sorted({one.language for one in scores}), ""]:
        some = [one for one in scores if name in ("", one.language)]
        shown = sum(one.shown for one in some)
        counts = [
            sum(one.adds_error for one in some),
            sum(bool(one.adds_error_sound) for one in some),
            sum(one.outside for one in some),
            sum(one.why.startswith("crashed") for one in some),
        ]
        cells = [name or "all", len(some), shown, f"{100 * shown / max(1, len(some)):.1f}", *counts]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Run, print the table and every bad fill; 1 if there is one."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("folders", nargs="+", type=Path)
    reader.add_argument("--count", type=int, default=10_000)
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--broken", action="store_true", help="files broken on purpose")
    reader.add_argument("--budget-ms", type=float, default=80)
    reader.add_argument("--model", default="starter")
    reader.add_argument("--out", type=Path, required=True)
    given = reader.parse_args()
    torch.set_num_threads(1)
    engine = load_engine(
        given.model,
        engine="stopgap",
        device="cpu",
        threads=1,
        clock=time.process_time,
        progress=lambda *_: None,
        strategy=BRIEF,
    )
    report = run_eval(
        "holes",
        given.folders,
        clock=time.process_time,
        extra=[Contender(engine.name, engine, budget_ms=given.budget_ms)],
        with_baselines=False,
        limit=given.count,
        seed=given.seed,
        broken=given.broken,
        out=given.out,
        console=Console(stderr=True) if sys.stderr.isatty() else None,
    )
    scores = list(report.scores)
    print(table(scores))
    whys = Counter(one.why.split(";")[0] for one in scores if not one.shown)
    print("nothing offered:", ", ".join(f"{n} x {why}" for why, n in whys.most_common(6)))
    # In a file broken on purpose a fill answers for what it adds to that file; the unbroken one it never saw.
    bad = [one for one in scores if one.adds_error or one.outside or one.why.startswith("crashed")]
    for one in bad[:50]:
        print(f"{one.language} {one.sample} {one.group}\n  {one.before[-80:]!r}\n  [{one.fill!r}] truth {one.truth!r}")
        print(f"  {one.after!r}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
