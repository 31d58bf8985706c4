"""Measures how long the nodes of real code are: `python -P -m stopgap.infill.lengths NAME=DIR... > lengths.json`.

The result is `data/lengths.json`, the prior of `holes.lengths_of`: per language and node kind the quantiles
of the length in bytes. Only numbers leave the sources. Knows no requests and no holes.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tree_sitter import Node, Tree

from . import languages
from .languages import Language

QUANTILES = (0.10, 0.50, 0.75, 0.90, 0.99)
_EXPRESSION_KINDS = (
    "call binary_operator boolean_operator comparison_operator not_operator attribute subscript await lambda"
    " list dictionary tuple set method_invocation function_call binary unary element_reference array object"
    " term literal table_constructor integer float number command_substitution"
)
_EXPRESSIONS = frozenset(_EXPRESSION_KINDS.split())
_WORD = re.compile(rb"[^\W\d]\w*")


def kinds_of(language: Language, node: Node) -> Iterator[str]:
    """The node's own kind and the plain words that holes use for it."""
    yield node.type
    if node.type.endswith("expression") or node.type in _EXPRESSIONS:
        yield "expression"
    parent = node.parent
    inside = parent is not None and (parent.parent is None or parent.type in language.bodies)
    if inside and node.type not in language.comments:
        yield "statement"
    for name, kinds in (
        ("argument_list", language.arguments),
        ("parameters", language.parameters),
        ("string", language.strings),
        ("comment", language.comments),
    ):
        if node.type in kinds and node.type != name:
            yield name


def measure(text: bytes, language: Language, tree: Tree, rng: random.Random) -> Iterator[tuple[str, int]]:
    """(kind, length in bytes) of every named node, of bodies, and of random rests of words and lines."""
    stack = [tree.root_node]
    while stack:
        node = stack.pop()
        stack.extend(node.children)
        if not node.is_named or node.parent is None:
            continue
        piece = text[node.start_byte : node.end_byte].strip()
        if not piece:
            continue
        for kind in kinds_of(language, node):
            yield kind, len(piece)
        if node.type in language.bodies:
            inner = piece[1:-1].strip() if piece[:1] in b"{([" and len(piece) > 1 else piece
            if inner and node.type != "block":
                yield "block", len(inner)
        if node.child_count == 0 and _WORD.fullmatch(piece):
            if node.type != "identifier":
                yield "identifier", len(piece)
            yield "token", len(piece) - rng.randrange(len(piece))
    for line in text.splitlines():
        words = [found.start() for found in re.finditer(rb"\w+|[^\w\s]", line)]
        if words:
            yield "line", len(line[rng.choice(words) :].rstrip())


def sources(folders: list[Path], limit: int, rng: random.Random) -> Iterator[tuple[Language, bytes]]:
    """Files of known languages in random order, at most `limit` bytes of each language."""
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    rng.shuffle(paths)
    taken: dict[str, int] = defaultdict(int)
    for path in paths:
        language = languages.for_path(str(path))
        if language is None or taken[language.name] > limit:
            continue
        size = path.stat().st_size
        if not 0 < size < 200_000:
            continue
        text = path.read_bytes()
        if len(text) > 400 * (text.count(b"\n") + 1):  # minified or data: nobody types that
            continue
        taken[language.name] += size
        yield language, text


def quantiles(values: list[int]) -> list[int]:
    """The five quantiles and the count."""
    values.sort()
    return [*(values[int(q * (len(values) - 1))] for q in QUANTILES), len(values)]


def main() -> None:
    """Print the table as JSON."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("folders", nargs="+", metavar="NAME=DIR", help="what to call a source, and where it is")
    reader.add_argument("--limit", type=int, default=2_000_000, help="bytes per language")
    reader.add_argument("--least", type=int, default=30, help="nodes a kind needs to be listed")
    given = reader.parse_args()
    named = [item.partition("=")[::2] for item in given.folders]
    rng = random.Random(0)
    seen: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    files: dict[str, int] = defaultdict(int)
    for language, text in sources([Path(folder) for _, folder in named], given.limit, rng):
        tree = languages.parser(language).parse(text)
        if tree.root_node.has_error:
            continue
        files[language.name] += 1
        for kind, length in measure(text, language, tree, rng):
            seen[language.name][kind].append(length)
            seen["*"][kind].append(length)
    table = {
        name: {kind: quantiles(values) for kind, values in sorted(kinds.items()) if len(values) >= given.least}
        for name, kinds in sorted(seen.items())
    }
    head = {"sources": sorted(name for name, _ in named), "files": dict(sorted(files.items()))}
    head["columns"] = [*(f"p{round(q * 100)}" for q in QUANTILES), "nodes"]
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    body = ",\n".join(
        f"  {json.dumps(name)}: {{\n"
        + ",\n".join(f"   {json.dumps(kind)}: {json.dumps(row)}" for kind, row in kinds.items())
        + "\n  }"
        for name, kinds in table.items()
    )
    sys.stdout.write("{\n" + "\n".join(lines) + '\n "lengths": {\n' + body + "\n }\n}\n")


if __name__ == "__main__":
    main()
