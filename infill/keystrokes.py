"""The typing suite: replays passages of real files key by key, and finds the score from which to show a fill.

A model of somebody typing: a pause is likely after Enter, less so after a space or an opening bracket, rare
inside a word. Knows no editor, engine or clock. What counts at a pause is how much of the fill equals what is
then typed; the replay goes on as if nothing had been accepted, so that every engine is asked the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cuts import source_files, text_of
from .languages import LANGUAGES
from .suites import Sample

LINES = (2, 12)
"""How many lines a passage has."""

PAUSES = ((("\n",), 0.8), (tuple(" (.,=[{:"), 0.3))
INSIDE_A_WORD = 0.04
THRESHOLDS = 20


def replays(roots: Sequence[Path], limit: int, seed: int) -> Iterator[Sample]:
    """The pauses of passages, one passage per file in turn until `limit` pauses or no new passage is found.

    The passage is taken out of its file and typed again; one in four times the file ends with it.
    """
    files = [(name, *file) for name, found in source_files(roots).items() for file in found]
    random.Random(seed).shuffle(files)
    seen: set[str] = set()
    count, barren = 0, 0
    for visit in range(1_000_000):
        language, label, path = files[visit % len(files)]
        passage = _passage(text_of(path).decode(), random.Random(f"{seed}:{visit}:{label}"))
        barren += 1
        if passage is not None and (key := f"{label}:{passage.start}-{passage.end}") not in seen:
            seen.add(key)
            barren = 0
            for sample in pauses(passage, LANGUAGES[language].name, label, random.Random(f"{seed}:{key}")):
                yield sample
                count += 1
                if count == limit:
                    return
        if barren >= 4 * len(files):
            return


@dataclass(frozen=True, slots=True)
class Passage:
    """`text[start:end]` is typed again; characters, whole lines without the last line's end."""

    text: str
    start: int
    end: int
    last: bool
    """Nothing stands after it while it is typed."""


def _passage(text: str, draw: random.Random) -> Passage | None:
    lines = text.splitlines(keepends=True)
    starts = [at for at, line in enumerate(lines) if line.strip()]
    if not starts:
        return None
    first = draw.choice(starts)
    stop = min(len(lines), first + draw.randint(*LINES))
    start = sum(map(len, lines[:first]))
    body = "".join(lines[first:stop]).rstrip()
    return Passage(text, start, start + len(body), last=draw.random() < 0.25)


def pauses(passage: Passage, language: str, label: str, draw: random.Random) -> Iterator[Sample]:
    """A sample for every pause. Enter types the next line's indent too, as editors do."""
    text, at = passage.text, passage.start
    after = "" if passage.last else text[passage.end :]
    while at < passage.end:
        key = text[at]
        at += 1
        if key == "\n" or at == passage.start + 1:
            while at < passage.end and text[at] in " \t":
                at += 1
        chance = next((share for keys, share in PAUSES if key in keys), INSIDE_A_WORD)
        if at < passage.end and draw.random() < chance:
            before = text[:at].encode()
            yield Sample(
                name=f"{label}:{passage.start}-{passage.end}@{at}",
                group=language,
                language=language,
                source=before + after.encode(),
                start=len(before),
                truth=text[at : passage.end],
                cluster=f"{label}:{passage.start}-{passage.end}",
                path=label,
                target="cursor",
            )


@dataclass(frozen=True, slots=True)
class Threshold:
    """What showing only fills with at least this `score` would have meant; shares in 0..1."""

    score: float
    """A show score (`contract.show_score`), as in the setting `showThreshold`."""
    shown: float
    """Share of all pauses at which a fill is shown."""
    accepted_prefix: float
    """Share of the shown characters that were then typed."""
    whole: float
    """Share of the shown fills that were typed to their last character."""
    gain: int
    """Characters right minus characters wrong: reading a wrong one is taken to cost what typing one does."""


def thresholds(offers: Sequence[tuple[float, int, int]], asked: int) -> list[Threshold]:
    """The trade-off over `offers` of (show score, characters accepted, characters shown) at `asked` pauses.

    At most `THRESHOLDS` of them, at even steps through the scores that occurred, loosest first.
    """
    ranked = sorted(offers, key=lambda offer: -offer[0])
    found: list[Threshold] = []
    for step in range(1, THRESHOLDS + 1):
        count = len(ranked) * step // THRESHOLDS
        while 0 < count < len(ranked) and ranked[count][0] == ranked[count - 1][0]:
            count += 1  # equal scores are shown together or not at all
        shown = ranked[:count]
        if not shown or (found and found[-1].score == shown[-1][0]):
            continue
        right, total = sum(offer[1] for offer in shown), sum(offer[2] for offer in shown)
        whole = sum(offer[1] == offer[2] for offer in shown)
        found.append(Threshold(shown[-1][0], count / asked, right / max(1, total), whole / count, 2 * right - total))
    return found[::-1]


def proposed(found: Sequence[Threshold]) -> Threshold | None:
    """The threshold with the greatest gain, if showing anything gains at all."""
    best = max(found, key=lambda one: one.gain, default=None)
    return best if best is not None and best.gain > 0 else None
