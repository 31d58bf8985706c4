"""The server as a process, over its real pipes, with a fake daemon behind a real socket."""

import asyncio
import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from fake_daemon import FakeDaemon, done
from lsp_client import LspClient, position

from stopgap.daemon import wire

CAPABILITIES = {
    "general": {"positionEncodings": ["utf-16"]},
    "notebookDocument": {"synchronization": {}},
    "textDocument": {
        "inlineCompletion": {},
        "codeAction": {
            "codeActionLiteralSupport": {"codeActionKind": {"valueSet": []}},
            "resolveSupport": {"properties": ["edit"]},
            "dataSupport": True,
            "disabledSupport": True,
            "honorsChangeAnnotations": True,
            "tagSupport": {"valueSet": [1]},
        },
    },
    "window": {"workDoneProgress": True},
    "workspace": {
        "applyEdit": True,
        "workspaceEdit": {"documentChanges": True, "changeAnnotationSupport": {"groupsOnLabel": True}},
    },
}
_numbers = itertools.count()


def echo(fill: wire.Fill) -> wire.Done:
    """Texts that name the exact source and place they were asked for."""
    name = f"v{zlib.crc32(fill.source):08x}_{fill.start}"
    return done(fill, *(name + "_x" * n for n in range(fill.candidates)))


class Editor:
    """One document in the shared server, with the daemon's answer for it."""

    def __init__(self, client: LspClient, daemon: FakeDaemon) -> None:
        self.client, self.daemon = client, daemon
        self.uri = ""
        self.text = ""
        self.version = 1

    def open(self, text: str, name: str = "", language: str = "python") -> dict[str, int]:
        """Open a document; the position of `|` in it."""
        place = position(text, text.index("|")) if "|" in text else {"line": 0, "character": 0}
        self.uri = f"file:///w/{name}" if name else f"untitled:Untitled-{next(_numbers)}"
        self.text = text.replace("|", "")
        self.client.open(self.uri, self.text, language)
        return place

    def inline(self, place: dict[str, int], kind: int = 2, **context: Any) -> int:
        return self.client.ask("textDocument/inlineCompletion", self.params(place, kind, **context))

    def params(self, place: dict[str, int], kind: int = 2, **context: Any) -> dict[str, Any]:
        document = {"uri": self.uri}
        return {"textDocument": document, "position": place, "context": {"triggerKind": kind, **context}}

    def ghosts(self, place: dict[str, int], kind: int = 2, **context: Any) -> list[dict[str, Any]] | None:
        message = self.client.reply(self.inline(place, kind, **context))
        assert "error" not in message, message
        found: list[dict[str, Any]] | None = message["result"]
        return found

    def type(self, place: dict[str, int], text: str) -> dict[str, int]:
        """Insert on one line; the position behind it."""
        self.version += 1
        self.client.change(self.uri, self.version, {"range": {"start": place, "end": place}, "text": text})
        return {**place, "character": place["character"] + len(text.encode("utf-16-le")) // 2}

    def actions(self, start: dict[str, int], end: dict[str, int] | None = None, **context: Any) -> list[dict[str, Any]]:
        where = {"start": start, "end": end or start}
        params = {"textDocument": {"uri": self.uri}, "range": where, "context": {"diagnostics": [], **context}}
        found: list[dict[str, Any]] = self.client.call("textDocument/codeAction", params)
        return found

    def action(self, title: str, start: dict[str, int], end: dict[str, int] | None = None) -> dict[str, Any]:
        return next(action for action in self.actions(start, end) if action["title"] == title)

    def resolve(self, action: dict[str, Any]) -> dict[str, Any]:
        resolved: dict[str, Any] = self.client.call("codeAction/resolve", action)
        return resolved

    def answers(self, *texts: str, start: int | None = None, end: int | None = None) -> None:
        self.daemon.answer = lambda fill: done(fill, *texts, start=start, end=end)

    def messages(self) -> list[str]:
        return [params["message"] for params in self.client.notified("window/showMessage")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LspClient, FakeDaemon]]:
    with FakeDaemon(tmp_path_factory.mktemp("daemon"), echo) as daemon, LspClient(daemon.env) as client:
        client.initialize(CAPABILITIES, {"status": True, "drafts": True, "input": True, "prepareNext": False})
        yield client, daemon
        assert client.stop() == 0
    assert client.stderr == b"", client.stderr.decode()


