"""Connecting, starting the daemon, and what happens when it goes: real processes, real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from stopgap.daemon import spawn, transport, wire
from stopgap.daemon.client import Client, DaemonError
from stopgap.daemon.paths import Place

from .conftest import end_process


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def request(script: str = "", **fields: Any) -> wire.Fill:
    return wire.Fill(b"def f():\n    \n", "python", 13, 13, instruction=script, **fields)


async def answer(client: Client, fill: wire.Fill) -> wire.Done | wire.Error:
    """The terminal frame, having checked that there is one and that it is the last."""
    frames = [frame async for frame in client.fill(fill)]
    terminal = [frame for frame in frames if isinstance(frame, wire.Done | wire.Error)]
    assert terminal == frames[-1:]
    return terminal[0]


def test_the_first_fill_starts_the_daemon_and_the_second_finds_it(stub_daemon: Place) -> None:
    async def work() -> None:
        first, second = await Client.connect("one"), await Client.connect("two")
        assert first.welcome.pid == second.welcome.pid == transport.holder(stub_daemon.lock)
        done = await answer(second, request("text=return"))
        assert isinstance(done, wire.Done) and done.fills[0].text == "return"
        await first.close()
        await second.close()

    run(work())


def test_a_cancellation_that_comes_with_the_greeting_is_not_lost(
    stub_daemon: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    greeted = spawn._greeted

    async def work() -> None:
        async def cancelled_on_return(*arguments: Any) -> Any:
            connection = await greeted(*arguments)
            task.cancel()
            return connection

        monkeypatch.setattr(spawn, "_greeted", cancelled_on_return)
        client = Client("one")
        task = asyncio.create_task(client.status())
        await asyncio.wait({task})
        assert task.cancelled()
        await client.close()

    run(work())


def test_the_daemon_survives_the_process_that_started_it(stub_daemon: Place) -> None:
    starter = "import asyncio; from stopgap.daemon.client import Client; asyncio.run(Client.connect('starter'))"
    left = subprocess.run([sys.executable, "-P", "-W", "always", "-c", starter], check=True, capture_output=True)
    assert b"still running" not in left.stderr, "that it outlives its starter is no leak"

    async def work() -> None:
        client = await Client.connect("heir", spawn=False)
        assert isinstance(await answer(client, request()), wire.Done)
        await client.close()

    run(work())


RACER = """
import asyncio, sys
from stopgap.daemon.client import Client
async def main():
    sys.stdin.readline()
    client = await Client.connect("racer")
    print(client.welcome.pid, flush=True)
    sys.stdin.readline()
asyncio.run(main())
"""


def test_clients_that_start_together_share_one_daemon(stub_daemon: Place) -> None:
    command = [sys.executable, "-P", "-c", RACER]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("go\n")
        racer.stdin.flush()
    pids = {racer.stdout.readline() for racer in racers if racer.stdout}
    for racer in racers:
        racer.communicate("end\n")
    assert pids == {f"{transport.holder(stub_daemon.lock)}\n"}


def test_after_kill_9_in_a_request_the_next_request_gets_a_new_daemon(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        pid = client.welcome.pid
        killed = asyncio.create_task(answer(client, request("steps=1000 step_ms=10")))
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        lost = await killed
        assert isinstance(lost, wire.Error) and lost.code == "disconnected"
        assert stub_daemon.socket.exists(), "kill -9 leaves the socket file, which is what this test is about"
        assert isinstance(await answer(client, request()), wire.Done)
        assert client.welcome.pid != pid
        await client.close()

    run(work())


def test_a_socket_file_nobody_listens_to_is_replaced(stub_daemon: Place) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(stub_daemon.socket))
    stale.close()

    async def work() -> None:
        client = await Client.connect("test")
        assert isinstance(await answer(client, request()), wire.Done)
        await client.close()

    run(work())


def test_a_cancelled_task_cancels_the_request_in_the_daemon(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        task = asyncio.create_task(answer(client, request("steps=100000 step_ms=5")))
        await until(client, lambda status: status.running == 1)
        task.cancel()
        await until(client, lambda status: status.running == 0)
        assert (await client.why(1))[0].outcome == "cancelled"
        await client.close()

    run(work())


def test_a_closed_generator_cancels_the_request_in_the_daemon(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        async with aclosing(client.fill(request("steps=100000 step_ms=5", want_drafts=True))) as frames:
            async for frame in frames:
                if isinstance(frame, wire.Draft):
                    break
        await until(client, lambda status: status.running == 0)
        await client.close()

    run(work())


def test_cancel_by_id_brings_the_terminal_frame(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        last: wire.FillFrame | None = None
        async for last in client.fill(request("steps=100000 step_ms=5", want_drafts=True)):
            if isinstance(last, wire.Draft):
                await client.cancel(last.id)
        assert isinstance(last, wire.Error) and last.code == "cancelled"
        await client.close()

    run(work())


def test_without_a_daemon_and_without_spawning_there_is_a_remedy(stub_daemon: Place) -> None:
    async def work() -> None:
        with pytest.raises(DaemonError, match="stopgap daemon start"):
            await Client.connect("test", spawn=False)

    run(work())


def test_a_daemon_that_cannot_start_says_why_and_is_not_tried_at_every_keystroke(
    stub_daemon: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = 0

    def daemon_command() -> list[str]:
        nonlocal started
        started += 1
        return [sys.executable, "-c", "raise SystemExit('no room')"]

    monkeypatch.setattr(spawn, "daemon_command", daemon_command)

    async def work() -> None:
        client = Client("test")
        failed = await answer(client, request())
        assert isinstance(failed, wire.Error) and "did not start: no room" in failed.message
        client._not_before += 60  # the backoff, on a machine of any speed
        again = await answer(client, request())
        assert isinstance(again, wire.Error) and "stopgap daemon start" in again.message
        assert started == 1, "the backoff answers without a process"

    run(work())


def test_a_daemon_that_does_not_answer_is_named(stub_daemon: Place) -> None:
    async def work() -> None:
        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            await reader.read()
            writer.close()

        mute = await asyncio.start_unix_server(listen, str(stub_daemon.socket))
        with pytest.raises(DaemonError, match="does not answer"):
            await Client.connect("test", patience=0.3)
        mute.close()

    run(work())


def test_a_source_beyond_the_limit_is_refused_and_the_connection_lives(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        pid = client.welcome.pid
        refused = await answer(client, wire.Fill(bytes(wire.MAX_SOURCE + 1), "python", 0, 0))
        assert isinstance(refused, wire.Error) and refused.code == "bad_request"
        assert isinstance(await answer(client, request()), wire.Done)
        assert client.welcome.pid == pid
        await client.close()

    run(work())


def test_a_module_in_the_users_folder_does_not_run_in_the_daemon(
    stub_daemon: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "dataclasses", "msgpack", "stopgap"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user code ran')")
    monkeypatch.chdir(tmp_path)

    async def work() -> None:
        client = await Client.connect("test")
        assert isinstance(await answer(client, request()), wire.Done)
        assert Path(f"/proc/{client.welcome.pid}/cwd").resolve() == stub_daemon.log.parent.resolve()
        await client.close()

    run(work())


async def until(client: Client, true: Any) -> None:
    """Waits until the daemon's status is as wanted; the test's own time limit ends it otherwise."""
    while not true(await client.status()):
        await asyncio.sleep(0.01)


def test_stopping_a_stopped_daemon_is_quiet(stub_daemon: Place) -> None:
    from stopgap.daemon.control import stop_daemon

    assert stop_daemon() == "no stopgap daemon is running"
    end_process(stub_daemon.lock)
