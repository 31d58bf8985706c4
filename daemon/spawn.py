"""Finding the daemon, and starting the process if there is none.

Knows nothing of requests. What the process does once it runs is in `resident`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from . import framing, transport, wire
from .config import Config
from .connection import Connection, DaemonError
from .paths import Place, place, told


async def connection_to(config: Config, name: str, spawn: bool, patience: float) -> Connection:
    """Connects to the daemon for `config`; starts one and waits for its socket if there is none and `spawn`.

    Whoever holds the spawn lock starts the process, everyone else only retries; the daemon's own lock makes
    it the only one even if a spawner dies in between.

    Raises:
        DaemonError: no daemon, and it could not be started; it refused, or is silent for `patience` seconds.
        PathsError: its folders cannot be had.
    """
    files = place(config.key)
    hello = wire.Hello(wire.PROTOCOL, version("stopgap"), config.hash, name)
    turn = transport.Lock(files.spawn_lock)
    process: subprocess.Popen[bytes] | None = None
    give_up = time.monotonic() + patience
    delay = 0.005
    try:
        while True:
            try:
                # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the greeting.
                async with asyncio.timeout(max(0.1, give_up - time.monotonic())):
                    return await _greeted(files.socket, hello)
            except transport.ABSENT:
                pass
            except DaemonError as error:
                if error.code != "restarting" or not spawn:
                    raise
            except TimeoutError:
                raise DaemonError(_mute(files)) from None
            except (OSError, framing.FrameError) as error:
                raise DaemonError(f"{files.socket}: {error}") from None
            if not spawn:
                raise DaemonError("no stopgap daemon is running; `stopgap daemon start` starts one")
            try:
                if process is None and turn.take():
                    process = _spawn(files)
            except OSError as error:
                raise DaemonError(f"the stopgap daemon cannot be started: {told(error)}") from None
            if process is not None and (code := process.poll()) is not None:
                if code:
                    raise DaemonError(f"the stopgap daemon did not start: {_last_line(files.errors)}")
                process = None  # it met another daemon that is coming or going: look again
            if time.monotonic() > give_up:
                raise DaemonError(_mute(files))
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 0.05)
    finally:
        turn.release()


async def _greeted(socket: Path, hello: wire.Hello) -> Connection:
    reader, writer = await transport.connect(socket)
    try:
        connection = Connection(reader, writer)
        await connection.greet(hello)
    except BaseException:
        writer.close()
        raise
    return connection


_children: list[subprocess.Popen[bytes]] = []
"""Daemons started by this process; kept so that a dead one is reaped instead of staying a zombie."""


@atexit.register
def _let_go() -> None:
    """A daemon outlives who started it, which `Popen` would call a process that nobody waited for."""
    for child in _children:
        if child.poll() is None:
            child.returncode = 0


def daemon_command() -> Sequence[str]:
    """How to run the daemon in the foreground. -P: a `json.py` in the working folder must not run in it."""
    return [sys.executable, "-P", "-m", "stopgap.daemon.resident"]


def _spawn(files: Place) -> subprocess.Popen[bytes]:
    _children[:] = [child for child in _children if child.poll() is None]
    with files.errors.open("wb") as errors:
        process = subprocess.Popen(
            daemon_command(),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    _children.append(process)
    return process


def _mute(files: Place) -> str:
    pid = transport.holder(files.lock)
    who = f"process {pid} " if pid else ""
    return f"the stopgap daemon {who}does not answer; see {files.log} or run `stopgap daemon stop`"


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1][:500]
    return f"it left no message in {path}"
