"""Cuts holes into any tree of source files, by language and syntax node, and breaks files on purpose.

Knows nothing of engines, metrics or clocks. All choices come from a seed and from paths relative to the folder
given, so two machines with the same files cut the same holes.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import tree_sitter

from .languages import LANGUAGES, Language, for_path, parser
from .referee import faults, sound
from .suites import EvalError, Sample

Kind = Literal["node", "line", "tail", "block"]
"""What is cut: any named node, a whole line without its indent, the rest of a line, a body."""

KINDS: tuple[Kind, ...] = ("node", "line", "tail", "block")
MAX_FILE = 128 << 10
HOLE_BYTES = (2, 400)
PER_VISIT = 4


def source_files(roots: Sequence[Path]) -> dict[str, list[tuple[str, Path]]]:
    """Language name → (path relative to its root, path), sorted; hidden folders and links are passed over."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for root in roots:
        if not root.exists():
            raise EvalError(f"{root} does not exist: give a file or a folder of source code")
        paths = [root] if root.is_file() else _walk(root)
        for path in paths:
            language = for_path(path.name)
            if language is not None and language.module:
                name = path.name if root.is_file() else path.relative_to(root).as_posix()
                found.setdefault(language.name, []).append((name, path))
    if not found:
        raise EvalError(f"no source files of a known language under {', '.join(map(str, roots))}")
    return {name: sorted(found[name]) for name in LANGUAGES if name in found}


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                yield path


def holes(
    roots: Sequence[Path],
    limit: int,
    seed: int,
    kinds: Sequence[Kind] = ("node",),
    broken: bool = False,
    languages: Sequence[str] = (),
) -> Iterator[Sample]:
    """Up to `limit` holes, the languages in turn, at most `PER_VISIT` from a file before the next one's turn.

    Only files that parse without fault (and compile, for Python) are cut. Within a file the node type is drawn
    first and then one of its nodes, so that rare types count as much as identifiers. With `broken`, each file
    is damaged once outside the hole, with a visible syntax error as the result.
    """
    files = source_files(roots)
    wanted = [name for name in files if not languages or name in languages]
    if not wanted:
        raise EvalError(f"no files in {', '.join(languages)}; found: {', '.join(files)}")
    for name in wanted:
        random.Random(f"{seed}:{name}").shuffle(files[name])
    seen: set[tuple[str, int, int]] = set()
    visit = 0
    fresh = dict.fromkeys(wanted, 0)  # visits without a new hole, in a row
    while any(fresh[name] < len(files[name]) for name in wanted):
        for name in wanted:
            if fresh[name] >= len(files[name]):
                continue
            label, path = files[name][visit % len(files[name])]
            draw = random.Random(f"{seed}:{visit}:{label}")
            fresh[name] += 1
            for sample in cut(LANGUAGES[name], label, text_of(path), draw, kinds, PER_VISIT, broken):
                key = (label, sample.start, len(sample.truth))
                if key in seen:
                    continue
                seen.add(key)
                fresh[name] = 0
                yield sample
                if len(seen) >= limit:
                    return
        visit += 1


def text_of(path: Path) -> bytes:
    """The file, or nothing when it is not for us: too big, not UTF-8, or machine-made (very long lines)."""
    try:
        if path.stat().st_size > MAX_FILE:
            return b""
        raw = path.read_bytes()
        raw.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return b""
    return raw if len(raw) < 300 * (raw.count(b"\n") + 1) else b""


def cut(
    language: Language,
    label: str,
    text: bytes,
    draw: random.Random,
    kinds: Sequence[Kind] = ("node",),
    count: int = PER_VISIT,
    broken: bool = False,
) -> list[Sample]:
    """At most `count` holes of one file; none when the file is empty or does not parse."""
    if not text or not sound(language, text):
        return []
    tree = parser(language).parse(text)
    places = {kind: _places(kind, language, tree.root_node, text) for kind in kinds}
    samples: list[Sample] = []
    for _ in range(count):
        by_type = places[draw.choice(list(kinds))]
        if not by_type:
            continue
        group = draw.choice(sorted(by_type))
        start, end = draw.choice(by_type[group])
        sample = Sample(
            name=f"{label}:{start}-{end}",
            group=group,
            language=language.name,
            source=text[:start] + text[end:],
            start=start,
            truth=text[start:end].decode(),
            cluster=label,
            path=label,
        )
        if broken:
            damaged = damage(language, sample, draw)
            if damaged is None:
                continue
            sample = damaged
        samples.append(sample)
    return samples


