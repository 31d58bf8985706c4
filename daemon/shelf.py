"""Where imported models stand, which one is in use, and how that is changed.

Knows names, folders and two facts of a manifest; no tensors, no torch, no terminal. A model is a folder below
`models_dir()`; `<name>.partial` beside it is an import that has not finished, with the command that goes on with it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from . import config, transport
from .paths import expanded, place

STARTER = "starter"
PARTIAL = ".partial"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
_COMMAND = "command"
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
"""File names that Windows keeps for devices, whatever follows a dot."""


class ShelfError(Exception):
    """A model that cannot be had; `str()` is one line with the remedy."""


@dataclass(frozen=True, slots=True)
class Shelved:
    """One line of `stopgap model list`. Sizes in bytes, `imported` in seconds since 1970."""

    name: str
    folder: Path
    size: int
    bits: int | None
    """4, 8 or 16 of a packed model, None of a plain checkpoint."""
    source: str
    imported: float
    used: bool
    command: str = ""
    """Of an unfinished import: what goes on with it."""


def models_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """STOPGAP_DATA_DIR, else the user's data folder, and `models` in it; may not exist."""
    wanted = environ.get("STOPGAP_DATA_DIR", "")
    return (Path(wanted).absolute() if wanted else Path(platformdirs.user_data_dir("stopgap", False))) / "models"


def downloads_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where checkpoints from the hub are kept until they are imported."""
    return models_dir(environ).with_name("downloads")


def checked_name(name: str) -> str:
    """`name`, if it can be a folder's on every system. Raises `ShelfError`."""
    if name == STARTER:
        raise ShelfError(f'"{STARTER}" is the model that comes with stopgap; choose another name')
    if not _NAME.fullmatch(name) or name.endswith(PARTIAL) or name.split(".", 1)[0].lower() in _RESERVED:
        raise ShelfError(
            f"{name!r} cannot be a model's name: letters, digits and . _ - between them, at most 64, like gemma-4bit"
        )
    return name


def proposed_name(source: str, bits: int) -> str:
    """A name for what comes from `source`, a path or a hub id: its last part and the bits."""
    stem = Path(source.partition(":")[0]).name.removesuffix(".gguf").lower()
    stem = re.sub(r"[^a-z0-9._-]+", "-", stem).strip("._-")[:50].strip("._-") or "model"
    return f"{stem}-{bits}bit"


def shelf() -> list[Shelved]:
    """The starter, every imported model by name, and unfinished imports."""
    used = config.load().model
    return [_starter(used), *(_shelved(folder, used) for folder in _folders())]


def find(name: str) -> Shelved:
    """One model. Raises `ShelfError` naming what is near."""
    models = shelf()
    for model in models:
        if model.name == name:
            return model
    near = difflib.get_close_matches(name, [model.name for model in models], 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(model.name for model in models)}"
    raise ShelfError(f"there is no model {name!r}; {hint}")


def model_of(given: str) -> str:
    """What the setting `model` is for `given`: a folder, or a name. Raises `ShelfError` if it is neither."""
    folder = expanded(given)
    if given == STARTER:
        return given
    return str(folder.absolute() if folder.exists() or folder.name != given else finished(given).folder)


def finished(name: str) -> Shelved:
    """One model that is whole. Raises `ShelfError`."""
    model = find(name)
    if model.command:
        raise ShelfError(f"{name} is not imported yet; `{model.command}` goes on with it")
    return model


def place_for(name: str) -> Path:
    """The folder that a model of that name is to be imported into. Raises `ShelfError` if there is one."""
    folder = models_dir() / checked_name(name)
    if folder.exists():
        raise ShelfError(
            f"there is a model {name!r} already; choose another --name or say `stopgap model remove {name}`"
        )
    return folder


def begin(name: str, command: str) -> None:
    """Note beside the model to come which command goes on with its import. Raises `ShelfError`."""
    partial = place_for(name).with_name(name + PARTIAL)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        (partial / _COMMAND).write_text(command + "\n", encoding="utf-8")
    except OSError as error:
        raise ShelfError(f"{partial}: {error.strerror}; STOPGAP_DATA_DIR names another place for models") from None


def use(name: str) -> str:
    """Make `name` the configured model; returns what the user should know. Raises `ShelfError` and `ConfigError`.

    A daemon of the model before, which editors are connected to, is asked to leave once it has answered: they then
    come back to one with the new model. Its settings' hash would make it leave too, but only for who asks it anew.
    """
    model = finished(name)
    before = config.load()
    path = config.write("model", STARTER if name == STARTER else str(model.folder))
    if (variable := os.environ.get("STOPGAP_MODEL", "")) and config.load() == before:
        return f"{path} says {name} now, but the variable STOPGAP_MODEL={variable} is stronger: unset it"
    if config.load().key != before.key and (pid := transport.holder(place(before.key).lock)) is not None:
        with suppress(OSError):
            os.kill(pid, signal.SIGTERM)
    return f"{name} is in use: the daemon starts with it at the next request ({path})"


def remove(name: str) -> int:
    """Delete a model or an unfinished import; the bytes that are free now. Raises `ShelfError`."""
    model = find(name)
    check_removable(model)
    gone = model.folder.with_name(f".{model.folder.name}.{time.time_ns()}")
    try:
        model.folder.rename(gone)  # at once: half a folder must not look like a model
        shutil.rmtree(gone)
    except OSError as error:
        raise ShelfError(f"{model.folder} cannot be removed ({error.strerror}); close what uses it") from None
    return model.size


def check_removable(model: Shelved) -> None:
    """Raises `ShelfError` for the starter and for the model in use."""
    if model.name == STARTER:
        raise ShelfError("the starter is part of stopgap and cannot be removed")
    if model.used:
        raise ShelfError(f"{model.name} is in use; `stopgap model use {STARTER}` first, then remove it")


def _folders() -> list[Path]:
    try:
        return sorted(path for path in models_dir().iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        return []


def _starter(used: str) -> Shelved:
    from importlib.resources import files

    folder = Path(str(files("stopgap.infill") / "starter"))
    return Shelved(STARTER, folder, _size(folder), None, "part of stopgap", 0.0, used == STARTER)


def _shelved(folder: Path, used: str) -> Shelved:
    facts: dict[str, object] = {}
    with suppress(OSError, ValueError):
        read = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        facts = read if isinstance(read, dict) else {}
    command = ""
    if folder.name.endswith(PARTIAL) or not (folder / "config.json").is_file():
        with suppress(OSError):
            command = (folder / _COMMAND).read_text(encoding="utf-8").strip()
        command = command or "stopgap model import SOURCE"
    bits = facts.get("bits")
    return Shelved(
        name=folder.name.removesuffix(PARTIAL),
        folder=folder,
        size=_size(folder),
        bits=bits if isinstance(bits, int) else None,
        source=str(facts.get("source", "")),
        imported=folder.stat().st_mtime,
        used=used == str(folder),
        command=command,
    )


def _size(folder: Path) -> int:
    """Bytes on the disk, which of an unfinished import are fewer than its files are long."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            facts = path.stat()
            size += min(facts.st_size, getattr(facts, "st_blocks", 1 << 60) * 512) if path.is_file() else 0
    return size
