"""How a connection begins and ends: the initialize reply byte by byte, several editors' capabilities, trouble."""

import asyncio
import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import FakeDaemon, done
from lsp_client import LATER, SERVER, LspClient, started
from pytest_lsp import client_capabilities

from stopgap.daemon import wire
from stopgap.lsp.protocol import converter
from stopgap.lsp.server import make


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, lambda fill: done(fill, "foo(1)")) as running:
        yield running


def raw(message: dict[str, Any], extra: bytes = b"") -> bytes:
    body = json.dumps(message).encode()
    return b"Content-Length: %d\r\n%s\r\n%s" % (len(body), extra, body)


def conversation(env: dict[str, str], *messages: bytes) -> tuple[list[dict[str, Any]], int, bytes]:
    """What the server writes when all this is written to it at once: the messages, exit code and stderr."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", SERVER], input=b"".join(messages), capture_output=True, env=env, check=False
    )
    out, found = process.stdout, []
    while out:
        head, _, rest = out.partition(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
        found.append(json.loads(rest[:length]))
        out = rest[length:]
    return found, process.returncode, process.stderr


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": "first",
    "method": "initialize",
    "params": {"processId": None, "rootUri": None, "capabilities": {"textDocument": {"inlineCompletion": {}}}},
}
SHUTDOWN = raw({"jsonrpc": "2.0", "id": 2, "method": "shutdown"}) + raw({"jsonrpc": "2.0", "method": "exit"})


def test_the_reply_to_initialize_advertises_what_editors_look_for(daemon: FakeDaemon) -> None:
    replies, code, errors = conversation(daemon.env, raw(INITIALIZE), SHUTDOWN)
    assert (code, errors) == (0, b"")
    first = replies[0]
    capabilities = first["result"]["capabilities"]
    assert (first["id"], first["jsonrpc"]) == ("first", "2.0")
    assert capabilities["inlineCompletionProvider"] == {}
    assert capabilities["textDocumentSync"] == {"openClose": True, "change": 2, "save": False}
    assert capabilities["positionEncoding"] == "utf-16"
    assert capabilities["codeActionProvider"]["resolveProvider"] is True
    assert capabilities["workspace"]["workspaceFolders"] == {"supported": True, "changeNotifications": True}
    assert "completionProvider" not in capabilities
    assert "stopgap.run" in capabilities["executeCommandProvider"]["commands"]


def test_a_content_type_header_and_unknown_capabilities_are_accepted(daemon: FakeDaemon) -> None:
    odd = json.loads(json.dumps(INITIALIZE))
    odd["params"]["capabilities"]["fromTheFuture"] = {"x": [1]}
    odd["params"]["alsoUnknown"] = True
    header = b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\n"
    replies, code, _ = conversation(daemon.env, raw(odd, header), SHUTDOWN)
    assert (code, "result" in replies[0]) == (0, True)


def test_rubbish_between_messages_does_not_end_the_server(daemon: FakeDaemon) -> None:
    rubbish = [b"Content-Length: 5\r\n\r\n{nope", raw({"jsonrpc": "2.0", "method": "$/unknown"}), raw({"x": 1})]
    unknown = raw({"jsonrpc": "2.0", "id": 9, "method": "textDocument/nonsense", "params": {}})
    replies, code, _ = conversation(daemon.env, raw(INITIALIZE), *rubbish, unknown, SHUTDOWN)
    assert code == 0
    assert [reply.get("error", {}).get("code") for reply in replies if reply.get("id") == 9] == [-32601]
    assert not [reply for reply in replies if reply.get("method") == "window/showMessage"]


def test_every_handler_of_a_request_is_a_coroutine_so_that_none_holds_up_another() -> None:
    server = make()
    handlers = {**server.protocol.fm.features, **server.protocol.fm.commands}
    assert {"textDocument/inlineCompletion", "codeAction/resolve", "stopgap.run"} <= set(handlers)
    at_once = {name for name, handler in handlers.items() if not inspect.iscoroutinefunction(handler)}
    assert at_once == {"initialize", "shutdown"}, "these two must be over before the next message is read"


def test_the_server_ends_when_the_editor_goes_away(daemon: FakeDaemon) -> None:
    _, code, errors = conversation(daemon.env, raw(INITIALIZE))
    assert (code, errors) == (0, b"")


def test_the_menu_can_be_turned_off_and_exit_without_shutdown_is_an_error_code(daemon: FakeDaemon) -> None:
    params = {"processId": None, "rootUri": None, "capabilities": {}}
    params["initializationOptions"] = {"completion": "never"}
    replies, code, _ = conversation(
        daemon.env, raw({**INITIALIZE, "params": params}), raw({"jsonrpc": "2.0", "method": "exit"})
    )
    assert "completionProvider" not in replies[0]["result"]["capabilities"]
    assert code == 1


PROFILES = ("visual_studio_code", "neovim", "emacs")
ENCODINGS = {"visual_studio_code": "utf-16", "neovim": "utf-8", "emacs": "utf-32"}
UNITS = {"utf-8": 13, "utf-16": 11, "utf-32": 10}


def profile(name: str, *, inline: bool) -> dict[str, Any]:
    """The capabilities of a real editor; the canned ones are older than inline completion."""
    capabilities: dict[str, Any] = converter().unstructure(client_capabilities(name))
    if inline:
        capabilities["textDocument"]["inlineCompletion"] = {"dynamicRegistration": False}
    return capabilities


@pytest.mark.parametrize("name", PROFILES)
def test_ghost_text_and_actions_for_real_editors_capabilities(daemon: FakeDaemon, name: str) -> None:
    with started(daemon.env, capabilities=profile(name, inline=True)) as client:
        client.open("file:///w/a.py", "def f():\n    pass\n\n\ns = '😀' + \n")
        place = {"line": 4, "character": UNITS[ENCODINGS[name]]}
        params = {"textDocument": {"uri": "file:///w/a.py"}, "position": place, "context": {"triggerKind": 2}}
        (item,) = client.call("textDocument/inlineCompletion", params)
        assert item["insertText"] == "s = '😀' + foo(1)"
        assert item["range"]["end"] == place
        where = {"line": 1, "character": 4}
        params = {
            "textDocument": {"uri": "file:///w/a.py"},
            "range": {"start": where, "end": where},
            "context": {"diagnostics": []},
        }
        action = client.call("textDocument/codeAction", params)[0]
        daemon.answer = lambda fill: done(fill, "return 1", start=13, end=17)
        if "data" in action:
            action = client.call("codeAction/resolve", action)
            edit = action["edit"]
        else:
            client.answers["workspace/applyEdit"] = lambda params: {"applied": True}
            client.call("workspace/executeCommand", action["command"])
            edit = next(r for r in client.requests if r["method"] == "workspace/applyEdit")["params"]["edit"]
        changes = (
            edit["documentChanges"][0]["edits"] if "documentChanges" in edit else edit["changes"]["file:///w/a.py"]
        )
        assert [change["newText"] for change in changes] == ["return 1"]


def test_editors_without_inline_completion_get_a_menu_entry(daemon: FakeDaemon) -> None:
    with LspClient(daemon.env) as client:
        result = client.initialize(profile("emacs", inline=False))
        assert "completionProvider" in result["capabilities"]
        client.open("file:///w/a.py", "y = fo\n")
        daemon.answer = lambda fill: done(fill, "o(\n    1)")
        params = {"textDocument": {"uri": "file:///w/a.py"}, "position": {"line": 0, "character": 6}}
        found = client.call("textDocument/completion", params)
        (item,) = found["items"]
        assert found["isIncomplete"] is True
        assert item["label"] == "foo( …"
        assert item["filterText"].startswith("fo")
        assert item["textEdit"]["newText"] == "foo(\n    1)"
        assert item["textEdit"]["range"]["start"] == {"line": 0, "character": 4}


def test_a_wrong_setting_is_named_once_and_the_rest_counts(daemon: FakeDaemon) -> None:
    with started(daemon.env, options={"automatc": 1, "automatic": False}) as client:
        client.until(lambda: client.notified("window/showMessage"))
        (message,) = client.notified("window/showMessage")
        assert message["message"] == "stopgap: unknown setting 'automatc'; did you mean 'automatic'?"
        client.open("file:///w/a.py", "y = \n")
        params = {
            "textDocument": {"uri": "file:///w/a.py"},
            "position": {"line": 0, "character": 4},
            "context": {"triggerKind": 2},
        }
        assert client.call("textDocument/inlineCompletion", params) == []
        client.send("workspace/didChangeConfiguration", {"settings": {"stopgap": {"automatic": True}}})
        assert client.call("textDocument/inlineCompletion", params) != []


def test_settings_are_fetched_by_clients_that_send_none(daemon: FakeDaemon) -> None:
    with LspClient(daemon.env) as client:
        client.answers["workspace/configuration"] = lambda params: [{"enabled": False}]
        client.initialize({"textDocument": {"inlineCompletion": {}}, "workspace": {"configuration": True}})
        client.open("file:///w/a.py", "y = \n")
        client.send("workspace/didChangeConfiguration", {"settings": None})
        client.until(lambda: client.requests)
        params = {
            "textDocument": {"uri": "file:///w/a.py"},
            "position": {"line": 0, "character": 4},
            "context": {"triggerKind": 2},
        }
        client.until(lambda: client.call("textDocument/inlineCompletion", params) == [])


def test_without_a_daemon_there_is_silence_and_one_message(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("not toml")
    env = {
        "STOPGAP_CONFIG": str(tmp_path / "config.toml"),
        "STOPGAP_RUNTIME_DIR": str(tmp_path / "run"),
        "STOPGAP_STATE_DIR": str(tmp_path / "state"),
    }
    with started(env) as client:
        client.open("file:///w/a.py", "y = \n")
        params = {
            "textDocument": {"uri": "file:///w/a.py"},
            "position": {"line": 0, "character": 4},
            "context": {"triggerKind": 2},
        }
        for _ in range(5):
            assert client.call("textDocument/inlineCompletion", params) == []
        assert len(client.notified("window/showMessage")) == 1
        assert "config.toml" in client.notified("window/showMessage")[0]["message"]


def test_when_the_daemon_dies_the_next_request_is_answered_by_the_next_one(tmp_path: Path) -> None:
    params = {
        "textDocument": {"uri": "file:///w/a.py"},
        "position": {"line": 0, "character": 4},
        "context": {"triggerKind": 2},
    }

    async def never(fill: wire.Fill) -> wire.Done:
        await asyncio.Event().wait()
        raise AssertionError

    with FakeDaemon(tmp_path, never) as first:
        client = LspClient(first.env)
        client.initialize()
        client.open("file:///w/a.py", "y = \n")
        request = client.ask("textDocument/inlineCompletion", params)
        client.until(lambda: first.fills)
    with client:
        assert client.reply(request)["result"] == []
        with FakeDaemon(tmp_path, lambda fill: done(fill, "foo")) as second:
            client.until(lambda: client.call("textDocument/inlineCompletion", params) != [])
            assert second.fills
        assert client.stop() == 0


def test_an_answer_to_a_request_that_was_cancelled_meanwhile_is_dropped_quietly(daemon: FakeDaemon) -> None:
    with started(daemon.env, capabilities=profile("visual_studio_code", inline=True)) as client:
        client.answers["window/workDoneProgress/create"] = lambda params: LATER
        client.open("file:///w/a.py", "def f():\n    pass\n")
        where = {"line": 1, "character": 4}
        choice = {"stopgap": "hole", "uri": "file:///w/a.py", "range": {"start": where, "end": where}}
        asked = client.ask("codeAction/resolve", {"title": "Fill this hole", "data": choice})
        client.until(lambda: client.requests)
        client.send("$/cancelRequest", {"id": asked})
        assert client.reply(asked)["error"]["code"] == -32800
        client.answer(client.requests[0], None)
        assert client.call("stopgap/status", {})["state"] == "ready"


def test_a_command_that_is_cancelled_stops_and_edits_nothing(daemon: FakeDaemon) -> None:
    async def never(fill: wire.Fill) -> wire.Done:
        await asyncio.Event().wait()
        raise AssertionError

    daemon.answer = never
    with started(daemon.env) as client:
        client.open("file:///w/a.py", "def f():\n    pass\n")
        where = {"line": 1, "character": 4}
        choice = {"stopgap": "hole", "uri": "file:///w/a.py", "range": {"start": where, "end": where}}
        asked = client.ask("workspace/executeCommand", {"command": "stopgap.run", "arguments": [choice]})
        client.until(lambda: daemon.fills)
        client.send("$/cancelRequest", {"id": asked})
        assert client.reply(asked)["error"]["code"] == -32800
        client.until(lambda: daemon.cancelled)


@pytest.mark.parametrize(
    ("name", "end", "title"),
    [("helix", 5, "function"), ("helix", 6, "selection"), ("test", 5, "selection")],
    ids=["the cursor of Helix", "a selection in Helix", "elsewhere"],
)
def test_a_cursor_that_covers_a_character_is_no_selection(daemon: FakeDaemon, name: str, end: int, title: str) -> None:
    with started(daemon.env, name=name) as client:
        client.open("file:///w/a.py", "def f(a):\n    x = a\n    return x\n")
        where = {"start": {"line": 1, "character": 4}, "end": {"line": 1, "character": end}}
        params = {"textDocument": {"uri": "file:///w/a.py"}, "range": where, "context": {"diagnostics": []}}
        found = [action["title"] for action in client.call("textDocument/codeAction", params)]
        assert [title in one for one in found] == [True, False]


def test_several_folders_come_and_go(daemon: FakeDaemon, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "helper.py").write_text(f"where = '{folder.name}'\n")
    with started(daemon.env, folders=(one,)) as client:
        for number, (folder, expected) in enumerate([(two, ()), (two, ("helper.py",)), (one, ())]):
            uri = (folder / f"m{number}.py").as_uri()
            client.open(uri, "import helper\ny = \n")
            params = {
                "textDocument": {"uri": uri},
                "position": {"line": 1, "character": 4},
                "context": {"triggerKind": 1},
            }
            client.call("textDocument/inlineCompletion", params)
            fill = next(fill for fill in daemon.fills if fill.document == uri)
            assert tuple(snippet.path for snippet in fill.snippets) == expected
            event = {"added": [{"uri": two.as_uri(), "name": "two"}], "removed": [{"uri": one.as_uri(), "name": "one"}]}
            client.send("workspace/didChangeWorkspaceFolders", {"event": event})


def test_the_server_is_small_and_free_of_torch(daemon: FakeDaemon) -> None:
    with started(daemon.env) as client:
        client.open("file:///w/a.py", "y = \n")
        params = {
            "textDocument": {"uri": "file:///w/a.py"},
            "position": {"line": 0, "character": 4},
            "context": {"triggerKind": 2},
        }
        client.call("textDocument/inlineCompletion", params)
        maps = Path(f"/proc/{client.process.pid}/maps")
        if not maps.exists():
            pytest.skip("skipped: no /proc on this system")
        assert "libtorch" not in maps.read_text()
        status = Path(f"/proc/{client.process.pid}/status").read_text()
        resident = int(status.split("VmRSS:")[1].split()[0])
        assert resident < 80 * 1024, f"{resident} KiB"
