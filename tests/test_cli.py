"""The `stopgap` command: what it prints and how it exits. The daemon behind it is a real process."""

from __future__ import annotations

import io
import json
import os
import plistlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stopgap.daemon import cli, config, transport
from stopgap.daemon.paths import Place

SOURCE = "def area(w, h):\n    # here\n"


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Run = Callable[..., Ran]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "area.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def stopgap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["stopgap", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = cli.main()
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


def test_a_fill_is_shown_as_a_diff_with_what_it_cost(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    ran = stopgap("fill", file, "--marker", "# here", "--instruction", "steps=3 text=return")
    assert ran.status == 0
    assert "-    # here" in ran.out and "+    return" in ran.out
    assert "fake · 3 denoising steps · 8 slots ·" in ran.out and "syntax ok" in ran.out
    assert file.read_text() == SOURCE, "nothing is written without --in-place"


def test_json_is_one_object_with_the_documented_keys(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    ran = stopgap("fill", file, "--at", "2:5", "--json", "--instruction", "text=return")
    found = json.loads(ran.out)
    assert list(found) == [
        "fill", "start_byte", "end_byte", "node_type", "syntax_ok", "steps", "milliseconds", "model", "slots",
    ]  # fmt: skip
    assert (found["fill"], found["start_byte"], found["end_byte"]) == ("return", 20, 20)


def test_several_candidates_are_in_the_json(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    found = json.loads(stopgap("fill", file, "--at", "2:5", "--json", "--candidates", 3).out)
    assert len(found["others"]) == 2


def test_in_place_writes_the_fill(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    assert stopgap("fill", file, "--marker", "# here", "--in-place", "--instruction", "text=return").status == 0
    assert file.read_text() == SOURCE.replace("# here", "return")


def test_stdin_needs_a_language_and_is_filled(stub_daemon: Place, stopgap: Run) -> None:
    ran = stopgap("fill", "-", "--language", "python", "--at", "1:1", "--json", stdin=SOURCE.encode())
    assert json.loads(ran.out)["fill"] == "pass"
    ran = stopgap("fill", "-", "--at", "1:1", stdin=SOURCE.encode())
    assert ran.status == 2 and "--language" in ran.err


def test_nothing_through_the_gate_is_exit_3_with_the_reason(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    ran = stopgap("fill", file, "--at", "2:5", "--in-place", "--instruction", "text=-")
    assert (ran.status, ran.out) == (3, "")
    assert ran.err == "stopgap: no fill: nothing passed the syntax gate\n"
    assert file.read_text() == SOURCE
    ran = stopgap("fill", file, "--at", "2:5", "--json", "--instruction", "text=-")
    assert ran.status == 3 and json.loads(ran.out)["fill"] is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Missing argument"),
        (["FILE"], "say where"),
        (["FILE", "--at", "99:1"], "the file has 3 lines"),
        (["FILE", "--at", "1:99"], "line 1 has 15 characters"),
        (["FILE", "--at", "1"], "LINE:COLUMN was expected"),
        (["FILE", "--marker", "nowhere"], "not in the file"),
        (["/nowhere/x.py", "--at", "1:1"], "No such file"),
        (["FILE", "--at", "1:1", "--language", "pyhton"], "unknown language 'pyhton'"),
        (["FILE", "--at", "1:1", "--candidates", "0"], "--candidates"),
        (["FILE", "--at", "1:1", "--target", "x"], "--target"),
        (["FILE", "--at", "1:1", "--watch", "--json"], "--watch"),
        (["-", "--at", "1:1", "--in-place"], "--in-place needs a file"),
        (["FILE", "--at", "1:1", "--model", "/missing"], "name a folder"),
        (["FILE", "--at", "1:1", "--model", "starte"], "did you mean 'starter'?"),
        (["FILE", "--at", "1:1", "--instruction", "error=FillError"], "the script said so"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_2(
    stub_daemon: Place,
    stopgap: Run,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.setenv("STOPGAP_MODEL", "starter")  # --model sets it: put it back afterwards
    ran = stopgap("fill", *(file if word == "FILE" else word for word in arguments))
    assert ran.status == 2
    assert complaint in ran.err and ran.err.startswith("stopgap: ") and ran.err.count("\n") == 1
    assert ran.out == ""


def test_a_file_without_a_known_language_says_what_to_do(stub_daemon: Place, stopgap: Run, tmp_path: Path) -> None:
    (tmp_path / "x.unknown").write_text("x")
    ran = stopgap("fill", tmp_path / "x.unknown", "--at", "1:1")
    assert ran.status == 2 and "--language NAME" in ran.err


def test_a_crash_of_the_engine_is_exit_1_and_why_tells_more(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    ran = stopgap("fill", file, "--at", "1:1", "--instruction", "fail_at=1")
    assert ran.status == 1 and ran.err.count("\n") == 1
    trace = ran.err.split("`stopgap why ")[1].split("`")[0]
    assert "The engine failed" in stopgap("why", trace).out


def test_a_bad_setting_is_one_line(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    config.config_path().write_text("idle_minute = 3\n")
    for arguments in (["fill", file, "--at", "1:1"], ["config"], ["status"], ["daemon", "start"]):
        ran = stopgap(*arguments)
        assert ran.status == 2 and "did you mean 'idle_minutes'" in ran.err and ran.err.count("\n") == 1


@pytest.mark.parametrize("variable", ["STOPGAP_RUNTIME_DIR", "STOPGAP_STATE_DIR"])
def test_a_folder_that_cannot_be_made_is_one_line_with_the_variable_that_moves_it(
    stub_daemon: Place, stopgap: Run, file: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(file / "below-a-file"))
    for arguments in (["fill", file, "--at", "1:1"], ["status"], ["daemon", "stop"], ["daemon", "run"]):
        ran = stopgap(*arguments)
        assert ran.status == 2 and f"Not a directory; set {variable}" in ran.err and ran.err.count("\n") == 1


def test_folders_named_from_here_are_found_by_the_daemon_elsewhere(
    stub_daemon: Place, stopgap: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(stub_daemon.socket.parent.parent)
    monkeypatch.setenv("STOPGAP_RUNTIME_DIR", "run")
    monkeypatch.setenv("STOPGAP_STATE_DIR", "state")
    monkeypatch.setenv("STOPGAP_CONFIG", "config.toml")
    assert stopgap("fill", file, "--at", "2:5").status == 0
    assert transport.holder(stub_daemon.lock)


WITHOUT_A_BYTE = """
import resource, sys
from stopgap.daemon.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.argv = ["stopgap", *sys.argv[1:]]
sys.exit(main())
"""


@pytest.mark.parametrize(("arguments", "status"), [(["fill", "FILE", "--at", "2:5"], 1), (["daemon", "run"], 2)])
def test_where_not_a_byte_can_be_written_no_daemon_starts_and_the_file_is_named(
    stub_daemon: Place, file: Path, arguments: list[str], status: int
) -> None:
    words = [str(file) if word == "FILE" else word for word in arguments]
    ran = subprocess.run(
        [sys.executable, "-P", "-c", WITHOUT_A_BYTE, *words], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (status, "")
    assert f"{stub_daemon.socket.parent}/starter." in ran.stderr and ran.stderr.endswith(": File too large\n")
    assert ran.stderr.count("\n") == 1


def test_config_shows_values_and_their_origin(stub_daemon: Place, stopgap: Run) -> None:
    config.config_path().write_text("threads = 3\n")
    out = stopgap("config").out
    assert f"threads = 3  # from {config.config_path()}" in out
    assert 'model = "starter"\n' in out and "# from STOPGAP_" not in out
    assert all(name in out for name in config.VARIABLES)
    assert json.loads(stopgap("config", "--json").out)["threads"]["value"] == 3


def test_the_daemon_commands_start_show_pause_and_stop_it(stub_daemon: Place, stopgap: Run) -> None:
    assert stopgap("daemon", "status").status == 2, "looking does not start one"
    started = stopgap("daemon", "start").out
    pid = transport.holder(stub_daemon.lock)
    assert started == f"the stopgap daemon is process {pid}\n"
    assert stopgap("daemon", "start").out == started
    assert "fake (ready)" in stopgap("daemon", "load").out
    assert "(cold)" in stopgap("daemon", "unload").out
    assert "(paused)" in stopgap("daemon", "pause").out
    assert "(cold)" in stopgap("daemon", "resume").out
    assert json.loads(stopgap("status", "--json").out)["pid"] == pid
    assert "No fill has been shown" in stopgap("stats").out
    assert stopgap("daemon", "stop").out == f"stopped process {pid}\n"
    assert transport.holder(stub_daemon.lock) is None


def test_a_daemon_for_another_model_is_mentioned_and_ended_with_all(
    stub_daemon: Place, stopgap: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stopgap("fill", file, "--at", "2:5").status == 0
    monkeypatch.setenv("STOPGAP_MODEL", str(file.parent))  # the fake engine takes any
    assert stopgap("fill", file, "--at", "2:5").status == 0
    pid = transport.holder(stub_daemon.lock)
    assert "a daemon for another model still runs; `stopgap daemon stop --all`" in stopgap("daemon", "stop").out
    assert transport.holder(stub_daemon.lock) == pid
    out = stopgap("daemon", "stop", "--all").out
    assert out == f"no stopgap daemon is running\nstopped process {pid}, of starter\n"
    assert transport.holder(stub_daemon.lock) is None


def test_a_daemon_that_hangs_is_stopped_all_the_same(
    stub_daemon: Place,
    stopgap: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hanging = (
        "import signal, sys, time; from pathlib import Path; from stopgap.daemon.transport import Lock\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "lock = Lock(Path(sys.argv[1])); lock.take(); print('held', flush=True); time.sleep(60)"
    )
    monkeypatch.setattr("stopgap.daemon.control._RUDE_S", 0.1)
    process = subprocess.Popen([sys.executable, "-P", "-c", hanging, str(stub_daemon.lock)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    assert "was ended by SIGKILL" in stopgap("daemon", "stop").out
    process.communicate()


def test_help_names_every_command_and_how_columns_count() -> None:
    said = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in said for name in ("fill", "daemon", "lsp", "status", "why", "stats", "config", "bench"))
    said = subprocess.run([*COMMAND, "fill", "--help"], capture_output=True, text=True, check=True).stdout
    assert "both counted from 1, the column in characters" in " ".join(said.split())


COMMAND = [sys.executable, "-P", "-m", "stopgap.daemon"]

IMPORTED = """
import sys
from stopgap.daemon.__main__ import main
sys.argv = ["stopgap", *sys.argv[1:]]
main()
print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
HEAVY = {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "pygls", "lsprotocol", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        "--version",
        "--help",
        "fill FILE --at 2:5 --json",
        "status --json",
        "why",
        "config --json",
        "model list --json",
        "daemon stop",
        "doctor --help",
        "eval --help",
        "train --help",
        "lsp --help",
    ],
)
def test_a_command_imports_nothing_heavy_that_it_does_not_need(stub_daemon: Place, file: Path, arguments: str) -> None:
    words = [str(file) if word == "FILE" else word for word in arguments.split()]
    ran = subprocess.run([sys.executable, "-P", "-c", IMPORTED, *words], check=True, capture_output=True, text=True)
    imported = set(ran.stderr.splitlines()[-1].split())
    assert "stopgap" in imported and not imported & HEAVY


@pytest.mark.skipif(sys.platform == "win32", reason="no pty there")
def test_a_person_who_starts_the_language_server_by_hand_is_told_what_it_is() -> None:
    person, terminal = os.openpty()
    server = subprocess.Popen([*COMMAND, "lsp"], stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert server.stderr
    assert b"this is for editors" in server.stderr.readline()
    server.send_signal(signal.SIGINT)
    assert server.communicate() == (b"", b"") and server.returncode == 130
    os.close(person)
    os.close(terminal)


def test_a_log_level_that_does_not_exist_is_one_line() -> None:
    ran = subprocess.run(
        [*COMMAND, "lsp"], env=os.environ | {"STOPGAP_LSP_LOG": "loud"}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (2, "") and ran.stderr.count("\n") == 1 and "DEBUG, INFO" in ran.stderr


def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    ran = subprocess.run(
        [*COMMAND, "status"], env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, b"", b"")


def test_watch_ends_with_the_same_diff(stub_daemon: Place, stopgap: Run, file: Path) -> None:
    ran = stopgap("fill", file, "--marker", "# here", "--watch", "--instruction", "steps=4 step_ms=40 text=return")
    assert ran.status == 0 and "+    return" in ran.out


def test_units_name_this_installation(stopgap: Run) -> None:
    for kind in ("systemd", "launchd"):
        out = stopgap("daemon", "unit", kind).out
        assert str(Path(sys.executable).with_name("stopgap")) in out and "@" not in out
    plistlib.loads(out.encode())
