"""Where the files go, and whom they are trusted to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from stopgap.daemon.paths import LONGEST_SOCKET, PathsError, place, runtime_dir, slug


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STOPGAP_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("STOPGAP_STATE_DIR", str(tmp_path / "state"))


def test_the_runtime_folder_is_the_sessions_and_private(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        found = place("starter")
        assert found.socket == Path(short, "stopgap", "starter.sock")
        assert found.socket.parent.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_a_socket_is_replaced_by_a_short_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = set()
    for name in ("a", "b"):
        monkeypatch.setenv("STOPGAP_RUNTIME_DIR", str(tmp_path / (name * 100)))
        socket = place("starter").socket
        assert len(os.fsencode(socket)) <= LONGEST_SOCKET
        found.add(socket)
        socket.parent.rmdir()
    assert len(found) == 2, "two long folders stay two"


def test_a_folder_that_others_may_enter_is_closed_to_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:
        folder = Path(short, "run")
        folder.mkdir(mode=0o755)
        monkeypatch.setenv("STOPGAP_RUNTIME_DIR", str(folder))
        assert runtime_dir("k").stat().st_mode & 0o777 == 0o700


def test_a_planted_symlink_is_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:
        Path(short, "theirs").mkdir()
        Path(short, "run").symlink_to(Path(short, "theirs"))
        monkeypatch.setenv("STOPGAP_RUNTIME_DIR", str(Path(short, "run")))
        with pytest.raises(PathsError, match="not a folder of yours"):
            runtime_dir("k")


@pytest.mark.parametrize(("name", "short"), [("a b/ç.x", "a-b-.x"), ("...", "model"), ("x" * 99, "x" * 24)])
def test_names_become_file_names(name: str, short: str) -> None:
    assert slug(name) == short
