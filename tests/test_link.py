"""What the server learns about the daemon's model, over the real socket."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import STATUS, FakeDaemon, done
from lsp_client import LspClient, started

from stopgap.daemon import wire

URI = "file:///w/a.py"
CODE = "def f(a):\n    x = a\n    return x\ny = \n"
CAPABILITIES = {
    "textDocument": {
        "inlineCompletion": {},
        "codeAction": {"resolveSupport": {"properties": ["edit"]}, "dataSupport": True, "disabledSupport": True},
    }
}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, lambda fill: done(fill, "foo(1)")) as running:
        running.status = replace(STATUS, state="cold", instructions=False)
        yield running


def instruction(client: LspClient) -> dict[str, Any]:
    """The action "Rewrite with instruction…" inside the function."""
    place = {"line": 1, "character": 4}
    where = {"start": place, "end": place}
    params = {"textDocument": {"uri": URI}, "range": where, "context": {"diagnostics": []}}
    found: list[dict[str, Any]] = client.call("textDocument/codeAction", params)
    return next(action for action in found if "instruction" in action["title"])


def fill(client: LspClient) -> None:
    place = {"line": 3, "character": 4}
    params = {"textDocument": {"uri": URI}, "position": place, "context": {"triggerKind": 1}}
    assert client.call("textDocument/inlineCompletion", params)


def test_a_cold_daemon_is_no_no_but_its_first_fill_tells(daemon: FakeDaemon) -> None:
    with started(daemon.env, capabilities=CAPABILITIES) as client:
        client.open(URI, CODE)
        assert client.call("stopgap/status", {})["state"] == "ready"
        assert "disabled" not in instruction(client)
        daemon.status = replace(STATUS, instructions=False)
        fill(client)
        client.until(lambda: "disabled" in instruction(client))
        assert instruction(client)["disabled"] == {"reason": "the loaded model does not follow instructions"}
        daemon.status = replace(daemon.status, state="cold")  # its memory was freed: it is the same model still
        client.call("stopgap/status", {})
        assert "disabled" in instruction(client)
        daemon.status = replace(daemon.status, model="another")
        client.call("stopgap/status", {})
        assert "disabled" not in instruction(client)


def test_a_command_with_words_for_such_a_model_says_so_and_asks_nobody(daemon: FakeDaemon) -> None:
    daemon.status = replace(STATUS, instructions=False)
    with started(daemon.env, capabilities=CAPABILITIES, options={"input": True}) as client:
        client.open(URI, CODE)
        client.call("stopgap/status", {})
        place = {"line": 1, "character": 4}
        choice = {"stopgap": "instruction", "uri": URI, "range": {"start": place, "end": place}}
        call = {"command": "stopgap.run", "arguments": [choice]}
        assert client.call("workspace/executeCommand", call) is False
        (message,) = client.notified("window/showMessage")
        assert message["message"] == "stopgap: the loaded model does not follow instructions"
        assert not client.requests and not daemon.fills


@pytest.mark.parametrize(("follows", "words"), [(True, "Fix: no colon"), (False, "")])
def test_what_the_editor_reports_goes_only_to_a_model_that_can_use_it(
    daemon: FakeDaemon, follows: bool, words: str
) -> None:
    daemon.status = replace(STATUS, instructions=follows)
    daemon.answer = lambda fill: done(fill, "(a):", start=5, end=8)
    with started(daemon.env, capabilities=CAPABILITIES) as client:
        client.open(URI, "def f(a)\n    return a\n")
        client.call("stopgap/status", {})
        where = {"start": {"line": 0, "character": 5}, "end": {"line": 0, "character": 8}}
        diagnostics = [{"range": where, "message": "no colon"}]
        params = {"textDocument": {"uri": URI}, "range": where, "context": {"diagnostics": diagnostics}}
        actions = client.call("textDocument/codeAction", params)
        action = next(one for one in actions if one["title"] == "Rewrite selection")
        assert "edit" in client.call("codeAction/resolve", action)
        assert daemon.fills[-1].instruction == words


def test_a_draft_ends_the_loading_whatever_becomes_of_its_fill(daemon: FakeDaemon) -> None:
    daemon.before = (wire.Progress(0, "weights", 0.5),)
    daemon.drafts = (wire.Draft(0, 1, 4, 14, 18, "y = a"),)
    daemon.answer = lambda fill: wire.Error(fill.id, "crashed", "the engine failed")
    with started(daemon.env, capabilities=CAPABILITIES, options={"status": True, "drafts": True}) as client:
        client.open(URI, CODE)
        place = {"line": 1, "character": 4}
        params = {"action": "function", "textDocument": {"uri": URI}, "range": {"start": place, "end": place}}
        assert client.call("stopgap/fill", {**params, "token": "t"}) == {"reason": "the engine failed"}
        assert [params["state"] for params in client.notified("stopgap/status")][-2:] == ["loading", "ready"]
