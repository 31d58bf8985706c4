"""A small binary tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Tree:
    """A node and what hangs on it."""

    value: int
    left: Tree | None = None
    right: Tree | None = None

    def insert(self, value: int) -> None:
        side = "left" if value < self.value else "right"
        child = getattr(self, side)
        if child is None:
            setattr(self, side, Tree(value))
        else:
            child.insert(value)

    def __iter__(self) -> Iterator[int]:
        if self.left:
            yield from self.left
        yield self.value
        if self.right:
            yield from self.right


def build(values: list[int]) -> Tree:
    if not values:
        raise ValueError("no values")
    tree = Tree(values[0])
    for value in values[1:]:
        tree.insert(value)
    return tree


async def total(trees, *, limit=10, **options):
    found = {name: sum(tree) for name, tree in trees.items() if name not in options}
    try:
        return max(found.values())
    except ValueError as error:
        print(f"nothing in {len(trees)} trees: {error!r}")
    finally:
        found.clear()
