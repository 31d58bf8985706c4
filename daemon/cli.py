"""The `stopgap` command: thin, and quick to start because every command imports what it needs inside."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer.exceptions import Abort, TyperException

from . import bench_cli, daemon_cli, doctor, hub, model_cli, workshop

if TYPE_CHECKING:
    from . import wire

OFFERED, FAILED, USAGE, NOTHING, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit statuses: a fill, the daemon failed, the user can fix it, no fill passed, Ctrl-C."""

_USERS = {"bad_request", "no_model", "paused", "version"}
"""Error codes whose remedy is in the user's hands."""

app = typer.Typer(
    name="stopgap",
    help="Fills gaps in code on this machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(daemon_cli.app, name="daemon")
app.add_typer(model_cli.app, name="model")
bench_app = typer.Typer(help="Measure parts of stopgap on this machine.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"stopgap {version('stopgap')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Fills gaps in code on this machine."""


@app.command()
def fill(
    file: Annotated[str, typer.Argument(metavar="FILE", help='The file, or "-" for stdin.')],
    at: Annotated[
        str, typer.Option(metavar="LINE:COLUMN", help="Where, both counted from 1, the column in characters.")
    ] = "",
    marker: Annotated[str, typer.Option(metavar="TEXT", help="Replace this text, which is in the file once.")] = "",
    select: Annotated[
        str, typer.Option(metavar="L:C-L:C", help="Replace from the first position up to the second.")
    ] = "",
    target: Annotated[
        Literal["cursor", "placeholder", "body", "node", "error"],
        typer.Option(help="What --at points at: a gap, a `pass` or TODO, a function's body, a node, an error."),
    ] = "cursor",
    language: Annotated[str, typer.Option(help="Instead of telling it from the file's name.")] = "",
    model: Annotated[str, typer.Option(help="A model's name or folder, instead of the configured one.")] = "",
    instruction: Annotated[str, typer.Option(help="What to write, for models that follow instructions.")] = "",
    candidates: Annotated[int, typer.Option(min=1, max=16, help="How many fills to look for.")] = 1,
    budget_ms: Annotated[
        float | None, typer.Option(min=1, help="Answer with the best checked fill after so many milliseconds.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps at most.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed may give another fill.")] = 0,
    allow_unchecked: Annotated[
        bool, typer.Option("--allow-unchecked", help="Offer fills in languages without a grammar.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write the fill into the file.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the draft settling.")] = False,
) -> None:
    """Fill one gap in FILE and show the change.

    Exit status: 0 a fill was found, 3 nothing passed the syntax gate, 2 the request or an input is wrong,
    1 the daemon failed.
    """
    from . import oneshot, wire

    if in_place and file == "-":
        raise oneshot.InputError("--in-place needs a file, not stdin")
    if watch and as_json:
        raise oneshot.InputError("--watch is for a terminal; leave out --json")
    source = oneshot.read_source(file)
    hole = oneshot.place_of(source, at, marker, select, target)
    name = oneshot.language_of(file, language)
    if model:
        from .shelf import model_of

        os.environ["STOPGAP_MODEL"] = model_of(model)
    request = wire.Fill(
        source=source,
        language=name,
        start=hole.start,
        end=hole.end,
        target=hole.target,
        path="" if file == "-" else file,
        instruction=instruction,
        candidates=candidates,
        budget_ms=budget_ms,
        max_steps=max_steps,
        seed=seed,
        allow_unchecked=allow_unchecked,
        want_drafts=watch,
    )
    if watch:
        from rich.console import Console

        from .terminal import Watcher

        with Watcher(Console(), source) as watcher:
            answer = asyncio.run(oneshot.ask(request, watcher))
    else:
        answer = asyncio.run(oneshot.ask(request))
    if isinstance(answer, wire.Error):
        _complain(answer.message)
        raise typer.Exit(USAGE if answer.code in _USERS else FAILED)
    if in_place and answer.fills:
        oneshot.write_in_place(file, source, oneshot.spliced(source, answer))
    _print_fill(file, source, answer, as_json)
    raise typer.Exit(OFFERED if answer.fills else NOTHING)


def _print_fill(file: str, source: bytes, done: wire.Done, as_json: bool) -> None:
    best = done.fills[0] if done.fills else None
    if as_json:
        shown: dict[str, object] = {
            "fill": best.text if best else None,
            "start_byte": done.start,
            "end_byte": done.end,
            "node_type": done.node_type,
            "syntax_ok": bool(best and best.checked),
            "steps": done.steps,
            "milliseconds": round(done.milliseconds, 3),
            "model": done.model,
            "slots": done.slots,
        }
        if best is None:
            shown["reason"] = done.reason
        if len(done.fills) > 1:
            shown["others"] = [one.text for one in done.fills[1:]]
        print(json.dumps(shown, ensure_ascii=False))
    elif best is None:
        _complain(f"no fill: {done.reason or 'nothing passed the syntax gate'}")
    else:
        from rich.console import Console

        from .oneshot import spliced
        from .terminal import show_fill

        show_fill(Console(highlight=False), file, source, spliced(source, done), done)


@app.command()
def config(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Print every setting, its value and where that comes from."""
    from .config import config_path, effective

    settings = effective()
    if as_json:
        print(json.dumps({one.key: {"value": one.value, "origin": one.origin} for one in settings}))
        return
    from rich.console import Console

    from .terminal import show_settings

    path = config_path()
    show_settings(Console(highlight=False), str(path), path.exists(), settings)


@bench_app.command("daemon")
def bench_daemon(
    only: Annotated[list[str] | None, typer.Option(help="Run this trial only; may be repeated.")] = None,
    scale: Annotated[float, typer.Option(min=0.001, max=10, help="1: all counts as promised.")] = 1.0,
    real_model: Annotated[
        bool, typer.Option("--real-model", help="With the configured model instead of an engine that does nothing.")
    ] = False,
) -> None:
    """Try what the daemon promises: races, cancels, garbage, kill -9, no network, idle CPU."""
    from .oneshot import InputError
    from .soak import TRIALS, Result, run_trials

    def report(result: Result) -> None:
        print(f"{'kept  ' if result.kept else 'BROKEN'} {result.name}: {result.promise}: {result.measured}", flush=True)

    for name in only or []:
        if name not in TRIALS:
            raise InputError(f"--only {name}: the trials are {', '.join(TRIALS)}")
    raise typer.Exit(OFFERED if run_trials(only or list(TRIALS), scale, report, real_model) else FAILED)


@app.command()
def lsp() -> None:
    """Serve an editor over stdin and stdout (Language Server Protocol)."""
    from stopgap.lsp.server import main as serve_editor

    if sys.stdin.isatty():
        _complain("this is for editors, which speak LSP with it over pipes (README.md, In your editor); Ctrl-C ends it")
    serve_editor()


@app.command("serve-openai")
def serve_openai(
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes any that is free.")] = 8741,
    language: Annotated[str, typer.Option(help="Of requests whose address has no ?language=NAME.")] = "python",
) -> None:
    """Answer OpenAI-style completion requests on this machine, for editors such as Zed; until Ctrl-C."""
    from stopgap.lsp.loopback import main as serve_completions

    from .paths import state_dir

    serve_completions(state_dir() / "openai-token", port, language)


def _complain(message: str) -> None:
    print(f"stopgap: {message}", file=sys.stderr)


app.command()(daemon_cli.status)
app.command()(daemon_cli.why)
app.command()(daemon_cli.stats)
app.command()(doctor.doctor)
app.command("train")(workshop.train)
app.command("eval")(workshop.evaluate)
bench_app.command("step")(bench_cli.step)
bench_app.command("report")(bench_cli.report)
bench_app.command("keystroke")(bench_cli.keystroke)


def main() -> int:
    """Runs the command line; errors that the user can act on become one line, never a traceback."""
    if sys.argv[1:3] != ["model", "import"]:
        hub.forbid()
    try:
        status = app(standalone_mode=False)
    except TyperException as error:
        message = error.format_message()
        # A usage is a page; that an argument is missing comes with one line for each of its choices.
        print(message, file=sys.stderr) if message.startswith("Usage:") else _complain(" ".join(message.split()))
        return USAGE
    except (Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; without this Python complains again while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        from .paths import told

        _complain(told(error))
        return FAILED
    except Exception as error:
        if not isinstance(error, _for_users()):
            raise
        _complain(str(error))
        return USAGE
    return status if isinstance(status, int) else 0


def _for_users() -> tuple[type[Exception], ...]:
    """The errors whose text is one line with the remedy; imported only once something has gone wrong."""
    from stopgap.infill.contract import FillError

    from .client import DaemonError
    from .config import ConfigError
    from .oneshot import InputError
    from .paths import PathsError
    from .shelf import ShelfError

    return FillError, DaemonError, ConfigError, hub.HubError, InputError, PathsError, ShelfError
