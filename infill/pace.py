"""How long a pass of the model takes here: learnt from those that ran, asked before the next one begins.

So that nothing is begun that the deadline would throw away. Knows no clock (durations are handed in), no text and no
deadline.
"""

from __future__ import annotations

from .work import Work, tokens

WEIGHT = 0.3
"""Of the newest pass in the running mean."""
DOUBT = 0.9
"""What an estimate is multiplied by when a pass was not begun because of it: one slow moment is forgotten in time,
though nothing is measured meanwhile."""

Key = tuple[type[Work], int]


class Pace:
    """Milliseconds a token, by kind of pass and by its size in powers of two: a pass of few tokens reads all the
    weights as well."""

    def __init__(self) -> None:
        self._rates: dict[Key, float] = {}

    def learn(self, work: Work, ms: float) -> None:
        """A pass took `ms`."""
        size = max(1, tokens(work))
        key = type(work), size.bit_length()
        known = self._rates.get(key, ms / size)
        self._rates[key] = known + WEIGHT * (ms / size - known)

    def doubt(self, work: Work) -> None:
        """A pass was not begun because of its estimate."""
        for key in [key for key in self._rates if key[0] is type(work)]:
            self._rates[key] *= DOUBT

    def ms(self, kind: type[Work], size: int) -> float:
        """How long a pass of `size` tokens will take; 0 where none of its kind ever ran."""
        bucket = max(1, size).bit_length()
        known = [key for key in self._rates if key[0] is kind]
        nearest = min(known, key=lambda key: abs(key[1] - bucket), default=None)
        return size * self._rates[nearest] if nearest is not None else 0.0
