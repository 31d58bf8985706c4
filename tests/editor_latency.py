"""How long it takes from the last key to ghost text in real editors with the model that ships, and where that goes.

    python -P tests/editor_latency.py [vscode nvim-0.11 nvim-0.12 emacs] [--count 30]

Every sample is a line in a new file, so that nothing is remembered of it and what stands around it parses. `wait` is
from the last key to the request (the editor's debounce), `paint` from the answer to the text: its mark in Neovim, its
element in VS Code's page. tests/lsp_tap.py sees both ends of the server between it and the editor. `model` is the
engine's time in the daemon, `daemon` the rest of the time there (queue, frames), `lsp` what is left: the server, the
tap and the socket.
Emacs has no ghost text: its number is M-x completion-at-point, up to the text in the buffer. Below the table stands
why lines came to nothing, and the machine's load, without which the numbers mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

sys.path.insert(0, str(Path(__file__).parent))

from nvim.driver import Neovim, executable
from vscode import editor as vscode

from stopgap.daemon import wire
from stopgap.daemon.client import Client, DaemonError

HERE = Path(__file__).parent
STOPGAP = Path(sys.executable).parent / "stopgap"
SOURCE = """import json


def load(path):
    with open(path) as file:
        return json.load(file)


def total(items):
    result = 0
    for item in items:
        result += item
    return result


items = load("items.json")
"""
TYPED = (
    "result = to", "data = lo", "print(to", "import o", "items = it", "value = total(it", "print(len(it", "names = so",
    "print(js", "total(it",
)  # fmt: skip
SETTINGS: dict[str, object] = {"showThreshold": 0, "prepareNext": False}
"""So that a fill is shown for nearly every line, and none was prepared before it was asked for."""
SHOW_S = 3.0
"""After so long without ghost text there is none: the server answers within its budget of 600 ms."""
TRIES = 3
"""Lines typed for each sample that is wanted, at most: not every line comes to ghost text."""
COLUMNS = ("whole", "wait", "lsp", "daemon", "model", "paint")
EDITORS = ("vscode", "nvim-0.11", "nvim-0.12", "emacs")
NVIM_CLOCK = """
vim.g.key_at, vim.g.shown_at = 0, 0
vim.on_key(function() vim.g.key_at, vim.g.shown_at = vim.uv.hrtime() / 1e9, 0 end)
local set_extmark = vim.api.nvim_buf_set_extmark
vim.api.nvim_buf_set_extmark = function(buf, space, row, col, options)
    local name = space == vim.api.nvim_create_namespace('stopgap.ghost')
        or space == vim.api.nvim_create_namespace('nvim.lsp.inline_completion')
    if name and options.virt_text and vim.trim(options.virt_text[1][1]) ~= '' and vim.g.shown_at == 0 then
        vim.g.shown_at = vim.uv.hrtime() / 1e9
    end
    return set_extmark(buf, space, row, col, options)
