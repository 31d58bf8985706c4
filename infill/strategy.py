"""Every choice the engine makes that an experiment may turn: one frozen record, with the shipped defaults.

Knows nothing but numbers. LOG.md says what each default won by.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from .contract import FillError
from .sampler import Schedule


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a hole becomes rows, and rows become fills.

    schedule       the sampler's
    context        tokens of context, prefix and suffix together
    tail           clamped suffix tokens in the canvas; 0 leaves the suffix to the encoder alone
    slots          widest hole of one canvas; longer holes run as several
    canvas         most slots of a canvas, hole and tail together: what the model was trained on (`fitted`)
    near           the tail never gets fewer than this, whatever the hole takes
    shortest       tokens a draft may always have, however short its kind of hole usually is
    longest        most slots of a hole, all its canvases together
    overlap        slots of a canvas that are denoised again at the head of the next
    heal           let the first token repeat the end of a word the prefix stops in (token healing)
    rows           canvases denoised side by side
    drafts         left-to-right drafts among them (the first greedy, the rest sampled)
    end_bonus      added to the logit of a draft's end
    retrieved      similar lines of the file that are judged as they are; the first one seeds a row as well
    renamed        lines besides that are judged with their names replaced by those of the place, if any are retrieved
    lengths        quantiles of the hole's length prior that the noise rows try
    told           slots of the one noise row, where an evaluation tells the true length; 0 = `lengths` are tried
    denoise        False judges seeds as they are (for ablations)
    repairs        rounds of renoising what the gate refused
    repair_steps   cap on steps of such a round
    warm           start from the last fill of the document when what was typed agrees with it
    warm_steps     cap on steps of such a start
    finalists      candidates that are ranked
    rank_length    what a fill's log-probability is divided by, as a power of its tokens: 1 is the mean, 0 the sum
    rank           "causal": likelihood of the fill and its end through the encoder; "canvas": the denoiser's own;
                   "fitted": a weighted sum of the first and of what the file says (`ranking`) where a line is missing
                   and the model's card has the weights, else "causal"
    """

    schedule: Schedule = field(default_factory=Schedule)
    context: int = 448
    tail: int = 32
    slots: int = 96
    canvas: int = 256
    near: int = 16
    shortest: int = 32
    longest: int = 384
    overlap: int = 16
    heal: bool = True
    rows: int = 4
    drafts: int = 1
    end_bonus: float = 1.0
    retrieved: int = 4
    renamed: int = 2
    lengths: tuple[str, ...] = ("p50", "p75")
    told: int = 0
    denoise: bool = True
    repairs: int = 2
    repair_steps: int = 4
    warm: bool = True
    warm_steps: int = 3
    finalists: int = 16
    rank: str = "fitted"
    rank_length: float = 0.5

    @property
    def scratch(self) -> int:
        """Slots behind the prefix that a step or a ranking may take at once."""
        return max(self.rows * (self.slots + self.tail), self.longest + self.tail)

    def fitted(self, canvas: int) -> Strategy:
        """The same choices for a model whose canvases had at most `canvas` slots: beyond that it was never trained."""
        canvas = min(self.canvas, canvas)
        return replace(self, canvas=canvas, slots=max(1, min(self.slots, canvas - min(self.tail, self.near))))

    def tail_beside(self, hole: int) -> int:
        """Slots the tail may have beside a hole of `hole` slots."""
        return max(0, min(self.tail, self.canvas - hole))


def vary(strategy: Strategy, changes: str) -> Strategy:
    """`strategy` with the fields that `changes` names set anew: "tail=0,repairs=0,max_steps=8".

    Names the fields of `Strategy` and of its schedule; a list is written "p50+p90", an empty one "none".
    """
    for change in filter(None, changes.split(",")):
        name, _, text = change.strip().partition("=")
        owner = next((o for o in (strategy, strategy.schedule) if name in {f.name for f in fields(o)}), None)
        if owner is None or name == "schedule" or not text:
            known = sorted({f.name for o in (strategy, strategy.schedule) for f in fields(o)} - {"schedule"})
            raise FillError(f"{change!r} changes nothing: write NAME=VALUE with a name of {', '.join(known)}")
        value = _read(getattr(owner, name), text, change)
        if owner is strategy:
            strategy = replace(strategy, **{name: value})
        else:
            strategy = replace(strategy, schedule=replace(strategy.schedule, **{name: value}))
    return strategy


def _read(old: Any, text: str, change: str) -> Any:
    """`text` as a value of the kind of `old`."""
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(old, tuple):
            return () if text == "none" else tuple(text.split("+"))
        return type(old)(text)
    except (KeyError, ValueError):
        raise FillError(f"{change!r}: {text!r} is not a value like {old!r}") from None
