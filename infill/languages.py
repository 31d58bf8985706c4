"""The languages stopgap knows: one table entry each, and the way to a parser.

Node kinds are the names of the official tree-sitter grammars. Knows no holes, no requests and no rules of
the gate: what an entry says is read by `holes`, `context` and `syntax`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import MappingProxyType

import tree_sitter

from .contract import FillError

_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Language:
    """What the text side needs to know of one language; every set holds tree-sitter node kinds.

    Statements are not listed: they are the named children of a `bodies` node or of the root.
    """

    name: str
    module: str
    """Import name of the grammar's wheel; empty: no grammar exists and fills cannot be checked."""
    entry: str = "language"
    extensions: tuple[str, ...] = ()
    filenames: tuple[str, ...] = ()
    lsp_ids: tuple[str, ...] = ()
    """VS Code language ids."""
    line_comment: str = ""
    block_comment: tuple[str, str] = ("", "")
    functions: frozenset[str] = _NONE
    classes: frozenset[str] = _NONE
    bodies: frozenset[str] = _NONE
    """Nodes that hold a sequence of statements or members; their delimiters, if any, are part of them."""
    arguments: frozenset[str] = _NONE
    parameters: frozenset[str] = _NONE
    strings: frozenset[str] = _NONE
    comments: frozenset[str] = frozenset({"comment"})
    imports: frozenset[str] = _NONE
    opener: str = r"\{$"
    """Regular expression found in a line of code (no trailing blanks or comment) whose block follows."""
    indented: bool = False
    """Whether indentation is syntax."""
    unit: str = "    "
    """One level of indentation in files that do not show their own."""
    placeholder_kinds: frozenset[str] = _NONE
    placeholder: str = ""
    """Regular expression that the whole text of a placeholder node matches."""
    fillers: tuple[str, ...] = ()
    """Neutral texts tried in a hole to learn whether the rest of the file is sound, likeliest first."""
    closers: tuple[str, ...] = ()
    """Words that close a block (`end`, `fi`), besides brackets."""
    brackets: str = "()[]{}"
    joins: bool = False
    """Whether a statement that is not finished takes the next line for its own."""

    @property
    def package(self) -> str:
        """The wheel's name for pip."""
        return self.module.replace("_", "-")


