"""The process that runs what a model wrote: one fork per program, confined before its first line.

Started by `sandbox.Sandbox` as a script (`python -P -S -s cell.py`), so it imports only the standard library.
Knows nothing of problems, models or clocks: programs come in on stdin, verdicts go out on stdout, one JSON
object per line each way.

A confined child may compute, allocate up to its limit, and read files (the standard library has to be
imported). The kernel refuses everything else with EACCES: sockets, new processes and threads, signals to
others, and every open that could write, create or truncate. This is a seccomp allow-list (seccomp(2)), so a
system call nobody thought of is refused, and it needs no root, no namespaces and no container.

A program passes only if it ran past its last line: the child then writes a word that was drawn for this run.
`sys.exit(0)`, `os._exit(0)`, a crash or a kill never reach that line. (A program written to hunt for the word
in the frames above it could; this guards against bad code, not against an attacker.)
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import platform
import resource
import secrets
import select
import signal
import struct
import sys

READS_ONLY = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000  # WRONLY, RDWR, CREAT, TRUNC, APPEND: none may be set

TABLE = """
read 0 63, write 1 64, close 3 57, lseek 8 62, pread64 17 67, dup 32 23, fcntl 72 25
mmap 9 222, mprotect 10 226, munmap 11 215, brk 12 214, mremap 25 216, madvise 28 233
stat 4 -, lstat 6 -, fstat 5 80, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48
faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents64 217 61, getcwd 79 17
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132
getpid 39 172, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101
time 201 -, gettimeofday 96 169, times 100 153, getrusage 98 165, poll 7 -, ppoll 271 73
select 23 -, pselect6 270 72, futex 202 98, sched_yield 24 124, sched_getaffinity 204 123
restart_syscall 219 128, getrandom 318 278, uname 63 160, sysinfo 99 179, exit 60 93, exit_group 231 94
"""
"""What a child may call: name, number on x86-64, on arm64 (`asm/unistd.h`). `openat` is looked at apart."""

ROWS = [row.split() for row in TABLE.replace("\n", ",").split(",") if row.strip()]
CALLS = {
    machine: [int(row[column]) for row in ROWS if row[column] != "-"]
    for column, machine in ((1, "x86_64"), (2, "aarch64"))
}
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
OPENAT = {"x86_64": 257, "aarch64": 56}

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EACCES, 0x80000000
LOAD, EQUAL, SET, RETURN = 0x20, 0x15, 0x45, 0x06
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER_MODE = 1, 38, 22, 2


def seccomp_filter(machine: str) -> bytes:
    """The allow-list as a classic BPF program over `struct seccomp_data` (nr at 0, arch at 4, args at 16).

    Every jump is at most one instruction long, so the program can be read top to bottom.
    """

    def ins(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    out = [ins(LOAD, 4), ins(EQUAL, ARCHITECTURE[machine], yes=1), ins(RETURN, KILL), ins(LOAD, 0)]
    for call in CALLS[machine]:
        out += [ins(EQUAL, call, no=1), ins(RETURN, ALLOW)]
    out += [ins(EQUAL, OPENAT[machine], yes=1), ins(RETURN, REFUSE), ins(LOAD, 16 + 8 * 2)]
    out += [ins(SET, READS_ONLY, no=1), ins(RETURN, REFUSE), ins(RETURN, ALLOW)]
    return b"".join(out)


PROBE = """
import os, socket
for escape in (socket.socket, os.fork, lambda: open("probe", "w")):
    try:
        escape()
    except PermissionError:
        continue
    raise SystemExit("not confined")
"""
"""Run before anything else: a machine whose kernel lets this through is not used."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def confine(memory: int, seconds: int) -> None:
    """Give up everything but computing and reading, for good. OSError where the kernel cannot promise it.

    `memory` in bytes of address space, `seconds` of processor time.
    """
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    libc = ctypes.CDLL(None, use_errno=True)
    code = seccomp_filter(platform.machine())
    program = _Program(len(code) // 8, ctypes.cast(ctypes.c_char_p(code), ctypes.c_void_p))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_NO_NEW_PRIVS")
    if libc.prctl(PR_SET_SECCOMP, FILTER_MODE, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_SECCOMP")


def run_child(program: str, word: str, answer: int, memory: int, seconds: int) -> None:
    """Run one program to its end and write `word` (or what stopped it) to `answer`; never returns."""
    said = word
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.dup2(answer, 3)
        os.closerange(4, 256)
        confine(memory, seconds)
        exec(compile(program, "<program>", "exec"), {})
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures of the program too
        said = f"{type(error).__name__}: {error}"[:300]
    os.write(3, said.encode("utf-8", "replace"))
    os._exit(0)


def judge(program: str, timeout: float, memory: int) -> dict[str, str]:
    """Fork, wait at most `timeout` seconds, kill the child's whole session, and say how it ended."""
    word = secrets.token_hex(16)
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        run_child(program, word, writes, memory, math.ceil(timeout) + 1)
    os.close(writes)
    answered = bool(select.select([reads], [], [], timeout)[0])
    said = os.read(reads, 4096).decode("utf-8", "replace") if answered else ""
    os.close(reads)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # not a session leader yet, or gone already
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not answered:
        return {"how": "timed out", "detail": f"still running after {timeout:g} s"}
    if said == word:
        return {"how": "passed", "detail": ""}
    if said:
        return {"how": "failed", "detail": said}
    code = os.waitstatus_to_exitcode(status)
    how = signal.Signals(-code).name if code < 0 else f"exit {code} before the end"
    return {"how": "died", "detail": how}


def main() -> None:
    """Serve programs until stdin closes: `{"program": …}` in, `{"how": …, "detail": …}` out."""
    timeout, memory = float(sys.argv[1]), int(sys.argv[2])
    sys.dont_write_bytecode = True
    hello = judge(PROBE, timeout, memory) if platform.machine() in CALLS else {"how": "unknown processor"}
    print(json.dumps(hello), flush=True)
    for line in sys.stdin.buffer:
        print(json.dumps(judge(json.loads(line)["program"], timeout, memory)), flush=True)


if __name__ == "__main__":
    main()
