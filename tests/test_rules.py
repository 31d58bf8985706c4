"""Path rules: secrets, globs and .gitignore, the last held to git itself."""

import shutil
import subprocess
from pathlib import Path

import pytest

from stopgap.lsp.rules import Rules, git_ignores, path_of
from stopgap.lsp.settings import Settings


@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "deploy/.env", "server.pem", "a/b/id_rsa", "x.key", "home/.ssh/config", "prod.tfvars"],
)
def test_files_that_may_hold_secrets_are_refused_whatever_the_settings(tmp_path: Path, name: str) -> None:
    rules = Rules(Settings(respect_gitignore=False), (tmp_path,))
    assert "secrets" in rules.refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["environment.py", "keys.py", "secret_santa.py", "env/x.py", "tests/key.rs"])
def test_files_that_only_sound_like_secrets_are_not(tmp_path: Path, name: str) -> None:
    assert Rules(Settings(), (tmp_path,)).refusal(tmp_path / name) == ""


def test_globs_are_read_from_the_workspace_folder(tmp_path: Path) -> None:
    rules = Rules(Settings(disabled_globs=("/vendor/", "*.min.js", "[")), (tmp_path,))
    assert "disabledGlobs" in rules.refusal(tmp_path / "vendor" / "x.py")
    assert "disabledGlobs" in rules.refusal(tmp_path / "a" / "x.min.js")
    assert rules.refusal(tmp_path / "a" / "vendor" / "x.py") == ""


def test_the_innermost_folder_counts(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    assert Rules(Settings(), (tmp_path, inner)).folder(inner / "x.py") == inner
    assert Rules(Settings(), (inner,)).folder(tmp_path / "x.py") is None


def test_an_untitled_document_has_no_path_and_is_not_refused() -> None:
    assert path_of("untitled:Untitled-1") is None
    assert Rules(Settings()).refusal(None) == ""


def test_a_notebooks_cell_is_judged_by_its_notebook() -> None:
    assert path_of("vscode-notebook-cell:/a%20b/n.ipynb#W0s") == Path("/a b/n.ipynb")
    assert path_of("file:///a%20b/c%23.py") == Path("/a b/c#.py")


IGNORED = {
    ".gitignore": "*.log\n!keep.log\n/build/\ngen/**/out\nsecret dir/\n\\#odd\nfoo\n",
    "sub/.gitignore": "!important.log\nlocal.py\n/top.py\n",
    "build/.gitignore": "!*\n",
}
FILES = [
    "a.log", "keep.log", "sub/keep.log", "sub/important.log", "build/x.py", "sub/build/x.py", "gen/out", "gen/a/b/out",
    "secret dir/x", "#odd", "foo", "sub/foo/bar.py", "sub/local.py", "local.py", "sub/top.py", "sub/deep/top.py",
    "plain.py", "sub/plain.py",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="skipped: git is not installed")
def test_gitignore_is_read_as_git_reads_it(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / ".git" / "info" / "exclude").write_text("plain.py\n")
    for name, text in IGNORED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    by_git = subprocess.run(
        ["git", "-C", tmp_path, "check-ignore", *FILES], check=False, capture_output=True, text=True
    ).stdout
    expected = {line.strip('"').replace("\\\\", "\\") for line in by_git.splitlines()}
    assert {name for name in FILES if git_ignores(tmp_path / name)} == expected


def test_outside_a_repository_nothing_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    assert not git_ignores(tmp_path / "a.py")


def test_an_edited_gitignore_counts_at_once(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert not git_ignores(tmp_path / "a.py")
    (tmp_path / ".gitignore").write_text("a.py\n")
    assert git_ignores(tmp_path / "a.py")
