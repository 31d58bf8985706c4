"""What holds for every request: the text it is about, its order, its cancellation; ghost text stands for all."""

import asyncio
import zlib

from lsp_editor import Editor, echo, forever

from stopgap.daemon import wire


def test_a_request_that_cannot_be_read_is_answered_and_the_next_one_works(editor: Editor) -> None:
    place = editor.open("y = |\n")
    broken = editor.client.ask("textDocument/inlineCompletion", {"textDocument": 3})
    assert editor.client.reply(broken)["error"]["code"] == -32602
    assert editor.ghosts(place)
    assert editor.messages() == []


def test_a_cancelled_request_is_cancelled_in_the_daemon(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.daemon.answer = forever
    request = editor.inline(place)
    editor.client.until(lambda: editor.daemon.fills)
    editor.client.send("$/cancelRequest", {"id": request})
    assert editor.client.reply(request)["error"]["code"] == -32800
    editor.client.until(lambda: editor.daemon.cancelled)


def test_a_superseded_request_gets_null_before_the_new_one_gets_its_answer(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.daemon.answer = forever
    old = editor.inline(place)
    editor.client.until(lambda: editor.daemon.fills)
    editor.daemon.answer = echo
    new = editor.inline(editor.type(place, "f"))
    assert editor.client.reply(new)["result"]
    assert editor.client.reply(old)["result"] is None
    assert editor.client.order.index(old) < editor.client.order.index(new)


def test_an_answer_for_a_text_that_has_changed_is_null(editor: Editor) -> None:
    place = editor.open("y = |\n")
    release: list[asyncio.Event] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def late(fill: wire.Fill) -> wire.Done:
        release.append(asyncio.Event())
        loops.append(asyncio.get_running_loop())
        await release[0].wait()
        return echo(fill)

    editor.daemon.answer = late
    request = editor.inline(place)
    editor.client.until(lambda: release)
    editor.type(place, "f")
    editor.client.call("stopgap/why", {})  # the change has been read
    loops[0].call_soon_threadsafe(release[0].set)
    assert editor.client.reply(request)["result"] is None


def test_a_request_is_about_the_text_at_its_arrival(editor: Editor) -> None:
    place = editor.open("y = |\n")
    with editor.client.burst():
        old = editor.inline(place)
        new = editor.inline(editor.type(place, "(a, "))
    (item,) = editor.client.reply(new)["result"]
    assert item["insertText"].startswith("y = (a, v")
    assert editor.client.reply(old)["result"] is None
    assert [fill.source for fill in editor.daemon.fills] == [b"y = (a, \n"]


def test_while_a_fill_is_made_everything_else_is_answered(editor: Editor) -> None:
    place = editor.open("def f(a):\n    pass\n\n\ny = |\n")
    editor.daemon.answer = forever
    pending = editor.inline(place)
    editor.client.until(lambda: editor.daemon.fills)
    assert editor.action("Fill this hole", {"line": 1, "character": 6})
    assert editor.client.call("stopgap/status", {})["state"] == "ready"
    for character in "foo(":
        place = editor.type(place, character)
    assert editor.action("Repair syntax here", place)
    editor.daemon.answer = echo
    (item,) = editor.ghosts(place) or []
    assert item["insertText"].startswith("y = foo(v")
    assert editor.client.reply(pending)["result"] is None


def test_of_a_huge_file_the_part_around_the_cursor_is_sent(editor: Editor) -> None:
    filler = "# a line of a file that a program wrote\n" * 30_000
    editor.answers("1")
    place = editor.open(f"{filler}y = |\n{filler}", language="text")
    assert editor.ghosts(place, kind=1) == []  # no grammar, so nothing could be checked
    place = editor.open(f"{filler}y = |\n{filler}")
    (item,) = editor.ghosts(place) or []
    assert (item["insertText"], item["range"]["end"]) == ("y = 1", place)
    (fill,) = editor.daemon.fills
    assert len(fill.source) < 512 * 1024
    assert fill.source[: fill.start].endswith(b"\ny = ")
    assert fill.source[fill.end :].startswith(b"\n# a line")


def test_positions_count_utf_16_units(editor: Editor) -> None:
    place = editor.open("s = '😀'; y = |\n")
    (item,) = editor.ghosts(place) or []
    assert item["range"]["end"] == {"line": 0, "character": 14}
    place = editor.type(place, "é😀")
    (item,) = editor.ghosts(place) or []
    assert item["insertText"].startswith("s = '😀'; y = é😀v")


def test_crlf_is_kept(editor: Editor) -> None:
    editor.open("if x:\r\n    \r\ny\r\n")
    editor.answers("a = 1\n    b = 2")
    (item,) = editor.ghosts({"line": 1, "character": 4}) or []
    assert item["insertText"] == "    a = 1\r\n    b = 2"


def test_a_form_feed_does_not_end_a_line(editor: Editor) -> None:
    editor.open("a = 1\f\nb = 2\n\f\ny = \n")
    place = editor.type({"line": 3, "character": 4}, "1 + ")
    (item,) = editor.ghosts(place) or []
    expected = b"a = 1\f\nb = 2\n\f\ny = 1 + \n"
    assert item["insertText"] == f"y = 1 + v{zlib.crc32(expected):08x}_{len(expected) - 1}"


def test_a_document_that_is_not_open_is_answered(editor: Editor) -> None:
    editor.uri = "untitled:never"
    assert editor.ghosts({"line": 0, "character": 0}) == []


def test_a_cell_of_a_notebook_is_a_document(editor: Editor) -> None:
    cell = "vscode-notebook-cell:/w/n.ipynb#W0"
    item = {"uri": cell, "languageId": "python", "version": 1, "text": "y = \n"}
    notebook = {"uri": "file:///w/n.ipynb", "notebookType": "jupyter-notebook", "version": 1}
    notebook["cells"] = [{"kind": 2, "document": cell}]  # type: ignore[assignment]
    editor.client.send("notebookDocument/didOpen", {"notebookDocument": notebook, "cellTextDocuments": [item]})
    place = {"line": 0, "character": 4}
    change = {"range": {"start": place, "end": place}, "text": "z + "}
    contents = [{"document": {"uri": cell, "version": 2}, "changes": [change]}]
    editor.client.send(
        "notebookDocument/didChange",
        {
            "notebookDocument": {"uri": "file:///w/n.ipynb", "version": 2},
            "change": {"cells": {"textContent": contents}},
        },
    )
    editor.uri = cell
    (item_,) = editor.ghosts({"line": 0, "character": 8}) or []
    assert item_["insertText"].startswith("y = z + v")


def test_a_daemon_that_fails_is_silence(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.daemon.answer = lambda fill: wire.Error(fill.id, "crashed", "the engine failed")
    assert editor.ghosts(place) == []
    assert editor.messages() == []
    assert "the engine failed" in editor.client.call("stopgap/why", {})["lines"][-2]
