"""Neovim as a child process with our plugin in it: keys go in as typed, the screen and the buffer come out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pynvim

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
        kept = dict(os.environ)
        for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
            os.environ[f"XDG_{kind}_HOME"] = str(home / kind.lower())
        # The child reads our PATH: the stopgap command of this environment comes first.
        os.environ["PATH"] = f"{ROOT / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
        try:
            self.rpc = pynvim.attach(
                "child", argv=[str(executable(version)), "--embed", "--headless", "-u", str(init), "-i", "NONE"]
            )
        finally:
            os.environ.clear()
            os.environ.update(kept)

    def __enter__(self) -> Neovim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.rpc.command("lua require('stopgap.client').stop()")
            self.until(lambda: self.lua("return #vim.lsp.get_clients() == 0"))
            self.rpc.command("qall!", async_=True)
        finally:
            self.rpc.close()

    def lua(self, code: str, *arguments: Any) -> Any:
        return self.rpc.exec_lua(code, *arguments)

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
        self.rpc.command(f"edit {path}")
        self.until(lambda: self.lua("local c = require('stopgap.client').attached(0); return c and c.initialized"))

    def type(self, keys: str) -> None:
        self.rpc.input(keys)

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
        return list(
            self.lua("""
            local space = vim.api.nvim_create_namespace('stopgap.preview')
            for _, mark in ipairs(vim.api.nvim_buf_get_extmarks(0, space, 0, -1, { details = true })) do
                if mark[4].virt_lines then
                    return vim.tbl_map(function(line)
                        return table.concat(vim.tbl_map(function(c) return c[1] end, line))
                    end, mark[4].virt_lines)
                end
            end
            return {}
        """)
        )
