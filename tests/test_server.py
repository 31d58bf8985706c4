"""The daemon as a client that does not behave sees it, and what it does on its own: a real process each time."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from stopgap.daemon import config, framing, transport, wire
from stopgap.daemon.client import Client, DaemonError
from stopgap.daemon.paths import Place
from stopgap.daemon.server import Server

from .test_client import answer, request, run, until


class RawPeer:
    """A connection without manners: bytes out, messages in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._frames = framing.Frames()

    @classmethod
    async def connect(cls, files: Place) -> RawPeer:
        return cls(*await transport.connect(files.socket))

    def send(self, *messages: wire.Message) -> None:
        self.writer.write(b"".join(map(framing.encode, messages)))

    async def rest(self) -> list[wire.Message]:
        """Everything until the daemon closes the connection."""
        try:
            data = await asyncio.wait_for(self.reader.read(), 20)
        except ConnectionResetError:
            data = b""
        self.writer.close()
        return [framing.decode(body) for body in self._frames.feed(data)]

    async def receive(self) -> wire.Message:
        """The next message that is not about loading the model."""
        while True:
            (length,) = struct.unpack(">I", await self.reader.readexactly(4))
            message = framing.decode(await self.reader.readexactly(length))
            if not isinstance(message, wire.Progress):
                return message


