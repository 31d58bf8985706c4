"""The `stopgap/…` requests and notifications as an editor sends them."""

from typing import Any

import pytest
from lsp_editor import CODE, Editor

from stopgap.daemon import wire


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
        "instructions": True,
    }  # fmt: skip


def test_why_ends_with_the_daemons_own_words(editor: Editor) -> None:
    assert editor.client.call("stopgap/why", {"last": 3})["lines"][-1].startswith("a.py, 1 s ago: nothing")


@pytest.mark.parametrize("params", [None, [], {"fill": "x"}, {"fill": 1, "language": 3, "characters": "x"}])
def test_odd_notifications_are_survived(editor: Editor, params: Any) -> None:
    for method in ("stopgap/didShow", "stopgap/didAccept", "stopgap/nonsense"):
        editor.client.send(method, params)
    assert editor.client.call("stopgap/status", {})["state"] == "ready"
