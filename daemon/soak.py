"""`stopgap bench daemon`: what this daemon promises, tried on real processes with an engine that does nothing.

Knows nothing of models. Every trial gets its own folders, so that a daemon in use is not disturbed.
`--scale 0.01` makes all counts a hundredth; the promised counts are those of scale 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import framing, transport, wire
from .client import Client
from .config import load
from .paths import Place, place
from .timeline import percentile

SOURCE = b"def f(a, b):\n    \n" + b"# a line of an ordinary file\n" * 800
"""24 kB, the size of a 800-line file."""


SMALL = b"def area(width, height):\n    return \n"


@dataclass(frozen=True, slots=True)
class Result:
    """One promise and what was measured."""

    name: str
    promise: str
    measured: str
    kept: bool


def request(
    steps: int = 1, number: int = 0, document: str = "", drafts: bool = False, kind: wire.Kind = "interactive"
) -> wire.Fill:
    return wire.Fill(
        SOURCE, "python", 17, 17, max_steps=steps, document=document, id=number, want_drafts=drafts, kind=kind
    )


async def cold(scale: float) -> Result:
    """From no daemon to the first fill in a small file; the model is that of the settings with --real-model."""
    times, cpu = [], 0.0
    for _ in range(max(1, round(3 * scale))):
        begin = time.monotonic()
        client = await Client.connect("bench")
        answer = await _last(client, wire.Fill(SMALL, "python", len(SMALL) - 1, len(SMALL) - 1))
        times.append(time.monotonic() - begin)
        cpu = max(cpu, _cpu_seconds(client.welcome.pid))
        await _end(client)
        if isinstance(answer, wire.Error):
            return Result("cold start", "first fill < 4 s", answer.message, False)
    measured = f"worst of {len(times)}: {max(times):.2f} s, at most {cpu:.2f} s of CPU time"
    return Result("cold start", "first fill < 4 s", measured, max(times) < 4)


async def overhead(scale: float) -> Result:
    """Request in to first frame out, as seen by a client beside the daemon."""
    client = await Client.connect("bench")
    times = []
    for number in range(200 + round(5000 * scale)):
        begin = time.perf_counter()
        async for _ in client.fill(request()):
            break
        if number >= 200:
            times.append((time.perf_counter() - begin) * 1000)
        await asyncio.sleep(0.001)
    inside = sorted(line.milliseconds for line in await client.why(500))
    await _end(client)
    times.sort()
    p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
    measured = (
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms of {len(times)}; inside the daemon p50 {percentile(inside, 0.5):.2f} ms, "
        f"p99 {percentile(inside, 0.99):.2f} ms; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    return Result("overhead", "p50 < 1 ms, p99 < 5 ms", measured, p50 < 1 and p99 < 5)


async def racing(scale: float) -> Result:
    """Ten processes connect at the same moment while no daemon runs."""
    runs, wrong = max(1, round(100 * scale)), 0
    files = place(load().key)
    command = [sys.executable, "-P", "-c", "from stopgap.daemon.soak import racer; racer()"]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(10)]
    try:
        for _ in range(runs):
            pids = _round(racers)
            daemons = _processes(files)
            wrong += not (len(set(pids)) == 1 and daemons == [int(pids[0])])
            os.kill(int(pids[0]), signal.SIGKILL)
            while transport.holder(files.lock):
                await asyncio.sleep(0.005)
    finally:
        for one in racers:
            one.communicate()
    return Result("10 clients at once", "one daemon", f"{runs - wrong} of {runs} runs", wrong == 0)


def racer() -> None:
    """One of the ten: connects at every line on stdin and prints the daemon's pid."""

    async def connect() -> int:
        client = await Client.connect("racer")
        pid = client.welcome.pid
        answer = [frame async for frame in client.fill(request())][-1]
        await client.close()
        return pid if isinstance(answer, wire.Done) else 0

    for _ in sys.stdin:
        print(asyncio.run(connect()), flush=True)


def _round(racers: list[subprocess.Popen[str]]) -> list[str]:
    for one in racers:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    return [one.stdout.readline().strip() for one in racers if one.stdout]


def _processes(files: Place) -> list[int]:
    """Pids of all daemons that live in these folders; waits for those that have lost the race to leave."""
    found: list[int] = []
    for _ in range(500):
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes()
                environment = (process / "environ").read_bytes()
                if b"stopgap.daemon.resident" in command and os.fsencode(files.socket.parent) in environment:
                    found.append(int(process.name))
        if len(found) <= 1:
            return found
        time.sleep(0.01)
    return found


