"""What grammars let pass though the languages do not: found in a fill by the nodes it parses as.

Only what a small model really writes or what swallows the file without a trace; a compiler finds far more. Knows no
holes and no state of the file before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tree_sitter import Node, Tree

from .halves import VOID
from .languages import Language

_OPTIONAL = VOID | frozenset(
    b"p li dt dd rt rp option optgroup tr td th thead tbody tfoot colgroup caption html head body".split()
)
"""Elements of HTML that may do without an end tag."""
_SHELL = frozenset(b"then else elif fi do done esac".split())
_RUBY = frozenset(b"when then elsif do rescue ensure in end".split())
_NAMED = frozenset((".", "&.", "::", "def", "alias"))
"""What stands before the name of a method, which may be a word of the language."""
_PHP = frozenset(b"else endif endfor endforeach endwhile endswitch".split())
_DIRECTIVES = frozenset(b"#else #elif #elifdef #elifndef #endif".split())
_LEAVING = frozenset(("break_statement", "continue_statement", "break_expression", "continue_expression"))
_LOOPS = ("for", "while", "do_", "loop", "repeat", "switch", "select", "case", "match", "foreach")


def lapse(language: Language, text: bytes, tree: Tree, start: int, end: int) -> tuple[str, int, int] | None:
    """What no compiler takes of the nodes that begin in `start..end`, as one phrase, and its byte range."""
    find = _FINDERS.get(language.name)
    if find is None:
        return None
    for node in _beginning_in(tree, start, end):
        if why := find(language, node, text[node.start_byte : node.end_byte]):
            return why, node.start_byte, min(node.end_byte, end)
    return None


def _beginning_in(tree: Tree, start: int, end: int) -> Iterator[Node]:
    top = tree.root_node.descendant_for_byte_range(start, end)
    while top is not None and top.parent is not None and top.parent.start_byte >= start:
        top = top.parent  # what begins at `start` and goes beyond `end` is the fill's too
    stack = [top] if top is not None else []
    while stack:
        node = stack.pop()
        if node.end_byte <= start or node.start_byte >= end:
            continue
        if node.start_byte >= start:
            yield node
        stack.extend(reversed(node.children))


def _shell(_language: Language, node: Node, text: bytes) -> str:
    return "a reserved word stands alone" if node.type == "command_name" and text in _SHELL else ""


def _preprocessor(_language: Language, node: Node, text: bytes) -> str:
    return "a directive without its #if" if node.type == "preproc_directive" and text in _DIRECTIVES else ""


def _page(_language: Language, node: Node, text: bytes) -> str:
    if node.type == "erroneous_end_tag":
        return "an end tag without its beginning"
    kinds = [child.type for child in node.children]
    if node.type != "element" or "end_tag" in kinds or kinds[:1] != ["start_tag"]:
        return ""
    name = text[1:].split(b">")[0].split()[0].rstrip(b"/").lower()
    return "" if name in _OPTIONAL else "an element without its end tag"


def _ruby(_language: Language, node: Node, text: bytes) -> str:
    above = node.prev_sibling
    if node.type == "identifier" and text in _RUBY and (above is None or above.type not in _NAMED):
        return "a reserved word stands alone"
    if node.type == "uninterpreted":
        return "turns what follows into data"
    body = node.parent
    if node.type != "else" or body is None or body.type != "body_statement":
        return ""
    return "" if any(one.type == "rescue" for one in body.children) else "else without rescue"


def _leaves_nothing(language: Language, node: Node, _text: bytes) -> str:
    if node.type not in _LEAVING or any("label" in child.type or child.type == "identifier" for child in node.children):
        return ""
    around = node.parent
    while around is not None and around.type not in language.functions:
        if around.is_error or around.type.startswith(_LOOPS) or "switch" in around.type or "select" in around.type:
            return ""
        around = around.parent
    return f"{node.type.partition('_')[0]} outside a loop"


def _php(language: Language, node: Node, text: bytes) -> str:
    if node.type == "expression_statement" and text.rstrip(b"; ").lower() in _PHP:
        return "a reserved word stands alone"
    return _leaves_nothing(language, node, text)


_FINDERS: Mapping[str, Callable[[Language, Node, bytes], str]] = {
    "bash": _shell,
    "c": _preprocessor,
    "cpp": _preprocessor,
    "html": _page,
    "ruby": _ruby,
    "php": _php,
    **dict.fromkeys(("javascript", "typescript", "tsx", "java", "go", "rust", "c-sharp", "lua"), _leaves_nothing),
}
"""C and C++ have macros for loops, so that a `break` may stand anywhere."""