def hello(**fields: object) -> wire.Hello:
    given = {"protocol": wire.PROTOCOL, "version": "0", "config": config.load().hash, "client": "raw"}
    return wire.Hello(**{**given, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (b"\0\0\0\0", "a frame of 0 bytes"),
        (b"\xff\xff\xff\xffabc", "a frame of 4294967295 bytes"),
        (b"\0\0\0\1\xc1", "not a msgpack frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "a frame of 1195725856 bytes"),
        (framing.encode(wire.StatusRequest(1)), "the first message must be Hello"),
        (framing.encode(hello()) + framing.encode(wire.Ok(1)), "Ok is for clients"),
        (framing.encode(hello()) + framing.encode(request(id=0)), "Fill.id 0"),
        (framing.encode(hello()) + 2 * framing.encode(request("step_ms=200", id=4)), "Fill.id 4 is in use"),
    ],
    ids=["empty", "huge", "garbage", "http", "no hello", "not for us", "id 0", "id twice"],
)
def test_a_bad_frame_is_answered_and_closes_this_connection_only(
    stub_daemon: Place, sent: bytes, complaint: str
) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        peer = await RawPeer.connect(stub_daemon)
        peer.writer.write(sent)
        said = (await peer.rest())[-1]
        assert isinstance(said, wire.Error) and said.code == "bad_frame"
        assert complaint in said.message
        assert isinstance(await answer(client, request()), wire.Done)
        await client.close()

    run(work())


def test_seeded_garbage_leaves_the_daemon_alive(stub_daemon: Place) -> None:
    """`stopgap bench daemon --only fuzz` sends 100,000 of these."""

    async def work() -> None:
        client = await Client.connect("test")
        dice = random.Random(1)
        good = framing.encode(hello()) + framing.encode(request("steps=3", id=1))
        for _ in range(60):
            peer = await RawPeer.connect(stub_daemon)
            broken = bytearray(good)
            for _ in range(dice.randint(1, 6)):
                broken[dice.randrange(len(broken))] = dice.randrange(256)
            peer.writer.write(bytes(broken[: dice.randrange(len(broken)) + 1]))
            peer.writer.close()
        assert isinstance(await answer(client, request()), wire.Done)
        await until(client, lambda status: status.clients == 1)
        await client.close()

    run(work())


def test_an_older_client_is_told_and_a_newer_one_gets_its_own_daemon(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        pid = client.welcome.pid
        old = await RawPeer.connect(stub_daemon)
        old.send(hello(protocol=0, version="0.0.9"))
        (said,) = await old.rest()
        assert isinstance(said, wire.Error) and said.code == "version"
        assert "stopgap 0.0.9" in said.message and "restart the editor" in said.message
        new = await RawPeer.connect(stub_daemon)
        new.send(hello(protocol=wire.PROTOCOL + 1))
        (said,) = await new.rest()
        assert isinstance(said, wire.Error) and said.code == "restarting"
        found = await answer(client, request())
        if isinstance(found, wire.Error):  # it was on its way while the old daemon ended
            assert found.code == "disconnected" and "ask again" in found.message
            found = await answer(client, request())
        assert isinstance(found, wire.Done) and client.welcome.pid != pid
        await client.close()

    run(work())


def test_what_follows_a_refused_hello_is_not_run(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        old = await RawPeer.connect(stub_daemon)
        old.send(hello(protocol=0), request("steps=100000 step_ms=5", id=1))
        await old.rest()
        status = await client.status()
        assert (status.running, status.waiting, status.requests) == (0, 0, 0)
        await client.close()

    run(work())


def test_changed_settings_restart_the_daemon_after_it_has_answered_what_runs(stub_daemon: Place) -> None:
    async def work() -> None:
        old = await Client.connect("old")
        pid = old.welcome.pid
        running = asyncio.create_task(answer(old, request("steps=10 step_ms=20 text=finished")))
        await until(old, lambda status: status.running == 1)
        config.config_path().write_text("max_queue = 7\n")
        new = await Client.connect("new")
        assert new.welcome.pid != pid
        done = await running
        assert isinstance(done, wire.Done) and done.fills[0].text == "finished"
        assert isinstance(await answer(old, request()), wire.Done), "the old client finds the new daemon"
        assert old.welcome.pid == new.welcome.pid
        await old.close()
        await new.close()

    run(work())


def test_other_variables_alone_do_not_restart_it_but_are_mentioned(
    stub_daemon: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        first = await Client.connect("first")
        monkeypatch.setenv("STOPGAP_MAX_QUEUE", "7")
        # The daemon's own view of the disk has not changed: two such clients would restart it in turn.
        second = await Client.connect("second")
        assert second.welcome.pid == first.welcome.pid
        assert "STOPGAP_" in second.welcome.note
        await first.close()
        await second.close()

    run(work())


def test_a_client_that_disconnects_cancels_all_its_work(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        peer = await RawPeer.connect(stub_daemon)
        peer.send(hello(), *(request("steps=100000 step_ms=5", id=number) for number in range(1, 6)))
        await until(client, lambda status: status.running + status.waiting == 5)
        peer.writer.transport.abort()
        await until(client, lambda status: status.running + status.waiting == 0)
        assert {line.outcome for line in await client.why(5)} == {"disconnected"}
        await client.close()

    run(work())


def test_a_superseded_request_ends_at_once_and_once(stub_daemon: Place) -> None:
    async def work() -> None:
        await (await Client.connect("test")).close()
        peer = await RawPeer.connect(stub_daemon)
        peer.send(hello(), request("steps=100000 step_ms=5", id=1, document="a.py"))
        assert isinstance(await peer.receive(), wire.Welcome)
        peer.send(request(id=2, document="a.py"), wire.Cancel(1), wire.Cancel(2), wire.Cancel(77))
        ends = [await peer.receive(), await peer.receive()]
        assert isinstance(ends[0], wire.Error) and (ends[0].id, ends[0].code) == (1, "superseded")
        assert ends[1].id == 2  # type: ignore[union-attr]
        peer.send(wire.StatusRequest(9))
        assert isinstance(await peer.receive(), wire.Status), "nothing else came for 1 and 2"
        peer.writer.close()

    run(work())


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"script": "error=FillError"}, "bad_request"),
        ({"script": "fail_at=1 error=ValueError"}, "crashed"),
        ({"script": "fail_at=1 error=MemoryError"}, "out_of_memory"),
    ],
)
def test_what_goes_wrong_in_the_engine_is_one_typed_error(
    stub_daemon: Place, fields: dict[str, str], code: str
) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        pid = client.welcome.pid
        failed = await answer(client, request(**fields))
        assert isinstance(failed, wire.Error) and failed.code == code
        (line,) = await client.why(1, failed.trace)
        assert line.outcome == code
        assert isinstance(await answer(client, request()), wire.Done)
        assert client.welcome.pid == pid
        await client.close()

    run(work())


def test_a_range_outside_the_source_is_refused(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        for start, end in ((5, 4), (-1, 0), (0, 9)):
            refused = await answer(client, wire.Fill(b"12345678", "python", start, end))
            assert isinstance(refused, wire.Error) and refused.code == "bad_request"
        await client.close()

    run(work())


def test_a_model_that_cannot_be_loaded_is_an_answer_and_the_next_request_tries_again(
    stub_daemon: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOPGAP_MODEL", "/missing")

    async def work() -> None:
        client = await Client.connect("test")
        for _ in range(2):
            refused = await answer(client, request())
            assert isinstance(refused, wire.Error) and refused.code == "no_model"
            assert "name a folder" in refused.message
        assert "no model at /missing" in (await client.status()).note
        await client.close()

    run(work())


def test_loading_is_shown_to_who_waits(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_FAKE_LOAD_MS", "50")

    async def work() -> None:
        client = await Client.connect("test")
        frames = [frame async for frame in client.fill(request())]
        assert [type(frame) for frame in frames] == [wire.Progress, wire.Done]
        frames = [frame async for frame in client.fill(request())]
        assert [type(frame) for frame in frames] == [wire.Done]
        await client.unload()
        frames = [frame async for frame in client.fill(request())]
        assert [type(frame) for frame in frames] == [wire.Progress, wire.Done], "a woken model is loaded again"
        await client.close()

    run(work())


def test_a_deadline_ends_who_waits_even_while_the_model_loads(
    stub_daemon: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOPGAP_FAKE_LOAD_MS", "400")

    async def work() -> None:
        client = await Client.connect("test")
        late = await answer(client, request(deadline_ms=20.0))
        assert isinstance(late, wire.Error) and late.code == "deadline"
        assert (await client.status()).state == "loading"
        await client.close()

    run(work())


def test_pause_frees_the_weights_and_refuses_until_resume(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_FAKE_WEIGHT_MB", "64")

    async def work() -> None:
        client = await Client.connect("test")
        loaded = await client.load()
        assert (loaded.state, loaded.weight_bytes) == ("ready", 64 << 20)
        running = asyncio.create_task(answer(client, request("steps=100000 step_ms=5")))
        await until(client, lambda status: status.running == 1)
        paused = await client.pause()
        assert (paused.state, paused.weight_bytes) == ("paused", 0)
        assert loaded.rss_bytes - paused.rss_bytes > 60 << 20
        for refused in (await running, await answer(client, request())):
            assert isinstance(refused, wire.Error) and refused.code == "paused"
            assert "stopgap daemon resume" in refused.message
        assert (await client.resume()).state == "cold"
        assert isinstance(await answer(client, request()), wire.Done)
        await client.close()

    run(work())


def test_an_idle_model_is_unloaded_and_wakes(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_IDLE_MINUTES", "0.001")

    async def work() -> None:
        client = await Client.connect("test")
        assert isinstance(await answer(client, request()), wire.Done)
        await until(client, lambda status: status.state == "cold")
        assert isinstance(await answer(client, request()), wire.Done)
        await client.close()

    run(work())


def test_a_full_queue_says_busy(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_MAX_QUEUE", "2")

    async def work() -> None:
        client = await Client.connect("test")
        tasks = [asyncio.create_task(answer(client, request("steps=30 step_ms=10"))) for _ in range(6)]
        ends = await asyncio.gather(*tasks)
        codes = [end.code if isinstance(end, wire.Error) else "done" for end in ends]
        assert set(codes) == {"done", "busy"} and codes[0] == "done"
        await client.close()

    run(work())


def test_no_code_reaches_the_disk_unless_debug_log_is_on(stub_daemon: Place) -> None:
    secret = "TOP_SECRET_IDENTIFIER"
    source = f"{secret} = 1\n".encode()

    async def work(expected: bool) -> None:
        client = await Client.connect("test")
        for script in ("", "fail_at=1 error=ValueError", "fail_at=1 error=MemoryError", "error=FillError"):
            await answer(client, wire.Fill(source, "python", 0, 0, instruction=script))
        await client.feedback(wire.Feedback(1, "accepted", "python", 4))
        assert (await client.status()).debug_log is expected
        await client.shutdown()
        await client.close()
        folder = stub_daemon.log.parent
        written = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
        assert (secret.encode() in written) is expected
        assert (b"contains your code" in written) is expected

    run(work(False))
    config.config_path().write_text("debug_log = true\n")
    run(work(True))


def test_acceptance_is_counted_over_restarts_and_without_text(stub_daemon: Place) -> None:
    async def work(accepted: int) -> None:
        client = await Client.connect("test")
        await client.feedback(wire.Feedback(1, "shown", "python"))
        await client.feedback(wire.Feedback(1, "accepted", "python", 40))
        (line,) = (await client.stats()).languages
        assert (line.shown, line.accepted, line.characters) == (accepted, accepted, 40 * accepted)
        await client.shutdown()
        await client.close()

    run(work(1))
    run(work(2))


def test_a_client_that_does_not_read_gets_no_drafts_and_blocks_nobody(stub_daemon: Place) -> None:
    async def work() -> None:
        client = await Client.connect("test")
        peer = await RawPeer.connect(stub_daemon)
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        script = "steps=400 step_ms=1"
        peer.send(hello(), *(request(script, id=n, want_drafts=True, kind="rewrite") for n in range(1, 40)))
        assert isinstance(await answer(client, request()), wire.Done)
        peer.writer.transport.abort()
        await client.close()

    run(work())


def test_on_battery_fills_are_refused_until_mains_is_back(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    battery = [True]
    monkeypatch.setattr("stopgap.daemon.power.on_battery", lambda: battery[0])
    monkeypatch.setenv("STOPGAP_PAUSE_ON_BATTERY", "true")

    async def work() -> None:
        async with in_this_process(stub_daemon) as server:
            client = await Client.connect("test", spawn=False)
            server.look_around()
            refused = await answer(client, request())
            assert isinstance(refused, wire.Error) and refused.message == "paused while running on battery"
            battery[0] = False
            server.look_around()
            assert isinstance(await answer(client, request()), wire.Done)
            await client.close()

    run(work())


def test_an_update_on_disk_restarts_it_at_the_next_hello(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with in_this_process(stub_daemon):
            monkeypatch.setattr("stopgap.daemon.server.installed_version", lambda: "99.0")
            with pytest.raises(DaemonError, match="stopgap was updated"):
                await Client.connect("test", spawn=False)

    run(work())


@asynccontextmanager
async def in_this_process(files: Place) -> AsyncIterator[Server]:
    """A server on the test's own loop, for what a test has to reach into."""
    lock = transport.Lock(files.lock)
    assert lock.take()
    server = Server(config.load(), files)
    serving = asyncio.create_task(server.run())
    while not files.socket.exists():
        await asyncio.sleep(0.005)
    try:
        yield server
    finally:
        server.leave()
        await serving
        assert server.stop_worker(5)
        lock.release()
