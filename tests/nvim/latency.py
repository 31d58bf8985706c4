"""How long ghost text takes in a real Neovim with the model that ships, and where the time goes.

    python -P tests/nvim/latency.py [VERSION …] [--count 30]

From the last key to the text in the buffer's marks, split into the wait for a pause (editor), the way to the daemon
and back (LSP, socket, trimming), and the daemon's own time (queue, prefix, denoising, gate), in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nvim.driver import Neovim, executable

from stopgap.daemon.client import Client

SOURCE = """import json


def load(path):
    with open(path) as file:
        return json.load(file)


def total(items):
    result = 0
    for item in items:
        result += item
    return result


"""
TYPED = (
    "def save(path, data):<CR>with open(pa", "def mean(items):<CR>return to", "for item in ite", "if not ite",
    "while Tr", "result = to", "def first(items):<CR>return ite", "data = lo", "for i in ra", "print(to",
)  # fmt: skip
CLOCK = """
vim.g.times = {}
local function note(name) local t = vim.g.times; t[name] = vim.uv.hrtime() / 1e6; vim.g.times = t end
vim.on_key(function() note('key') end)
vim.api.nvim_create_autocmd('LspRequest', { callback = function(event)
    local request = event.data.request
    if request.method == 'textDocument/inlineCompletion' and request.type ~= 'cancel' then note(request.type) end
end })
"""


@dataclass(frozen=True, slots=True)
class Sample:
    pause: float
    way: float
    daemon: float

    @property
    def whole(self) -> float:
        return self.pause + self.way + self.daemon


async def daemon_ms() -> float:
    client = await Client.connect("latency", spawn=False)
    try:
        (timeline,) = await client.why(1)
        return timeline.milliseconds
    finally:
        await client.close()


def sample(nvim: Neovim, number: int) -> Sample | None:
    """One line typed into a fresh file; None where nothing was shown."""
    nvim.edit(f"# {number}\n{SOURCE}", f"t{number}.py")
    nvim.type("Go" + TYPED[number % len(TYPED)])
    limit = time.monotonic() + 3
    while not nvim.ghost():
        if time.monotonic() > limit:
            nvim.type("<Esc>")
            return None
        time.sleep(0.003)
    times = nvim.lua("return vim.g.times")
    in_daemon = asyncio.run(daemon_ms())
    nvim.type("<Esc>")
    pause, answer = times["pending"] - times["key"], times["complete"] - times["pending"]
    return Sample(pause, answer - in_daemon, in_daemon) if answer > in_daemon else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", default=["0.11", "0.12"])
    parser.add_argument("--count", type=int, default=30)
    asked = parser.parse_args()
    for version in asked.versions:
        if not executable(version).exists():
            sys.exit(f"no Neovim {version}: run tests/nvim/install")
        with tempfile.TemporaryDirectory(prefix="sg-") as home:
            os.environ.update(
                STOPGAP_RUNTIME_DIR=f"{home}/run", STOPGAP_STATE_DIR=f"{home}/state", STOPGAP_CONFIG=f"{home}/c.toml"
            )
            with Neovim(version, Path(home), setup="{ settings = { showThreshold = 0, prepareNext = false } }") as nvim:
                nvim.lua(CLOCK)
                nvim.edit(SOURCE)
                nvim.type("Goresult = to")
                nvim.until(lambda: nvim.lua("return (require('stopgap.client').status or {}).state") == "ready")
                nvim.type("<Esc>")
                samples = [sample(nvim, number) for number in range(asked.count)]
            asyncio.run(stop())
        shown = [one for one in samples if one is not None]
        print(f"Neovim {version}: text shown in {len(shown)} of {len(samples)} places")
        if not shown:
            continue
        for name in ("whole", "pause", "way", "daemon"):
            values = sorted(getattr(one, name) for one in shown)
            print(f"  {name:7} p50 {statistics.median(values):6.0f} ms   p90 {values[int(0.9 * len(values))]:6.0f} ms")


async def stop() -> None:
    await (await Client.connect("latency", spawn=False)).shutdown()


if __name__ == "__main__":
    main()
