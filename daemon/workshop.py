"""The commands that make and measure models, `train` and `eval`, in the foreground without the daemon.

Knows no socket and no torch: each command imports its part of `infill` when it runs, hands it a clock, and shows
what it reports.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .oneshot import InputError

if TYPE_CHECKING:
    from stopgap.infill.engine import InfillEngine
    from stopgap.infill.scoring import Contender

Stage = Literal["corpus", "shards", "train", "decay", "export"]
Suite = Literal["humaneval-infilling", "holes", "typing"]
EngineName = Literal["stopgap", "transformers"]
ClockName = Literal["wall", "processor"]

_HOURS = 3600.0


@contextmanager
def _one_line() -> Iterator[None]:
    """What a user can mend becomes one line; see `cli.main`."""
    from stopgap.infill.corpus import CorpusError
    from stopgap.infill.suites import EvalError
    from stopgap.infill.training_config import TrainingError

    try:
        yield
    except (CorpusError, EvalError, TrainingError) as error:
        raise InputError(str(error)) from None


def train(
    stage: Annotated[Stage, typer.Argument(help="corpus, shards, train, decay, export: in this order.")],
    config: Annotated[Path | None, typer.Option(help="Every knob; the starter's own by default.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where corpus, shards and checkpoints are kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where decay and export put the packed model.")] = None,
    hours: Annotated[float, typer.Option(min=0, help="How long train or decay may run.")] = 1.0,
    benchmark: Annotated[
        Path | None, typer.Option(help="Folder of *.jsonl.gz whose text must not be in the corpus.")
    ] = None,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu",
    weights: Annotated[
        Path | None, typer.Option(help="Start from this model folder if there is no checkpoint.")
    ] = None,
) -> None:
    """Train the starter model: one stage per call, each resumable.

    Ctrl-C or a kill loses at most two minutes; the same command goes on from the last checkpoint. `corpus` is the only
    stage that uses the network: pip fetches the packages of the list, a few hundred megabytes.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with _one_line():
        from stopgap.infill.pipeline import default_config, run_training

        seconds = hours * _HOURS
        console = Console(stderr=True)
        if stage == "corpus":
            console.print(
                "stopgap: pip fetches the packages of the list; Ctrl-C ends it, what is here stays", highlight=False
            )
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(stage, total=seconds if stage in ("train", "decay") else None)

            def log(point: dict[str, Any]) -> None:
                said = " ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in point.items())
                if console.is_terminal and "left" in point:
                    bar.update(task, completed=seconds - point["left"], description=said)
                else:
                    print(said, flush=True)

            run_training(
                config or default_config(),
                stage,
                clock=time.monotonic,
                log=log,
                folder=folder,
                out=out,
                seconds=seconds,
                benchmark=benchmark,
                device=device,
                weights=weights,
            )


def evaluate(
    suite: Annotated[Suite, typer.Argument(help="humaneval-infilling FILE…, holes DIR…, or typing FILE….")],
    paths: Annotated[list[Path], typer.Argument(help="What the suite reads.")],
    model: Annotated[str, typer.Option(help='A model folder or "starter".')] = "starter",
    engine: Annotated[EngineName, typer.Option(help="Our runtime, or the reference it is held to.")] = "stopgap",
    limit: Annotated[int | None, typer.Option(min=1, help="Samples at most.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses samples and noise.")] = 0,
    steps: Annotated[list[int] | None, typer.Option(help="A row per cap on denoising steps.")] = None,
    budget_ms: Annotated[list[float] | None, typer.Option(help="A row per time budget.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,…",
            help="A row with this strategy, such as tail=0; length=true tells the hole's length.",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Kinds of holes to cut, for the suite holes.")
    ] = None,
    language: Annotated[list[str] | None, typer.Option(help="Only these languages, for the suite holes.")] = None,
    broken: Annotated[bool, typer.Option(help="Break the files first, for the suite holes.")] = False,
    baselines: Annotated[bool, typer.Option(help="Rows of the baselines that use no model.")] = True,
    execute: Annotated[bool, typer.Option(help="Run the tests of HumanEval, confined.")] = True,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:N" or "mps".')] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads; measured if not given.")] = None,
    clock: Annotated[
        ClockName, typer.Option(help="processor: this process's own time, for a busy machine and one thread.")
    ] = "wall",
    out: Annotated[Path | None, typer.Option(help="Folder for samples, report, sample fills and plot.")] = None,
) -> None:
    """Measure fills: exact, passing, parsing, and how fast; several rows side by side.

    An interrupted run with --out goes on where it stopped.
    """
    from rich.console import Console

    with _one_line():
        from stopgap.infill.engine import load_engine
        from stopgap.infill.evaluation import run_eval
        from stopgap.infill.report import show

        from .memory import set_aside

        ticks = time.process_time if clock == "processor" else time.monotonic
        loaded = load_engine(
            model, engine=engine, device=device, threads=threads, clock=ticks, progress=lambda *_: None
        )
        set_aside()  # as the daemon does: a full collection would be 80 ms of some fill's time
        report = run_eval(
            suite,
            paths,
            clock=ticks,
            engine=loaded,
            extra=[_varied(loaded, change) for change in vary or []],
            steps=steps or [],
            budgets=budget_ms or [],
            with_baselines=baselines,
            limit=limit,
            seed=seed,
            kinds=tuple(kind or ["node"]),  # type: ignore[arg-type]
            broken=broken,
            languages=language or [],
            execute=execute,
            tokens=lambda text: len(loaded.tokenizer.encode(text.encode())),
            out=out,
            console=Console(stderr=True),
        )
    show(report, Console())


def _varied(loaded: InfillEngine, change: str) -> Contender:
    """The row of `--vary change`: the loaded model under another strategy."""
    from stopgap.infill import engine
    from stopgap.infill.scoring import Contender
    from stopgap.infill.strategy import vary

    parts = change.split(",")
    strategy = vary(loaded.strategy, ",".join(part for part in parts if part.strip() != "length=true"))
    varied = engine.InfillEngine(loaded.model, loaded.tokenizer, loaded.card, clock=loaded.clock, strategy=strategy)
    if "length=true" not in map(str.strip, parts):
        return Contender(change, varied)
    told = engine.told_length
    return Contender(change, varied, engine_for=lambda one: told(varied, one.source, one.start, one.truth))
