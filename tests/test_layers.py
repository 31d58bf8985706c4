"""The borders between the folders (ARCHITECTURE.md), held by reading the imports and by starting processes."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("daemon", "lsp", "infill", "kernels")
TEXT_SIDE = {
    "contract",
    "languages",
    "source",
    "hole",
    "cursor",
    "holes",
    "context",
    "ground",
    "around",
    "marks",
    "lax",
    "fillers",
    "halves",
    "pythonic",
    "readers",
    "syntax",
}
TEXT_SIDE |= {"lengths"}
HEAVY = {"torch", "transformers", "triton"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, at the top or inside functions, relative ones made absolute."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = f"stopgap.{path.parent.name}" if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).glob("*.py"))


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.startswith("stopgap.")}


def top(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", files("kernels"), ids=str)
def test_kernels_import_nothing_else_of_ours(path: Path) -> None:
    assert all(name.startswith("stopgap.kernels") for name in ours(path))


@pytest.mark.parametrize("path", files("infill"), ids=lambda p: p.name)
def test_infill_knows_no_daemon_no_lsp_no_sockets(path: Path) -> None:
    assert not any(name.startswith(("stopgap.daemon", "stopgap.lsp")) for name in ours(path))
    assert not top(path) & {"asyncio", "socket", "pygls", "lsprotocol"}


@pytest.mark.parametrize("path", [p for p in files("infill") if p.stem in TEXT_SIDE], ids=lambda p: p.name)
def test_the_text_side_of_infill_needs_no_torch(path: Path) -> None:
    assert not top(path) & HEAVY
    inside = {name.split(".")[2] for name in ours(path) if name.count(".") >= 2}
    assert inside & {p.stem for p in files("infill")} <= TEXT_SIDE


@pytest.mark.parametrize("path", files("daemon"), ids=lambda p: p.name)
def test_daemon_knows_no_lsp_and_no_torch(path: Path) -> None:
    if path.stem != "cli":  # `stopgap lsp` starts the server, inside its own command
        assert not any(name.startswith("stopgap.lsp") for name in ours(path))
    assert not top(path) & HEAVY, "an engine brings torch, and only the worker makes one (engines)"


@pytest.mark.parametrize("path", [*files("infill"), *files("daemon"), *files("lsp")], ids=lambda p: p.name)
def test_only_a_few_files_know_of_cuda(path: Path) -> None:
    """Everywhere else a device is whatever torch.device says, so that the same code runs on Apple silicon.

    `devices` asks processors about themselves; captured steps (`device_loop`, `graph`) are a thing of CUDA.
    """
    if path.stem in {"devices", "device_loop", "graph"}:
        return
    uses = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    ]
    assert not [use for use in uses if use in ("torch.cuda", "torch.backends.cuda")]
    assert not [name for name in imports(path) if name.startswith("torch.cuda")]


@pytest.mark.parametrize("path", files("lsp"), ids=lambda p: p.name)
def test_lsp_knows_the_wire_and_the_text_side_only(path: Path) -> None:
    assert not top(path) & HEAVY
    for name in ours(path):
        if name.startswith("stopgap.daemon."):
            assert name.split(".")[2] in {"wire", "client"}
        if name.startswith("stopgap.infill."):
            assert name.split(".")[2] in TEXT_SIDE


def test_the_wire_and_its_framing_need_only_the_standard_library_and_a_codec() -> None:
    assert top(ROOT / "daemon" / "wire.py") <= set(sys.stdlib_module_names)
    assert top(ROOT / "daemon" / "framing.py") <= set(sys.stdlib_module_names) | {"stopgap", "msgpack"}
    assert ours(ROOT / "daemon" / "framing.py") == {"stopgap.daemon", "stopgap.daemon.wire"}


def test_starting_the_lsp_server_imports_no_torch() -> None:
    code = "import stopgap.lsp.server, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_nothing_of_ours_is_importable_by_a_bare_name() -> None:
    code = (
        "import importlib.util as u, sys\n"
        "bad = [n for n in ('daemon','lsp','infill','kernels') if (s := u.find_spec(n)) and s.origin"
        " and s.origin.startswith(sys.argv[1])]\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(ROOT)], check=True)


def test_the_wheel_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert listed == [f"stopgap.{folder}" for folder in FOLDERS]
    for folder in FOLDERS:
        nested = [p for p in (ROOT / folder).iterdir() if p.is_dir() and list(p.glob("*.py"))]
        assert not nested, "packages are flat: a nested one would be missing from the wheel"


def test_no_file_is_named_after_a_standard_module() -> None:
    for folder in FOLDERS:
        assert not {p.stem for p in files(folder)} & (set(sys.stdlib_module_names) - {"__init__", "__main__"})


def test_the_architecture_page_names_every_file_of_infill_and_the_text_side() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = dict(
        re.findall(r"^\| (the text|the fill|the network|checkpoints in|training|measuring) \| (.*) \|$", page, re.M)
    )
    named = {part: set(re.findall(r"`(\w+)`", row)) for part, row in rows.items()}
    assert set().union(*named.values()) == {path.stem for path in files("infill")} - {"__init__"}
    assert named["the text"] == TEXT_SIDE
