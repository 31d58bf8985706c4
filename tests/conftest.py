"""Fixtures that several files need: a private daemon with the scripted engine, an editor at a language server."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon
from lsp_client import LspClient
from lsp_editor import CAPABILITIES, Editor, echo

from stopgap.daemon import config, paths, transport

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported; with 0 the tests marked gpu can run

FAKE_ENGINE = f"{Path(__file__).parent / 'fake_engine.py'}:load"


@pytest.fixture
def stub_daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[paths.Place]:
    """Folders and variables of a daemon of our own; clients started in the test spawn a real process.

    It runs `fake_engine.load` unless the test changes STOPGAP_ENGINE_FACTORY. Ended with the test.
    """
    for name in [name for name in os.environ if name.startswith("STOPGAP_")]:
        monkeypatch.delenv(name)
    # Not tmp_path: its name alone can be longer than a socket path may be.
    with tempfile.TemporaryDirectory(prefix="sg-") as folder:
        monkeypatch.setenv("STOPGAP_RUNTIME_DIR", f"{folder}/run")
        monkeypatch.setenv("STOPGAP_STATE_DIR", f"{folder}/state")
        monkeypatch.setenv("STOPGAP_CONFIG", f"{folder}/config.toml")
        monkeypatch.setenv("STOPGAP_ENGINE_FACTORY", FAKE_ENGINE)
        yield paths.place(config.Config().key)
        for lock in Path(folder, "run").glob("*.lock"):
            end_process(lock)


def end_process(lock: Path) -> None:
    """Kills the daemon that holds `lock`, if there is one, and waits for its end."""
    while (pid := transport.holder(lock)) is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


@pytest.fixture(scope="module")
def lsp_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LspClient, FakeDaemon]]:
    """A language server and its fake daemon; every test of a file asks the same one."""
    with FakeDaemon(tmp_path_factory.mktemp("daemon"), echo) as daemon, LspClient(daemon.env) as client:
        client.initialize(CAPABILITIES, {"status": True, "drafts": True, "input": True, "prepareNext": False})
        yield client, daemon
        assert client.stop() == 0
    assert client.stderr == b"", client.stderr.decode()


@pytest.fixture
def editor(lsp_server: tuple[LspClient, FakeDaemon]) -> Editor:
    """An editor at that server, with nothing left of the test before."""
    client, daemon = lsp_server
    client.notifications.clear()
    client.requests.clear()
    client.answers.clear()
    daemon.fills.clear()
    daemon.cancelled.clear()
    daemon.feedback.clear()
    daemon.answer, daemon.before, daemon.drafts = echo, (), ()
    return Editor(client, daemon)
