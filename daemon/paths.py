"""Where a daemon's files are: socket, locks, log. One set of files per user and model.

Knows nothing of what is written into them. `STOPGAP_RUNTIME_DIR` and `STOPGAP_STATE_DIR` move everything,
which is how tests and several installations keep apart.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

LONGEST_SOCKET = 100
"""Bytes. `sun_path` holds 108 on Linux and 104 on macOS, the final zero included; a longer path fails in
`bind` with "AF_UNIX path too long", typically for people with long home or TMPDIR names."""


class PathsError(Exception):
    """A folder that cannot be had or cannot be trusted; `str()` is one line with the remedy.

    `variable` is the one that moves the folder.
    """

    def __init__(self, message: str, variable: str) -> None:
        super().__init__(message)
        self.variable = variable


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one daemon."""

    socket: Path
    lock: Path
    """Held with flock by the daemon for its whole life; contains its pid."""
    spawn_lock: Path
    """Held with flock by the client that is starting a daemon, so that ten clients start one process."""
    log: Path
    errors: Path
    """stderr of the daemon process; truncated at every start."""
    stats: Path


def place(key: str) -> Place:
    """The files of the daemon for `key` (`Config.key`); creates the folders.

    Raises:
        PathsError: a folder cannot be made or belongs to someone else.
    """
    runtime, state = runtime_dir(key), state_dir()
    return Place(
        socket=runtime / f"{key}.sock",
        lock=runtime / f"{key}.lock",
        spawn_lock=runtime / f"{key}.spawn",
        log=state / f"{key}.log",
        errors=state / f"{key}.err",
        stats=state / f"{key}.stats.json",
    )


def runtime_dir(key: str) -> Path:
    """A folder of mode 0700 owned by this user, short enough for `key`'s socket."""
    if wanted := os.environ.get("STOPGAP_RUNTIME_DIR", ""):
        folder = Path(wanted).absolute()
    elif base := os.environ.get("XDG_RUNTIME_DIR", ""):
        folder = Path(base) / "stopgap"
    elif os.name == "nt":
        folder = Path(platformdirs.user_runtime_dir("stopgap", False))
    else:
        folder = Path(tempfile.gettempdir()) / f"stopgap-{os.getuid()}"
    if os.name != "nt" and len(os.fsencode(folder / f"{key}.sock")) > LONGEST_SOCKET:
        digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
        folder = Path("/tmp") / f"stopgap-{os.getuid()}-{digest}"
    return _private(folder, "STOPGAP_RUNTIME_DIR")


def state_dir() -> Path:
    """Where log and counters live; mode 0700."""
    wanted = os.environ.get("STOPGAP_STATE_DIR", "")
    folder = Path(wanted).absolute() if wanted else Path(platformdirs.user_state_dir("stopgap", False))
    return _private(folder, "STOPGAP_STATE_DIR")


def expanded(path: str | Path) -> Path:
    """`path` with the home folder for a ~ in front, or as it stands if there is no such user."""
    with suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def settle() -> None:
    """Makes relative paths in our variables absolute: for a process that is about to change its working folder."""
    for variable in ("STOPGAP_CONFIG", "STOPGAP_DATA_DIR", "STOPGAP_RUNTIME_DIR", "STOPGAP_STATE_DIR"):
        if given := os.environ.get(variable, ""):
            os.environ[variable] = str(Path(given).absolute())


def told(error: OSError) -> str:
    """What a user is told of an error of the system: which file, and what is the matter with it."""
    reason = error.strerror or type(error).__name__
    return f"{os.fsdecode(error.filename)}: {reason}" if isinstance(error.filename, str | bytes) else reason


def slug(name: str) -> str:
    """`name` as a file name of at most 24 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:24] or "model"


def _private(folder: Path, variable: str) -> Path:
    """`folder`, made if it is missing; the errors name the variable that moves it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name == "nt":
            return folder
        # lstat: a symlink planted in a shared /tmp must not lead us into somebody else's folder.
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PathsError(f"{folder} is not a folder of yours; set {variable} to one that is", variable)
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise PathsError(f"{told(error)}; set {variable} to a folder that you may write", variable) from None
    return folder
