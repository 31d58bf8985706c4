"""What the model gets to see: budgets, cuts at line starts, and cuts that stay where they are while typing."""

import itertools
from pathlib import Path

import pytest

from stopgap.infill import holes, languages
from stopgap.infill.context import Context, gather
from stopgap.infill.contract import FillRequest, Snippet
from stopgap.infill.prompt import infill_prompt
from stopgap.infill.source import parse
from stopgap.infill.tokenizer import Tokenizer
from stopgap.infill.training_config import MARKERS

ROOT = Path(__file__).parent.parent
SAMPLES = sorted((ROOT / "tests" / "data" / "samples").iterdir())

IMPORTS = b"import os\nfrom pathlib import Path\n\n\n"
CLASS = b"class Store:\n    def __init__(self, root: Path) -> None:\n        self.root = root\n\n"
METHOD = b"    def method_%d(self, a: int) -> int:\n        # adds up\n        b = a + %d\n        return b * 2\n\n"
LONG = (
    IMPORTS + CLASS + b"".join(METHOD % (i, i) for i in range(60)) + b"    def last(self, key: str) -> str:\n        "
)
AFTER = b"\n\n\ndef helper(x):\n    return x\n" * 40


def words(piece: bytes) -> int:
    """A tokenizer for tests: four bytes to a token, at least one per line."""
    return sum(1 + len(line) // 4 for line in piece.splitlines())


def context(text: bytes, at: int, budget: int, language: str = "python", **rest: object) -> Context:
    source = parse(text, languages.by_name(language))
    hole = holes.locate(source, FillRequest(text, language, at, at))
    return gather(source, hole, budget=budget, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [60, 300, 1000, 3000])
def test_the_budget_holds_however_tokens_are_counted(budget: int) -> None:
    text = LONG + AFTER
    snippets = [Snippet("other.py", "def other():\n    return 1\n" * 50)]
    for count in (words, None):
        made = context(text, len(LONG), budget, snippets=snippets, count=count)
        size = count or (lambda piece: round(len(piece) / 3.3))
        assert size(made.snippets) + size(made.prefix) + size(made.suffix) <= budget + 2
        assert made.prefix and made.suffix


def test_near_text_comes_whole_when_there_is_room() -> None:
    text = LONG + AFTER
    made = context(text, len(LONG), 100_000)
    assert (made.prefix, made.suffix, made.snippets) == (LONG, AFTER, b"")


def test_every_cut_is_at_a_line_start() -> None:
    text = LONG + AFTER
    made = context(text, len(LONG), 400, count=words)
    start = len(LONG) - len(made.prefix)
    assert LONG.endswith(made.prefix) and LONG[start - 1 : start] == b"\n"
    assert AFTER.startswith(made.suffix) and made.suffix.endswith(b"\n")


def test_typing_moves_no_cut_but_once_in_a_while() -> None:
    typed = b"value = self.root / key\n        if value.exists():\n            return value.read_text()\n        "
    starts, suffixes = [], set()
    for i in range(len(typed) + 1):
        text = LONG + typed[:i] + AFTER
        made = context(text, len(LONG) + i, 600, count=words)
        starts.append(len(LONG) + i - len(made.prefix))
        suffixes.add(made.suffix[:400])
    assert len(set(starts)) <= 2
    assert len(suffixes) == 1


@pytest.mark.parametrize("path", ["infill/context.py", "infill/holes.py", "lsp/session.py", "daemon/worker.py"])
def test_of_what_is_encoded_typing_fifty_characters_changes_the_end_only(path: str) -> None:
    """In the order in which it is encoded, what may change with a key comes last; the engine's own cuts and tokens."""
    tokenizer = Tokenizer(ROOT / "infill" / "starter" / "tokenizer.json")
    text = (ROOT / path).read_bytes()
    line = text.index(b"\n", len(text) * 2 // 3) + 1
    prompts = []
    for at in range(line, line + 51):
        now = text[:at] + text[line + 50 :]
        density = tokenizer.bytes_per_token(now[:at])
        made = context(now, at, 448, count=lambda piece: len(tokenizer.encode(piece)), bytes_per_token=density)
        snippets, prefix, suffix = map(tokenizer.encode, (made.snippets, made.prefix, made.suffix))
        prompts.append(infill_prompt(snippets, prefix, suffix, MARKERS))
    known = [
        next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        for old, new in itertools.pairwise(prompts)
    ]
    assert sum(known) >= 0.9 * sum(map(len, prompts[1:]))
    assert min(map(len, prompts)) > 300


def test_imports_and_the_signatures_around_stand_in_for_what_is_cut_off() -> None:
    made = context(LONG + AFTER, len(LONG), 600, count=words)
    lines = made.snippets.decode().splitlines()
    assert lines[:3] == ["import os", "from pathlib import Path", "class Store:"]
    assert any(line.startswith("    def method_") for line in lines)
    assert not any("adds up" in line or "return b" in line for line in lines)
    assert not any(line.encode() in made.prefix for line in lines if "method_" in line)


def test_other_files_come_first_under_their_path_and_the_worthiest_last() -> None:
    snippets = [Snippet("a.py", "def near(): ...\n"), Snippet("b/c.py", "def far(): ...\n")]
    made = context(b"x = \n", 4, 500, snippets=snippets)
    assert made.snippets == b"# b/c.py\ndef far(): ...\n# a.py\ndef near(): ...\n"
    css = context(b".a { }\n", 5, 500, language="css", snippets=[Snippet("b.css", ".b {}")])
    assert css.snippets == b"/* b.css */\n.b {}\n"


def test_a_snippet_too_long_is_cut_at_a_line_and_no_room_drops_it() -> None:
    long = Snippet("a.py", "x = 1\n" * 1000)
    made = context(b"y = \n", 4, 100, snippets=[long], count=words)
    assert made.snippets.startswith(b"# a.py\nx = 1\n") and made.snippets.endswith(b"x = 1\n")
    assert context(b"y = \n", 4, 4, snippets=[long], count=words).snippets == b""


def test_a_line_longer_than_the_room_gives_its_nearest_end() -> None:
    text = "x = [" + "'é', " * 5000
    made = context(text.encode(), len(text.encode()), 100, count=words)
    assert 0 < words(made.prefix) <= 100 and text.encode().endswith(made.prefix)
    made.prefix.decode()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_any_place_in_any_language_has_a_context(path: Path) -> None:
    language = languages.for_path(path.name)
    assert language is not None
    text = path.read_bytes() * 3
    for at in range(0, len(text), len(text) // 7):
        made = context(text, at, 150, language.name, count=words)
        assert words(made.snippets) + words(made.prefix) + words(made.suffix) <= 152
        for piece in (made.prefix, made.suffix, made.snippets):
            piece.decode()


@pytest.mark.parametrize("budget", range(8, 40))
def test_no_character_is_cut_in_half_in_a_long_line(budget: int) -> None:
    """Bengali takes three bytes a letter; the caller's tokenizer refuses half of one."""
    raw = ('{"a": "' + "আমার" * 200 + '", "b": , "c": "' + "সোনার" * 200 + '"}').encode()
    at = raw.index(b', "c"')
    source = parse(raw, languages.by_name("json"))
    hole = holes.locate(source, FillRequest(raw, "json", at, at, "selection"))
    made = gather(source, hole, budget=budget, count=lambda piece: len(piece.decode()) // 2)
    assert made.prefix.decode() and made.suffix.decode()