end
"""

Clock = Literal["now", "wall"]
"""Which clock an editor's own times are of: the monotonic one or that of the calendar, in seconds."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Milliseconds of one line; see the module's head."""

    wait: float
    lsp: float
    daemon: float
    model: float
    paint: float

    @property
    def whole(self) -> float:
        return self.wait + self.lsp + self.daemon + self.model + self.paint


Samples: TypeAlias = Generator["Sample | str", None, None]
"""One a line that was typed: its times, or why nothing was shown."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A folder with a daemon and a `stopgap` command of its own, the tap in it."""

    home: Path

    @property
    def program(self) -> Path:
        return self.home / "bin" / "stopgap"

    def sample(self, key: float, shown: float, clock: Clock) -> Sample | str:
        """What the tap and the daemon know of the text that was shown, or why none was.

        `key` is negative if text was there before it, `shown` 0 if none came.
        """
        if key < 0:
            return "shown before the last key"
        asked: dict[int, float] = {}
        found: tuple[float, float] | None = None
        texts = 0
        for line in map(json.loads, (self.home / "tap").read_text(encoding="utf-8").splitlines()):
            if line["what"] == "asked" and line[clock] >= key:
                asked[line["id"]] = line[clock]
            elif line["what"] == "answered" and line["id"] in asked:
                texts = line["items"]
                if texts and line[clock] <= shown:
                    found = asked[line["id"]], line[clock]
        last = asyncio.run(timeline())
        if not asked:
            return "the editor asked nothing after the last key"
        if not shown:
            return "answered but not shown" if texts else why_nothing(last)
        if found is None or last is None or last.outcome != "fill":
            return "shown, but not from the newest request"
        began, ended = found
        started = next((event.ms for event in last.events if event.what == "started"), None)
        if started is None or last.milliseconds > (ended - began) * 1000:
            return "shown, but not from the newest request"
        in_model = last.events[-1].ms - started
        return Sample(
            wait=(began - key) * 1000,
            lsp=(ended - began) * 1000 - last.milliseconds,
            daemon=last.milliseconds - in_model,
            model=in_model,
            paint=(shown - ended) * 1000,
        )


def why_nothing(last: wire.Timeline | None) -> str:
    """The reason without its numbers, so that reasons of a kind can be counted."""
    if last is None or last.outcome == "fill":
        return "the server had no text"
    return re.sub(r"\d+", "N", last.reason.partition(";")[0])


async def timeline() -> wire.Timeline | None:
    client = await Client.connect("latency", spawn=False)
    try:
        return next(iter(await client.why(1)), None)
    finally:
        await client.close()


@contextmanager
def bench() -> Iterator[Bench]:
    """The model is in memory before anything is measured, and gone after."""
    with tempfile.TemporaryDirectory(prefix="sg-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        os.environ.update(
            STOPGAP_RUNTIME_DIR=f"{home}/run", STOPGAP_STATE_DIR=f"{home}/state", STOPGAP_CONFIG=f"{home}/config.toml"
        )
        made = Bench(home)
        made.program.parent.mkdir()
        tapped = f'exec "{sys.executable}" -P "{HERE / "lsp_tap.py"}" "{home}/tap" "{STOPGAP}" "$@"'
        made.program.write_text(f"#!/bin/sh\n{tapped}\n", encoding="utf-8")
        made.program.chmod(0o755)
        (home / "tap").touch()
        subprocess.run([STOPGAP, "daemon", "load"], check=True, stdout=subprocess.DEVNULL)
        try:
            yield made
        finally:
            try:
                asyncio.run(stop())
            except DaemonError as error:
                print(f"the daemon did not stop: {error}", file=sys.stderr)


async def stop() -> None:
    await (await Client.connect("latency", spawn=False)).shutdown()


def line(number: int) -> str:
    return TYPED[number % len(TYPED)]


def in_nvim(version: str, made: Bench, count: int) -> Samples:
    settings = "{ showThreshold = 0, prepareNext = false }"
    setup = f"{{ cmd = {{ '{made.program}', 'lsp' }}, settings = {settings} }}"
    with Neovim(version, made.home, setup=setup, before=NVIM_CLOCK) as nvim:
        for number in range(-1, count):  # the first fills caches
            nvim.edit(f"# {number}\n{SOURCE}", f"t{number}.py")
            nvim.type("Go" + line(number))
            limit = time.monotonic() + SHOW_S
            while not (shown := nvim.lua("return vim.g.shown_at")) and time.monotonic() < limit:
                time.sleep(0.05)
            key = nvim.lua("return vim.g.key_at")
            if number >= 0:
                yield made.sample(key, shown, "now")
            nvim.type("<Esc>")


