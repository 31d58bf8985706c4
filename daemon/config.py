"""The settings: one TOML file, overridden by STOPGAP_* variables. Every key is documented here and only here.

Knows nothing of what the settings do. `stopgap config` prints `effective()`.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

import platformdirs

from .paths import expanded, slug


class ConfigError(Exception):
    """The file or a variable cannot be used; `str()` is one line that says what to change."""


def _key(default: Any, doc: str, *choices: str, least: float = 0) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices, "least": least})


@dataclass(frozen=True, slots=True)
class Config:
    """Effective settings; one field per key of the file, the variable is STOPGAP_<KEY>."""

    model: str = _key(
        "starter", '"starter" (shipped with stopgap), or a model folder\'s absolute path; `stopgap model use` sets it.'
    )
    engine: Literal["stopgap", "transformers"] = _key(
        "stopgap",
        "Which implementation runs the model; transformers is the slow reference.",
        "stopgap",
        "transformers",
    )
    device: str = _key("auto", '"auto", "cpu", "cuda", "cuda:N", or "mps" on Apple silicon.')
    threads: int = _key(0, "CPU threads of the model; 0 lets it choose.")
    idle_minutes: float = _key(10.0, "Free the model's memory after so many minutes without a request; 0: never.")
    exit_minutes: float = _key(60.0, "Exit after so many minutes without any connected client; 0: never.")
    cache_mb: int = _key(256, "Memory for the prefix caches of open documents, in MiB; least recently used go first.")
    headroom_mb: int = _key(0, "Give GPU memory back when other processes leave less than this free, in MiB; 0: never.")
    pause_on_battery: bool = _key(False, "Refuse fills and free the model's memory while running on battery.")
    max_queue: int = _key(64, 'Requests that may wait at once; more are answered "busy".', least=1)
    debug_log: bool = _key(False, "Write requests to the log, INCLUDING YOUR CODE; for hunting a bug only.")

    @property
    def key(self) -> str:
        """Names the daemon of this user for this model: one process, one socket."""
        if self.model == "starter" and self.engine == "stopgap":
            return "starter"
        digest = hashlib.sha256(f"{self.engine}\0{self.model}".encode()).hexdigest()[:8]
        return f"{slug(Path(self.model).name)}-{digest}"

    @property
    def hash(self) -> str:
        """Equal for equal settings; `Hello` carries it, so that a daemon with old settings gets replaced."""
        return hashlib.sha256(repr(sorted(dataclasses.asdict(self).items())).encode()).hexdigest()[:12]


VARIABLES = {
    "STOPGAP_CONFIG": "This file.",
    "STOPGAP_DATA_DIR": "The folder of imported models.",
    "STOPGAP_RUNTIME_DIR": "The folder of socket and locks.",
    "STOPGAP_STATE_DIR": "The folder of log and counters.",
    "STOPGAP_KERNELS": '"torch" or "triton"; without it Triton on CUDA, torch elsewhere.',
    "STOPGAP_LOOP": '"device" runs the denoising loop as one CUDA graph per step, "host" does not.',
    "STOPGAP_LSP_LOG": "How much `stopgap lsp` writes to stderr, such as DEBUG.",
    "STOPGAP_ENGINE_FACTORY": "For developers: FILE.py:FUNCTION that makes an engine instead of the model's.",
}
"""Variables that no key of the file stands for."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of `stopgap config`."""

    key: str
    value: str | int | float | bool
    origin: str
    """"default", the file, or the variable."""
    doc: str


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """STOPGAP_CONFIG, else `config.toml` in the user's configuration folder."""
    given = environ.get("STOPGAP_CONFIG", "")
    return Path(given) if given else Path(platformdirs.user_config_dir("stopgap", False)) / "config.toml"


def load(environ: Mapping[str, str] = os.environ) -> Config:
    """The effective settings.

    Raises:
        ConfigError: the file is not TOML, a key is unknown or a value does not fit.
    """
    values: dict[str, Any] = {setting.key: setting.value for setting in effective(environ)}
    return Config(**values)


def effective(environ: Mapping[str, str] = os.environ) -> list[Setting]:
    """Every key with its value and where the value comes from, in the order of `Config`."""
    path = config_path(environ)
    from_file = _read(path)
    known = {item.name: item for item in dataclasses.fields(Config)}
    for name in from_file:
        if name not in known:
            raise ConfigError(f"{path}: there is no setting {name!r}{_nearest(name, list(known))}")
    hints = get_type_hints(Config)
    settings = []
    for name, item in known.items():
        variable = f"STOPGAP_{name.upper()}"
        kind = hints[name] if isinstance(hints[name], type) else str
        value, origin = item.default, "default"
        if variable in environ:
            value, origin = _parse(environ[variable], kind, variable), variable
        elif name in from_file:
            value, origin = from_file[name], str(path)
        settings.append(Setting(name, _checked(value, kind, item, origin), origin, item.metadata["doc"]))
    return settings


def unread(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The STOPGAP_ variables that nothing reads, each with a line that says what may have been meant."""
    known = [*VARIABLES, *(f"STOPGAP_{item.name.upper()}" for item in dataclasses.fields(Config))]
    odd = sorted(name for name in environ if name.startswith("STOPGAP_") and name not in known)
    return {name: f"nothing reads {name}{_nearest(name, known, 'the variables')}" for name in odd}


def write(key: str, value: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Set one text in the file, leaving comments and every other line as they are; returns the file.

    The file is replaced at once. Raises `ConfigError` if it cannot be written or could not be read before.
    """
    path = expanded(config_path(environ)).resolve()  # of a symlink the target is replaced, not the link
    known = _read(path)
    line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    pattern = re.compile(rf"^[ \t]*(?:{key}|\"{key}\"|'{key}')[ \t]*=.*$", re.MULTILINE)
    # In front where there was none: behind a table's header it would belong to the table.
    new = pattern.sub(lambda _: line, old, count=1) if key in known else f"{line}\n{old}"
    try:
        changed = tomllib.loads(new)
    except tomllib.TOMLDecodeError:
        changed = {}
    if changed != known | {key: value}:
        raise ConfigError(f"{path} cannot be changed safely; put `{line}` there yourself")
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            draft.chmod(stat.S_IMODE(path.stat().st_mode))
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(f"{path}: {error.strerror}") from None
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _nearest(name: str, known: list[str], what: str = "the settings") -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; {what} are {', '.join(known)}"


def _parse(text: str, kind: type, variable: str) -> Any:
    if kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words:
            raise ConfigError(f"{variable}={text!r}: true or false was expected")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{variable}={text!r}: a number was expected") from None


def _checked(value: Any, kind: Any, item: dataclasses.Field[Any], origin: str) -> Any:
    where = f"{origin}: {item.name}" if origin != "default" else item.name
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
        raise ConfigError(f"{where} = {value!r}: {wanted} was expected")
    choices = item.metadata["choices"]
    if choices and value not in choices:
        raise ConfigError(f"{where} = {value!r}: one of {', '.join(choices)} was expected")
    if kind in {int, float} and not item.metadata["least"] <= value < 1e9:
        raise ConfigError(f"{where} = {value!r}: a number from {item.metadata['least']} to 1e9 was expected")
    if kind is str and not value:
        raise ConfigError(f"{where} is empty")
    if item.name == "model" and value != "starter":
        # Relative to what? The daemon's working folder is not the user's.
        value = str(expanded(value))
        if not Path(value).is_absolute():
            raise ConfigError(f'{where} = {value!r}: "starter" or an absolute path was expected')
    return value
