"""One file, its variables, and what is said about mistakes in them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from stopgap.daemon.config import VARIABLES, Config, ConfigError, effective, load, unread


def env(tmp_path: Path, text: str = "", **variables: str) -> dict[str, str]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return {"STOPGAP_CONFIG": str(file), **variables}


def test_without_a_file_every_setting_has_its_default(tmp_path: Path) -> None:
    assert load({"STOPGAP_CONFIG": str(tmp_path / "none.toml")}) == Config()


def test_a_variable_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    environ = env(tmp_path, "max_queue = 5\nthreads = 3\n", STOPGAP_THREADS="7")
    found = {one.key: (one.value, one.origin) for one in effective(environ)}
    assert found["threads"] == (7, "STOPGAP_THREADS")
    assert found["max_queue"] == (5, str(tmp_path / "config.toml"))
    assert found["cache_mb"] == (256, "default")


def test_every_key_is_documented() -> None:
    assert all(field.metadata["doc"].endswith(".") for field in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("idle_minute = 3", "there is no setting 'idle_minute'; did you mean 'idle_minutes'?"),
        ("qqq = 3", "there is no setting 'qqq'; the settings are model, engine"),
        ("idle_minutes = 'ten'", "idle_minutes = 'ten': a number was expected"),
        ("threads = 1.5", "threads = 1.5: a whole number was expected"),
        ("threads = true", "threads = True: a whole number was expected"),
        ("debug_log = 1", "debug_log = 1: true or false was expected"),
        ("idle_minutes = nan", "idle_minutes = nan: a number from 0"),
        ("idle_minutes = -1", "idle_minutes = -1.0: a number from 0"),
        ("max_queue = 0", "max_queue = 0: a number from 1"),
        ("engine = 'vllm'", "engine = 'vllm': one of stopgap, transformers"),
        ("model = ''", "model is empty"),
        ("model = 'models/x'", '"starter" or an absolute path was expected'),
        ("model = ", "is not valid TOML"),
        ("[daemon]\nthreads = 1", "there is no setting 'daemon'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(env(tmp_path, text))
    assert complaint in str(caught.value) and str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STOPGAP_THREADS", "many"),
        ("STOPGAP_DEBUG_LOG", "maybe"),
        ("STOPGAP_MODEL", ""),
        ("STOPGAP_MODEL", "~nobody-of-that-name/model"),
    ],
)
def test_a_mistake_in_a_variable_names_it(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(env(tmp_path, **{name: value}))


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    environ = env(tmp_path)
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(environ)


def test_the_hash_follows_every_setting() -> None:
    changed = {
        dataclasses.replace(Config(), **{field.name: _other(field.default)}).hash
        for field in dataclasses.fields(Config)
    }
    assert len(changed | {Config().hash}) == len(dataclasses.fields(Config)) + 1


def test_another_model_or_engine_is_another_daemon() -> None:
    keys = {Config().key, Config(model="/models/a/fill").key, Config(model="/models/b/fill").key}
    keys |= {Config(engine="transformers").key}
    assert len(keys) == 4
    assert Config(threads=3).key == Config().key
    assert all("/" not in key for key in keys)


def _other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "transformers" if value == "stopgap" else "/other"


def test_every_variable_that_the_product_reads_is_a_setting_or_listed() -> None:
    root = Path(__file__).parent.parent
    sources = [path for folder in ("daemon", "lsp", "infill", "kernels") for path in (root / folder).glob("*.py")]
    read = {name for path in sources for name in re.findall(r'"(STOPGAP_[A-Z_]+)"', path.read_text(encoding="utf-8"))}
    read -= {"STOPGAP_BENCH_SMALL"}  # from `stopgap bench` to the daemon it starts
    settings = {f"STOPGAP_{item.name.upper()}" for item in dataclasses.fields(Config)}
    assert set(VARIABLES) <= read <= set(VARIABLES) | settings


def test_a_variable_that_nothing_reads_is_told_with_what_may_have_been_meant() -> None:
    found = unread({"STOPGAP_MODLE": "x", "STOPGAP_THREADS": "1", "STOPGAP_LOOP": "host", "PATH": ""})
    assert found == {"STOPGAP_MODLE": "nothing reads STOPGAP_MODLE; did you mean 'STOPGAP_MODEL'?"}
