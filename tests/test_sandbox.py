"""What a confined program can and cannot do, with real programs in a real cell."""

import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stopgap.infill import cell as cell_process
from stopgap.infill.sandbox import Sandbox, SandboxError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the cell needs seccomp")


@pytest.fixture(scope="module")
def cell() -> Iterator[Sandbox]:
    with Sandbox(timeout_s=0.5, memory=256 << 20) as sandbox:
        yield sandbox


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "kept.txt"
    path.write_text("kept")
    return path


@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert sum(range(10)) == 45",
        "import collections, dataclasses, hashlib, heapq, itertools, json, math, random, re, typing",
        "import sys\nprint('x' * 100_000)\nsys.stderr.write('y' * 100_000)",
        "x = list(range(1_000_000))",
        "import os\nassert open(os.__file__).read(6)",
        "import sys\nassert sys.stdin is None or sys.stdin.read() == ''",
    ],
)
def test_a_program_that_reaches_its_end_passes(cell: Sandbox, program: str) -> None:
    assert cell.run(program).passed


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("assert 1 == 2", "failed"),
        ("def f(:", "failed"),
        ("raise SystemExit(0)", "failed"),
        ("import sys\nsys.exit(0)", "failed"),
        ("import os\nos._exit(0)", "died"),
        ("import os\nos.write(3, b'passed')", "failed"),
        ("def f(): f()\nf()", "failed"),
        ("import ctypes\nctypes.string_at(0)", "died"),
        ("while True: pass", "timed out"),
        ("import time\ntime.sleep(60)", "timed out"),
        ("try:\n    raise ValueError\nexcept ValueError:\n    raise KeyboardInterrupt", "failed"),
    ],
)
def test_a_program_that_does_not_reach_its_end_fails(cell: Sandbox, program: str, how: str) -> None:
    assert cell.run(program).how == how


@pytest.mark.parametrize("program", ["x = 'a' * (1 << 33)", "x = []\nwhile True: x.append(bytes(1 << 20))"])
def test_memory_has_an_end(cell: Sandbox, program: str) -> None:
    verdict = cell.run(program)
    assert verdict.how == "failed" and "MemoryError" in verdict.detail


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.fork()",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.execv('/bin/true', ['true'])",
        "import subprocess\nsubprocess.run(['true'])",
        "import socket\nsocket.socket()",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "import socket\nsocket.socketpair()",
        "import os\nos.kill(os.getppid(), 9)",
        "import os\nos.symlink('a', 'b')",
        "import os\nos.mkdir('here')",
        "open('here', 'w')",
        "open('/dev/shm/here', 'a')",
    ],
)
def test_a_program_can_only_compute_and_read(cell: Sandbox, program: str) -> None:
    verdict = cell.run(program)
    assert verdict.how == "failed" and verdict.detail.startswith("PermissionError")


def test_no_thread_starts(cell: Sandbox) -> None:
    verdict = cell.run("import threading\nthreading.Thread(target=print).start()")
    assert verdict.how == "failed" and "can't start new thread" in verdict.detail


@pytest.mark.parametrize(
    "action",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a').write('x')",
        "open({path!r}, 'r+').write('x')",
        "import os\nos.open({path!r}, os.O_RDONLY | os.O_TRUNC)",
        "import os\nos.truncate({path!r}, 0)",
        "import os\nos.unlink({path!r})",
        "import os\nos.rename({path!r}, {path!r} + '2')",
        "import os\nos.chmod({path!r}, 0)",
    ],
)
def test_files_outside_are_left_alone(cell: Sandbox, outside: Path, action: str) -> None:
    before = outside.stat()
    assert not cell.run(action.format(path=str(outside))).passed
    assert outside.read_text() == "kept" and outside.stat().st_mode == before.st_mode
    assert [path.name for path in outside.parent.iterdir()] == ["kept.txt"]


def test_one_program_leaves_nothing_behind_for_the_next(cell: Sandbox) -> None:
    assert cell.run("import builtins, math\nbuiltins.leak = math.leak = 1").passed
    assert cell.run("import math\nassert not hasattr(math, 'leak')\nleak").detail.startswith("NameError")


def test_hashes_do_not_depend_on_the_run(cell: Sandbox) -> None:
    with Sandbox(timeout_s=0.5) as other:
        seen = {box.run("raise ValueError(hash('stopgap'))").detail for box in (cell, other)}
    assert len(seen) == 1


def test_the_environment_of_the_caller_is_not_handed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    with Sandbox(timeout_s=0.5) as fresh:
        assert fresh.run("import os\nassert 'SECRET_TOKEN' not in os.environ").passed


def test_a_killed_cell_is_started_again() -> None:
    with Sandbox(timeout_s=0.5) as sandbox:
        sandbox._cell.kill()
        sandbox._cell.wait()
        assert sandbox.run("pass").how == "died"
        assert sandbox.run("pass").passed


def test_nothing_runs_where_the_system_cannot_confine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SandboxError, match="without execution"):
        Sandbox()


def test_nothing_runs_when_the_probe_escapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lax = tmp_path / "cell.py"
    lax.write_text('print(\'{"how": "failed"}\', flush=True)\nimport sys\nsys.stdin.read()\n')
    monkeypatch.setattr("stopgap.infill.sandbox.CELL", lax)
    with pytest.raises(SandboxError, match="did not confine"):
        Sandbox()


def test_closing_ends_the_process_and_its_folder() -> None:
    sandbox = Sandbox(timeout_s=0.5)
    folder, pid = Path(sandbox._folder.name), sandbox._cell.pid
    sandbox.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def decide(code: bytes, arch: int, call: int, flags: int = 0) -> int:
    """What the kernel would answer: the classic BPF machine, as far as the filter uses it."""
    program, at, value = list(struct.iter_unpack("=HBBI", code)), 0, 0
    data = struct.pack("=iIQ6Q", call, arch, 0, 0, 0, flags, 0, 0, 0)
    while True:
        operation, yes, no, k = program[at]
        at += 1
        if operation == cell_process.RETURN:
            return int(k)
        if operation == cell_process.LOAD:
            (value,) = struct.unpack_from("=I", data, k)
        else:
            at += yes if (value == k if operation == cell_process.EQUAL else value & k) else no


@pytest.mark.parametrize(
    ("machine", "refused"),
    [
        ("x86_64", {"socket": 41, "clone": 56, "fork": 57, "execve": 59, "ptrace": 101, "openat2": 437}),
        ("aarch64", {"socket": 198, "clone": 220, "execve": 221, "ptrace": 117, "openat2": 437}),
    ],
)
def test_the_filter_reads_the_same_on_both_processors(machine: str, refused: dict[str, int]) -> None:
    code, arch = cell_process.seccomp_filter(machine), cell_process.ARCHITECTURE[machine]
    assert {decide(code, arch, call) for call in refused.values()} == {cell_process.REFUSE}
    assert {decide(code, arch, call) for call in cell_process.CALLS[machine]} == {cell_process.ALLOW}
    openat = cell_process.OPENAT[machine]
    assert decide(code, arch, openat, os.O_RDONLY | os.O_CLOEXEC) == cell_process.ALLOW
    for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND):
        assert decide(code, arch, openat, flag) == cell_process.REFUSE
    assert decide(code, arch ^ 1, 0) == cell_process.KILL


def test_a_call_through_the_32_bit_door_is_refused() -> None:
    code = cell_process.seccomp_filter("x86_64")
    assert decide(code, cell_process.ARCHITECTURE["x86_64"], 0x40000000 | 1) == cell_process.REFUSE
