"""What the user sees while an action is computed: a progress bar with a cancel button, and live drafts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

from stopgap.daemon import wire

from .document import Snapshot

if TYPE_CHECKING:
    from .server import Server

PROGRESS_S = 2.0
"""A client that has not made a progress bar by then gets none."""


class Progress:
    """Work-done progress of one action, for clients that show it; its cancel button cancels the task."""

    def __init__(self, ls: Server, title: str, task: asyncio.Task[Any] | None, draft_token: str | int | None) -> None:
        self._ls, self._title, self._task = ls, title, task
        self._draft_token = draft_token
        self._token: str | None = None
        self._percent = -1
        self.cancelled = False

    async def __aenter__(self) -> Progress:
        if self._ls.client.progress:
            token = f"stopgap-{uuid.uuid4()}"
            progress = self._ls.work_done_progress
            try:
                async with asyncio.timeout(PROGRESS_S):  # `wait_for` may lose a cancellation in Python 3.11
                    await progress.create_async(token)
            except (TimeoutError, JsonRpcException):
                return self
            progress.begin(token, lsp.WorkDoneProgressBegin(f"stopgap: {self._title}", cancellable=True, percentage=0))
            progress.tokens[token].add_done_callback(lambda _: self._cancel())
            self._token = token
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._token is not None:
            self._ls.work_done_progress.end(self._token, lsp.WorkDoneProgressEnd())
            self._ls.work_done_progress.tokens.pop(self._token, None)

    def _cancel(self) -> None:
        self.cancelled = True
        if self._task is not None:
            self._task.cancel()

    def watch(self, snapshot: Snapshot) -> Callable[[wire.FillFrame], None] | None:
        """A watcher of frames; None when nobody would see what it reports."""
        if self._token is None and self._draft_token is None:
            return None

        def on_frame(frame: wire.FillFrame) -> None:
            if isinstance(frame, wire.Progress):
                self._report(int(100 * frame.fraction), frame.what)
            elif isinstance(frame, wire.Draft):
                self._report(100 * frame.step // max(frame.max_steps, 1), f"step {frame.step}")
                if self._draft_token is not None:
                    self._ls.send_draft(snapshot, frame, self._draft_token)

        return on_frame

    def _report(self, percent: int, message: str) -> None:
        if self._token is not None and percent != self._percent:
            self._percent = percent
            report = lsp.WorkDoneProgressReport(message=message, percentage=min(percent, 100))
            self._ls.work_done_progress.report(self._token, report)
