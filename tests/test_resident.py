"""The process around the server: being the only one, its files, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from stopgap.daemon import transport, wire
from stopgap.daemon.client import Client
from stopgap.daemon.paths import Place
from stopgap.daemon.spawn import daemon_command

from .test_client import answer, request, run, until


def test_runtime_files_are_private(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        assert stub_daemon.socket.stat().st_mode & 0o777 == 0o600
        assert stub_daemon.socket.parent.stat().st_mode & 0o777 == 0o700
        assert stub_daemon.log.stat().st_mode & 0o077 == 0
        await client.close()

    run(work())


def test_shutdown_leaves_no_socket(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        await client.shutdown()
        assert not stub_daemon.socket.exists()
        await client.close()

    run(work())


def test_sigterm_lets_running_requests_finish(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        running = asyncio.create_task(answer(client, request("steps=20 step_ms=10")))
        await until(client, lambda status: status.running == 1)
        os.kill(client.welcome.pid, signal.SIGTERM)
        assert isinstance(await running, wire.Done)
        await client.close()

    run(work())


def test_another_daemon_does_not_start_beside_one_that_serves(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        second = await asyncio.to_thread(subprocess.run, daemon_command(), capture_output=True, text=True, check=True)
        assert second.stderr == f"the stopgap daemon is process {client.welcome.pid} already\n"
        assert transport.holder(stub_daemon.lock) == client.welcome.pid
        assert isinstance(await answer(client, request()), wire.Done)
        await client.close()

    run(work())


@pytest.mark.skipif(sys.platform == "win32", reason="no pty there")
def test_a_person_who_runs_it_in_a_terminal_is_told_where_to_look(stub_daemon: Place) -> None:
    person, terminal = os.openpty()
    daemon = subprocess.Popen(daemon_command(), stderr=terminal)
    said = ""
    try:
        while "\n" not in said:  # the line may come in two pieces
            said += os.read(person, 4096).decode()
    finally:
        daemon.kill()
        daemon.wait()
        os.close(person)
        os.close(terminal)
    assert said.startswith(f"serving starter as process {daemon.pid}; {stub_daemon.log} ") and said.count("\n") == 1


def test_a_daemon_whose_socket_was_removed_makes_room(stub_daemon: Place, tmp_path: Path) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        stub_daemon.socket.rename(tmp_path / "moved.sock")
        fresh = await Client.connect("fresh")
        assert fresh.welcome.pid != client.welcome.pid
        await client.close()
        await fresh.close()

    run(work())


def test_a_daemon_that_nobody_uses_exits(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_EXIT_MINUTES", "0.0001")

    async def work() -> None:
        client = await Client.connect("test")
        pid = client.welcome.pid
        os.kill(pid, signal.SIGHUP)  # makes it look around now instead of in half a minute
        assert isinstance(await answer(client, request()), wire.Done), "a connected client is a user"
        await client.close()
        while transport.holder(stub_daemon.lock):
            await asyncio.sleep(0.02)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        assert not stub_daemon.socket.exists()

    run(work())
