"""The prefix cache: the encoder's keys and values, written once, read by any number of canvas rows.

Knows nothing of weights, sampling or requests. Full layers keep every token. Sliding layers keep those of their window
and some `SLACK` behind it, which is all tokens of a short prefix: of the 26B, 25 of 30 layers see 1,024 tokens and take
nine tenths of the memory. A prefix that is cut back by no more than the slack goes on exactly. Further back the window
is incomplete, and nothing short of encoding from the start completes it: what a layer lacks, the layers below it saw
through windows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stopgap.kernels.attention import attention

from .buckets import cache_slots, kept, seen
from .layers import Tables, Turn, rope_tables
from .model_config import ModelConfig, ModelError

NOWHERE = -2
"""Row number of a key that nobody may see."""


@dataclass(frozen=True, slots=True)
class Span:
    """One layer's place in a window: where new keys and values go and what the new tokens see."""

    new_keys: Tensor
    """[T, 1, K, hd], a view into the cache"""
    new_values: Tensor
    keys: Tensor
    """[1, K, L, hd], a view: the visible prefix and the T new tokens"""
    values: Tensor
    mask: Tensor | None
    """[T*G, L], added to the scores, in the dtype of the keys"""
    tables: Tables

    def attend(self, turn: Turn) -> Tensor:
        """See `layers.Attend`: what the new tokens see lies in one piece, nothing is copied together."""
        return attention(turn(self.new_keys, self.new_values), self.keys, self.values, self.mask)


@dataclass(frozen=True, slots=True)
class Spans:
    """One layer's place in the windows of several prefixes: the tokens of one after those of the other.

    Every prefix is attended to by a product of its own. One product with a mask over all of them costs the square:
    16 rows of 48 slots behind 224 tokens took the starter 142 ms a step in one product, four times 21 in four.
    """

    parts: tuple[Span, ...]
    counts: list[int]
    """Tokens of each part."""
    tables: Tables

    def attend(self, turn: Turn) -> Tensor:
        """See `layers.Attend`."""
        _, *shape = self.parts[0].new_keys.shape
        keys, values = self.parts[0].new_keys.new_empty((2, sum(self.counts), *shape))
        cuts = (torch.split(tensor, self.counts) for tensor in (turn(keys, values), keys, values))
        found = []
        for part, own, own_keys, own_values in zip(self.parts, *cuts, strict=True):
            part.new_keys.copy_(own_keys)
            part.new_values.copy_(own_values)
            found.append(attention(own, part.keys, part.values, part.mask))
        return torch.cat(found)


@dataclass(frozen=True, slots=True)
class Window:
    """T new tokens behind the prefix, rows one after the other without padding; one span per layer."""

    spans: tuple[Span | Spans, ...]
    keep: Tensor | None
    """Flat indices of the T tokens in the padded [B, C] canvas; None if that has no padding."""


