"""What other files of the workspace may help with a fill: the places edited last, and what is imported.

Nothing outside the workspace folders is read, and nothing the path rules refuse. The answer stays the same
while the user types in one file: it stands in front of the prompt, and any change there costs the model its
whole prefix cache. Knows nothing of LSP types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stopgap.daemon import wire
from stopgap.infill.languages import Language, for_path

from .document import Documents, Snapshot
from .rules import Rules, path_of

MAX_READ = 256 * 1024
"""Bytes; larger files are not read as context."""
LINES_AROUND = 24
"""Lines taken from another open file around its last edit."""
LINES_OF_NAME = 12
"""Lines taken from where an imported name is defined."""
IMPORTS_IN = 8192
"""Imports are looked for in so many bytes at the start of a file."""

_PYTHON = re.compile(
    rb"^[ \t]*(?:from[ \t]+(\.*[\w.]*)[ \t]+import[ \t]+(\([^)]*|[^\n(]*)|import[ \t]+([\w.]+))", re.MULTILINE
)
_SCRIPT = re.compile(rb"""(?:import\s+(?:type\s+)?\{?([\w,\s*]*)\}?\s*from\s*|require\()\s*['"](\.[^'"\n]+)['"]""")
_INCLUDE = re.compile(rb'^[ \t]*#[ \t]*include[ \t]+"([^"\n]+)"', re.MULTILINE)
_IMPORTS = {
    "python": _PYTHON,
    **dict.fromkeys(("javascript", "typescript", "tsx"), _SCRIPT),
    **dict.fromkeys(("c", "cpp"), _INCLUDE),
}
_SCRIPTS = ("", ".ts", ".tsx", ".js", ".jsx", ".mjs", "/index.ts", "/index.js")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported file and the names taken from it; no names means all of it."""

    path: Path
    names: tuple[str, ...]


@dataclass(slots=True)
class Context:
    """Collects snippets, and remembers them for as long as what they came from stays the same."""

    clock: Callable[[], float]
    """Seconds from any fixed moment."""
    _last: dict[str, tuple[object, tuple[wire.Snippet, ...]]] = field(default_factory=dict)

    def snippets(
        self, snapshot: Snapshot, language: Language, documents: Documents, rules: Rules
    ) -> tuple[wire.Snippet, ...]:
        """At most `context_files` pieces of other files, together at most `context_bytes`, best first."""
        settings = rules.settings
        path = path_of(snapshot.uri)
        others = [other for other in documents if other.uri != snapshot.uri and other.edit is not None]
        del others[settings.context_files :]
        head = snapshot.data[:IMPORTS_IN]
        statements = tuple(match[0] for match in _statements(head, language.name))
        key = (statements, tuple((other.uri, other.version) for other in others), rules)
        known = self._last.get(snapshot.uri)
        if known is not None and known[0] == key:
            return known[1]
        until = self.clock() + settings.context_ms / 1000
        left = settings.context_bytes
        found: list[wire.Snippet] = []
        seen: set[Path] = {path} if path else set()
        for piece_path, piece in self._pieces(snapshot, language, others, path, rules):
            if len(found) >= settings.context_files or left <= 0 or self.clock() > until:
                break
            if piece_path in seen or not piece.strip():
                continue
            seen.add(piece_path)
            text = piece[:left].decode("utf-8", "ignore")
            left -= len(piece)
            folder = rules.folder(piece_path)
            found.append(wire.Snippet(str(piece_path.relative_to(folder)) if folder else piece_path.name, text))
        self._last[snapshot.uri] = (key, tuple(found))
        return tuple(found)

    def forget(self, uri: str) -> None:
        self._last.pop(uri, None)

    def _pieces(
        self, snapshot: Snapshot, language: Language, others: list[Snapshot], path: Path | None, rules: Rules
    ) -> Iterator[tuple[Path, bytes]]:
        for other in others:
            other_path = path_of(other.uri)
            if other_path is None or rules.folder(other_path) is None or rules.refusal(other_path):
                continue
            related = for_path(other_path.name)
            if related is not None and related.name == language.name:
                yield other_path, around_edit(other)
        if path is None:
            return
        open_now = {path_of(other.uri): other.data for other in others}
        for wanted in imports(snapshot.data[:IMPORTS_IN], language, path, rules):
            data = open_now.get(wanted.path)
            yield wanted.path, outline(data if data is not None else read(wanted.path), wanted.names)


def imports(head: bytes, language: Language, path: Path, rules: Rules) -> Iterator[Import]:
    """The files inside the workspace that the start of a file imports, and the names it takes from them."""
    folder = rules.folder(path)
    if folder is None:
        return
    for candidates, names in _named(head, language.name, path, folder):
        for candidate in candidates:
            if _inside(candidate, folder) and not rules.refusal(candidate):
                yield Import(candidate, names)
                break


def _inside(path: Path, folder: Path) -> bool:
    """Whether this is a file below the folder; `..` and links must not lead out of it."""
    try:
        real = path.resolve()
        return real.is_file() and real.is_relative_to(folder.resolve())
    except (OSError, ValueError):  # a name too long, with a zero in it, or a loop of links
        return False


def _statements(head: bytes, language: str) -> Iterator[re.Match[bytes]]:
    pattern = _IMPORTS.get(language)
    return pattern.finditer(head) if pattern else iter(())


def _named(head: bytes, language: str, path: Path, folder: Path) -> Iterator[tuple[list[Path], tuple[str, ...]]]:
    """Where each import may be found, likeliest first, and the names it takes."""
    for match in _statements(head, language):
        if language == "python":
            module = (match[1] or match[3]).decode()
            dots = len(module) - len(module.lstrip("."))
            names = tuple(re.findall(r"\w+", (match[2] or b"").decode()))
            bases = [path.parents[dots - 1]] if 0 < dots <= len(path.parents) else []
            for base in bases if dots else [folder, folder / "src", path.parent]:
                place = base.joinpath(*(part for part in module.split(".") if part))
                for name in names:  # `from package import module`
                    yield [place / f"{name}.py"], ()
                yield [place.parent / f"{place.name}.py", place / "__init__.py"], names
        elif language in {"c", "cpp"}:
            yield [path.parent / match[1].decode(), folder / "include" / match[1].decode()], ()
        else:
            names = tuple(re.findall(r"\w+", (match[1] or b"").decode()))
            yield [path.parent / (match[2].decode() + ending) for ending in _SCRIPTS], names


def read(path: Path) -> bytes:
    """A file's text; empty if it is too large, is binary or cannot be read."""
    try:
        if path.stat().st_size > MAX_READ:
            return b""
        data = path.read_bytes()
    except OSError:
        return b""
    return b"" if b"\0" in data else data


def outline(data: bytes, names: tuple[str, ...]) -> bytes:
    """The lines where the names are defined; the start of the file if none is."""
    lines = data.splitlines(keepends=True)
    pieces: list[bytes] = []
    for name in names:
        pattern = re.compile(rb"^[ \t]*(?:[\w()]+[ \t]+){0,4}" + re.escape(name.encode()) + rb"\b[ \t]*[(:=<{]")
        for number, line in enumerate(lines):
            if pattern.match(line):
                pieces.append(b"".join(lines[number : number + LINES_OF_NAME]))
                break
    return b"\n".join(pieces) or b"".join(lines[: 3 * LINES_OF_NAME])


def around_edit(snapshot: Snapshot) -> bytes:
    line = snapshot.line_at(snapshot.edit.start) if snapshot.edit else 0
    low, high = max(line - LINES_AROUND // 2, 0), line + LINES_AROUND // 2
    end = snapshot.starts[high] if high < len(snapshot.starts) else len(snapshot.data)
    return snapshot.data[snapshot.starts[low] : end]
