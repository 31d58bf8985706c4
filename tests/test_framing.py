"""Messages survive the framing exactly; everything else is a FrameError and nothing worse."""

from __future__ import annotations

import random
import struct
from typing import Any, get_args

import msgpack  # type: ignore[import-untyped]
import pytest

from stopgap.daemon import framing, wire

TIMELINE = wire.Timeline("ab12", "vim", "go", "a.go", "rewrite", 1.5, 20.0, "fill", "", (wire.Event(0.5, "queued"),))
MESSAGES: list[wire.Message] = [
    wire.Hello(1, "0.1.0", "abc", "vim"),
    wire.Fill(b"a\xff", "python", 0, 1, "body", "x.py", (wire.Snippet("y.py", "é"),), budget_ms=5.0, id=3),
    wire.Cancel(3),
    wire.Feedback(4, "partial", "python", 12),
    wire.StatusRequest(5),
    wire.Pause(6),
    wire.Resume(7),
    wire.Load(8),
    wire.Unload(9),
    wire.TraceRequest(10, 5, "ab12"),
    wire.StatsRequest(11),
    wire.Shutdown(12),
    wire.Welcome(1, "0.1.0", "abc", 99, "starter", "ready", "note"),
    wire.Draft(3, 1, 8, 0, 1, "retur", ((0, 3), (4, 5))),
    wire.Progress(3, "weights", 0.5),
    wire.Done(3, 0, 1, "block", (wire.Candidate("pass", -0.5),), events=(wire.Event(1.0, "gate"),), stopped="stable"),
    wire.Error(3, "busy", "wait", "ab12"),
    wire.Status(5, 99, "0.1.0", 1.0, "ready", "starter", "stopgap", "cpu", "float32", "reference", 10, 40, 0, 1, 0,
                False, ("python",), 1, 0, 0, 3, 1.0, 2.0, "/run/s", "/log", False),
    wire.Traces(10, (TIMELINE,)),
    wire.Stats(11, (wire.LanguageStats("go", 5, 2, 1, 1, 80),), (("fill", 5),), 1.0, 2.0),
    wire.Ok(12),
]  # fmt: skip


def body(message: wire.Message) -> bytes:
    return framing.encode(message)[4:]


def raw(**fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: wire.Message) -> None:
    assert framing.decode(body(message)) == message


def test_every_message_is_among_the_examples() -> None:
    assert {type(one) for one in MESSAGES} == {*get_args(wire.FromClient), *get_args(wire.FromDaemon)}


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 1000])
def test_frames_survive_any_cut_of_the_stream(chunk: int) -> None:
    stream = b"".join(map(framing.encode, MESSAGES))
    frames = framing.Frames()
    bodies = [one for at in range(0, len(stream), chunk) for one in frames.feed(stream[at : at + chunk])]
    assert [framing.decode(one) for one in bodies] == MESSAGES


def test_a_field_of_a_newer_peer_is_ignored() -> None:
    assert framing.decode(raw(type="Cancel", id=3, colour="red")) == wire.Cancel(3)


GOOD = {"type": "Fill", "source": b"", "language": "go", "start": 0, "end": 0}


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (b"\xc1", "not a msgpack frame"),
        (b"", "not a msgpack frame"),
        (msgpack.packb([1]), "not a message"),
        (msgpack.packb({"type": 3}), "not a message"),
        (b"\x91" * 100_000, "not a msgpack frame"),
        (b"\xdd\xff\xff\xff\xff", "not a msgpack frame"),
        (raw(type="Reboot", id=1), "unknown message type 'Reboot'"),
        (raw(type="Cancel"), "Cancel.id is missing"),
        (raw(type="Cancel", id="3"), "Cancel.id: int was expected, not str"),
        (raw(type="Cancel", id=True), "Cancel.id: int was expected, not bool"),
        (raw(**GOOD, kind="urgent"), "Fill.kind: one of interactive, rewrite"),
        (raw(**GOOD, kind=["rewrite"]), "Fill.kind: one of interactive, rewrite"),
        (raw(**GOOD, budget_ms=float("nan")), "Fill.budget_ms: a finite number"),
        (raw(**GOOD, path="x" * 4097), "Fill.path: 4097 bytes; the limit is 4096"),
        (raw(**GOOD, path="é" * 2049), "Fill.path: 4098 bytes; the limit is 4096"),
        (raw(**GOOD, snippets=[{"path": "a", "text": ""}] * 65), "Fill.snippets: an array of at most 64"),
        (raw(**GOOD, snippets=[3]), "Fill.snippets: a map was expected"),
        (raw(**{**GOOD, "source": bytes(wire.MAX_SOURCE + 1)}), "Fill.source: 4194305 bytes; the limit is 4194304"),
        (raw(**{**GOOD, "source": "text"}), "Fill.source: bytes was expected, not str"),
    ],
)
def test_what_is_not_declared_is_refused_with_its_place(frame: bytes, complaint: str) -> None:
    with pytest.raises(framing.FrameError) as caught:
        framing.decode(frame)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("length", [0, framing.MAX_FRAME + 1, 0xFFFFFFFF])
def test_an_impossible_length_is_refused_before_its_body_is_read(length: int) -> None:
    with pytest.raises(framing.FrameError):
        list(framing.Frames().feed(struct.pack(">I", length)))


def test_a_message_beyond_the_frame_limit_is_not_sent() -> None:
    with pytest.raises(framing.FrameError):
        framing.encode(wire.Fill(bytes(framing.MAX_FRAME), "go", 0, 0))


def test_garbage_is_a_frame_error_and_nothing_else() -> None:
    dice = random.Random(6)
    seeds = [body(message) for message in MESSAGES]
    survived = 0
    for _ in range(5000):
        broken = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(broken))
            match dice.randrange(4):
                case 0:
                    broken[at] = dice.randrange(256)
                case 1:
                    del broken[at:]
                case 2:
                    broken[at:at] = dice.randbytes(dice.randint(1, 9))
                case _:
                    broken += broken[at:]
            if not broken:
                break
        try:
            framing.decode(bytes(broken))
            survived += 1
        except framing.FrameError as error:
            assert "\n" not in str(error)
    assert 0 < survived < 5000