class PrefixCache:
    """Keys and values of the tokens in `ids`, and room behind them where canvas rows come and go.

    `dtype` is that of activations and tables, `stored` that of keys and values. Not for two threads at once.
    """

    _dropped = 0
    """Tokens at the beginning that sliding layers no longer have: their slot 0 is that of the one after."""

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        scratch: int,
        device: torch.device,
        dtype: torch.dtype,
        stored: torch.dtype,
    ) -> None:
        self.ids: list[int] = []
        self.capacity = capacity
        self._config = config
        self._kept = kept(config, scratch)
        self._slots, self._sliding_slots = (
            cache_slots(config, sliding, capacity, scratch) for sliding in (False, True)
        )
        room = partial(torch.zeros, device=device, dtype=stored)
        self._keys_values = [
            (
                # Head by head where products read them, see `Span.attend`; token by token for torch's attention.
                room((shape.kv_heads, shape.head_dim, slots)).mT
                if stored != dtype
                else room((shape.kv_heads, slots, shape.head_dim)),
                room((shape.kv_heads, slots, shape.head_dim)),
            )
            for shape in config.layers
            for slots in (self._sliding_slots if shape.sliding else self._slots,)
        ]
        positions = torch.arange(self._slots, device=device)
        self._tables = {
            (shape.sliding, shape.head_dim): rope_tables(rope, shape.head_dim, positions, dtype)
            for shape in config.layers
            if (rope := config.sliding_rope if shape.sliding else config.full_rope)
        }
        self._canvas: tuple[tuple[int, ...], int, Window] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self._keys_values)

    def visible(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each layer the keys and values that a canvas sees, [K, n, hd], views."""
        for shape, (keys, values) in zip(self._config.layers, self._keys_values, strict=True):
            end = len(self) - (self._dropped if shape.sliding else 0)
            first = end - seen(self._config, shape.sliding, len(self))
            yield keys[:, first:end], values[:, first:end]

    def crop(self, length: int) -> None:
        """Forget every token from `length` on.

        Raises `ModelError` where the prefix could not go on from there, see `match`; nothing is forgotten then."""
        if not self._complete(length):
            raise ModelError(f"{len(self)} prompt tokens cannot be cut back to {length}: encode them from the start")
        del self.ids[length:]
        if not self.ids:
            self._dropped = 0

    def match(self, ids: Sequence[int]) -> int:
        """How many leading tokens of `ids` need not be encoded again, after a crop to as many.

        As many as it shares with what is encoded; none if those end further back than sliding layers have kept."""
        same = zip(self.ids, ids, strict=False)
        shared = next((at for at, (ours, theirs) in enumerate(same) if ours != theirs), min(len(self.ids), len(ids)))
        return shared if self._complete(shared) else 0

    def _complete(self, length: int) -> bool:
        """Whether sliding layers have all that the last of `length` tokens and the one after it see."""
        return not (self._dropped and length) or length - self._config.sliding_window >= self._dropped

    def append_window(self, count: int) -> Window:
        """For the next `count` tokens of the prefix, each seeing itself and what is before it."""
        start = len(self.ids)
        if start + count > self.capacity:
            raise ModelError(f"{start + count} prompt tokens do not fit the prefix cache of {self.capacity}")
        positions = torch.arange(start, start + count)
        return self._window(start, positions, torch.zeros(count), torch.zeros(count), causal=True)

    def canvas_window(self, lengths: Sequence[int], width: int) -> Window:
        """For canvas rows of `lengths`, padded to `width`: a row sees the prefix and all of itself.

        A sliding layer sees the last `sliding_window - 1` prefix tokens, whatever the slot (as the reference).
        The window is kept: the steps of one denoising loop ask for the same one.
        """
        key = (*lengths, width)
        if self._canvas is None or self._canvas[:2] != (key, len(self.ids)):
            row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            offset = torch.cat([torch.arange(length) for length in lengths])
            window = self._window(len(self.ids), offset + len(self.ids), row, row, causal=False)
            if any(length != width for length in lengths):
                keep = (row * width + offset).to(self._keys_values[0][0].device)
                window = Window(window.spans, keep)
            self._canvas = (key, len(self.ids), window)
        return self._canvas[2]

    def score_window(self, lengths: Sequence[int]) -> Window:
        """For the last prefix token once more and then rows of `lengths` that continue it, each causal.

        The repeated token gives the scores of every row's first token. Its key is in the prefix already, so
        the second copy is shown to nobody.
        """
        start = len(self.ids)
        row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        offset = torch.cat([torch.arange(length) for length in lengths]) + start
        before = torch.tensor([start - 1])
        return self._window(
            start,
            torch.cat((before, offset)),
            torch.cat((torch.tensor([-1]), row)),
            torch.cat((torch.tensor([NOWHERE]), row)),
            causal=True,
        )

    def _window(self, start: int, positions: Tensor, query_rows: Tensor, key_rows: Tensor, causal: bool) -> Window:
        count = len(positions)
        if start + count > self._slots:
            raise ModelError(
                f"{count} canvas slots do not fit behind {start} prompt tokens in {self._slots}; use fewer rows"
            )
        self._make_room(count)
        first, spans = int(positions[0]), []
        one_run = int(positions[-1]) - first == count - 1
        one_row = bool((query_rows == key_rows).all()) and bool((query_rows == query_rows[0]).all())
        masks: dict[tuple[bool, int], Tensor | None] = {}
        tables: dict[tuple[bool, int], Tables] = {}
        for shape, (keys, values) in zip(self._config.layers, self._keys_values, strict=True):
            window = self._config.sliding_window if shape.sliding else None
            oldest = 0 if window is None else max(0, min(first, start) - (window - 1))
            kind = (shape.sliding, shape.head_dim)
            if kind not in tables:
                tables[kind] = self._rows(kind, positions, first if one_run else None)
            if (kind := (shape.sliding, shape.groups)) not in masks:
                visible = None
                if not one_row or (causal and count > 1):
                    visible = _visible(oldest, start, positions, query_rows, key_rows, causal, window)
                masks[kind] = None if visible is None else _additive(visible, shape.groups, keys)
            behind, end = (at - (self._dropped if shape.sliding else 0) for at in (start, start + count))
            new_keys, new_values = (stored[None, :, behind:end].permute(2, 0, 1, 3) for stored in (keys, values))
            seen_keys, seen_values = (stored[None, :, behind - (start - oldest) : end] for stored in (keys, values))
            turn = tables[shape.sliding, shape.head_dim]
            spans.append(Span(new_keys, new_values, seen_keys, seen_values, masks[kind], turn))
        return Window(tuple(spans), None)

    def _make_room(self, count: int) -> None:
        """Drop the oldest tokens of sliding layers if `count` more do not fit; a key has its position in it already."""
        behind = len(self.ids) - self._dropped
        if behind + count <= self._sliding_slots:
            return
        left = min(self._kept, self._sliding_slots - count)
        if left < self._config.sliding_window:
            raise ModelError(f"{count} tokens at once do not fit behind {len(self.ids)} of the prompt; take fewer")
        for shape, pair in zip(self._config.layers, self._keys_values, strict=True):
            for stored in pair if shape.sliding else ():
                stored[:, :left] = stored[:, behind - left : behind].clone()  # what is moved may overlap
        self._dropped += behind - left
        self._canvas = None  # its views are of what was there before

    def _rows(self, kind: tuple[bool, int], positions: Tensor, first: int | None) -> Tables:
        cos, sin = self._tables[kind]
        if first is not None:
            return cos[first : first + len(positions)], sin[first : first + len(positions)]
        index = positions.to(cos.device)
        return cos[index], sin[index]


class Joined:
    """Several prefixes whose canvas rows are denoised in one pass: `rows[i]` rows of the canvas belong to prefix i."""

    def __init__(self, caches: Sequence[PrefixCache], rows: Sequence[int]) -> None:
        self._caches, self._rows = caches, rows

    def canvas_window(self, lengths: Sequence[int], width: int) -> Window:
        """As `PrefixCache.canvas_window`."""
        left, windows = list(lengths), []
        for cache, rows in zip(self._caches, self._rows, strict=True):
            windows.append(cache.canvas_window(left[:rows], width))
            del left[:rows]
        return join(windows, self._rows, width)


def join(windows: Sequence[Window], rows: Sequence[int] = (), width: int = 0) -> Window:
    """One window over the tokens of all; `rows` of `width` slots each are those of padded canvases."""
    counts = [len(window.spans[0].tables[0]) for window in windows]
    tables: dict[tuple[int, ...], Tables] = {}
    spans = []
    for parts in zip(*(window.spans for window in windows), strict=True):
        kind = tuple(id(part.tables) for part in parts)
        if kind not in tables:  # layers of a kind share theirs
            cos, sin = zip(*(part.tables for part in parts), strict=True)
            tables[kind] = torch.cat(cos), torch.cat(sin)
        spans.append(Spans(parts, counts, tables[kind]))
    keep = None
    if any(window.keep is not None for window in windows):
        device = spans[0].tables[0].device
        places, at = [], 0
        for window, count, number in zip(windows, counts, rows, strict=True):
            own = torch.arange(count, device=device) if window.keep is None else window.keep
            places.append(own + at)
            at += number * width
        keep = torch.cat(places)
    return Window(tuple(spans), keep)


def _visible(
    oldest: int,
    start: int,
    positions: Tensor,
    query_rows: Tensor,
    key_rows: Tensor,
    causal: bool,
    window: int | None,
) -> Tensor:
    """[T, L] bool: which of the prefix tokens oldest…start and of the T new ones a new token sees."""
    query = positions[:, None]
    prefix = torch.arange(oldest, start)[None]
    old, new = torch.ones(len(positions), start - oldest, dtype=torch.bool), query_rows[:, None] == key_rows[None]
    if causal:
        new &= positions[None] <= query
        if window is not None:
            old &= prefix > query - window
            new &= positions[None] > query - window
    return torch.cat((old, new), dim=1)


def _additive(visible: Tensor, groups: int, like: Tensor) -> Tensor:
    rows = visible.repeat_interleave(groups, dim=0)
    mask = torch.zeros(rows.shape, dtype=like.dtype).masked_fill_(~rows, float("-inf"))
    return mask.to(like.device)
