"""The GPU session: a stage that fails costs the others nothing, and it runs where nothing can be installed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import gpu_check
import pytest

ROOT = Path(__file__).resolve().parents[1]
FAKE = """#!/bin/sh
echo "$*"
echo "$TRITON_INTERPRET path=${PYTHONPATH:-}" >&2
case "$*" in
*FAILS*) exit 3 ;;
*bench\\ step*) for word; do last=$word; done; mkdir -p "$last"; echo '{}' >"$last/2026-01-31-card.json" ;;
*tune_kernels*) echo '{}' >"$FOLDER/2026-01-31-card-tuning.json" ;;
esac
"""


def session(folder: Path, fake: str, **environment: str) -> tuple[int, str]:
    """Exit status and output of the whole session with a `python` of our own."""
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(fake)
    python.chmod(0o755)
    out = folder / "out"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "STAGES", "SMALL")}
    known = clean | {"BIN": str(folder / "bin"), "FOLDER": str(out)} | environment
    ran = subprocess.run(
        ["tests/gpu_session.sh", out], cwd=ROOT, env=known, capture_output=True, text=True, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_every_stage_runs_in_the_order_of_what_is_wanted_most(tmp_path: Path) -> None:
    status, said = session(tmp_path, FAKE)
    assert status == 0 and said.endswith(f"everything ran; results in {tmp_path}/out\n")
    stages = [line.split()[1] for line in said.splitlines() if "(at most" in line]
    assert stages == ["check", "tests", "step", "keystroke", "tune", "rest", "report", "report"]
    assert f"bench report {tmp_path}/out/first/2026-01-31-card.json" in said
    assert (
        (tmp_path / "out" / "session-step.log").read_text().startswith("-P -m stopgap.daemon bench step --device cuda")
    )


@pytest.mark.parametrize(
    ("broken", "failed"), [("gpu_check", "check(3)"), ("--maxfail", "tests(3)"), ("--fills", "keystroke(3)")]
)
def test_a_stage_that_fails_is_named_and_the_others_run_all_the_same(broken: str, failed: str, tmp_path: Path) -> None:
    status, said = session(tmp_path, FAKE.replace("FAILS", broken))
    assert status == 1 and f"FAILED: {failed}; everything that was measured is in {tmp_path}/out" in said
    assert said.count("(at most") == 8


def test_without_an_environment_of_its_own_it_takes_the_python_that_is_there(tmp_path: Path) -> None:
    status, said = session(
        tmp_path, FAKE, BIN=str(tmp_path / "none"), PYTHON=str(tmp_path / "bin" / "python"), STAGES="check"
    )
    assert status == 0 and f"path={ROOT}/.ns\n" in said and said.count("(at most") == 1


def test_the_rehearsal_runs_in_the_interpreter_and_leaves_the_tables_alone(tmp_path: Path) -> None:
    status, said = session(tmp_path, FAKE, SMALL="1", STAGES="step tune")
    assert status == 0 and "1 path=" in said
    assert f"--device cpu --small --seconds 0 --out {tmp_path}/out --table {tmp_path}/out/data" in said


def test_the_check_knows_what_the_product_needs_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    there, missing = gpu_check.packages()
    assert not set(missing) - {"triton"}
    assert {"torch", "tree-sitter", "tree-sitter-c-sharp"} <= {line.split()[0] for line in there}
    monkeypatch.setattr(gpu_check, "MORE", ("no-such-package",))
    assert "no-such-package" in gpu_check.packages()[1]
