"""How bytes get from client to daemon on this operating system, and the file lock both sides use.

Unix: a socket file of mode 0600 in a 0700 folder, and the peer's uid is checked. Windows: loopback TCP, the
socket file holds port and a random token, which the client sends first. The Windows half is UNTESTED: it is
written so that nothing outside this file has to know. Knows nothing of messages.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ABSENT = (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError)
"""What `connect` raises when no daemon listens, or one is going away right now."""

_TOKEN_BYTES = 32


async def connect(path: Path) -> Streams:
    """Opens a connection to the daemon listening at `path`; raises one of `ABSENT` if there is none."""
    if sys.platform == "win32":
        port, token = path.read_text(encoding="ascii").split()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(bytes.fromhex(token))
        return reader, writer
    return await asyncio.open_unix_connection(str(path))


async def listen(path: Path, accept: Accept) -> asyncio.Server:
    """Listens at `path`, which must not exist; the caller holds the lock and has removed a stale one."""
    if sys.platform == "win32":
        token = secrets.token_bytes(_TOKEN_BYTES)

        async def check(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                given = await asyncio.wait_for(reader.readexactly(_TOKEN_BYTES), 5)
            except (TimeoutError, asyncio.IncompleteReadError):
                given = b""
            if secrets.compare_digest(given, token):
                await accept(reader, writer)
            else:
                writer.close()

        server = await asyncio.start_server(check, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        path.write_text(f"{port} {token.hex()}", encoding="ascii")
        return server
    # umask, not chmod afterwards: between bind and chmod the socket would be open to whoever gets in.
    before = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(accept, str(path), backlog=128)
    finally:
        os.umask(before)


def peer_is_me(writer: asyncio.StreamWriter) -> bool:
    """Whether the process at the other end runs as this user."""
    if sys.platform == "win32":
        return True  # it knew the token
    sock: socket.socket = writer.get_extra_info("socket")
    if sys.platform == "darwin":  # LOCAL_PEERCRED: struct xucred {version, uid, …}; untested
        return bool(struct.unpack_from("II", sock.getsockopt(0, 1, 76))[1] == os.getuid())
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(uid == os.getuid())


class Lock:
    """An exclusive lock on a file; the kernel releases it when the holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        return self._file is not None

    def take(self) -> bool:
        """Takes the lock if nobody holds it and writes our pid into the file; never waits.

        Raises:
            OSError: the file cannot be made or written; its `filename` says which.
        """
        if self._file is not None:
            return True
        file = _locked(self._path)
        if file is None:
            return False
        try:
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode("ascii"))
        except OSError as error:  # a full disk
            file.close()
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        self._file = file
        return True

    def release(self) -> None:
        # The file stays: unlinking a lock file lets two processes lock two different inodes.
        if self._file is not None:
            self._file.close()
            self._file = None


def holder(path: Path) -> int | None:
    """The pid in a lock file that somebody holds; None if it is free."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    if file := _locked(path):
        file.close()
        return None
    return int(text) if text.isdigit() else None


def _locked(path: Path) -> IO[str] | None:
    """The file, locked until it is closed; None if somebody else holds it."""
    file = path.open("a+", encoding="ascii")
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(4096)  # beyond the pid: a locked byte cannot be read by others
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
