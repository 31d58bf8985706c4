"""The eglot snippet in a real Emacs, with the real language server and daemon: the cases are in emacs/*.el."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stopgap.daemon import paths

HERE = Path(__file__).parent
HAS_EGLOT = "(progn (require (quote package)) (package-initialize) (require (quote eglot)))"


def emacs(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    # The stopgap command of this environment comes first.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["emacs", "--batch", "--no-init-file", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )


@pytest.mark.slow
def test_completion_and_code_actions_in_eglot(
    stub_daemon: paths.Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("emacs") is None or emacs("--eval", HAS_EGLOT, home=tmp_path).returncode:
        pytest.skip("skipped: no Emacs with eglot here; tests/emacs/install gets it from the distribution")
    monkeypatch.setenv("STOPGAP_ENGINE_FACTORY", f"{HERE / 'nvim/engine.py'}:load")
    told = emacs("-l", str(HERE / "emacs/stopgap-test.el"), "-f", "ert-run-tests-batch-and-exit", home=tmp_path)
    assert told.returncode == 0, told.stderr[-6000:]
    assert "0 unexpected" in told.stderr
