"""What Python itself has to say of a text: whether it compiles, and where statements slip out of their column.

The grammar alone accepts most wrong indentation. Knows no holes and no fills.
"""

from __future__ import annotations

import ast
import warnings

from tree_sitter import Node, Tree

from .source import line_start

FULL, SYNTAX, NOT = 2, 1, 0
"""How far Python gets with a text: to bytecode, to a syntax tree, nowhere."""

BYTECODE_BYTES = 48 * 1024
"""Longer texts are taken to the syntax tree only: bytecode costs about three times as much."""


def compiles(region: bytes, want: int = FULL) -> tuple[int, SyntaxError | None]:
    """How far Python gets with a text, and what stopped it; no further than `want`.

    `return` outside a function and the like are found on the way to bytecode only. A text too long for that counts
    as good for it.
    """
    level, problem = NOT, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = region.decode()
            tree = ast.parse(text, "<fill>")
            level = SYNTAX
            if want == FULL:
                if len(region) < BYTECODE_BYTES:
                    compile(tree, "<fill>", "exec", dont_inherit=True)
                level = FULL
        except SyntaxError as error:
            problem = error
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            problem = SyntaxError(str(error) or type(error).__name__)
    return level, problem


def slip(text: bytes, tree: Tree, start: int, end: int) -> int | None:
    """Where in a block that touches `start..end` a statement begins a line in another column than the first."""
    node = tree.root_node.descendant_for_byte_range(start, end)
    while node is not None and node.type not in ("block", "module"):
        node = node.parent
    stack = [node] if node is not None else []
    while stack:
        node = stack.pop()
        if node.end_byte < start or node.start_byte > end:
            continue
        if node.type in ("block", "module"):
            found = _slip(text, node)
            if found is not None:
                return found
        stack.extend(node.named_children)
    return None


def _slip(text: bytes, block: Node) -> int | None:
    """Where a statement of this block begins a line in another column than the first one does."""
    wanted: bytes | None = None
    for child in block.named_children:
        if child.type == "comment" or child.is_error:
            continue
        begin = line_start(text, child.start_byte)
        blank = text[begin : child.start_byte]
        if blank.strip(b" \t\f\\\r\n"):
            if wanted is None:
                return None  # `if x: y` on one line
            continue
        if wanted is None:
            wanted = blank
        elif blank.strip(b"\f") != wanted:
            return child.start_byte
    return None