class GrammarMissing(FillError):
    """The language is known but its grammar wheel is not installed."""

    def __init__(self, language: Language) -> None:
        remedy = f"pip install {language.package}" if language.module else "none is known for it"
        super().__init__(f"no grammar for {language.name}, so fills cannot be checked: {remedy}")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _words(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _forms(text: str) -> tuple[str, ...]:
    """Texts separated by two spaces."""
    return tuple(text.split("  "))


_C_FILLERS = _forms("x  x;  {}  ()  x()  0  int x;  int x  return x;  (x)  x: x  x,  (x) {  {  x) {  (x) x;")
_JS_FILLERS = _forms("x  x;  {}  ()  'x'  x: x  x() {}  (x)  []  return x;  x,  (x) {  {  x) {  x>) => {")
_JS = {
    "joins": True,
    "line_comment": "//",
    "block_comment": ("/*", "*/"),
    "functions": _set(
        "function_declaration function_expression arrow_function method_definition"
        " generator_function generator_function_declaration"
    ),
    "bodies": _set("statement_block class_body switch_body"),
    "arguments": _set("arguments"),
    "parameters": _set("formal_parameters"),
    "strings": _set("string template_string regex jsx_text"),
    "comments": _set("comment html_comment"),
    "imports": _set("import_statement"),
    "unit": "  ",
    "placeholder_kinds": _set("throw_statement"),
    "placeholder": r"throw new Error\(\s*['\"`](TODO|[Nn]ot (yet )?implemented|[Uu]nimplemented).*",
    "fillers": _JS_FILLERS,
}
_TS_BODIES = _set("statement_block class_body switch_body interface_body enum_body object_type")
_C = {
    "joins": True,
    "line_comment": "//",
    "block_comment": ("/*", "*/"),
    "arguments": _set("argument_list"),
    "parameters": _set("parameter_list"),
    "imports": _set("preproc_include"),
    "fillers": _C_FILLERS,
}

_TABLE = (
    Language(
        "python",
        "tree_sitter_python",
        extensions=_words(".py .pyi .pyw"),
        filenames=_words("SConstruct SConscript wscript"),
        lsp_ids=("python",),
        line_comment="#",
        functions=_set("function_definition"),
        classes=_set("class_definition"),
        bodies=_set("block"),
        arguments=_set("argument_list"),
        parameters=_set("parameters lambda_parameters"),
        strings=_set("string"),
        imports=_set("import_statement import_from_statement future_import_statement"),
        opener=r":$",
        indented=True,
        placeholder_kinds=_set("pass_statement expression_statement raise_statement"),
        placeholder=r"pass|\.\.\.|raise NotImplementedError(\(.*\))?",
        fillers=_forms(
            "x  pass  x: x  ()  x = x  (x)  *x  if x: pass  else: pass  except: pass  x:  :  if x:  x if x:  import x"
            "  x import x"
        ),
    ),
    Language(
        "javascript",
        "tree_sitter_javascript",
        extensions=_words(".js .jsx .mjs .cjs"),
        lsp_ids=("javascript", "javascriptreact"),
        classes=_set("class_declaration class"),
        **_JS,  # type: ignore[arg-type]
    ),
    Language(
        "typescript",
        "tree_sitter_typescript",
        "language_typescript",
        extensions=_words(".ts .mts .cts"),
        lsp_ids=("typescript",),
        classes=_set("class_declaration class abstract_class_declaration interface_declaration"),
        **{**_JS, "bodies": _TS_BODIES},  # type: ignore[arg-type]
    ),
    Language(
        "tsx",
        "tree_sitter_typescript",
        "language_tsx",
        extensions=(".tsx",),
        lsp_ids=("typescriptreact",),
        classes=_set("class_declaration class abstract_class_declaration interface_declaration"),
        **{**_JS, "bodies": _TS_BODIES},  # type: ignore[arg-type]
    ),
    Language(
        "rust",
        "tree_sitter_rust",
        joins=True,
        extensions=(".rs",),
        lsp_ids=("rust",),
        line_comment="//",
        block_comment=("/*", "*/"),
        functions=_set("function_item closure_expression"),
        classes=_set("impl_item trait_item struct_item enum_item mod_item"),
        bodies=_set("block declaration_list match_block field_declaration_list enum_variant_list"),
        arguments=_set("arguments"),
        parameters=_set("parameters closure_parameters"),
        strings=_set("string_literal raw_string_literal char_literal"),
        comments=_set("line_comment block_comment"),
        imports=_set("use_declaration extern_crate_declaration"),
        placeholder_kinds=_set("macro_invocation expression_statement"),
        placeholder=r"(todo|unimplemented)!\s*[(\[{].*[)\]}];?",
        fillers=_forms("x  x;  {}  ()  x: x  x => x,  (x)  x!()  fn x() {}  x,  0  let x = x;  x {  {  x) {  fn x() {"),
    ),
    Language(
        "go",
        "tree_sitter_go",
        joins=True,
        extensions=(".go",),
        lsp_ids=("go",),
        line_comment="//",
        block_comment=("/*", "*/"),
        functions=_set("function_declaration method_declaration func_literal"),
        classes=_set("type_declaration"),
        bodies=_set("block field_declaration_list expression_switch_statement type_switch_statement"),
        arguments=_set("argument_list"),
        parameters=_set("parameter_list"),
        strings=_set("interpreted_string_literal raw_string_literal rune_literal"),
        imports=_set("import_declaration"),
        unit="\t",
        placeholder_kinds=_set("expression_statement"),
        placeholder=r"panic\(\s*[\"`](TODO|[Nn]ot (yet )?implemented|[Uu]nimplemented|implement me).*",
        fillers=_forms(
            'x  x()  {}  ()  x x  (x)  x: x  func x() {}  "x"  var x int  x,  0  x {  {  x) {  x() {  x) x() {'
        ),
    ),
    Language(
        "java",
        "tree_sitter_java",
        joins=True,
        extensions=(".java",),
        lsp_ids=("java",),
        line_comment="//",
        block_comment=("/*", "*/"),
        functions=_set("method_declaration constructor_declaration compact_constructor_declaration lambda_expression"),
        classes=_set("class_declaration interface_declaration enum_declaration record_declaration"),
        bodies=_set("block class_body constructor_body interface_body enum_body switch_block"),
        arguments=_set("argument_list"),
        parameters=_set("formal_parameters inferred_parameters"),
        strings=_set("string_literal character_literal"),
        comments=_set("line_comment block_comment"),
        imports=_set("import_declaration package_declaration"),
        placeholder_kinds=_set("throw_statement"),
        placeholder=r"throw new (UnsupportedOperationException|NotImplementedException)\(.*",
        fillers=_forms(
            "x  x();  {}  ()  int x;  int x  void x() {}  (x)  return x;  @X  x,  0  (x) {  {  x) {  void x() {"
        ),
    ),
    Language(
        "c",
        "tree_sitter_c",
        extensions=_words(".c .h"),
        lsp_ids=("c",),
        functions=_set("function_definition"),
        classes=_set("struct_specifier union_specifier enum_specifier"),
        bodies=_set("compound_statement field_declaration_list enumerator_list"),
        strings=_set("string_literal char_literal system_lib_string"),
        **_C,  # type: ignore[arg-type]
    ),
    Language(
        "cpp",
        "tree_sitter_cpp",
        extensions=_words(".cpp .cc .cxx .c++ .hpp .hh .hxx .h++ .ipp .cu .cuh"),
        lsp_ids=("cpp", "cuda-cpp"),
        functions=_set("function_definition lambda_expression"),
        classes=_set("class_specifier struct_specifier union_specifier enum_specifier namespace_definition"),
        bodies=_set("compound_statement field_declaration_list declaration_list enumerator_list"),
        strings=_set("string_literal raw_string_literal char_literal system_lib_string"),
        placeholder_kinds=_set("throw_statement"),
        placeholder=r"throw std::(logic|runtime)_error\(\s*\"(TODO|[Nn]ot (yet )?implemented).*",
        **_C,  # type: ignore[arg-type]
    ),
    Language(
        "c-sharp",
        "tree_sitter_c_sharp",
        joins=True,
        extensions=_words(".cs .csx"),
        lsp_ids=("csharp",),
        line_comment="//",
        block_comment=("/*", "*/"),
        functions=_set(
            "method_declaration constructor_declaration destructor_declaration operator_declaration"
            " local_function_statement lambda_expression accessor_declaration"
        ),
        classes=_set(
            "class_declaration struct_declaration interface_declaration record_declaration"
            " enum_declaration namespace_declaration"
        ),
        bodies=_set("block declaration_list switch_body enum_member_declaration_list accessor_list"),
        arguments=_set("argument_list"),
        parameters=_set("parameter_list"),
        strings=_set(
            "string_literal verbatim_string_literal raw_string_literal character_literal interpolated_string_expression"
        ),
        imports=_set("using_directive"),
        placeholder_kinds=_set("throw_statement throw_expression"),
        placeholder=r"throw new (System\.)?(NotImplementedException|NotSupportedException)\(.*",
        fillers=_forms(
            "x  x();  {}  ()  int x;  int x  void x() {}  (x)  return x;  [X]  x,  0  (x) {  {  x) {  void x()  x)"
        ),
    ),
    Language(
        "ruby",
        "tree_sitter_ruby",
        joins=True,
        extensions=_words(".rb .rake .gemspec .ru"),
        filenames=_words("Gemfile Rakefile Guardfile Vagrantfile"),
        lsp_ids=("ruby",),
        line_comment="#",
        block_comment=("=begin", "=end"),
        functions=_set("method singleton_method lambda"),
        classes=_set("class module singleton_class"),
        bodies=_set("body_statement block_body then do else ensure"),
        arguments=_set("argument_list"),
        parameters=_set("method_parameters lambda_parameters block_parameters"),
        strings=_set("string heredoc_body regex subshell string_array symbol_array character"),
        imports=_NONE,
        opener=(
            r"^\s*(def|class|module|if|unless|while|until|case|begin|for)\b"
            r"|\b(do|then|else|begin|ensure)(\s*\|[^|]*\|)?$"
        ),
        unit="  ",
        placeholder_kinds=_set("call identifier"),
        placeholder=r"raise\(? ?(NotImplementedError|\"(TODO|[Nn]ot implemented)).*",
        fillers=_forms("x  x()  (x)  def x; end  x: x  |x|  [x]  X  when x then x  else  :x  0  x do  if x"),
        closers=("end",),
    ),
    Language(
        "php",
        "tree_sitter_php",
        "language_php",
        joins=True,
        extensions=_words(".php .phtml .inc"),
        lsp_ids=("php",),
        line_comment="//",
        block_comment=("/*", "*/"),
        functions=_set("function_definition method_declaration anonymous_function arrow_function"),
        classes=_set("class_declaration interface_declaration trait_declaration enum_declaration"),
        bodies=_set("compound_statement declaration_list switch_block enum_declaration_list"),
        arguments=_set("arguments"),
        parameters=_set("formal_parameters"),
        strings=_set("string encapsed_string heredoc nowdoc shell_command_expression"),
        imports=_set("namespace_use_declaration namespace_definition"),
        placeholder_kinds=_set("expression_statement throw_expression"),
        placeholder=r"throw new \\?\w*(Exception|Error)\(\s*['\"](TODO|[Nn]ot (yet )?implemented).*",
        fillers=_forms(
            "x  $x  $x;  {}  ()  public $x;  function x() {}  ($x)  return $x;  'x'  $x,  'x' => 'x',"
            "  0  use x;  #[X]  ($x) {  {  $x) {"
        ),
    ),
    Language(
        "bash",
        "tree_sitter_bash",
        joins=True,
        extensions=_words(".sh .bash .bats .ksh .zsh .ebuild"),
        filenames=_words(".bashrc .bash_profile .profile .zshrc PKGBUILD"),
        lsp_ids=("shellscript", "bash", "sh"),
        line_comment="#",
        functions=_set("function_definition"),
        bodies=_set("compound_statement do_group subshell case_item"),
        strings=_set("string raw_string ansi_c_string heredoc_body translated_string"),
        opener=r"(\{|\b(do|then|else|in))$",
        unit="  ",
        placeholder_kinds=_set("command"),
        placeholder=r":|true",
        fillers=_forms(
            "x  x\n  x;  $x  x=x  { x; }  (x)  x) x ;;  x() { x; }  'x'  [ x ]  0  x; then  x; do  then  do  {"
        ),
        closers=("fi", "done", "esac"),
    ),
    Language(
        "lua",
        "tree_sitter_lua",
        joins=True,
        extensions=(".lua",),
        lsp_ids=("lua",),
        line_comment="--",
        block_comment=("--[[", "]]"),
        functions=_set("function_declaration function_definition"),
        bodies=_set("block"),
        arguments=_set("arguments"),
        parameters=_set("parameters"),
        strings=_set("string"),
        opener=r"\b(then|do|else|repeat)$|\bfunction\b[^()]*\([^()]*\)$",
        unit="  ",
        placeholder_kinds=_set("function_call"),
        placeholder=r"error\(?\s*['\"](TODO|[Nn]ot (yet )?implemented).*",
        fillers=_forms(
            "x  x()  ()  x = x  (x)  {}  local x  function x() end  x,  elseif x then  x then  x do  then  do"
        ),
        closers=("end",),
    ),
    Language(
        "json",
        "tree_sitter_json",
        extensions=_words(".json .jsonc .ipynb .webmanifest"),
        filenames=_words(".babelrc .eslintrc .prettierrc composer.lock"),
        lsp_ids=("json", "jsonc"),
        line_comment="//",
        block_comment=("/*", "*/"),
        bodies=_set("object array"),
        strings=_set("string"),
        opener=r"[\[{]$",
        unit="  ",
        fillers=_forms(
            '0  "x"  "x": 0  {}  "x": 0,  , "x": 0  , 0  0,  x  "x": {  {  "x": [  [  x"  x",  x": 0,  x": {  x": ['
        ),
    ),
    Language(
        "yaml",
        "tree_sitter_yaml",
        extensions=_words(".yaml .yml"),
        filenames=_words(".clang-format .clang-tidy"),
        lsp_ids=("yaml", "dockercompose"),
        line_comment="#",
        bodies=_set("block_mapping block_sequence"),
        strings=_set("double_quote_scalar single_quote_scalar block_scalar"),
        opener=r":$",
        indented=True,
        unit="  ",
        fillers=_forms("x  x: x  - x  'x'  x:  {}  []  : x"),
    ),
    Language(
        "toml",
        "tree_sitter_toml",
        extensions=(".toml",),
        filenames=_words("Pipfile Cargo.lock poetry.lock uv.lock"),
        lsp_ids=("toml",),
        line_comment="#",
        bodies=_set("table table_array_element inline_table array"),
        strings=_set("string"),
        opener=r"[\[{]$",
        fillers=_forms('0  x = 0  x  "x"  [x]  {}  0,  , 0  x = 0,  [x  x]'),
    ),
    Language(
        "html",
        "tree_sitter_html",
        extensions=_words(".html .htm .xhtml"),
        lsp_ids=("html",),
        block_comment=("<!--", "-->"),
        strings=_set("quoted_attribute_value attribute_value"),
        opener=r"<[^/!][^>]*[^/]>$",
        unit="  ",
        fillers=_forms('x  <p></p>  <br>  x="x"  <p>  </p>  >'),
        brackets="<>",
    ),
    Language(
        "css",
        "tree_sitter_css",
        extensions=(".css",),
        lsp_ids=("css",),
        block_comment=("/*", "*/"),
        bodies=_set("block keyframe_block_list"),
        arguments=_set("arguments"),
        strings=_set("string_value"),
        comments=_set("comment js_comment"),
        imports=_set("import_statement"),
        unit="  ",
        fillers=_forms("x  x: x;  x {}  {}  x;  #000  0  ()  x,  : x  .x  { x: x; }  x {  {"),
    ),
    Language(
        "markdown",
        "tree_sitter_markdown",
        extensions=_words(".md .markdown .mdx"),
        lsp_ids=("markdown",),
        block_comment=("<!--", "-->"),
        strings=_set("code_fence_content indented_code_block"),
        comments=_set("html_block"),
        opener=r"(?!)",
        fillers=_forms("x  # x  - x  ```\nx\n```"),
        brackets="",
    ),
    Language(
        "sql",
        "tree_sitter_sql",
        extensions=_words(".sql .ddl .dml"),
        lsp_ids=("sql", "pgsql", "mysql", "plsql"),
        line_comment="--",
        block_comment=("/*", "*/"),
        functions=_set("create_function"),
        bodies=_set("function_body block"),
        arguments=_set("function_arguments"),
        strings=_set("literal dollar_quote"),
        comments=_set("comment marginalia"),
        opener=r"(\(|\b(begin|BEGIN))$",
        fillers=_forms("x  (x)  x int  select x  select x;  from x  x = x  where x  , x  x,  0  'x'"),
        brackets="()[]",
    ),
)

LANGUAGES: Mapping[str, Language] = MappingProxyType({language.name: language for language in _TABLE})


def by_name(name: str) -> Language:
    """The entry of a language given its name here or one of its VS Code language ids.

    Raises FillError that names the nearest known languages.
    """
    wanted = name.strip().lower()
    for language in LANGUAGES.values():
        if wanted == language.name or wanted in language.lsp_ids:
            return language
    known = sorted({*LANGUAGES, *(i for one in LANGUAGES.values() for i in one.lsp_ids)})
    near = difflib.get_close_matches(wanted, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(LANGUAGES)}"
    raise FillError(f"unknown language {name!r}: {hint}")


def for_path(path: str) -> Language | None:
    """The language of a file by its name; None when no entry claims it."""
    name = PurePath(path.replace("\\", "/")).name
    suffix = PurePath(name).suffix.lower()
    for language in LANGUAGES.values():
        if name in language.filenames or (suffix and suffix in language.extensions):
            return language
    return None


def plain(name: str) -> Language:
    """An entry for a language without grammar, for callers that allow unchecked fills."""
    return Language(name, "", lsp_ids=(name,))


@functools.cache
def _grammar(module: str, entry: str) -> tree_sitter.Language | None:
    try:
        return tree_sitter.Language(getattr(importlib.import_module(module), entry)())
    except ImportError:
        return None


def grammar(language: Language) -> tree_sitter.Language:
    """The grammar, imported at its first use; raises GrammarMissing, whose text is the remedy."""
    found = _grammar(language.module, language.entry) if language.module else None
    if found is None:
        raise GrammarMissing(language)
    return found


def parser(language: Language) -> tree_sitter.Parser:
    """A new parser (they keep state between calls, so threads and callers never share one)."""
    return tree_sitter.Parser(grammar(language))