Places = dict[str, list[tuple[int, int]]]


def _places(kind: Kind, language: Language, root: tree_sitter.Node, text: bytes) -> Places:
    """Group → byte ranges that may be cut."""
    found: Places = {}

    def keep(group: str, start: int, end: int) -> None:
        if HOLE_BYTES[0] <= end - start <= HOLE_BYTES[1] and text[start:end].strip():
            found.setdefault(group, []).append((start, end))

    if kind in ("node", "block"):
        for node in _named(root):
            if node.type in language.comments or (kind == "block" and node.type not in language.bodies):
                continue
            if node.child_count or re.search(rb"\w", text[node.start_byte : node.end_byte]):
                keep(node.type, node.start_byte, node.end_byte)  # not the quotes of a string, named in some grammars
        return found
    quiet = language.comments | language.strings
    at = 0
    for line in text.split(b"\n"):
        bare = line.strip()
        start = at + len(line) - len(line.lstrip())
        at += len(line) + 1
        if len(bare) < 4 or _inside(root, start, quiet):
            continue
        if kind == "line":
            keep("single line", start, start + len(bare))
        else:
            middle = start + len(bare) // 2
            leaf = root.descendant_for_byte_range(middle, middle)
            if leaf is not None and start < leaf.start_byte < start + len(bare):
                keep("line tail", leaf.start_byte, start + len(bare))
    return found


def _named(root: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    open_nodes = list(root.named_children)
    while open_nodes:
        node = open_nodes.pop()
        yield node
        open_nodes.extend(node.named_children)


def _inside(root: tree_sitter.Node, at: int, kinds: frozenset[str]) -> bool:
    node = root.descendant_for_byte_range(at, at)
    while node is not None:
        if node.type in kinds:
            return True
        node = node.parent
    return False


def damage(language: Language, sample: Sample, draw: random.Random) -> Sample | None:
    """The same hole in a file with one token lost, doubled or cut short elsewhere; None when nothing broke.

    Half of the time within ten lines of the hole, where people type, else anywhere.
    """
    for _ in range(12):
        low, high = _near(sample, 10) if draw.random() < 0.5 else (0, len(sample.source))
        damaged = _hit(sample, low, high, draw)
        if damaged is not None and faults(language, damaged.whole):
            return damaged
    return None


def _near(sample: Sample, lines: int) -> tuple[int, int]:
    before = sample.source[: sample.start].split(b"\n")
    after = sample.source[sample.start :].split(b"\n")
    return (
        sample.start - len(b"\n".join(before[-lines:])),
        sample.start + len(b"\n".join(after[:lines])),
    )


def _hit(sample: Sample, low: int, high: int, draw: random.Random) -> Sample | None:
    """One character of punctuation deleted or doubled, or a line cut off, in `low..high` outside the hole."""
    source, hole = sample.source, sample.start
    marks = [at for at in range(low, high) if source[at] in b"()[]{}<>:;,='\""]
    if not marks:
        return None
    at = draw.choice(marks)
    way = draw.choice(("lost", "doubled", "cut short"))
    end_of_line = source.find(b"\n", at)
    stop = len(source) if end_of_line < 0 else end_of_line
    if way == "cut short" and at < hole <= stop:
        way = "lost"  # the hole is on this line: do not cut it off
    left, right, put = {
        "lost": (at, at + 1, b""),
        "doubled": (at, at, source[at : at + 1]),
        "cut short": (at, stop, b""),
    }[way]
    return dataclasses.replace(
        sample,
        name=f"{sample.name}!{way}@{at}",
        source=source[:left] + put + source[right:],
        start=hole + (len(put) - (right - left) if left < hole else 0),
        sound_source=source,
        sound_start=hole,
    )
