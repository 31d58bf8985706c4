"""Neovim as a child process with our plugin in it: keys go in as typed, the screen and the buffer come out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stopgap-editors"
PATIENCE_S = 30.0

INIT = """
vim.opt.runtimepath:prepend({plugin!r})
vim.opt.swapfile = false
vim.opt.shadafile = 'NONE'
vim.g.messages = {{}}
vim.notify = function(text) vim.g.messages = vim.list_extend(vim.g.messages, {{ text }}) end
{before}
require('stopgap').setup({setup})
"""


def executable(version: str) -> Path:
    return CACHE / f"nvim-{version}" / "nvim"


class Neovim:
    """One child; everything it reads and writes lies below `home`."""

    def __init__(self, version: str, home: Path, *, setup: str = "{}", before: str = "") -> None:
        init = home / "init.lua"
        init.write_text(INIT.format(plugin=str(ROOT / "editors/nvim"), setup=setup, before=before))
        self.home = home
        environment = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "STATE", "CACHE")}
        # The stopgap command of this environment comes first.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [executable(version), "--embed", "--headless", "-u", init, "-i", "NONE"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        self._unpacker = msgpack.Unpacker()
        self._ids = 0

    def __enter__(self) -> Neovim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.lua("require('stopgap.client').stop()")
            self.until(lambda: self.lua("return #vim.lsp.get_clients() == 0"))
        finally:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.stdout.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """One request of Neovim's msgpack-rpc; what it tells us in between is not of interest here."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._ids += 1
        self.process.stdin.write(msgpack.packb([0, self._ids, method, arguments]))
        self.process.stdin.flush()
        while True:
            for message in self._unpacker:
                if message[:2] == [1, self._ids]:
                    assert message[2] is None, message[2]
                    return message[3]
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"Neovim has ended: {self.process.wait()}"
            self._unpacker.feed(data)

    def lua(self, code: str, *arguments: Any) -> Any:
        return self.call("nvim_exec_lua", code, arguments)

    def command(self, command: str) -> None:
        self.call("nvim_command", command)

    def type(self, keys: str) -> None:
        self.call("nvim_input", keys)

    def until(self, true: Callable[[], Any]) -> Any:
        """Wait for something, and return it; the screen and the messages are in the failure."""
        limit = time.monotonic() + PATIENCE_S
        while not (found := true()):
            assert time.monotonic() < limit, "\n".join([*self.screen(), *self.messages()])
            time.sleep(0.02)
        return found

    def edit(self, text: str, name: str = "t.py") -> None:
        """Open a new file with this text and wait until the server knows it."""
        path = self.home / name
        path.write_text(text, encoding="utf-8")
        self.command(f"edit {path}")
        self.until(lambda: self.lua("local c = require('stopgap.client').attached(0); return c and c.initialized"))

    def lines(self) -> list[str]:
        return list(self.lua("return vim.api.nvim_buf_get_lines(0, 0, -1, false)"))

    def cursor(self) -> tuple[int, int]:
        row, column = self.lua("return vim.api.nvim_win_get_cursor(0)")
        return row, column

    def messages(self) -> list[str]:
        return list(self.lua("return vim.g.messages"))

    def screen(self) -> list[str]:
        """What a user sees, line by line, without blanks at the ends."""
        rows = self.lua("""
            vim.cmd.redraw()
            local rows = {}
            for row = 1, vim.o.lines do
                local cells = {}
                for column = 1, vim.o.columns do
                    cells[column] = vim.fn.screenstring(row, column)
                end
                rows[row] = table.concat(cells)
            end
            return rows
        """)
        return [row.rstrip() for row in rows]

    def ghost(self) -> list[str]:
        """Ghost text, ours or Neovim's own: its pieces in the cursor's line, then the lines below."""
        return list(
            self.lua("""
            local found, below = {}, {}
            local spaces = vim.api.nvim_get_namespaces()
            for _, name in ipairs({ 'stopgap.ghost', 'nvim.lsp.inline_completion' }) do
                local marks = spaces[name]
                    and vim.api.nvim_buf_get_extmarks(0, spaces[name], 0, -1, { details = true }) or {}
                for _, mark in ipairs(marks) do
                    if mark[4].virt_text and vim.trim(mark[4].virt_text[1][1]) ~= '' then
                        table.insert(found, mark[4].virt_text[1][1])
                    end
                    for _, line in ipairs(mark[4].virt_lines or {}) do
                        table.insert(below, table.concat(vim.tbl_map(function(c) return c[1] end, line)))
                    end
                end
            end
            return vim.list_extend(found, below)
        """)
        )

    def preview(self) -> list[str]:
        """The lines of an open preview, its title first."""
        return ["".join(text for text, _ in line) for line in self._preview_lines()]

    def preview_chunks(self) -> list[tuple[str, str]]:
        """The pieces of an open preview, each with its highlight group."""
        return [(text, group) for line in self._preview_lines() for text, group in line]

    def _preview_lines(self) -> list[list[list[str]]]:
        return list(
            self.lua("""
            local space = vim.api.nvim_create_namespace('stopgap.preview')
            for _, mark in ipairs(vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true })) do
                if mark[4].virt_lines then
                    return mark[4].virt_lines
                end
            end
            return {}
        """)
        )
