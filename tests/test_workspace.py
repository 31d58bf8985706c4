"""What other files are read for a request, and what is not."""

from pathlib import Path

import pytest

from stopgap.infill.languages import LANGUAGES
from stopgap.lsp.document import Documents
from stopgap.lsp.rules import Rules
from stopgap.lsp.settings import Settings
from stopgap.lsp.workspace import Context

PYTHON = LANGUAGES["python"]


class Desk:
    """A workspace folder with files, and documents open in it."""

    def __init__(self, folder: Path, files: dict[str, str], **settings: object) -> None:
        self.folder = folder / "project"
        self.now = 0.0
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.documents = Documents()
        self.rules = Rules(Settings(**settings), (self.folder,))  # type: ignore[arg-type]
        self.context = Context(lambda: self.now)

    def uri(self, name: str) -> str:
        return (self.folder / name).as_uri()

    def open(self, name: str, text: str, language: str = "python") -> None:
        self.documents.open(self.uri(name), 1, language, text)

    def edit(self, name: str, text: str, line: int = 0) -> None:
        before = self.documents.get(self.uri(name))
        assert before is not None
        self.documents.change(before.uri, before.version + 1, [(((line, 0), (line, 0)), text)])

    def asked(self, name: str, language: str = "python") -> dict[str, str]:
        snapshot = self.documents.get(self.uri(name))
        assert snapshot is not None
        found = self.context.snippets(snapshot, LANGUAGES[language], self.documents, self.rules)
        return {snippet.path: snippet.text for snippet in found}


HELPERS = "import os\n\nX = 1\n\ndef other():\n    pass\n" + "\n" * 30 + "def wanted(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("from helpers import wanted", "helpers.py"),
        ("from pkg.helpers import wanted, x", "pkg/helpers.py"),
        ("from pkg import helpers", "pkg/helpers.py"),
        ("import pkg.helpers", "pkg/helpers.py"),
        ("from src_only import wanted", "src/src_only.py"),
        ("from pkg import (\n    a,\n    wanted)", "pkg/__init__.py"),
    ],
)
def test_python_imports_are_found_in_the_workspace(tmp_path: Path, statement: str, name: str) -> None:
    desk = Desk(tmp_path, {name: HELPERS})
    desk.open("main.py", statement + "\n\n")
    assert list(desk.asked("main.py")) == [name]


def test_a_relative_import_is_found_beside_the_file(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"a/b/helpers.py": HELPERS, "a/up.py": HELPERS})
    desk.open("a/b/main.py", "from .helpers import wanted\nfrom ..up import other\n")
    assert list(desk.asked("a/b/main.py")) == ["a/b/helpers.py", "a/up.py"]


def test_scripts_and_headers_are_found_too(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"lib/x.ts": "export function f() {}\n", "include/y.h": "int y(void);\n"})
    desk.open("main.ts", "import { f } from './lib/x'\n", "typescript")
    desk.open("main.c", '#include "y.h"\n#include <stdio.h>\n', "c")
    assert list(desk.asked("main.ts", "typescript")) == ["lib/x.ts"]
    assert list(desk.asked("main.c", "c")) == ["include/y.h"]


def test_only_the_lines_that_define_the_imported_name_are_taken(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"helpers.py": HELPERS})
    desk.open("main.py", "from helpers import wanted\n")
    assert desk.asked("main.py")["helpers.py"].startswith("def wanted(a, b):\n    return a + b\n")


def test_nothing_outside_the_workspace_is_read(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(HELPERS)
    desk = Desk(tmp_path, {"main.py": ""})
    (desk.folder / "link.py").symlink_to(tmp_path / "outside.py")
    desk.open("main.py", "from ..outside import wanted\nimport link\nfrom ...... import x\n")
    assert desk.asked("main.py") == {}


def test_a_refused_file_is_not_context(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"helpers.py": HELPERS}, disabled_globs=("helpers.py",))
    desk.open("main.py", "import helpers\n")
    desk.open("helpers.py", HELPERS)
    desk.edit("helpers.py", "y = 2\n")
    assert desk.asked("main.py") == {}


def test_the_place_edited_last_in_another_file_comes_first(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"helpers.py": HELPERS})
    desk.open("other.py", "".join(f"line{n} = {n}\n" for n in range(100)))
    desk.open("notes.md", "# notes\n", "markdown")
    desk.open("untouched.py", "z = 3\n")
    desk.open("main.py", "import helpers\n")
    desk.edit("other.py", "new = 0\n", line=60)
    desk.edit("notes.md", "x")
    found = desk.asked("main.py")
    assert list(found) == ["other.py", "helpers.py"]
    assert "new = 0" in found["other.py"]
    assert "line20 " not in found["other.py"]


def test_typing_in_the_file_itself_changes_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"helpers.py": HELPERS})
    desk.open("main.py", "import helpers\n\n")
    before = desk.asked("main.py")
    (desk.folder / "helpers.py").write_text("changed = 1\n")
    desk.edit("main.py", "x = 1\n", line=2)
    assert desk.asked("main.py") == before


def test_an_edit_of_an_imported_file_that_is_open_is_seen_before_it_is_saved(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"helpers.py": "old = 1\n"})
    desk.open("helpers.py", "old = 1\n")
    desk.open("main.py", "import helpers\n")
    desk.edit("helpers.py", "new = 2\n")
    assert "new = 2" in desk.asked("main.py")["helpers.py"]


def test_context_is_bounded_in_files_bytes_and_time(tmp_path: Path) -> None:
    files = {f"m{n}.py": f"x{n} = {n}\n" * 50 for n in range(9)}
    text = "".join(f"import m{n}\n" for n in range(9))
    for limit, count in [({"context_files": 3}, 3), ({"context_bytes": 400}, 2), ({"context_files": 0}, 0)]:
        desk = Desk(tmp_path, files, **limit)
        desk.open("main.py", text)
        found = desk.asked("main.py")
        assert len(found) == count
        assert sum(map(len, found.values())) <= desk.rules.settings.context_bytes
    late = Desk(tmp_path, files)
    late.context = Context(iter(range(100)).__next__)
    late.open("main.py", text)
    assert late.asked("main.py") == {}


def test_binary_and_huge_files_are_not_read(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"b.py": "x = 1\0\n", "h.py": "x = 1\n" * 100_000})
    desk.open("main.py", "import b\nimport h\n")
    assert desk.asked("main.py") == {}
