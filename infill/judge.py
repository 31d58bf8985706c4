"""Which drafts may be offered: decoded, tidied, before the gate once, kept with the best score seen.

The one owner of the candidates: nothing reaches a user that is not in here. Knows no model and no canvas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .holes import Hole, remark, stands_in
from .syntax import Gate, Verdict
from .tokenizer import Tokenizer

_REPEATED = re.compile(rb"([^\n]{1,24}?)\1{3,}")


def _loop(text: bytes) -> tuple[int, int] | None:
    """Where a piece of a line with a letter in it comes four times in a row: small models fall into it, very sure."""
    found = (match for match in _REPEATED.finditer(text) if re.search(rb"[A-Za-z]", match[1]))
    return next((match.span() for match in found), None)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tidied text that passed the gate; `score` is a mean log-probability per token, `ids` what it came from.

    `rank` orders what was ranked, the larger the better.
    """

    text: bytes
    ids: tuple[int, ...]
    score: float
    origin: str
    rank: float = float("-inf")


class Judge:
    """Verdicts and candidates of one request. `overlap` is cut off every decoded text (token healing)."""

    def __init__(self, tokenizer: Tokenizer, gate: Gate, hole: Hole, overlap: bytes, *, crlf: bool) -> None:
        self.tokenizer, self.gate, self.hole, self.overlap, self.crlf = tokenizer, gate, hole, overlap, crlf
        self.candidates: dict[bytes, Candidate] = {}
        self.ways: dict[bytes, set[str]] = {}
        """How each text that passed was come by: its origins up to a comma; behind it is what was made of it."""
        self._verdicts: dict[bytes, tuple[Verdict, bytes]] = {}

    def text(self, ids: Sequence[int]) -> bytes:
        """What `ids` put into the hole, untidied; b"" when the healed overlap does not fit."""
        text = self.tokenizer.decode(ids)
        return text[len(self.overlap) :] if text.startswith(self.overlap) else b""

    def verdict(self, ids: Sequence[int]) -> Verdict:
        """The gate's word on a draft; `span` counts bytes of `text(ids)`."""
        return self._judged(self.text(ids))[0]

    def offer(self, ids: Sequence[int], score: float, origin: str) -> Candidate | None:
        """Put a draft before the gate; the candidate it made, None if it did not pass or was known as good."""
        verdict, text = self._judged(self.text(ids))
        if not verdict.ok:
            return None
        self.ways.setdefault(text, set()).add(origin.partition(",")[0])
        known = self.candidates.get(text)
        if known is not None and known.score >= score:
            return None
        self.candidates[text] = made = Candidate(text, tuple(ids), score, origin)
        return made

    def rescore(self, scores: Mapping[bytes, tuple[float, float]]) -> None:
        """Replace the candidates' scores and ranks; those not named are dropped."""
        kept = {text: self.candidates[text] for text in scores}
        self.candidates = {text: replace(c, score=scores[text][0], rank=scores[text][1]) for text, c in kept.items()}

    def best(self) -> list[Candidate]:
        """Best first; the one offered first of two equals."""
        return sorted(self.candidates.values(), key=lambda c: (-c.rank, -c.score))

    def refusals(self) -> list[str]:
        """The reason of every text that did not pass."""
        return [verdict.reason for verdict, _ in self._verdicts.values() if not verdict.ok]

    def _judged(self, text: bytes) -> tuple[Verdict, bytes]:
        if text not in self._verdicts:
            self._verdicts[text] = self._check(text)
        return self._verdicts[text]

    def _check(self, text: bytes) -> tuple[Verdict, bytes]:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return Verdict(False, "stops inside a character", (error.start, len(text))), text
        if self.crlf:
            text = text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if not text.strip():
            return Verdict(False, "empty", None), text
        if loop := _loop(text):
            return Verdict(False, "repeats itself", loop), text
        tidy = self.gate.tidy(self.hole.wrap(text))
        if why := self._no_change(tidy.strip()):
            return Verdict(False, why, None), text
        verdict = self.gate.check(tidy)
        if verdict.span is not None:
            lead = len(self.hole.lead)
            start, end = (min(max(0, at - lead), len(text)) for at in verdict.span)
            verdict = replace(verdict, span=(start, end))
        return verdict, tidy

    def _no_change(self, text: bytes) -> str:
        """Why a text would do nothing for who asked: what stands there, or a placeholder or a remark instead of one."""
        source, hole = self.gate.source, self.hole
        old = source.text[hole.start : hole.end].strip()
        if text == old:  # never empty: an empty fill was refused before
            return "is what stands there already"
        waiting = hole.scope == "placeholder" or (old and stands_in(source.language, old))
        if not waiting:
            return ""
        if stands_in(source.language, text):
            return "is a placeholder itself"
        said = remark(source.language, text) if self.gate.checked else ""
        return f"is nothing but {said}" if said else ""
