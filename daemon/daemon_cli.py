"""`stopgap daemon …`, and the commands that ask a running daemon something: `status`, `why`, `stats`.

Knows no engine: each command is one message to the daemon and what is printed of the answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from . import wire
    from .client import Client

app = typer.Typer(help="The resident process that keeps the model warm.", no_args_is_help=True)


@app.command()
def start() -> None:
    """Start the daemon if none runs."""

    async def work(client: Client) -> None:
        print(f"the stopgap daemon is process {client.welcome.pid}")
        if client.welcome.note:
            print(client.welcome.note)

    _with_client(work, spawn=True)


@app.command()
def stop(
    every: Annotated[bool, typer.Option("--all", help="Also the daemons that run for other models.")] = False,
) -> None:
    """Let the daemon finish what runs, then end it."""
    from .control import others, stop_daemon, stop_others

    print(stop_daemon())
    if every:
        print("".join(f"{line}\n" for line in stop_others()), end="")
    elif found := others():
        print(f"{_still(len(found))}; `stopgap daemon stop --all` ends every one")


def _still(count: int) -> str:
    return "a daemon for another model still runs" if count == 1 else f"{count} daemons for other models still run"


@app.command()
def run() -> None:
    """Be the daemon, in the foreground (for systemd, launchd, or to look at it)."""
    from .resident import serve

    raise typer.Exit(serve())


@app.command()
def pause() -> None:
    """Free the model's memory and refuse fills until `stopgap daemon resume`."""
    _with_client(lambda client: _print_status(client.pause()))


@app.command()
def resume() -> None:
    """Serve again after `stopgap daemon pause`."""
    _with_client(lambda client: _print_status(client.resume()))


@app.command()
def load() -> None:
    """Bring the model into memory now instead of at the next fill."""
    _with_client(lambda client: _print_status(client.load()), spawn=True)


@app.command()
def unload() -> None:
    """Free the model's memory; the next fill loads it again."""
    _with_client(lambda client: _print_status(client.unload()))


@app.command()
def unit(kind: Annotated[Literal["systemd", "launchd"], typer.Argument(help="Which service manager.")]) -> None:
    """Print a unit that starts the daemon at login; optional, as any client starts it when needed."""
    from .control import service_unit

    print(service_unit(kind), end="")


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show model, device, memory, queue and latency of the daemon."""
    _with_client(lambda client: _print_status(client.status(), as_json))


def why(
    last: Annotated[int, typer.Option("--last", "-n", min=1, max=500, help="How many requests.")] = 5,
    trace: Annotated[str, typer.Argument(metavar="[TRACE]", help="Only the request with this id.")] = "",
) -> None:
    """Say what happened to the last requests, and why nothing was offered."""

    async def work(client: Client) -> None:
        from .timeline import explain

        timelines = await client.why(last, trace)
        print("\n".join(map(explain, timelines)) or "the daemon has had no such request")

    _with_client(work)


def stats() -> None:
    """Show how many fills were accepted; counted on this machine only."""

    async def work(client: Client) -> None:
        from rich.console import Console

        from .terminal import show_stats

        show_stats(Console(), await client.stats())

    _with_client(work)


def _with_client(work: Callable[[Client], Coroutine[object, object, None]], spawn: bool = False) -> None:
    async def session() -> None:
        from .client import Client

        client = await Client.connect("cli", spawn=spawn)
        try:
            await work(client)
        finally:
            await client.close()

    asyncio.run(session())


async def _print_status(answer: Coroutine[object, object, wire.Status], as_json: bool = False) -> None:
    found = await answer
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(found)))
    else:
        from rich.console import Console

        from .terminal import show_status

        show_status(Console(highlight=False), found)
