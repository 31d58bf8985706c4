"""Code actions as an editor gets them: what is offered, what they change, how they are confirmed and cancelled."""

from typing import Any

from fake_daemon import done
from lsp_editor import CODE, Editor, forever

from stopgap.daemon import wire


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
