"""Which fill comes first: a weighted sum of what the model and the file say for it.

The likelihood alone overrates what is easy to say and forgets what the file says in like places. How much either is
worth depends on the model: the weights are on its card, fitted by `tests/fit_ranking.py` on held-out code. Knows no
tensors, tokens or syntax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .contract import FillError
from .similar import MOST_ALIKE, Page, first_line

FEATURES: Mapping[str, str] = {
    "likely": "log-probability of the fill and of its end, nats, over the root of its tokens",
    "length": "logarithm of its tokens",
    "found": "1 where a line of the file goes on like that from what stands left of the hole",
    "alike": "how much the place of the line it comes from, as it is or renamed, resembles the hole's: 1 entirely",
    "agreed": "ways that led to it besides the first: draft, similar line, what became of it, noise, ...",
    "doubles": "1 where the line is the one before the hole once more",
    "foretells": "1 where the line is the next one",
}


def features(page: Page, text: bytes, ways: int, likely: Sequence[float]) -> tuple[float, ...]:
    """The `FEATURES` of a fill by name and in their order. `likely`: log-probabilities of its tokens and its end."""
    line, (found, likeness) = page.typed + first_line(text), page.alike(text)
    return (
        sum(likely) / math.sqrt(len(likely)),
        math.log(len(likely)),
        float(found),
        likeness / MOST_ALIKE,
        float(ways - 1),
        float(line == page.neighbour(-1)),
        float(line == page.neighbour(1)),
    )


class Ranking:
    """Weights of the features."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = [weights[name] for name in FEATURES]

    def rank(self, page: Page, text: bytes, ways: int, likely: Sequence[float]) -> float:
        """The larger the better; comparable within one hole only."""
        given = features(page, text, ways, likely)
        return sum(weight * value for weight, value in zip(self.weights, given, strict=True))


def on_card(card: Mapping[str, object]) -> Ranking | None:
    """The weights fitted to the model of this card, `{"ranking": {feature: weight}}`; None where it has none."""
    weights = card.get("ranking")
    if weights is None:
        return None
    if not isinstance(weights, Mapping) or set(weights) != set(FEATURES):
        raise FillError(f"stopgap.json: ranking must give one weight for each of {', '.join(FEATURES)}")
    return Ranking({name: float(weights[name]) for name in FEATURES})
