"""The daemon seen from outside: ending one, also if it does not answer, and the unit that starts one at login."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from . import transport
from .client import Client, DaemonError
from .config import load
from .paths import place

_POLITE_S = 20.0
"""The daemon lets running requests finish for 15 s and its worker finish a step for 2 s."""
_RUDE_S = 5.0


def stop_daemon() -> str:
    """Ends the daemon of the current settings; says in one line what happened."""
    files = place(load().key)
    pid = transport.holder(files.lock)
    if pid is None:
        return "no stopgap daemon is running"
    with suppress(DaemonError):
        asyncio.run(_ask())
        if _gone(files.lock, _POLITE_S):
            return f"stopped process {pid}"
    return f"process {pid} did not answer and was ended by {_end(files.lock, pid, _RUDE_S)}"


def others() -> dict[Path, int]:
    """Locks and pids of this user's daemons for other models than the configured one."""
    mine = place(load().key).lock
    locks = sorted(mine.parent.glob("*.lock"))
    return {lock: pid for lock in locks if lock != mine and (pid := transport.holder(lock)) is not None}


def stop_others() -> list[str]:
    """Ends the daemons for other models; one line for each. SIGTERM lets them answer what runs."""
    said = []
    for lock, pid in others().items():
        number = _end(lock, pid, _POLITE_S)
        said.append(f"stopped process {pid}, of {lock.stem}" + (f", by {number}" if number != "SIGTERM" else ""))
    return said


def _end(lock: Path, pid: int, patience: float) -> str:
    """Ends the process that holds `lock`; the name of the signal that did it. Raises `DaemonError`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if _gone(lock, patience):
            return number.name
    raise DaemonError(f"process {pid} cannot be ended")


async def _ask() -> None:
    client = await Client.connect("cli", spawn=False, patience=5)
    await client.shutdown()
    await client.close()


def service_unit(kind: Literal["systemd", "launchd"]) -> str:
    """The text of a unit file that runs this installation's daemon."""
    name = {"systemd": "stopgap.service", "launchd": "stopgap.plist"}[kind]
    command = Path(sys.executable).with_name("stopgap")
    text = (Path(__file__).parent / "data" / name).read_text(encoding="utf-8")
    return text.replace("@STOPGAP@", str(command))


def _gone(lock: Path, patience: float) -> bool:
    give_up = time.monotonic() + patience
    while transport.holder(lock) is not None:
        if time.monotonic() > give_up:
            return False
        time.sleep(0.02)
    return True
