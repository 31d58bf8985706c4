"""How messages become bytes and come back: the framing, and the check of every field against its declaration.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one map with the message's name under `type`.
Unknown fields are ignored, so that a newer peer of the same protocol may add some; anything else that is not exactly
as `wire` declares it is a `FrameError`.

Knows no message by name, no sockets and no asyncio: standard library and the codec only.
"""

from __future__ import annotations

import functools
import math
import struct
import types
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgpack  # type: ignore[import-untyped]

from . import wire

MAX_FRAME = 12 * 1024 * 1024
"""Bytes of one frame: a full source, the snippets, and room."""
MAX_CONTAINER = 100_000
"""Elements of one array: a frame of 12 MB could otherwise unpack to a hundred times as much memory."""


class FrameError(Exception):
    """A frame that is not ours; `str()` is one line."""


_BY_NAME: dict[str, type] = {cls.__name__: cls for cls in get_args(wire.Message)}
_Check = Callable[[Any, str], Any]


def encode(message: wire.Message) -> bytes:
    """The frame of one message, length included.

    Raises:
        FrameError: the peer would refuse it, and close the connection with everything else that is on it.
    """
    body = cast(bytes, msgpack.packb({"type": type(message).__name__, **_pack(message)}))
    if len(body) > MAX_FRAME:
        raise FrameError(f"a {type(message).__name__} of {len(body)} bytes; the limit is {MAX_FRAME}")
    decode(body)
    return struct.pack(">I", len(body)) + body


def decode(body: bytes | memoryview) -> wire.Message:
    """The message in one frame's body, every field checked against its declaration.

    Raises:
        FrameError: not msgpack, not a message, a missing, ill-typed or oversized field.
    """
    try:
        value = msgpack.unpackb(body, max_array_len=MAX_CONTAINER, max_map_len=1024, max_ext_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise FrameError(f"not a msgpack frame ({type(error).__name__})") from None
    if not isinstance(value, dict) or not isinstance(name := value.get("type"), str):
        raise FrameError("not a message: a map with a `type` was expected")
    cls = _BY_NAME.get(name)
    if cls is None:
        raise FrameError(f"unknown message type {name[:40]!r}")
    return cast(wire.Message, _unpack(cls, value, name))


class Frames:
    """Cuts a byte stream into frame bodies, however it arrives; holds at most one frame and one read."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Every body completed by `data`.

        Raises:
            FrameError: a length of zero or beyond `MAX_FRAME`, before any of that body is kept.
        """
        self._buffer += data
        while len(self._buffer) >= 4:
            (length,) = struct.unpack_from(">I", self._buffer)
            if not 0 < length <= MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes; the limit is {MAX_FRAME}")
            if len(self._buffer) < 4 + length:
                return
            body = bytes(memoryview(self._buffer)[4 : 4 + length])
            del self._buffer[: 4 + length]
            yield body


def _pack(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _pack(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_pack(item) for item in value]
    return value


def _unpack(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise FrameError(f"{where}: a map was expected")
    given: dict[str, Any] = {}
    for name, (check, required) in _fields(cls).items():
        if name in value:
            given[name] = check(value[name], f"{where}.{name}")
        elif required:
            raise FrameError(f"{where}.{name} is missing")
    return cls(**given)


def _check(annotation: Any, limit: int | None = None) -> _Check:
    """A function that returns the value as declared by `annotation` or raises `FrameError`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _check(args[0], args[1].size)
    if origin is Literal:
        return _literal(frozenset(args))
    if origin in {Union, types.UnionType}:
        inner = _check(next(arg for arg in args if arg is not types.NoneType))
        return lambda value, where: None if value is None else inner(value, where)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return _array(_check(args[0]), limit or MAX_CONTAINER)
        return _pair(tuple(_check(arg) for arg in args))
    if is_dataclass(annotation):
        return lambda value, where: _unpack(cast(type, annotation), value, where)
    return _scalar(annotation, limit)


def _literal(allowed: frozenset[Any]) -> _Check:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, str) or value not in allowed:
            raise FrameError(f"{where}: one of {', '.join(sorted(allowed))} was expected")
        return value

    return check


def _array(item: _Check, limit: int) -> _Check:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list) or len(value) > limit:
            raise FrameError(f"{where}: an array of at most {limit} was expected")
        return tuple([item(element, where) for element in value])

    return check


def _pair(items: tuple[_Check, ...]) -> _Check:
    def check(value: Any, where: str) -> Any:
        if not isinstance(value, list) or len(value) != len(items):
            raise FrameError(f"{where}: {len(items)} elements were expected")
        return tuple([item(element, where) for item, element in zip(items, value, strict=True)])

    return check


def _scalar(kind: Any, limit: int | None) -> _Check:
    def check(value: Any, where: str) -> Any:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise FrameError(f"{where}: {kind.__name__} was expected, not {type(value).__name__}")
        if kind is float and not math.isfinite(value):
            raise FrameError(f"{where}: a finite number was expected")
        if limit is not None and len(value) > limit // 4:
            size = len(value) if kind is bytes else len(value.encode("utf-8", "surrogatepass"))
            if size > limit:
                raise FrameError(f"{where}: {size} bytes; the limit is {limit}")
        return value

    return check


@functools.cache
def _fields(cls: type) -> dict[str, tuple[_Check, bool]]:
    """For each field of a message its check and whether it must be there; made at first use, which a command saves."""
    hints = get_type_hints(cls, include_extras=True)
    return {item.name: (_check(hints[item.name]), item.default is MISSING) for item in fields(cast(Any, cls))}
