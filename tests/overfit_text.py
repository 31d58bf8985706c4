"""The text the overfitted fixture knows: 40 modules that say the same of 40 things, so that every hole has one answer.

Generated, because a fixture that is a snapshot of real files needs hours of one core to be learnt by heart, and a
text in which each line follows from its neighbours needs minutes. What fills it must still find lengths, seams,
indentation and names. Never changes: the weights know exactly this.
"""

from __future__ import annotations

NAMES = (
    "order", "user", "ticket", "invoice", "letter", "folder", "member", "parcel", "player", "record", "report",
    "rocket", "server", "session", "sensor", "signal", "socket", "stream", "student", "table", "target",
    "teacher", "tenant", "theme", "token", "topic", "tower", "track", "train", "tunnel", "vector", "vendor",
    "vessel", "village", "visitor", "voucher", "wallet", "window", "worker", "writer",
)  # fmt: skip

MODULE = '''\
"""Everything about a {name}: found, counted, shown and stored."""

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


def find_{name}({name}s: list[{Name}], key: int) -> {Name}:
    """The {name} of that key; raises `NotFound`."""
    for {name} in {name}s:
        if {name}.key == key:
            return {name}
    raise NotFound("{name}", key)


def count_open_{name}s({name}s: list[{Name}]) -> int:
    return sum(1 for {name} in {name}s if not {name}.closed)


def largest_{name}({name}s: list[{Name}]) -> {Name} | None:
    best = None
    for {name} in {name}s:
        if best is None or {name}.size > best.size:
            best = {name}
    return best


def {name}s_by_title({name}s: list[{Name}]) -> dict[str, list[{Name}]]:
    groups: dict[str, list[{Name}]] = {{}}
    for {name} in {name}s:
        groups.setdefault({name}.title, []).append({name})
    return groups


def load_{name}s(path: Path) -> list[{Name}]:
    """What `save_{name}s` has written; nothing where there is no file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [{Name}(row["key"], row["title"], row.get("size", 1.0)) for row in rows]


def save_{name}s(path: Path, {name}s: list[{Name}]) -> None:
    rows = [{{"key": {name}.key, "title": {name}.title, "size": {name}.size}} for {name} in {name}s]
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")
'''


def texts(modules: int = len(NAMES)) -> dict[str, str]:
    """The first so many modules, by name."""
    return {f"{name}.py": MODULE.format(name=name, Name=name.capitalize()) for name in NAMES[:modules]}