class _Peer:
    """A client that counts terminal frames and has no manners."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.ends: Counter[int] = Counter()
        self.sent: list[int] = []
        self.codes: Counter[str] = Counter()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, files: Place) -> _Peer:
        reader, writer = await transport.connect(files.socket)
        writer.write(framing.encode(wire.Hello(wire.PROTOCOL, "0", load().hash, "soak")))
        return cls(reader, writer)

    async def _read(self) -> None:
        frames = framing.Frames()
        with contextlib.suppress(OSError):
            while data := await self._reader.read(1 << 18):
                for body in frames.feed(data):
                    message = framing.decode(body)
                    if isinstance(message, wire.Done | wire.Error):
                        self.ends[message.id] += 1
                        self.codes[message.code if isinstance(message, wire.Error) else "done"] += 1

    async def settled(self) -> None:
        """Waits until everything sent has ended."""
        give_up = time.monotonic() + 30
        while len(self.ends) < len(self.sent) and time.monotonic() < give_up:
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        self.writer.transport.abort()
        await asyncio.wait([self._task])


async def soak(scale: float) -> Result:
    """8 clients x 2,000 requests with cancels and disconnects; RSS at rest after each half."""
    monitor = await Client.connect("bench")
    count = max(10, round(1000 * scale))
    totals: Counter[str] = Counter()
    rss = []
    for half in range(2):
        await asyncio.gather(*(_rude(seed, count, totals) for seed in range(8 * half, 8 * half + 8)))
        while (status := await monitor.status()).running + status.waiting:
            await asyncio.sleep(0.01)
        # At rest the daemon collects garbage and gives it back every half minute; SIGHUP makes it do so now.
        os.kill(monitor.welcome.pid, signal.SIGHUP)
        await asyncio.sleep(0.2)
        rss.append((await monitor.status()).rss_bytes)
    growth = rss[1] / rss[0] - 1
    await _end(monitor)
    outcomes = ", ".join(f"{n} {code}" for code, n in totals.most_common() if code not in {"sent", "twice", "lost"})
    measured = (
        f"{totals['sent']} requests: {totals['twice']} answered twice, {totals['lost']} lost, "
        f"RSS {growth:+.1%} to {rss[1] / 1e6:.0f} MB ({outcomes})"
    )
    kept = not (totals["twice"] or totals["lost"]) and growth < 0.05
    return Result("soak", "one terminal frame each, RSS < +5 % in the second half", measured, kept)


async def _rude(seed: int, count: int, totals: Counter[str]) -> None:
    """One client that types fast, fills several holes at once, cancels often and hangs up now and then."""
    dice = random.Random(seed)
    files = place(load().key)
    peer = await _Peer.connect(files)
    for number in range(1, count + 1):
        document = dice.choice(["", "a.py", "b.py"])
        kind: wire.Kind = "rewrite" if number // 4 % 3 == 0 else "interactive"  # four in a row: a batch
        peer.writer.write(framing.encode(request(dice.randint(1, 6), number, document, dice.random() < 0.5, kind)))
        peer.sent.append(number)
        totals["sent"] += 1
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() * 0.01)
        if dice.random() < 0.3:
            peer.writer.write(framing.encode(wire.Cancel(dice.randint(max(1, number - 3), number))))
        if dice.random() < 0.02:
            await _leave(peer, totals, wait=False)
            peer = await _Peer.connect(files)
        while len(peer.sent) - len(peer.ends) > 6:
            await asyncio.sleep(0.001)
    await _leave(peer, totals, wait=True)


async def _leave(peer: _Peer, totals: Counter[str], wait: bool) -> None:
    if wait:
        await peer.settled()
        totals["lost"] += len(peer.sent) - len(peer.ends)
    await peer.close()
    totals["twice"] += sum(count > 1 for count in peer.ends.values())
    totals["disconnected"] += len(peer.sent) - len(peer.ends)
    totals.update(peer.codes)


async def fuzz(scale: float) -> Result:
    """Malformed and truncated frames, each on its own connection as each closes it."""
    client = await Client.connect("bench")
    files, pid = place(load().key), client.welcome.pid
    dice = random.Random(20)
    hello = framing.encode(wire.Hello(wire.PROTOCOL, "0", load().hash, "fuzz"))
    small = wire.Fill(b"x = ", "python", 4, 4, id=1, document="d", snippets=(wire.Snippet("a", "b"),))
    seeds: list[wire.Message] = [
        small, wire.Cancel(1), wire.StatusRequest(2), wire.TraceRequest(3, 5, "ab"), wire.StatsRequest(4),
        wire.Feedback(1, "shown", "python"), wire.Resume(5), wire.Hello(1, "0", "0", "fuzz"),
    ]  # fmt: skip
    count, answered = max(100, round(100_000 * scale)), 0
    gate = asyncio.Semaphore(16)

    async def one(data: bytes) -> None:
        async with gate:
            reader, writer = await transport.connect(files.socket)
            writer.write(data)
            writer.write_eof()
            with contextlib.suppress(OSError):
                while await reader.read(1 << 16):
                    pass
            writer.close()

    for start in range(0, count, 1000):
        frames = (_broken(dice, framing.encode(dice.choice(seeds))) for _ in range(min(1000, count - start)))
        # A third without the Hello in front: garbage from a stranger.
        await asyncio.gather(*(one((hello if dice.random() < 0.67 else b"") + frame) for frame in frames))
        answer = [frame async for frame in client.fill(request())][-1]
        answered += isinstance(answer, wire.Done)
    same = client.welcome.pid == pid
    await _end(client)
    rounds = -(-count // 1000)
    measured = f"{count} frames, {'same process' if same else 'RESTARTED'}, {answered} of {rounds} checks answered"
    return Result("fuzz", "alive and answering", measured, same and answered == rounds)


def _broken(dice: random.Random, frame: bytes) -> bytes:
    """`frame` damaged; not into a Hello of a newer protocol, for which a daemon rightly makes room."""
    while True:
        data = _damaged(dice, frame)
        try:
            if not any(isinstance(framing.decode(body), wire.Hello) for body in framing.Frames().feed(data)):
                return data
        except framing.FrameError:
            return data


def _damaged(dice: random.Random, frame: bytes) -> bytes:
    data = bytearray(frame)
    match dice.randrange(5):
        case 0:  # flipped bytes, length included
            for _ in range(dice.randint(1, 8)):
                data[dice.randrange(len(data))] = dice.randrange(256)
        case 1:  # truncated
            del data[dice.randrange(len(data)) :]
        case 2:  # a right length before garbage
            body = dice.randbytes(dice.randint(1, 200))
            data = bytearray(len(body).to_bytes(4, "big") + body)
        case 3:  # something in the middle
            at = dice.randrange(4, len(data))
            data[at:at] = dice.randbytes(dice.randint(1, 20))
        case _:
            data = bytearray(dice.randbytes(dice.randint(1, 64)))
    return bytes(data)


async def killed(scale: float) -> Result:
    """kill -9 while a request runs; the next one must be answered without any manual step."""
    runs, answered = max(2, round(50 * scale)), 0
    client = await Client.connect("bench")
    for _ in range(runs):
        task = asyncio.create_task(_last(client, request(steps=10_000)))
        await asyncio.sleep(0.05)
        os.kill(client.welcome.pid, signal.SIGKILL)
        lost = await task
        after = await _last(client, request())
        answered += isinstance(lost, wire.Error) and isinstance(after, wire.Done)
    await _end(client)
    return Result("kill -9 in a request", "next one answered", f"{answered} of {runs}", answered == runs)


async def offline(scale: float) -> Result:
    """`stopgap fill` in a network namespace without any interface."""
    if not shutil.which("unshare"):
        return Result("no network", "a fill under unshare -n", "no unshare command here", False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "a.py")
        file.write_bytes(SOURCE)
        inner = [sys.executable, "-P", "-m", "stopgap.daemon", "fill", str(file), "--at", "2:5", "--json"]
        done = subprocess.run(["unshare", "-rn", *inner], capture_output=True, text=True, check=False)
    said = (done.stdout or done.stderr).strip()[:80]
    return Result("no network", "a fill under unshare -n", f"exit {done.returncode}: {said}", done.returncode == 0)


async def idle(scale: float) -> Result:
    """CPU time of a daemon that has a model and a client, and nothing to do."""
    client = await Client.connect("bench")
    await _last(client, request())
    seconds = max(5.0, 60 * scale)
    before = _cpu_seconds(client.welcome.pid)
    await asyncio.sleep(seconds)
    share = (_cpu_seconds(client.welcome.pid) - before) / seconds
    await _end(client)
    return Result("idle CPU", "< 0.2 %", f"{share:.3%} over {seconds:.0f} s", share < 0.002)


def _cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def _last(client: Client, fill: wire.Fill) -> wire.FillFrame:
    return [frame async for frame in client.fill(fill)][-1]


async def _end(client: Client) -> None:
    await client.shutdown()
    await client.close()
    lock = place(load().key).lock
    while transport.holder(lock):
        await asyncio.sleep(0.005)


TRIALS: dict[str, Callable[[float], Coroutine[None, None, Result]]] = {
    "cold": cold,
    "overhead": overhead,
    "racing": racing,
    "soak": soak,
    "fuzz": fuzz,
    "killed": killed,
    "offline": offline,
    "idle": idle,
}


def run_trials(names: list[str], scale: float, report: Callable[[Result], None], real_model: bool = False) -> bool:
    """Runs the trials one after the other; True if every promise was kept.

    `real_model` runs them with the configured model instead of the stub.
    """
    kept = True
    for name in names:
        with own_folders(real_model):
            result = asyncio.run(TRIALS[name](scale))
            kept &= result.kept
            report(result)
    return kept


@contextlib.contextmanager
def own_folders(real_model: bool) -> Iterator[None]:
    """Folders and variables of a daemon of one's own, which is ended afterwards."""
    before = os.environ.copy()
    with tempfile.TemporaryDirectory(prefix="sg-") as folder:
        os.environ["STOPGAP_RUNTIME_DIR"] = f"{folder}/run"
        os.environ["STOPGAP_STATE_DIR"] = f"{folder}/state"
        if not real_model:
            os.environ["STOPGAP_CONFIG"] = f"{folder}/config.toml"
            os.environ["STOPGAP_ENGINE_FACTORY"] = "stopgap.daemon.stub:load"
        try:
            yield
        finally:
            files = place(load().key)
            while (pid := transport.holder(files.lock)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
            os.environ.clear()
            os.environ.update(before)
