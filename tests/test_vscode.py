"""The packaged extension in a real VS Code, with the real server and a real daemon whose model is scripted.

One window for all of it, because it takes ten seconds to open; each test has a file of its own. Pictures and logs are
left in build/editors. STOPGAP_TEST_VSCODE=0 leaves the window out on a machine that has one.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import end_process
from vscode import editor as vscode
from vscode.editor import EXTENSION, Editor, until
from vscode.engine import GHOSTS, LINES

from stopgap.lsp.settings import Settings, camel

ENGINE = f"{Path(__file__).parent / 'vscode' / 'engine.py'}:load"
GHOST = ".view-line:has([class*=ghost-text-decoration])"
STATUS = '[id$="stopgap.status"]'
LENS = ".codelens-decoration"
pytestmark = pytest.mark.timeout(600)  # the first test waits for the window, on a machine that may be busy
PREVIEW = ".split-view-view:nth-child(2) .editor-group-container"
PREVIEWED = f"{PREVIEW} .view-line span"
FUNCTION = """def mean(values):
    total = 0
    for value in values:
        total = total + value
    count = len(values)
    assert count
    |result = total / count
    return result
"""


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXTENSION / "package.json").read_text(encoding="utf-8"))
    return found


def test_every_setting_of_the_server_is_one_of_the_extension_with_the_same_default() -> None:
    shown = {
        name.removeprefix("stopgap."): setting["default"]
        for name, setting in manifest()["contributes"]["configuration"]["properties"].items()
        if name not in {"stopgap.path", "stopgap.trace.server"}
    }
    # What the client understands it says itself; a rewrite has the live preview instead of a confirmation.
    ours = {"unknown", "status", "drafts", "input", "confirm_rewrites"}
    defaults = {camel(name): getattr(Settings(), name) for name in Settings.__slots__ if name not in ours}
    assert shown == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


def test_the_extension_binds_no_tab() -> None:
    keys = [binding["key"] for binding in manifest()["contributes"]["keybindings"]]
    assert not [key for key in keys if "tab" in key]


@pytest.fixture(scope="module")
def vsix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("STOPGAP_TEST_VSCODE") == "0":
        pytest.skip("skipped: STOPGAP_TEST_VSCODE=0")
    if why := vscode.missing():
        pytest.skip(f"skipped: {why}")
    return vscode.package(tmp_path_factory.mktemp("vsix"))


@contextmanager
def opened(vsix: Path, **env: str) -> Iterator[Editor]:
    """A window whose language server is ready; its daemon is ended with it."""
    # Not pytest's folder: its name alone can be longer than a socket path may be.
    with tempfile.TemporaryDirectory(prefix="sg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        ours = {
            "STOPGAP_RUNTIME_DIR": f"{folder}/run",
            "STOPGAP_STATE_DIR": f"{folder}/state",
            "STOPGAP_CONFIG": f"{folder}/config.toml",
            "STOPGAP_TEST_FLAGS": str(folder),
        }
        try:
            with vscode.running(folder, vsix, {**ours, **env}, {}) as window:
                window.see(f"{STATUS} .codicon-sparkle", seconds=120)
                yield window
        finally:
            for lock in (folder / "run").glob("*.lock"):
                end_process(lock)


def types_in_silence(window: Editor) -> None:
    """What would be answered at once, were it asked."""
    window.type("return ")
    window.do("sleep", ms=500)
    assert not window.texts(GHOST)


@contextmanager
def flag(window: Editor, name: str) -> Iterator[None]:
    """Something for the scripted model to heed, meanwhile."""
    path = window.workspace.parent / name
    path.touch()
    try:
        yield
    finally:
        path.unlink()


@pytest.fixture(scope="module")
def window(vsix: Path) -> Iterator[Editor]:
    with opened(vsix, STOPGAP_ENGINE_FACTORY=ENGINE) as window:
        yield window


@pytest.mark.slow
def test_the_parts_that_need_no_editor(vsix: Path) -> None:
    path = f"{Path(vscode.node()).parent}{os.pathsep}{os.environ['PATH']}"
    run = ["npm", "test", "--silent"]
    done = subprocess.run(
        run, cwd=EXTENSION, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_first_keys_of_a_window_are_answered_although_vscode_asks_nobody(window: Editor) -> None:
    window.open("first.py", "def add(left, right):\n    |\n")
    with flag(window, "loading"):
        window.type("return ")  # within a second of the first editor, and the daemon has just been started
        window.status("loading 50%")
    window.see(GHOST, GHOSTS[0])


@pytest.mark.slow
def test_ghost_text_appears_cycles_and_is_accepted_with_tab(window: Editor) -> None:
    path = window.open("ghost.py", "def add(left, right):\n    |\n")
    window.type("return ")
    window.see(GHOST, GHOSTS[0])
    window.picture("ghost")
    window.press("Alt+]")
    window.see(GHOST, GHOSTS[1])
    window.press("Alt+[")
    window.see(GHOST, GHOSTS[0])
    window.press("Tab")
    window.saved(path, f"    return {GHOSTS[0]}\n")


@pytest.mark.slow
def test_a_word_of_ghost_text_is_accepted_and_the_rest_stays(window: Editor) -> None:
    path = window.open("word.py", "def add(left, right):\n    |\n")
    window.type("return ")
    window.see(GHOST, GHOSTS[0])
    window.press("Control+ArrowRight")
    window.see(GHOST, "+ right")
    window.press("Escape")
    window.saved(path, "    return left\n")


@pytest.mark.slow
def test_a_line_of_ghost_text_is_accepted_and_the_rest_stays(window: Editor) -> None:
    path = window.open("line.py", "def add(left, right):\n    |\n")
    window.type("if ")
    window.see(GHOST, LINES.partition("\n")[0])
    window.press("Control+ArrowDown")  # the palette would send the text away
    window.see(GHOST, "return right")
    window.press("Escape")
    window.saved(path, "    if left:\n")


@pytest.mark.slow
def test_thinking_shows_in_the_status_bar(window: Editor) -> None:
    window.open("slow.py", "def add(left, right):\n    |\n")
    with flag(window, "thinking"):
        window.type("return ")
        window.see(f"{STATUS} .codicon-loading")
    window.see(GHOST, GHOSTS[0])
    window.see(f"{STATUS} .codicon-sparkle")


@pytest.mark.slow
def test_tab_indents_where_there_is_no_ghost_text(window: Editor) -> None:
    path = window.open("indent.py", "if True:\n|pass\n")
    window.press("Tab")
    window.saved(path, "if True:\n    pass\n")


@pytest.mark.slow
def test_a_rewrite_settles_beside_the_untouched_file_and_is_accepted_in_one_undo_step(window: Editor) -> None:
    path = window.open("whole.py", FUNCTION)
    window.press("Control+.")
    window.see(".action-widget", "Rewrite this function")
    window.picture("actions")
    window.press("Enter")
    window.status("/30")
    window.see(f"{PREVIEW} .tab", "whole.py")
    until(lambda: window.dim(PREVIEWED), lambda: "nothing of the draft is dimmed")
    window.picture("refining")
    assert "\n".join(window.texts(".editor-group-container")).count("total = total + value") == 1
    window.see(LENS, "Accept all")
    window.picture("rewrite")
    assert not window.dim(PREVIEWED)
    assert path.read_text(encoding="utf-8") == FUNCTION.replace("|", "")
    window.press("Control+Enter")
    window.miss(LENS)
    window.saved(path, "    total = sum(values)\n    count = len(values)\n    assert count\n    return total / count\n")
    window.press("Control+Z")
    window.saved(path, FUNCTION.replace("|", ""))


@pytest.mark.slow
def test_escape_stops_a_rewrite_and_leaves_no_trace(window: Editor) -> None:
    path = window.open("escape.py", FUNCTION)
    window.command("Stopgap: Rewrite This Function")
    window.status("/30")
    window.press("Escape")
    window.miss(f"{PREVIEW} .tab")
    until((window.workspace.parent / "stopped").exists, lambda: "the model goes on")
    window.do("sleep", ms=500)
    assert not window.texts(LENS)
    assert path.read_text(encoding="utf-8") == FUNCTION.replace("|", "")


@pytest.mark.slow
def test_a_finished_rewrite_is_rejected_and_the_file_stays_as_it_was(window: Editor) -> None:
    path = window.open("reject.py", FUNCTION)
    window.command("Stopgap: Rewrite This Function")
    window.see(LENS, "Accept all")
    window.do("click", selector=f"{LENS} a:has-text('Reject')")
    window.miss(LENS)
    window.miss(f"{PREVIEW} .tab")
    assert path.read_text(encoding="utf-8") == FUNCTION.replace("|", "")


@pytest.mark.slow
def test_a_rewrite_follows_the_words_of_the_input_box(window: Editor) -> None:
    path = window.open("words.py", FUNCTION)
    window.command("Stopgap: Rewrite with Instruction")
    window.see(".quick-input-widget", "What shall become of this code?")
    window.type("say how")
    window.press("Enter")
    window.see(LENS, "Accept all")
    window.press("Control+Enter")
    window.saved(path, "    # say how\n    total = sum(values)\n")


@pytest.mark.slow
def test_one_change_of_a_rewrite_is_accepted_and_the_other_skipped(window: Editor) -> None:
    path = window.open("part.py", FUNCTION)
    window.command("Stopgap: Rewrite This Function")
    window.see(LENS, "Accept all")
    window.do("click", selector=f"{LENS} a:has-text('Accept this') >> nth=0")
    window.miss(f"{LENS} a", "Accept all")
    window.press("Escape")
    window.miss(LENS)
    window.saved(path, "    total = sum(values)\n")
    assert "    result = total / count\n    return result\n" in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_try_again_gives_another_text(window: Editor) -> None:
    path = window.open("again.py", FUNCTION)
    window.command("Stopgap: Rewrite This Function")
    window.see(LENS, "Accept all")
    window.do("click", selector=f"{LENS} a:has-text('Try again')")
    window.status("/30")
    window.miss(STATUS, "/30")
    window.see(".view-line", "return sum(values) / len(values)")
    window.press("Control+Enter")
    window.miss(LENS)
    window.saved(path, "    return sum(values) / len(values)\n")


@pytest.mark.slow
def test_a_rewrite_is_dropped_when_the_file_is_edited_meanwhile(window: Editor) -> None:
    path = window.open("edited.py", FUNCTION)
    window.command("Stopgap: Rewrite This Function")
    window.status("/30")
    window.type("# mine\n")
    window.miss(LENS)
    window.saved(path, "# mine\n")


@pytest.mark.slow
def test_pause_shows_in_the_status_bar_and_resume_brings_ghost_text_back(window: Editor) -> None:
    window.open("pause.py", "def add(left, right):\n    |\n")
    window.command("Stopgap: Pause")
    window.status("paused")
    window.picture("paused")
    types_in_silence(window)
    window.command("Stopgap: Resume")
    window.miss(STATUS, "paused")
    window.press("Backspace")
    window.type(" ")
    window.see(GHOST, GHOSTS[0])


@pytest.mark.slow
def test_a_language_is_switched_off_and_on_again(window: Editor) -> None:
    window.open("off.py", "def add(left, right):\n    |\n")
    window.command("Stopgap: Turn Ghost Text On or Off for This Language")
    window.see(f"{STATUS} .codicon-circle-slash")
    types_in_silence(window)
    window.command("Stopgap: Why Nothing")
    window.see(f"{PREVIEW} .view-lines", "disabledLanguages has python")
    window.press("Control+1")  # back to the file
    window.see(f"{STATUS} .codicon-circle-slash")
    window.command("Stopgap: Turn Ghost Text On or Off for This Language")
    window.see(f"{STATUS} .codicon-sparkle")


@pytest.mark.slow
def test_ghost_text_is_switched_off_everywhere_or_in_this_workspace_alone(window: Editor) -> None:
    window.open("nowhere.py", "def add(left, right):\n    |\n")
    for title, of in (("Everywhere", window.settings), ("in This Workspace", window.workspace_settings)):
        window.see(f"{STATUS} .codicon-sparkle")
        window.command(f"Stopgap: Turn Ghost Text On or Off {title}")
        window.see(f"{STATUS} .codicon-circle-slash")
        assert json.loads(of.read_text(encoding="utf-8"))["stopgap.enabled"] is False
        types_in_silence(window)
        window.command(f"Stopgap: Turn Ghost Text On or Off {title}")
        window.see(f"{STATUS} .codicon-sparkle")
        window.press("Control+Z")
    window.type("return ")
    window.see(GHOST, GHOSTS[0])


@pytest.mark.slow
def test_a_click_on_the_status_item_opens_a_menu_that_restarts_the_server(window: Editor) -> None:
    window.open("menu.py", "def add(left, right):\n    |\n")
    window.do("click", selector=STATUS)
    for entry in ("Why nothing?", "Turn off everywhere", "Turn off in this workspace", "Turn off for python", "Pause"):
        window.see(".quick-input-list", entry)
    window.picture("menu")
    window.type("Restart the language server")
    window.press("Enter")
    window.see(f"{STATUS} .codicon-loading")
    window.see(f"{STATUS} .codicon-sparkle")
    window.press("Control+1")  # the click has moved the focus to the item
    window.type("return ")
    window.see(GHOST, GHOSTS[0])


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_shows_in_the_status_bar_and_one_that_can_again(window: Editor) -> None:
    window.open("broken.py", "def add(left, right):\n    |\n")
    with flag(window, "broken"):
        window.command("Stopgap: Pause")
        window.status("paused")
        window.command("Stopgap: Resume")
        window.type("return ")
        window.status("error")
        window.picture("error")
    window.press("Backspace")
    window.type(" ")
    window.see(GHOST, GHOSTS[0])


@pytest.mark.slow
def test_a_missing_program_is_named_with_what_to_run(window: Editor) -> None:
    window.set({"stopgap.path": "/nowhere/stopgap"})
    window.status("not found")
    window.see(".notification-toast", "/nowhere/stopgap")
    window.see(".notification-toast", "pipx install .")
    window.picture("missing")
    window.set({})
    window.see(f"{STATUS} .codicon-sparkle")


@pytest.mark.slow
def test_the_first_steps_are_shown_with_their_keys(window: Editor) -> None:
    window.command("Stopgap: First Steps")
    window.see(".getting-started", "First steps with stopgap")
    window.see(".step-title", "Watch a rewrite settle")
    window.see(".getting-started-step:has-text('The program behind it') .codicon.complete")
    window.picture("first-steps")


@pytest.mark.slow
def test_the_shipped_model_fills_a_hole_that_still_compiles(vsix: Path) -> None:
    source = (EXTENSION.parent.parent / "examples" / "inventory.py").read_text(encoding="utf-8")
    with opened(vsix) as window:
        window.set({"stopgap.invokedBudgetMs": 60_000})  # the machine may be busy
        path = window.open("inventory.py", source.replace("# fill here", "|"))
        window.type("r")
        window.press("Alt+\\")
        window.see(GHOST, "r")
        window.do("sleep", ms=1000)  # it may be replaced by a second text while the first is on screen
        line = window.see(GHOST, "r").replace("\xa0", " ").strip()
        window.picture("starter")
        window.press("Tab")
        window.do("sleep", ms=500)
        assert len(line) > 1
        window.saved(path, line)
        after = path.read_text(encoding="utf-8")
        compile(after, "inventory.py", "exec")
        window.command("Stopgap: Rewrite with Instruction")
        window.see(".notification-toast", "the loaded model does not follow instructions")  # before any are typed
