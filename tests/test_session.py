"""Whose turn it is: superseded, joined, cancelled, prepared. A daemon that answers when the test says so."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace

import pytest

from stopgap.daemon import wire
from stopgap.lsp.document import Documents
from stopgap.lsp.ghost import Ghost
from stopgap.lsp.session import WHOLE_FILE, WINDOW, Query, Session, window

URI = "file:///a.py"


class SlowFills:
    """Every fill waits for `answer`; cancelled ones are remembered."""

    def __init__(self) -> None:
        self.asked: list[wire.Fill] = []
        self.cancelled: list[bytes] = []
        self._waiting: dict[int, asyncio.Future[wire.Done | wire.Error]] = {}

    async def fill(
        self, request: wire.Fill, watch: Callable[[wire.FillFrame], None] | None = None
    ) -> wire.Done | wire.Error:
        number = len(self.asked)
        self.asked.append(request)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            return await self._waiting[number]
        except asyncio.CancelledError:
            self.cancelled.append(request.source)
            raise

    async def answer(self, number: int, *texts: str, stopped: str = "stable") -> None:
        request = self.asked[number]
        fills = tuple(wire.Candidate(text, -0.1) for text in texts)
        done = wire.Done(number + 1, request.start, request.end, "line", fills)
        self._waiting[number].set_result(replace(done, stopped=stopped))  # type: ignore[arg-type]
        await settle()

    async def fail(self, number: int) -> None:
        self._waiting[number].set_result(wire.Error(1, "disconnected", "gone"))
        await settle()


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


class Desk:
    """A session with one open document."""

    def __init__(self, text: str = "") -> None:
        self.documents = Documents()
        self.fills = SlowFills()
        self.reasons: list[str] = []
        self.session = Session(self.documents, self.fills, lambda uri, why: self.reasons.append(why))
        self.documents.open(URI, 1, "python", text)

    def query(self, prepare: bool = False, wanted: int = 1) -> Query:
        snapshot = self.documents.get(URI)
        assert snapshot is not None
        end = len(snapshot.data)
        return Query(URI, snapshot.version, snapshot.data, end, "python", prepare_next=prepare, wanted=wanted)

    def ask(self, prepare: bool = False, wanted: int = 1) -> "asyncio.Task[tuple[Ghost, ...] | None]":
        return asyncio.create_task(self.session.ask(self.query(prepare, wanted)))

    def type(self, text: str) -> None:
        before = self.documents.get(URI)
        assert before is not None
        where = before.position(len(before.data), "utf-16")
        self.documents.change(URI, before.version + 1, [((where, where), text)])


def run(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    def plain() -> None:
        asyncio.run(test())

    plain.__name__ = test.__name__
    return plain


def texts(task: "asyncio.Task[tuple[Ghost, ...] | None]") -> list[str] | None:
    found = task.result()
    return None if found is None else [ghost.insert.decode() for ghost in found]


@run
async def test_an_answer_comes_back() -> None:
    desk = Desk("x = ")
    task = desk.ask()
    await settle()
    await desk.fills.answer(0, "1")
    assert texts(task) == ["1"]


@run
async def test_a_superseded_request_gets_none_and_its_fill_is_cancelled() -> None:
    desk = Desk("x = ")
    old = desk.ask()
    await settle()
    desk.type("f")
    new = desk.ask()
    await settle()
    assert texts(old) is None
    assert desk.fills.cancelled == [b"x = "]
    await desk.fills.answer(1, "oo")
    assert texts(new) == ["oo"]


@run
async def test_an_old_answer_never_follows_a_new_one() -> None:
    desk = Desk("x = ")
    order: list[str] = []
    old = desk.ask()
    old.add_done_callback(lambda _: order.append("old"))
    await settle()
    new = desk.ask(wanted=3)
    new.add_done_callback(lambda _: order.append("new"))
    await settle()
    await desk.fills.answer(1, "1", "2", "3")
    assert order == ["old", "new"]
    assert texts(old) is None


@run
async def test_an_answer_to_an_older_version_is_withheld_but_remembered() -> None:
    desk = Desk("x = ")
    task = desk.ask()
    await settle()
    desk.type("f")
    await desk.fills.answer(0, "foo")
    assert texts(task) is None
    again = desk.ask()
    await settle()
    assert texts(again) == ["oo"]
    assert len(desk.fills.asked) == 1


@run
async def test_typing_along_is_answered_without_the_daemon() -> None:
    desk = Desk("x = ")
    first = desk.ask()
    await settle()
    await desk.fills.answer(0, "foo(1)")
    assert texts(first) == ["foo(1)"]
    for typed, rest in [("f", "oo(1)"), ("oo", "(1)"), ("(", "1)")]:
        desk.type(typed)
        task = desk.ask()
        await settle()
        assert texts(task) == [rest]
    assert len(desk.fills.asked) == 1


@run
async def test_typing_something_else_asks_anew() -> None:
    desk = Desk("x = ")
    task = desk.ask()
    await settle()
    await desk.fills.answer(0, "foo")
    desk.type("b")
    task = desk.ask()
    await settle()
    await desk.fills.answer(1, "ar")
    assert texts(task) == ["ar"]


@run
async def test_two_requests_for_the_same_place_share_one_fill() -> None:
    desk = Desk("x = ")
    old, new = desk.ask(), desk.ask()
    await settle()
    await desk.fills.answer(0, "1")
    assert (texts(old), texts(new)) == (None, ["1"])
    assert len(desk.fills.asked) == 1


@run
async def test_cancelling_a_request_cancels_its_fill() -> None:
    desk = Desk("x = ")
    task = desk.ask()
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()
    assert desk.fills.cancelled == [b"x = "]


@run
async def test_cancelling_an_overtaken_request_leaves_the_one_that_joined_it() -> None:
    desk = Desk("x = ")
    old, new = desk.ask(), desk.ask()
    await settle()
    old.cancel()
    await settle()
    await desk.fills.answer(0, "1")
    assert texts(new) == ["1"]
    assert desk.fills.cancelled == []


@run
async def test_documents_do_not_overtake_each_other() -> None:
    desk = Desk("x = ")
    desk.documents.open("file:///b.py", 1, "python", "y = ")
    mine = desk.ask()
    other = asyncio.create_task(desk.session.ask(replace(desk.query(), uri="file:///b.py", data=b"y = ")))
    await settle()
    await desk.fills.answer(0, "1")
    await desk.fills.answer(1, "2")
    assert (texts(mine), texts(other)) == (["1"], ["2"])


@run
async def test_closing_a_document_drops_its_request() -> None:
    desk = Desk("x = ")
    task = desk.ask()
    await settle()
    desk.session.forget(URI)
    desk.documents.close(URI)
    await settle()
    assert texts(task) is None
    assert desk.fills.cancelled == [b"x = "]


@run
async def test_a_daemon_that_is_gone_is_silence_and_is_not_remembered() -> None:
    desk = Desk("x = ")
    task = desk.ask()
    await settle()
    await desk.fills.fail(0)
    assert texts(task) == []
    assert desk.reasons == ["gone"]
    again = desk.ask()
    await settle()
    await desk.fills.answer(1, "1")
    assert texts(again) == ["1"]


@run
async def test_that_nothing_was_found_is_remembered() -> None:
    desk = Desk("x = ")
    for _ in range(2):
        task = desk.ask()
        await settle()
        if len(desk.fills.asked) == 1 and not task.done():
            await desk.fills.answer(0)
        assert texts(task) == []
    assert len(desk.fills.asked) == 1


@run
async def test_the_next_fill_is_prepared_while_the_user_reads() -> None:
    desk = Desk("x = ")
    task = desk.ask(prepare=True)
    await settle()
    await desk.fills.answer(0, "foo(1)")
    assert texts(task) == ["foo(1)"]
    assert (desk.fills.asked[1].source, desk.fills.asked[1].kind) == (b"x = foo(1)", "rewrite")
    await desk.fills.answer(1, " + bar")
    desk.type("foo(1)")
    task = desk.ask(prepare=True)
    await settle()
    assert texts(task) == [" + bar"]


@run
async def test_a_text_accepted_early_waits_for_what_is_being_prepared() -> None:
    desk = Desk("x = ")
    desk.ask(prepare=True)
    await settle()
    await desk.fills.answer(0, "foo")
    desk.type("foo")
    task = desk.ask(prepare=True)
    await settle()
    assert not task.done()
    await desk.fills.answer(1, "(1)")
    assert texts(task) == ["(1)"]
    assert desk.fills.cancelled == []


@run
async def test_what_is_prepared_for_a_text_that_was_not_taken_is_cancelled() -> None:
    desk = Desk("x = ")
    desk.ask(prepare=True)
    await settle()
    await desk.fills.answer(0, "foo")
    desk.type("b")
    desk.ask(prepare=True)
    await settle()
    assert desk.fills.cancelled == [b"x = foo"]


@run
async def test_several_are_different_from_each_other() -> None:
    desk = Desk("x = ")
    task = desk.ask(wanted=3)
    await settle()
    await desk.fills.answer(0, "1", "1", "2")
    assert texts(task) == ["1", "2"]


@run
async def test_that_nothing_was_found_in_time_is_not_remembered() -> None:
    desk = Desk("x = ")
    for number, stopped in enumerate(["cancelled", "budget", "stable"]):
        task = desk.ask()
        await settle()
        await desk.fills.answer(number, stopped=stopped)
        assert texts(task) == []


@run
async def test_quiet_overtakes_what_was_asked_before() -> None:
    desk = Desk("x = ")
    task = desk.ask()
    await settle()
    desk.session.overtake(URI)
    await settle()
    assert texts(task) is None


def test_small_files_are_sent_whole() -> None:
    assert window(b"x\n" * 100, 50) == (0, b"x\n" * 100)


@pytest.mark.parametrize("line", [b"x = 1\n", b"\xc3\xa9" * 200_000 + b"\n"])
@pytest.mark.parametrize("where", [0.0, 0.3, 1.0])
def test_large_files_are_cut_around_the_cursor(line: bytes, where: float) -> None:
    data = line * (2 * WHOLE_FILE // len(line))
    cursor = int(where * len(data))
    while cursor < len(data) and data[cursor] & 0xC0 == 0x80:
        cursor -= 1
    offset, part = window(data, cursor)
    assert data[offset : offset + len(part)] == part
    assert offset <= cursor <= offset + len(part)
    assert len(part) <= 2 * WINDOW
    part.decode()
