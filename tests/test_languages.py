"""The language table: every entry's grammar loads, and every node kind it names exists in that grammar."""

import pytest

from stopgap.infill import languages
from stopgap.infill.contract import FillError
from stopgap.infill.languages import LANGUAGES, GrammarMissing, Language

KINDS = (
    *("functions", "classes", "bodies", "arguments", "parameters"),
    *("strings", "comments", "imports", "placeholder_kinds"),
)


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda one: one.name)
def test_every_kind_in_the_table_exists_in_the_grammar(language: Language) -> None:
    grammar = languages.grammar(language)
    unknown = {
        kind for name in KINDS for kind in getattr(language, name) if grammar.id_for_node_kind(kind, True) is None
    }
    assert not unknown


@pytest.mark.parametrize("language", LANGUAGES.values(), ids=lambda one: one.name)
def test_every_language_parses_and_says_how_to_fill_it(language: Language) -> None:
    tree = languages.parser(language).parse(b"x\n")
    assert tree.root_node.end_byte == 2
    assert language.extensions and language.lsp_ids and language.fillers


def test_no_two_languages_claim_the_same_file_or_id() -> None:
    for what in ("extensions", "filenames", "lsp_ids"):
        claims = [claim for one in LANGUAGES.values() for claim in getattr(one, what)]
        assert len(claims) == len(set(claims))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b.py", "python"),
        ("B.TSX", "tsx"),
        ("x.test.ts", "typescript"),
        ("include/list.h", "c"),
        ("src\\Main.cs", "c-sharp"),
        ("Gemfile", "ruby"),
        ("home/.bashrc", "bash"),
        ("notes.txt", None),
        ("", None),
        ("py", None),
    ],
)
def test_a_path_names_its_language(path: str, name: str | None) -> None:
    found = languages.for_path(path)
    assert (found.name if found else None) == name


def test_editor_ids_are_names_too() -> None:
    assert languages.by_name("shellscript").name == "bash"
    assert languages.by_name("TypeScriptReact").name == "tsx"


def test_an_unknown_name_gets_its_neighbours() -> None:
    with pytest.raises(FillError, match="unknown language 'pyton': did you mean python"):
        languages.by_name("pyton")
    with pytest.raises(FillError, match="known are python, javascript"):
        languages.by_name("qqqq")


def test_a_missing_grammar_says_what_to_install() -> None:
    absent = Language("klingon", "tree_sitter_klingon")
    with pytest.raises(GrammarMissing, match=r"pip install tree-sitter-klingon$"):
        languages.parser(absent)
    with pytest.raises(GrammarMissing, match="none is known"):
        languages.parser(languages.plain("klingon"))
