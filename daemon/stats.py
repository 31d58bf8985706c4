"""How many fills were shown and taken, per language; counters in one small file, never any text."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

from . import wire

_LANGUAGES = 200
"""A client that makes up language names must not grow the file."""


class Acceptance:
    """The counters, read at the start and written when they changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: dict[str, wire.LanguageStats] = {}
        self._changed = False
        try:
            for row in json.loads(path.read_text(encoding="utf-8")):
                line = wire.LanguageStats(str(row["language"]), *(int(row[name]) for name in _NUMBERS))
                self._counts[line.language] = line
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError):
            self._counts = {}  # counters are not worth refusing to start

    def count(self, event: wire.Feedback) -> None:
        """Adds one event."""
        language = event.language or "unknown"
        if language not in self._counts and len(self._counts) >= _LANGUAGES:
            language = "other"
        line = self._counts.get(language) or wire.LanguageStats(language, 0, 0, 0, 0, 0)
        match event.event:
            case "shown":
                line = replace(line, shown=line.shown + 1)
            case "accepted":
                line = replace(line, accepted=line.accepted + 1)
            case "partial":
                line = replace(line, partial=line.partial + 1)
            case "rejected":
                line = replace(line, rejected=line.rejected + 1)
        taken = min(max(event.characters, 0), wire.MAX_SOURCE)
        self._counts[language] = replace(line, characters=line.characters + taken)
        self._changed = True

    def languages(self) -> tuple[wire.LanguageStats, ...]:
        """One line per language, most shown first."""
        return tuple(sorted(self._counts.values(), key=lambda line: (-line.shown, line.language)))

    def save(self) -> None:
        """Writes the file if anything changed; a full disk costs the counters, not the daemon."""
        if not self._changed:
            return
        draft = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            draft.write_text(json.dumps([asdict(line) for line in self.languages()]), encoding="utf-8")
            draft.replace(self._path)
            self._changed = False
        except OSError:
            draft.unlink(missing_ok=True)


_NUMBERS = ("shown", "accepted", "partial", "rejected", "characters")