@pytest.fixture
def editor(running: tuple[LspClient, FakeDaemon]) -> Editor:
    client, daemon = running
    client.notifications.clear()
    client.requests.clear()
    client.answers.clear()
    daemon.fills.clear()
    daemon.cancelled.clear()
    daemon.feedback.clear()
    daemon.answer, daemon.before, daemon.drafts = echo, (), ()
    return Editor(client, daemon)


# ---- ghost text ------------------------------------------------------------------------------------------


def test_a_fill_of_the_daemon_becomes_ghost_text_from_the_start_of_the_line(editor: Editor) -> None:
    place = editor.open("x = 1\ny = |\n")
    (item,) = editor.ghosts(place) or []
    assert item["insertText"] == f"y = v{zlib.crc32(editor.text.encode()):08x}_10"
    assert item["range"] == {"start": {"line": 1, "character": 0}, "end": {"line": 1, "character": 4}}


@pytest.mark.parametrize("kind", [1, 0, 7], ids=["invoked", "invoked by an old client", "unknown"])
def test_asked_for_by_hand_there_are_several(editor: Editor, kind: int) -> None:
    items = editor.ghosts(editor.open("y = |\n"), kind) or []
    assert len({item["insertText"] for item in items}) == 3


def test_ghost_text_stays_when_more_is_asked_for_than_there_is(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.answers("foo")
    shown = [item["insertText"] for item in editor.ghosts(place) or []]
    editor.answers()
    assert [item["insertText"] for item in editor.ghosts(place, kind=1) or []] == shown == ["y = foo"]


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


def test_typing_along_is_answered_without_the_daemon(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.answers("foo(a, b)")
    assert editor.ghosts(place)
    for character in "foo(":
        place = editor.type(place, character)
        (item,) = editor.ghosts(place) or []
        assert item["insertText"] == "y = foo(a, b)"
    assert len(editor.daemon.fills) == 1


def test_of_a_text_taken_in_part_the_rest_stays_without_the_daemon(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.answers("foo(a, b)")
    assert editor.ghosts(place)
    (item,) = editor.ghosts(editor.type(place, "foo(a")) or []
    assert item["insertText"] == "y = foo(a, b)"
    assert len(editor.daemon.fills) == 1


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


def test_each_line_keeps_its_own_indentation_in_a_file_of_several(editor: Editor) -> None:
    place = editor.open("def f(a):\n    return a\n\n\ndef g(b):\n\tif b:\n\t\t|\n")
    editor.answers("b += 1\n\t\treturn b")
    (item,) = editor.ghosts(place) or []
    assert item["insertText"] == "\t\tb += 1\n\t\treturn b"
    assert item["range"] == {"start": {**place, "character": 0}, "end": place}


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


def test_the_selected_entry_of_the_menu_is_continued(editor: Editor) -> None:
    place = editor.open("y = fo|\n")
    editor.answers("(1)")
    where = {"start": {"line": 0, "character": 4}, "end": place}
    (item,) = editor.ghosts(place, selectedCompletionInfo={"range": where, "text": "foobar"}) or []
    assert (item["insertText"], item["range"]) == ("foobar(1)", where)
    assert editor.daemon.fills[0].source == b"y = foobar\n"


@pytest.mark.parametrize(
    ("text", "name", "language"),
    [
        ("KEY=|\n", ".env", "python"),
        ("k = |\n", "server.pem", "python"),
        ("x = |\n", "x.zzz", "no-such-language"),
        ("x = 1  # so|\n", "x.py", "python"),
        ("x = fo|o\n", "x.py", "python"),
    ],
)
def test_where_it_should_be_quiet_nothing_reaches_the_daemon(
    editor: Editor, text: str, name: str, language: str
) -> None:
    assert editor.ghosts(editor.open(text, name, language)) == []
    assert editor.daemon.fills == []
    assert editor.client.call("stopgap/why", {})["lines"]


def test_asked_for_by_hand_a_comment_is_no_reason_to_be_quiet(editor: Editor) -> None:
    assert editor.ghosts(editor.open("x = 1  # so|\n"), 1)


def test_secrets_are_not_sent_even_when_asked_for_by_hand(editor: Editor) -> None:
    assert editor.ghosts(editor.open("KEY=|\n", ".env", "python"), 1) == []
    assert editor.actions({"line": 0, "character": 0}) == []
    assert editor.daemon.fills == []


def test_a_document_that_is_not_open_is_answered(editor: Editor) -> None:
    editor.uri = "untitled:never"
    assert editor.ghosts({"line": 0, "character": 0}) == []


def test_what_the_model_is_unsure_of_is_not_shown_by_itself(editor: Editor) -> None:
    place = editor.open("y = |\n")
    unsure = wire.Candidate("foo", -9.0)
    editor.daemon.answer = lambda fill: wire.Done(fill.id, fill.start, fill.end, "line", (unsure,))
    assert editor.ghosts(place) == []
    assert "not sure enough" in editor.client.call("stopgap/why", {})["lines"][-2]
    assert editor.ghosts(place, 1)


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


def test_loading_is_told_once_per_change(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.daemon.before = (wire.Progress(0, "loading", 0.5), wire.Progress(0, "loading", 0.5))
    assert editor.ghosts(place)
    states = [params["state"] for params in editor.client.notified("stopgap/status")]
    assert states == ["loading", "ready"]


def test_what_became_of_ghost_text_is_counted_once(editor: Editor) -> None:
    place = editor.open("y = |\n")
    editor.answers("foo")
    (item,) = editor.ghosts(place) or []
    editor.ghosts(editor.type(place, "f"))
    command = item["command"]
    editor.client.call("workspace/executeCommand", {"command": command["command"], "arguments": command["arguments"]})

    def mine() -> list[wire.Feedback]:  # a word about the test before may come late
        return [event for event in editor.daemon.feedback if event.id == command["arguments"][0]]

    editor.client.until(lambda: len(mine()) == 2)
    shown, taken = mine()
    assert (shown.event, taken.event, taken.characters) == ("shown", "accepted", 3)
    assert shown.id == editor.daemon.fills[0].id


def test_what_became_of_a_preview_is_counted_and_without_its_text(editor: Editor) -> None:
    told = [("didShow", "shown"), ("didAcceptPartially", "partial"), ("didReject", "rejected")]
    for method, _ in told:
        editor.client.send(f"stopgap/{method}", {"fill": 90_007, "language": "python", "characters": 3})

    def mine() -> list[wire.Feedback]:
        return [event for event in editor.daemon.feedback if event.id == 90_007]

    editor.client.until(lambda: len(mine()) == 3)
    assert [event.event for event in mine()] == [event for _, event in told]
    assert {(event.language, event.characters) for event in mine()} == {("python", 3)}


# ---- code actions ----------------------------------------------------------------------------------------

CODE = "def f(a):\n    pass\n\n\ndef g(b):\n    x = b + 1\n    return x\n"


def edits(action: dict[str, Any]) -> list[tuple[int, int, int, int, str]]:
    """The edits of a resolved action as (line, character, line, character, text)."""
    (change,) = action["edit"]["documentChanges"]
    return [
        (*edit["range"]["start"].values(), *edit["range"]["end"].values(), edit["newText"]) for edit in change["edits"]
    ]


def changed(text: str, made: list[tuple[int, int, int, int, str]]) -> str:
    """`text`, ASCII, after such edits."""
    starts = [0, *(at + 1 for at, character in enumerate(text) if character == "\n")]
    for line, character, last, end, new in reversed(made):
        text = text[: starts[line] + character] + new + text[starts[last] + end :]
    return text


def test_what_is_offered_depends_on_the_place(editor: Editor) -> None:
    editor.open(CODE)
    titles = [action["title"] for action in editor.actions({"line": 1, "character": 6})]
    assert titles == ["Fill this hole", "Rewrite this function", "Rewrite with instruction…"]
    titles = [a["title"] for a in editor.actions({"line": 5, "character": 4}, {"line": 6, "character": 0})]
    assert titles == ["Rewrite selection", "Rewrite with instruction…"]
    assert editor.actions({"line": 2, "character": 0}) == []
    assert editor.daemon.fills == []


def test_broken_syntax_can_be_repaired(editor: Editor) -> None:
    editor.open("x = f(1\n\ny = 2\n")
    titles = [action["title"] for action in editor.actions({"line": 0, "character": 3})]
    assert "Repair syntax here" in titles


def test_only_the_kinds_that_are_asked_for_are_offered(editor: Editor) -> None:
    editor.open(CODE)
    place = {"line": 1, "character": 6}
    assert [a["title"] for a in editor.actions(place, only=["quickfix"])] == ["Fill this hole"]
    assert all("rewrite" in a["kind"] for a in editor.actions(place, only=["refactor.rewrite"]))
    assert editor.actions(place, only=["source.organizeImports"]) == []


def test_filling_a_hole_changes_only_the_hole_of_that_version(editor: Editor) -> None:
    editor.open(CODE)
    editor.answers("return a", start=14, end=18)
    action = editor.resolve(editor.action("Fill this hole", {"line": 1, "character": 6}))
    assert edits(action) == [(1, 4, 1, 8, "return a")]
    assert editor.daemon.fills[0].target == "placeholder"
    assert action["edit"]["documentChanges"][0]["textDocument"] == {"uri": editor.uri, "version": 1}
    assert action["edit"]["changeAnnotations"]["stopgap"]["needsConfirmation"] is False


def test_a_rewrite_is_a_minimal_diff_that_wants_confirmation(editor: Editor) -> None:
    editor.open(CODE)
    start = CODE.index("x = b")
    editor.answers("x = b + 2\n    return x", start=start, end=len(CODE) - 1)
    action = editor.resolve(editor.action("Rewrite this function", {"line": 5, "character": 4}))
    assert edits(action) == [(5, 12, 5, 13, "2")]
    assert editor.daemon.fills[0].target == "body"
    assert action["edit"]["changeAnnotations"]["stopgap"]["needsConfirmation"] is True


def test_a_selection_is_rewritten_exactly(editor: Editor) -> None:
    editor.open(CODE)
    start = CODE.index("b + 1")
    editor.answers("2 * b")
    where = ({"line": 5, "character": 8}, {"line": 5, "character": 13})
    action = editor.resolve(editor.action("Rewrite selection", *where))
    (fill,) = editor.daemon.fills
    assert (fill.target, fill.start, fill.end) == ("selection", start, start + 5)
    assert changed(CODE, edits(action)) == CODE.replace("b + 1", "2 * b")


def test_progress_is_shown_while_an_action_is_computed(editor: Editor) -> None:
    editor.open(CODE)
    editor.answers("return a", start=14, end=18)
    editor.daemon.drafts = (wire.Draft(0, 1, 4, 14, 18, "retu"), wire.Draft(0, 3, 4, 14, 18, "return"))
    editor.resolve(editor.action("Fill this hole", {"line": 1, "character": 6}))
    values = [params["value"] for params in editor.client.notified("$/progress")]
    assert [value["kind"] for value in values] == ["begin", "report", "report", "end"]
    assert [value["percentage"] for value in values[1:3]] == [25, 75]


def test_cancelling_the_progress_cancels_the_fill_and_changes_nothing(editor: Editor) -> None:
    editor.open(CODE)
    editor.daemon.answer = forever
    request = editor.client.ask("codeAction/resolve", editor.action("Fill this hole", {"line": 1, "character": 6}))
    editor.client.until(lambda: editor.daemon.fills)
    token = editor.client.notified("$/progress")[0]["token"]
    editor.client.send("window/workDoneProgress/cancel", {"token": token})
    assert "edit" not in editor.client.reply(request)["result"]
    editor.client.until(lambda: editor.daemon.cancelled)


def test_an_action_on_a_text_that_has_changed_does_nothing(editor: Editor) -> None:
    editor.open(CODE)
    action = editor.action("Fill this hole", {"line": 1, "character": 6})
    editor.type({"line": 0, "character": 0}, "#")
    assert "edit" not in editor.resolve(action)
    assert editor.daemon.fills == []
    assert "the text changed meanwhile" in editor.messages()[0]


def test_why_an_action_did_nothing_is_said(editor: Editor) -> None:
    editor.open(CODE)
    editor.answers()
    assert "edit" not in editor.resolve(editor.action("Fill this hole", {"line": 1, "character": 6}))
    assert editor.messages() == ["stopgap: the fake has no fill"]


def test_all_holes_are_filled_at_once(editor: Editor) -> None:
    text = "def f(a):\n    pass\n\n\ndef g(b):\n    ...\n"
    editor.open(text)
    editor.daemon.answer = lambda fill: done(fill, f"return {fill.start}")
    action = editor.resolve(editor.action("Fill all holes in this file", {"line": 1, "character": 4}))
    assert edits(action) == [(1, 4, 1, 8, "return 14"), (5, 4, 5, 7, "return 35")]


def test_fills_that_do_not_fit_together_are_not_offered(editor: Editor) -> None:
    editor.open("def f(a):\n    pass\n\n\ndef g(b):\n    ...\n")
    editor.answers("return (")
    assert "edit" not in editor.resolve(editor.action("Fill all holes in this file", {"line": 1, "character": 4}))
    assert "do not fit together" in editor.messages()[0]


def test_another_try_starts_from_what_stood_there_before(editor: Editor) -> None:
    editor.open(CODE)
    editor.daemon.answer = lambda fill: done(fill, "return 10" + str(fill.seed), start=14, end=18)
    editor.resolve(editor.action("Fill this hole", {"line": 1, "character": 6}))
    where = {"start": {"line": 1, "character": 4}, "end": {"line": 1, "character": 8}}
    editor.client.change(editor.uri, 2, {"range": where, "text": "return 100"})
    action = editor.resolve(editor.action("Try another", {"line": 1, "character": 6}))
    assert edits(action) == [(1, 11, 1, 14, "101")]
    assert editor.daemon.fills[1].source == CODE.encode()


def test_an_action_runs_as_a_command_for_clients_that_cannot_resolve(editor: Editor) -> None:
    editor.open(CODE)
    editor.answers("return a", start=14, end=18)
    editor.client.answers["workspace/applyEdit"] = lambda params: {"applied": True}
    place = {"line": 1, "character": 6}
    choice = {"stopgap": "hole", "uri": editor.uri, "range": {"start": place, "end": place}}
    assert editor.client.call("workspace/executeCommand", {"command": "stopgap.run", "arguments": [choice]}) is True
    (request,) = [r for r in editor.client.requests if r["method"] == "workspace/applyEdit"]
    assert request["params"]["edit"]["documentChanges"][0]["edits"][0]["newText"] == "return a"
    editor.client.until(lambda: editor.daemon.feedback)


def test_an_instruction_is_asked_for_and_passed_on(editor: Editor) -> None:
    editor.open(CODE)
    editor.answers("x = b - 1\n    return x", start=CODE.index("x = b"), end=len(CODE) - 1)
    editor.client.answers["stopgap/input"] = lambda params: "subtract instead"
    editor.client.answers["workspace/applyEdit"] = lambda params: {"applied": True}
    action = editor.action("Rewrite with instruction…", {"line": 5, "character": 4})
    assert editor.client.call("workspace/executeCommand", action["command"]) is True
    assert editor.daemon.fills[0].instruction == "subtract instead"


def test_what_the_editor_reports_is_passed_on_as_an_instruction(editor: Editor) -> None:
    editor.open("x = f(1\n\ny = 2\n")
    where = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 7}}
    found = editor.actions(
        {"line": 0, "character": 3}, diagnostics=[{"range": where, "message": "'(' was never closed"}]
    )
    editor.answers("x = f(1)", start=0, end=7)
    editor.resolve(next(action for action in found if action["title"] == "Repair syntax here"))
    assert editor.daemon.fills[0].instruction == "Fix: '(' was never closed"


def test_at_a_hole_faults_are_passed_on_and_hints_are_not(editor: Editor) -> None:
    editor.open("def f(a) -> int:\n    ...\n")
    where = {"start": {"line": 1, "character": 4}, "end": {"line": 1, "character": 7}}
    reports = [("must return int", 1), ("a is not accessed", 4), ("no docstring", 2), ("could be inlined", 3)]
    diagnostics = [{"range": where, "message": message, "severity": severity} for message, severity in reports]
    found = editor.actions({"line": 1, "character": 5}, diagnostics=diagnostics)
    editor.answers("return a", start=21, end=24)
    editor.resolve(next(action for action in found if action["title"] == "Fill this hole"))
    assert editor.daemon.fills[0].instruction == "Fix: must return int; no docstring"


# ---- extensions ------------------------------------------------------------------------------------------


def test_a_preview_comes_with_drafts_and_touches_nothing(editor: Editor) -> None:
    editor.open("# 😀\n" + CODE)
    editor.answers("return a", start=21, end=25)
    editor.daemon.drafts = (wire.Draft(0, 1, 4, 21, 25, "😀re", ((0, 1), (2, 3))),)
    place = {"line": 2, "character": 6}
    found = editor.client.call(
        "stopgap/fill",
        {"action": "hole", "textDocument": {"uri": editor.uri}, "range": {"start": place, "end": place}, "token": "t"},
    )
    assert (found["text"], found["version"], len(found["edits"])) == ("return a", 1, 1)
    (draft,) = editor.client.notified("stopgap/draft")
    assert (draft["token"], draft["text"], draft["settled"]) == ("t", "😀re", [[0, 2], [3, 4]])
    assert draft["range"] == found["range"]
    assert not [r for r in editor.client.requests if r["method"] == "workspace/applyEdit"]


@pytest.mark.parametrize("params", [None, {}, {"action": "hole"}, {"action": "x", "textDocument": {"uri": "u"}}])
def test_a_preview_that_makes_no_sense_gets_a_reason(editor: Editor, params: Any) -> None:
    assert "reason" in editor.client.call("stopgap/fill", params)


def test_status_pause_and_resume(editor: Editor) -> None:
    assert editor.client.call("stopgap/pause", {})["state"] == "paused"
    assert editor.client.call("stopgap/resume", {})["state"] == "ready"
    assert editor.client.call("stopgap/status", {}) == {
        "state": "ready", "message": "", "model": "fake", "fraction": None,
    }  # fmt: skip


def test_why_ends_with_the_daemons_own_words(editor: Editor) -> None:
    assert editor.client.call("stopgap/why", {"last": 3})["lines"][-1].startswith("a.py, 1 s ago: nothing")


@pytest.mark.parametrize("params", [None, [], {"fill": "x"}, {"fill": 1, "language": 3, "characters": "x"}])
def test_odd_notifications_are_survived(editor: Editor, params: Any) -> None:
    for method in ("stopgap/didShow", "stopgap/didAccept", "stopgap/nonsense"):
        editor.client.send(method, params)
    assert editor.client.call("stopgap/status", {})["state"] == "ready"


async def forever(fill: wire.Fill) -> wire.Done:
    await asyncio.Event().wait()
    raise AssertionError
