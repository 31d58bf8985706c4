"""Ghost text as an editor gets it."""

import zlib

import pytest
from lsp_editor import Editor

from stopgap.daemon import wire


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


def test_each_line_keeps_its_own_indentation_in_a_file_of_several(editor: Editor) -> None:
    place = editor.open("def f(a):\n    return a\n\n\ndef g(b):\n\tif b:\n\t\t|\n")
    editor.answers("b += 1\n\t\treturn b")
    (item,) = editor.ghosts(place) or []
    assert item["insertText"] == "\t\tb += 1\n\t\treturn b"
    assert item["range"] == {"start": {**place, "character": 0}, "end": place}


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


def test_what_the_model_is_unsure_of_is_not_shown_by_itself(editor: Editor) -> None:
    place = editor.open("y = |\n")
    unsure = wire.Candidate("foo", -9.0)
    editor.daemon.answer = lambda fill: wire.Done(fill.id, fill.start, fill.end, "line", (unsure,))
    assert editor.ghosts(place) == []
    assert "not sure enough" in editor.client.call("stopgap/why", {})["lines"][-2]
    assert editor.ghosts(place, 1)


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