def in_vscode(made: Bench, count: int) -> Samples:
    ours = {f"stopgap.{name}": value for name, value in SETTINGS.items()}
    env = {name: value for name, value in os.environ.items() if name.startswith("STOPGAP_")}
    vsix = vscode.package(made.home)
    with vscode.running(made.home / "code", vsix, env, {**ours, "stopgap.path": str(made.program)}) as window:
        window.see('[id$="stopgap.status"] .codicon-sparkle', seconds=120)
        for number in range(-1, count):
            text = line(number)
            window.open(f"t{number}.py", f"# {number}\n{SOURCE}|")
            window.type(text[:-1])
            times = window.do("timed", keys=text[-1], selector="[class*=ghost-text-decoration]", timeout=SHOW_S * 1000)
            if number >= 0:
                yield made.sample(times["key"] / 1000, times["shown"] / 1000, "wall")


def in_emacs(made: Bench, count: int) -> Samples:
    work = made.home / "work"
    work.mkdir()
    jobs = []
    for number in range(-1, count):
        path = work / f"t{number}.py"
        path.write_text(f"# {number}\n{SOURCE}{line(number)}", encoding="utf-8")
        jobs.append(str(path))
    environment = {**os.environ, "PATH": f"{made.program.parent}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    command = ["emacs", "--batch", "--no-init-file", "-l", str(HERE / "emacs" / "latency.el"), *jobs]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None and running.stderr is not None
        first = True  # fills caches
        for told in running.stderr:  # standard output would be buffered
            if not told.startswith("{"):
                continue
            times: dict[str, Any] = json.loads(told)
            if not first:
                yield made.sample(times["key"], times["shown"] or 0, "wall")
            first = False
            running.stdin.write("next\n")  # the daemon was asked about this one before it does the next
            running.stdin.flush()


def missing(editor: str) -> str:
    if editor == "vscode":
        return vscode.missing()
    if editor == "emacs":
        return (
            "" if subprocess.run(["which", "emacs"], capture_output=True, check=False).returncode == 0 else "no Emacs"
        )
    version = editor.removeprefix("nvim-")
    return (
        "" if executable(version).exists() else f"no Neovim {version}; tests/nvim/install puts it into the cache folder"
    )


def enough(samples: Samples, count: int) -> tuple[list[Sample], Counter[str]]:
    """The first `count` that were shown, and why the other lines until then were not."""
    shown: list[Sample] = []
    without: Counter[str] = Counter()
    while len(shown) < count and len(shown) + without.total() < count * TRIES:
        match next(samples):
            case Sample() as one:
                shown.append(one)
            case why:
                without[why] += 1
    return shown, without


def report(editor: str, shown: list[Sample], without: Counter[str]) -> None:
    cells = []
    for name in COLUMNS if shown else ():
        values = sorted(getattr(one, name) for one in shown)
        cells.append(f"{statistics.median(values):.0f} ({values[int(0.9 * (len(values) - 1))]:.0f})")
    print(f"| {editor} | {len(shown)} of {len(shown) + without.total()} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("editors", nargs="*", choices=[*EDITORS, []], metavar="EDITOR")
    parser.add_argument("--count", type=int, default=30)
    asked = parser.parse_args()
    print("Milliseconds, p50 (p90); the parts' medians need not add up to the whole's.\n")
    print(f"| editor | shown | {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * len(COLUMNS)}")
    silent: dict[str, Counter[str]] = {}
    for editor in asked.editors or EDITORS:
        if why := missing(editor):
            print(f"| {editor} | left out: {why} |")
            continue
        with bench() as made:
            lines = asked.count * TRIES
            if editor == "vscode":
                samples = in_vscode(made, lines)
            elif editor == "emacs":
                samples = in_emacs(made, lines)
            else:
                samples = in_nvim(editor.removeprefix("nvim-"), made, lines)
            shown, silent[editor] = enough(samples, asked.count)
            report(editor, shown, silent[editor])
            samples.close()
    for editor, without in silent.items():
        for why, times in without.most_common():
            print(f"\n{editor}: {times} without text: {why}", end="")
    print(f"\n\nload {' '.join(f'{one:.1f}' for one in os.getloadavg())} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
