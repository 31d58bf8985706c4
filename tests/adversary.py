"""The gate against an opponent: `python tests/adversary.py DIR... --count N` prints both error rates.

Cuts random nodes out of real files and offers the gate the truth (a no is a false reject) and spoilt texts
(a yes that a fresh parse of the whole file, or `compile`, calls worse is a false accept). The judge here
shares no code with the gate.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import tree_sitter

from stopgap.infill import holes, languages
from stopgap.infill.contract import FillError, FillRequest
from stopgap.infill.holes import Hole
from stopgap.infill.languages import Language
from stopgap.infill.lengths import sources
from stopgap.infill.source import parse
from stopgap.infill.syntax import Gate


def count_flaws(text: bytes, language: Language) -> int:
    """ERROR and MISSING nodes in a fresh parse."""
    stack, count = [languages.parser(language).parse(text).root_node], 0
    while stack:
        node = stack.pop()
        count += node.is_error or node.is_missing
        stack.extend(node.children)
    return count


def compiles(text: bytes) -> bool:
    """Whether Python takes the whole file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(text, "x", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def worse(text: bytes, after: bytes, language: Language) -> str:
    """How `after` is worse than `text`; empty when it is not."""
    if count_flaws(after, language) > count_flaws(text, language):
        return "parse"
    if language.name == "python" and compiles(text) and not compiles(after):
        return "compile"
    return ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A gap in a file: `before + truth + after` is the original, `source` what the gate sees."""

    kind: str
    original: bytes
    source: bytes
    hole: Hole
    truth: bytes


def nodes(root: tree_sitter.Node) -> list[tree_sitter.Node]:
    """Every named node with text, but the root."""
    found, stack = [], list(root.children)
    while stack:
        node = stack.pop()
        if node.is_named and node.end_byte > node.start_byte:
            found.append(node)
        stack.extend(node.children)
    return found


def trials(text: bytes, language: Language, rng: random.Random, count: int) -> Iterator[Trial]:
    """Gaps of three kinds: a node to replace, a node cut out, the rest of a line at a cursor."""
    source = parse(text, language)
    assert source.tree is not None
    every = nodes(source.tree.root_node)
    if not every:
        return
    for _ in range(count):
        node = rng.choice(every)
        start, end = node.start_byte, node.end_byte
        kind = rng.choice(("replace", "cut", "cursor"))
        if end - start > 4000:
            continue
        if kind == "cursor":
            start = rng.randrange(start, end + 1)
            end = text.find(b"\n", start)
            if end < 0 or end == start or text[start : start + 1].isspace() or text[start] & 0xC0 == 0x80:
                continue
            end -= text[end - 1 : end] == b"\r"
        truth = text[start:end]
        if not truth.strip():
            continue
        seen = text if kind == "replace" else text[:start] + text[end:]
        try:
            if kind == "replace":
                hole = holes.locate(source, FillRequest(text, language.name, start, end, "node"))
                truth = text[hole.start : hole.end]
            elif kind == "cut":
                prior = holes.lengths_of(language.name, node.type, "node")
                blank = holes.indent_at(seen, start)
                hole = Hole(start, start, node.type, "node", blank, prior, False)
            else:
                broken = parse(seen, language)
                hole = holes.locate(broken, FillRequest(seen, language.name, start, start))
                hole = replace(hole, single_line=False)
                if hole.lead or hole.tail:
                    continue
        except FillError as error:
            print("no hole:", error, file=sys.stderr)
            continue
        yield Trial(kind, text, seen, hole, truth)


OPENERS = (b'"', b"'", b'"""', b"(", b"{", b"[", b"/*", b"#", b"//", b"`", b"<!--", b"\\", b"--[[", b"<<EOF\n")
WRECKS = (
    b")",
    b"}",
    b"]",
    b"end",
    b"else:",
    b",",
    b";",
    b"=",
    b"\x00",
    b"\xff",
    b"return",
    b"yield x",
    b"break",
    b"*x",
)


def spoilt(truth: bytes, rng: random.Random, others: list[bytes]) -> Iterator[tuple[str, bytes]]:
    """Wrong fills by name: some of them are harmless, the judge says which."""
    at = rng.randrange(len(truth))
    yield "delete", truth[:at] + truth[at + 1 :]
    yield "repeat", truth[:at] + truth[at : at + 6] + truth[at:]
    yield "truncate", truth[: max(1, at)]
    yield "other", rng.choice(others)
    yield "other", truth + rng.choice((b" ", b"\n", b"")) + rng.choice(others)
    yield "opener", truth + rng.choice(OPENERS)
    yield "opener", truth[:at] + rng.choice(OPENERS) + truth[at:]
    yield "opener", rng.choice(OPENERS)
    yield "wreck", truth + rng.choice((b" ", b"\n", b"")) + rng.choice(WRECKS)
    yield "wreck", rng.choice(WRECKS)
    lines = truth.split(b"\n")
    at = rng.randrange(len(lines))
    yield "indent", b"\n".join([*lines[:at], b" " + lines[at], *lines[at + 1 :]])
    yield "dedent", b"\n".join([*lines[:at], lines[at][1:] if lines[at][:1].isspace() else b"\n", *lines[at + 1 :]])


@dataclass(slots=True)
class Tally:
    """What came of one language's trials."""

    truths: int = 0
    refused: int = 0
    fills: int = 0
    bad: int = 0
    accepted_bad: int = 0
    accepted: int = 0
    checks_s: float = 0.0
    checks: int = 0


def run(
    folders: list[Path], count: int, seed: int, *, only: set[str], show: int = 0, broken: bool = False
) -> dict[str, Tally]:
    """Trials on `count` holes per language."""
    rng = random.Random(seed)
    tallies: dict[str, Tally] = defaultdict(Tally)
    done: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for language, read in sources(folders, 40_000_000, rng):
        text = read
        if done[language.name] >= count or len(text) > 60_000 or (only and language.name not in only):
            continue
        if count_flaws(text, language) or (language.name == "python" and not compiles(text)):
            continue
        if broken:
            text = wound(text, rng)
            if not count_flaws(text, language):
                continue
        tree = languages.parser(language).parse(text)
        others = [n.text for n in rng.choices(nodes(tree.root_node) or [tree.root_node], k=40) if n.text]
        others = [one for one in others if len(one) < 2000] or [b"x"]
        tally = tallies[language.name]
        for trial in trials(text, language, rng, 20):
            done[language.name] += 1
            began = time.perf_counter()
            gate = Gate(parse(trial.source, language), trial.hole)
            for name, fill in [("truth", trial.truth), *spoilt(trial.truth, rng, others)]:
                began = time.perf_counter()
                made = gate.tidy(fill)
                verdict = gate.check(made)
                tally.checks_s += time.perf_counter() - began
                tally.checks += 1
                after = trial.source[: trial.hole.start] + made + trial.source[trial.hole.end :]
                verb = ""
                if name == "truth":
                    tally.truths += 1
                    if not verdict.ok:
                        tally.refused += 1
                        verb = "REFUSED"
                else:
                    tally.fills += 1
                    how = worse(trial.original, after, language)
                    tally.bad += bool(how)
                    tally.accepted += verdict.ok
                    if how and verdict.ok:
                        tally.accepted_bad += 1
                        verb = f"ACCEPTED ({how})"
                if verb and shown[language.name, verb[:3]] < show:
                    shown[language.name, verb[:3]] += 1
                    left = trial.source[max(0, trial.hole.start - 60) : trial.hole.start]
                    right = trial.source[trial.hole.end : trial.hole.end + 60]
                    print(f"{language.name} {trial.kind} {name} {verb} {verdict.reason} {trial.hole.node_type}")
                    print(f"   {left!r}\n   [{made[:200]!r}] (truth {trial.truth[:80]!r})\n   {right!r}", flush=True)
            if done[language.name] >= count:
                break
    return tallies


def wound(text: bytes, rng: random.Random) -> bytes:
    """A file broken on purpose: a stretch of 1 to 8 bytes is missing somewhere, or a bracket is too much."""
    at = rng.randrange(max(1, len(text)))
    if rng.random() < 0.5:
        made = text[:at] + text[at + rng.randint(1, 8) :]
    else:
        made = text[:at] + rng.choice((b"(", b"}", b'"', b"]", b" = ")) + text[at:]
    return made.decode("utf-8", "ignore").encode()


def main() -> None:
    """Print the table."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("folders", nargs="+", type=Path)
    reader.add_argument("--count", type=int, default=100, help="holes per language")
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--show", type=int, default=0, help="print so many of the gate's errors per language")
    reader.add_argument("--only", default="", help="languages, separated by commas")
    reader.add_argument("--broken", action="store_true", help="files broken on purpose")
    given = reader.parse_args()
    only = set(filter(None, given.only.split(",")))
    tallies = run(given.folders, given.count, given.seed, only=only, show=given.show, broken=given.broken)
    print(f"{'language':12} {'truths':>7} {'refused':>8} {'%':>6} {'bad':>7} {'accepted':>8} {'ms/fill':>8}")
    for name, one in sorted(tallies.items()):
        share = 100 * one.refused / max(1, one.truths)
        cost = 1000 * one.checks_s / max(1, one.checks)
        print(f"{name:12} {one.truths:7} {one.refused:8} {share:6.1f} {one.bad:7} {one.accepted_bad:8} {cost:8.2f}")


if __name__ == "__main__":
    main()
