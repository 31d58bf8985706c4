"""Which files stopgap may look at: asked before any text of a file leaves the editor's process.

Knows paths and patterns only. A file that is refused gets no ghost text and no actions, and is never
context for another file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from pathspec import GitIgnoreSpec

from .settings import SECRETS, Settings

MAX_IGNORE_FILE = 256 * 1024
_SECRETS = GitIgnoreSpec.from_lines(SECRETS)


def path_of(uri: str) -> Path | None:
    """The file behind a document, also behind a notebook's cell; None for untitled and virtual documents."""
    parts = urlsplit(uri)
    if parts.scheme not in {"file", "vscode-notebook-cell"} or not parts.path:
        return None
    host = f"//{parts.netloc}" if parts.netloc and parts.netloc != "localhost" else ""
    return Path(host + url2pathname(parts.path) if parts.scheme == "file" else unquote(parts.path))


@dataclass(frozen=True, slots=True)
class Rules:
    """The path rules of one editor."""

    settings: Settings
    folders: tuple[Path, ...] = ()

    def refusal(self, path: Path | None) -> str:
        """Why this file is out of bounds, or an empty string."""
        if path is None:
            return ""
        if _SECRETS.match_file(self._name(path)) or _SECRETS.match_file(path.name):
            return "files that may hold secrets are never read"
        if self.settings.disabled_globs and _globs(self.settings.disabled_globs).match_file(self._name(path)):
            return "the setting disabledGlobs excludes this file"
        if self.settings.respect_gitignore and git_ignores(path):
            return "git ignores this file (setting respectGitignore)"
        return ""

    def folder(self, path: Path) -> Path | None:
        """The innermost workspace folder that holds the file."""
        holding = [folder for folder in self.folders if path.is_relative_to(folder)]
        return max(holding, key=lambda folder: len(folder.parts), default=None)

    def _name(self, path: Path) -> str:
        folder = self.folder(path)
        return path.relative_to(folder).as_posix() if folder else path.as_posix().lstrip("/")


def git_ignores(path: Path) -> bool:
    """Whether the .gitignore files of the repository around `path` exclude it.

    Files that git tracks although they match are not looked up: that takes git itself.
    """
    root = next((folder for folder in path.parents if (folder / ".git").exists()), None)
    if root is None:
        return False
    below = path.relative_to(root).parts
    # A folder that is excluded hides its own .gitignore files, so each level is asked from the top down.
    specs: list[tuple[int, GitIgnoreSpec]] = []
    if (exclude := _ignore_file(root / ".git" / "info" / "exclude")) is not None:
        specs.append((0, exclude))
    for depth in range(len(below)):
        folder = root.joinpath(*below[:depth])
        if (spec := _ignore_file(folder / ".gitignore")) is not None:
            specs.append((depth, spec))
        name = "/".join(below[: depth + 1]) + ("/" if depth + 1 < len(below) else "")
        verdict: bool | None = None
        for base, spec in specs:
            said = spec.check_file(name.split("/", base)[-1]).include
            verdict = said if said is not None else verdict
        if verdict:
            return True
    return False


def _ignore_file(path: Path) -> GitIgnoreSpec | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _parsed(path, found.st_mtime_ns, found.st_size) if found.st_size <= MAX_IGNORE_FILE else None


@lru_cache(maxsize=256)
def _parsed(path: Path, changed_ns: int, size: int) -> GitIgnoreSpec | None:
    """The file's patterns; the two numbers are there to notice that it was edited."""
    try:
        return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=16)
def _globs(patterns: tuple[str, ...]) -> GitIgnoreSpec:
    good = []
    for pattern in patterns:
        try:
            GitIgnoreSpec.from_lines([pattern])
        except ValueError:
            continue
        good.append(pattern)
    return GitIgnoreSpec.from_lines(good)
