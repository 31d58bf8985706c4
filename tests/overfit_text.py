"""The text the overfitted fixture knows: modules that say the same of 23 things, so that every hole has one answer.

45 kB. Generated, because a fixture that is a snapshot of real files needs hours of one core to be learnt by heart, and
a text in which each line follows from its neighbours needs minutes. What fills it must still find lengths, seams,
indentation and names. Never changes: the weights know exactly this.
"""

from __future__ import annotations

NAMES = (
    "add", "array", "check", "col", "comp", "config", "data", "exception", "field", "graph", "index", "iter",
    "mapping", "model", "name", "par", "pro", "python", "request", "stream", "time", "token", "type",
)  # fmt: skip
"""Words the starter's tokenizer cuts alike wherever they stand: the modules differ in nothing but them."""

MODULE = '''\
"""Everything about each {name}: found, counted, shown and stored."""

from __future__ import annotations

import json
from pathlib import Path

from .base import Item, NotFound


class {Name}(Item):
    """One {name}, as the store knows it."""

    def __init__(self, key: int, title: str, size: float = 1.0) -> None:
        super().__init__(key)
        self.title = title
        self.size = size
        self.closed = False

    def close(self) -> bool:
        if self.closed:
            return False
        self.closed = True
        return True

    def label(self, width: int = 20) -> str:
        text = f"{name} {{self.key}}: {{self.title}}"
        return text if len(text) <= width else text[: width - 3] + "..."


def find_{name}(things: list[{Name}], key: int) -> {Name}:
    """The {name} of that key; raises `NotFound`."""
    for {name} in things:
        if {name}.key == key:
            return {name}
    raise NotFound("{name}", key)


def count_open_{name}(things: list[{Name}]) -> int:
    return sum(1 for {name} in things if not {name}.closed)


def largest_{name}(things: list[{Name}]) -> {Name} | None:
    best = None
    for {name} in things:
        if best is None or {name}.size > best.size:
            best = {name}
    return best


def {name}_by_title(things: list[{Name}]) -> dict[str, list[{Name}]]:
    groups: dict[str, list[{Name}]] = {{}}
    for {name} in things:
        groups.setdefault({name}.title, []).append({name})
    return groups


def load_{name}(path: Path) -> list[{Name}]:
    """What `save_{name}` has written; nothing where there is no file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [{Name}(row["key"], row["title"], row.get("size", 1.0)) for row in rows]


def save_{name}(path: Path, things: list[{Name}]) -> None:
    rows = [{{"key": {name}.key, "title": {name}.title, "size": {name}.size}} for {name} in things]
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
'''


def texts(modules: int = len(NAMES)) -> dict[str, str]:
    """The first so many modules, by name."""
    return {f"{name}.py": MODULE.format(name=name, Name=name.capitalize()) for name in NAMES[:modules]}
