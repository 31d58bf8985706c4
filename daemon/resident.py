"""The process around the server: becoming the only one, its log, its end. `python -m stopgap.daemon.resident`.

Knows nothing of requests. The lock on `Place.lock` is held for as long as the process lives and is what makes it
the only one; the kernel takes it back however the process dies.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import hub, memory, transport
from .config import Config, ConfigError, load
from .paths import PathsError, Place, place, settle, told
from .server import Server

log = logging.getLogger("stopgap.resident")

_LOCK_S = 10.0
"""How long to wait for a predecessor that is on its way out."""
_SILENT_S = 1.0
"""How long a lock may be held by a process that cannot be reached before it is asked to look."""


def serve() -> int:
    """Runs the daemon in the foreground; the exit status."""
    hub.forbid()  # transformers, the slow reference, would look there
    settle()
    try:
        config = load()
        files = place(config.key)
    except (ConfigError, PathsError) as error:
        print(error, file=sys.stderr)
        return 2
    if sys.platform != "win32":
        # Whoever waits for the lock sends it (`_become_the_one`), maybe before the loop has its handler.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    lock = transport.Lock(files.lock)
    try:
        if not _become_the_one(lock, files):
            print(f"the stopgap daemon is process {transport.holder(files.lock)} already", file=sys.stderr)
            return 0
        os.chdir(files.log.parent)
        os.umask(0o077)
        _start_log(files.log, config.debug_log)
    except OSError as error:
        print(told(error), file=sys.stderr)
        return 2
    if sys.stderr.isatty():
        print(
            f"serving {config.model} as process {os.getpid()}; {files.log} says the rest; Ctrl-C ends it",
            file=sys.stderr,
        )
    # The default of 5 ms is what a frame would wait for while the worker runs Python between two kernels.
    sys.setswitchinterval(0.0005)
    try:
        clean = asyncio.run(_serve(config, files))
    except Exception as error:
        log.critical("the daemon failed: %s", memory.describe(error))
        what = told(error) if isinstance(error, OSError) else type(error).__name__
        print(f"{what}; see {files.log}", file=sys.stderr)
        os._exit(1)
    logging.shutdown()
    if not clean:
        os._exit(0)  # the worker is inside a long step; interpreter exit would pull torch from under it
    return 0


async def _serve(config: Config, files: Place) -> bool:
    # asyncio's own handler prints exceptions with their text, which may quote the user's code, to a file.
    asyncio.get_running_loop().set_exception_handler(_failed_in_callback)
    server = Server(config, files)
    await server.run()
    return server.stop_worker(2.0)


def _failed_in_callback(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.error("event loop: %s", memory.describe(error) if error is not None else context.get("message"))


def _become_the_one(lock: transport.Lock, files: Place) -> bool:
    """Waits for the lock while its holder is on its way out; False if that one serves."""
    begin = time.monotonic()
    asked = sys.platform == "win32"
    while not lock.take():
        waited = time.monotonic() - begin
        if waited > _LOCK_S or asyncio.run(_listens(files.socket)):
            return False
        if waited > _SILENT_S and not asked and (pid := transport.holder(files.lock)):
            # It may not know that its socket file was removed; SIGHUP makes it look.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
            asked = True
        time.sleep(0.02)
    return True


async def _listens(socket: Path) -> bool:
    try:
        _, writer = await transport.connect(socket)
    except OSError:
        return False
    writer.close()
    return True


def _start_log(path: Path, debug: bool) -> None:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=1 << 20, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("stopgap")
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.propagate = False
    if debug:
        root.warning("debug_log is on: this file contains your code")


if __name__ == "__main__":
    sys.exit(serve())
