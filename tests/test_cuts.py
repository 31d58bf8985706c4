"""Cutting holes into source files: exact bytes, seeded, every language in turn, broken files."""

import random
from collections import Counter
from pathlib import Path

import pytest

from stopgap.infill.cuts import HOLE_BYTES, KINDS, Kind, cut, holes
from stopgap.infill.languages import LANGUAGES
from stopgap.infill.referee import faults, sound
from stopgap.infill.suites import EvalError, Sample

PYTHON = '''"""Words — é 🙂."""
import os


class Shelf:
    """Where jars stand."""

    def __init__(self, jars):
        self.jars = list(jars)  # a comment

    def heaviest(self, among=None):
        best = None
        for jar in among or self.jars:
            if best is None or jar.weight > best.weight:
                best = jar
        return best
'''
FILES = {
    "shelf.py": PYTHON,
    "crlf.py": PYTHON.replace("\n", "\r\n"),
    "tabs.go": "package p\n\nfunc F(a int, b string) int {\n\tif a > 1 {\n\t\treturn a + len(b)\n\t}\n\treturn 0\n}\n",
    "deep/er/app.js": "function go(list, name) {\n  return list.map((x) => x + name);\n}\ngo([1, 2], 'é');\n",
    "broken.py": "def f(:\n    pass\n",
    "minified.js": "var a=" + "+".join(["1"] * 2000) + ";",
    "latin.py": "x = 'é'\n",
    ".hidden/secret.py": PYTHON,
    "notes.txt": "not code",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1" if name == "latin.py" else "utf-8"))
    return tmp_path


def original(sample: Sample) -> bytes:
    return FILES[sample.path].encode()


@pytest.mark.parametrize("kind", KINDS)
def test_putting_the_truth_back_gives_the_file_byte_for_byte(tree: Path, kind: Kind) -> None:
    samples = list(holes([tree], 60, 0, (kind,)))
    assert samples
    for sample in samples:
        assert sample.whole == original(sample)
        assert HOLE_BYTES[0] <= len(sample.truth.encode()) <= HOLE_BYTES[1]


def test_only_sound_utf8_sources_in_sight_are_cut(tree: Path) -> None:
    assert {sample.path for sample in holes([tree], 500, 0)} == {"shelf.py", "crlf.py", "tabs.go", "deep/er/app.js"}


def test_the_same_seed_cuts_the_same_holes(tree: Path) -> None:
    names = [sample.name for sample in holes([tree], 40, 7)]
    assert names == [sample.name for sample in holes([tree], 40, 7)]
    assert names != [sample.name for sample in holes([tree], 40, 8)]
    assert len(set(names)) == len(names) == 40


def test_languages_take_turns(tree: Path) -> None:
    first = [sample.language for sample in holes([tree], 12, 0)]
    assert min(Counter(first).values()) >= 3 and set(first) == {"python", "go", "javascript"}


def test_a_language_can_be_chosen(tree: Path) -> None:
    assert {sample.language for sample in holes([tree], 12, 0, languages=["go"])} == {"go"}
    with pytest.raises(EvalError, match=r"no files in rust; found: python, javascript, go"):
        next(holes([tree], 12, 0, languages=["rust"]))


def test_a_small_tree_ends_without_reaching_the_limit(tree: Path) -> None:
    samples = list(holes([tree / "tabs.go"], 10_000, 0))
    assert 5 < len(samples) < 200 and samples[0].path == "tabs.go"


def test_lines_are_whole_statements_without_their_indent(tree: Path) -> None:
    text = FILES["shelf.py"].encode()
    samples = cut(LANGUAGES["python"], "shelf.py", text, random.Random(0), ("line",), count=200)
    truths = {sample.truth for sample in samples}
    assert {"return best", "best = jar", "class Shelf:", "import os"} <= truths
    assert not any("Words" in truth or "jars stand" in truth for truth in truths)
    for sample in samples:
        assert sample.group == "single line" and sample.source[sample.start :].startswith(b"\n")


def test_tails_begin_inside_a_line_and_end_with_it(tree: Path) -> None:
    for sample in cut(LANGUAGES["python"], "shelf.py", PYTHON.encode(), random.Random(0), ("tail",), count=50):
        assert sample.source[: sample.start].split(b"\n")[-1].strip()
        assert sample.source[sample.start :].startswith(b"\n") and "\n" not in sample.truth


def test_rare_node_types_count_as_much_as_identifiers() -> None:
    samples = cut(LANGUAGES["python"], "shelf.py", PYTHON.encode(), random.Random(0), count=400)
    assert Counter(sample.group for sample in samples)["identifier"] < 60


def test_the_quotes_of_a_string_are_not_cut() -> None:
    samples = cut(LANGUAGES["python"], "shelf.py", PYTHON.encode(), random.Random(0), count=400)
    assert not {sample.truth for sample in samples} & {'"""', "'"}


def test_a_broken_file_is_broken_outside_the_hole_and_only_there(tree: Path) -> None:
    samples = list(holes([tree], 60, 0, broken=True))
    assert len(samples) == 60
    assert {sample.name.split("!")[1].split("@")[0] for sample in samples} == {"lost", "doubled", "cut short"}
    for sample in samples:
        language = LANGUAGES[sample.language]
        at, truth = sample.sound_start, sample.truth.encode()
        assert sample.sound_source[:at] + truth + sample.sound_source[at:] == original(sample)
        assert sound(language, original(sample)) and faults(language, sample.whole)


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match="does not exist"):
        next(holes([tmp_path / "nowhere"], 1, 0))
    with pytest.raises(EvalError, match="no source files"):
        next(holes([tmp_path], 1, 0))
