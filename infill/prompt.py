"""How context, prefix and suffix become the encoder's ids, one function per model family.

Knows token ids only: no text, no torch, no model. Training and inference both call these functions, so
that the model never meets an order it was not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InfillMarkers:
    """Special ids of a plain infiller (the starter); all are masked in the logits except `end` and `delete`."""

    bos: int
    suffix: int
    prefix: int
    end: int
    """Ends a left-to-right draft: the fill is over, what follows is the suffix."""
    delete: int
    """Stands in the hole's spare slots; removed physically while denoising, never shown."""


def infill_prompt(
    context: Sequence[int], prefix: Sequence[int], suffix: Sequence[int], markers: InfillMarkers
) -> list[int]:
    """Encoder ids of a plain infiller: `bos context <suf> suffix <pre> prefix`.

    The suffix stands before the prefix, so that (1) a left-to-right draft through the encoder's tied head
    sees what follows the cursor, (2) the canvas comes right behind the prefix it continues, and (3) typing
    changes only the end of the sequence, which keeps the prefix cache.
    """
    return [markers.bos, *context, markers.suffix, *suffix, markers.prefix, *prefix]
