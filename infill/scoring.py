"""One request to an engine and everything that is counted about its answer.

Knows engines only through `contract.Engine`; sums nothing up, runs nothing, reads no clock of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from .contract import Engine, FillError, FillRequest, Outcome
from .languages import by_name
from .metrics import common_prefix, similarity
from .referee import Splice, adds_error
from .suites import Sample


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the tables: an engine and how it is asked. `series` joins rows into one line of the plot."""

    name: str
    engine: Engine
    max_steps: int | None = None
    budget_ms: float | None = None
    candidates: int = 1
    series: str = ""
    engine_for: Callable[[Sample], Engine] | None = None
    """Asked for each sample in place of `engine`: how a setting that depends on the truth is passed in."""

    def request(self, sample: Sample, seed: int) -> FillRequest:
        typing = sample.target == "cursor"
        return FillRequest(
            source=sample.source,
            language=sample.language,
            start=sample.start,
            end=sample.start,
            target=sample.target,
            path=sample.path,
            candidates=self.candidates,
            budget_ms=self.budget_ms,
            max_steps=self.max_steps,
            seed=seed,
            document=f"{self.name}:{sample.cluster}" if typing else "",
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine gave. `step_ms` is the longest it took from one draft to the next, None without two."""

    outcome: Outcome | None
    ms: float
    step_ms: float | None = None
    trouble: str = ""


def ask(contender: Contender, sample: Sample, seed: int, clock: Callable[[], float]) -> Answer:
    """One request to its end. A refusal or a crash is an answer too: one bad sample must not end the run."""
    engine = contender.engine_for(sample) if contender.engine_for else contender.engine
    begun = clock()
    drafts: list[float] = []
    outcome, trouble = None, ""
    try:
        for item in engine.fill(contender.request(sample, seed), lambda: False):
            if isinstance(item, Outcome):
                outcome = item
            else:
                drafts.append(clock())
        if outcome is None:
            trouble = "crashed: the engine ended without an outcome"
    except FillError as error:
        trouble = f"refused: {error}"
    except Exception as error:
        trouble = f"crashed: {type(error).__name__}: {error}"
    ms = (clock() - begun) * 1000
    step = max((after - before for before, after in itertools.pairwise(drafts)), default=None)
    return Answer(outcome, ms, step * 1000 if step is not None else None, trouble)


@dataclass(frozen=True, slots=True)
class Score:
    """One answer of one contender to one sample; a line of samples.jsonl. `ms` is the whole wall time."""

    contender: str
    series: str
    sample: str
    group: str
    language: str
    cluster: str
    shown: bool
    fill: str
    truth: str
    before: str
    after: str
    exact: bool
    """The truth, white space at its end aside unless the file breaks without it. Lengths are compared so too."""
    similarity: float
    accepted: int
    """Characters that fill and truth begin with in common."""
    parses: bool
    adds_error: bool
    adds_error_sound: bool | None
    """In the file before it was broken on purpose; None when it was not broken."""
    outside: bool
    """The answer changed a byte outside the hole."""
    right_characters: bool
    right_lines: bool
    right_tokens: bool | None
    passed: bool | None
    score: float | None
    steps: int
    ms: float
    step_ms: float | None
    budget_ms: float | None
    why: str
    node_type: str


def put_in(sample: Sample, outcome: Outcome) -> str | None:
    """The text that the best fill puts at the hole; None when it changes a byte elsewhere.

    For a cursor, text after it may be replaced (the rest of a token): what counts is what follows the cursor.
    """
    fill = outcome.fills[0].text.encode()
    result = sample.source[: outcome.start] + fill + sample.source[outcome.end :]
    before, after = sample.source[: sample.start], sample.source[sample.start :]
    if not result.startswith(before):
        return None
    if sample.target == "cursor":
        return result[len(before) : outcome.start + len(fill)].decode("utf-8", "replace")
    if not result.endswith(after) or len(result) < len(before) + len(after):
        return None
    return result[len(before) : len(result) - len(after)].decode("utf-8", "replace")


def score(
    contender: Contender,
    sample: Sample,
    answer: Answer,
    run: Callable[[str], bool] | None = None,
    tokens: Callable[[str], int] | None = None,
) -> Score:
    """Everything that is counted about one answer. `run` says whether a program passed, `tokens` counts them."""
    outcome = answer.outcome
    shown = outcome is not None and bool(outcome.fills)
    fill = put_in(sample, outcome) if outcome is not None and shown else ""
    text = fill or ""
    inside = shown and fill is not None
    said, truth = text.rstrip(), sample.truth.rstrip()
    language = by_name(sample.language)
    adds = bool(inside and adds_error(language, _splice(sample, text)))
    spoils = sample.sound_source and inside and adds_error(language, _sound_splice(sample, text))
    return Score(
        contender=contender.name,
        series=contender.series or contender.name,
        sample=sample.name,
        group=sample.group,
        language=sample.language,
        cluster=sample.cluster,
        shown=shown,
        fill=text,
        truth=sample.truth,
        before=sample.source[max(0, sample.start - 160) : sample.start].decode("utf-8", "ignore"),
        after=sample.source[sample.start : sample.start + 80].decode("utf-8", "ignore"),
        exact=inside and (text == sample.truth or (said == truth and not adds)),
        similarity=similarity(text, sample.truth) if inside else 0.0,
        accepted=common_prefix(text, sample.truth) if inside else 0,
        parses=inside and not adds,
        adds_error=adds,
        adds_error_sound=bool(spoils) if sample.sound_source else None,
        outside=shown and not inside,
        right_characters=inside and len(said) == len(truth),
        right_lines=inside and said.count("\n") == truth.count("\n"),
        right_tokens=inside and tokens(said) == tokens(truth) if tokens else None,
        passed=inside and run(sample.program(text)) if run and sample.test else None,
        score=outcome.fills[0].score if outcome is not None and shown else None,
        steps=outcome.steps if outcome is not None else 0,
        ms=answer.ms,
        step_ms=answer.step_ms,
        budget_ms=contender.budget_ms,
        why=answer.trouble or (outcome.reason if outcome is not None and not shown else ""),
        node_type=outcome.node_type if outcome is not None else "",
    )


def _splice(sample: Sample, fill: str) -> Splice:
    """For a hole: in place of the truth. At a cursor the rest is not written yet: in the text as it stands."""
    if sample.target == "cursor":
        return Splice(sample.source, sample.start, sample.start, fill.encode())
    return Splice(sample.whole, sample.start, sample.start + len(sample.truth.encode()), fill.encode())


def _sound_splice(sample: Sample, fill: str) -> Splice:
    """The same fill in the file as it was before it was broken on purpose."""
    source, at, truth = sample.sound_source, sample.sound_start, sample.truth.encode()
    return Splice(source[:at] + truth + source[at:], at, at + len(truth), fill.encode())
