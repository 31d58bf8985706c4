"""The wheel: what is in it, how big it is, and that it runs away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("daemon", "lsp", "infill", "kernels")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the checkout gets no build folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-P", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(out), str(source)], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_the_starter(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        for path in (ROOT / folder).glob("*.py"):
            assert f"stopgap/{folder}/{path.name}" in names
    for name in ("config.json", "model.safetensors", "tokenizer.json", "stopgap.json"):
        assert f"stopgap/infill/starter/{name}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"stopgap"}, "no top-level kernels or daemon"


@pytest.mark.slow
def test_the_wheel_stays_under_40_mb(wheel: Path) -> None:
    assert wheel.stat().st_size < 40 << 20


@pytest.mark.slow
def test_the_installed_wheel_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.argv[1:] = ['--version'];"
        "import stopgap.infill.contract as c; assert c.__file__.startswith(sys.path[0]), c.__file__;"
        "from stopgap.daemon.__main__ import main; sys.exit(main())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", _with_libraries(code), str(target)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stopgap" in done.stdout


def _with_libraries(code: str) -> str:
    """`-S` keeps the editable install's import hook away; the libraries come back by path."""
    library = next(path for path in sys.path if path.endswith("site-packages"))
    return f"import sys; sys.path.append({library!r});" + code
