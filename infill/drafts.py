"""Where a canvas may start from other than noise: a left-to-right draft through the encoder.

Under uniform noise any canvas is a legal state, so a guess can be handed to the denoiser, which keeps what the
suffix agrees with and revises the rest. Knows no syntax, no deadline, no document.
"""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence

import torch
from torch import Tensor

from .prefix import PrefixCache
from .work import Encode, Logits, Work


def left_to_right(
    cache: PrefixCache,
    last: Tensor,
    *,
    ends: Container[int],
    banned: Tensor,
    max_tokens: int,
    blank: Tensor,
    first: Sequence[int] | None = None,
    bonus: Tensor | float = 0.0,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Generator[Work | list[int]]:
    """Continue the prefix causally through the encoder and its tied head; yields what is to be run of the model, and
    the draft after every token.

    last     [1, D] hidden state of the prefix's last token
    ends     ids that end the draft and are not part of it
    banned   [V] bool; ids the draft may not hold; must leave `ends` allowed
    blank    [V] bool; white space and ends, which the draft may not begin with: nobody asks for an empty fill
    bonus    [V] added to the logits; lifts the end for models that write on
    first    ids allowed for the first token (token healing)
    The cache is cropped back to the prefix when the iterator ends or is closed.
    """
    length = len(cache)
    draft: list[int] = []
    begun = False
    try:
        while len(draft) < max_tokens:
            healing = first is not None and not draft
            next_ = Logits(last)
            yield next_
            logits = (next_.out[0] + bonus).masked_fill(banned if begun or healing else banned | blank, float("-inf"))
            if first is not None and healing:
                keep = torch.full_like(logits, float("-inf"))
                keep[list(first)] = logits[list(first)]
                logits = keep
            id_ = _pick(logits, temperature, generator)
            while _circles(draft, id_):
                logits[id_] = float("-inf")
                id_ = _pick(logits, temperature, generator)
            if id_ in ends:
                return
            draft.append(id_)
            begun = begun or not blank[id_]
            yield draft
            step = Encode(cache, [id_])
            yield step
            last = step.out[-1:]
    finally:
        cache.crop(length)


def _pick(logits: Tensor, temperature: float, generator: torch.Generator | None) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))


def _circles(draft: Sequence[int], id_: int) -> bool:
    """Whether `id_` would complete the third round of the same few tokens (the sixth of one): models never leave it."""
    for n, rounds in ((1, 6), (2, 3), (3, 3), (4, 3)):
        end = [*draft, id_][-n * rounds :]
        if len(end) == n * rounds and end[n:] == end[:-n]:
            return True
    return False
