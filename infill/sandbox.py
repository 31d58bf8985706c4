"""Runs model output in a confined process (cell.py) and says whether it ran to its end.

Knows nothing of problems or models. The only way this package ever executes text a model wrote.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

CELL = Path(__file__).with_name("cell.py")


class SandboxError(Exception):
    """Programs cannot be run safely here; `str()` is one line with the remedy."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program ended. `detail` is the exception or signal, for reading only."""

    how: Literal["passed", "failed", "timed out", "died"]
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.how == "passed"


class Sandbox:
    """A warm cell: one resident Python that forks a confined child per program.

    One program at a time, about 3 ms each plus its own running time. Owns a temporary folder (the child's
    working directory, which it cannot write to) and the resident process; `close` ends both.
    """

    def __init__(self, timeout_s: float = 3.0, memory: int = 512 << 20) -> None:
        """`memory` in bytes of address space per program. SandboxError where the kernel cannot confine it."""
        if not sys.platform.startswith("linux"):
            raise SandboxError("running fills needs Linux with seccomp; evaluate without execution here")
        self._arguments = (str(timeout_s), str(memory))
        self._folder = tempfile.TemporaryDirectory(prefix="stopgap-cell-")
        self._cell = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        cell = subprocess.Popen(
            [sys.executable, "-P", "-S", "-s", str(CELL), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1", "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        assert cell.stdout is not None
        hello = cell.stdout.readline()
        if not hello or json.loads(hello)["how"] != "passed":
            self._end(cell)
            self._folder.cleanup()
            raise SandboxError(
                "this kernel did not confine a test program (seccomp on x86-64 or arm64 is needed); "
                "evaluate without execution here"
            )
        return cell

    def run(self, program: str) -> Verdict:
        """Run `program` as a module of its own; passed means that its last line was reached in time."""
        assert self._cell.stdin is not None and self._cell.stdout is not None
        try:
            self._cell.stdin.write(json.dumps({"program": program}).encode() + b"\n")
            self._cell.stdin.flush()
            answer = self._cell.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer:
            return Verdict(**json.loads(answer))
        self._end(self._cell)  # the resident process itself was killed, by the system's memory guard say
        self._cell = self._start()
        return Verdict("died", "the cell ended and was started again")

    def close(self) -> None:
        self._end(self._cell)
        self._folder.cleanup()

    @staticmethod
    def _end(cell: subprocess.Popen[bytes]) -> None:
        cell.kill()
        cell.wait()
        for stream in (cell.stdin, cell.stdout):
            with contextlib.suppress(BrokenPipeError):  # an unsent program is of no use to anybody
                if stream is not None:
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
