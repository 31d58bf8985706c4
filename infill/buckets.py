"""The sizes that prefix caches and whole denoising steps come in, and what a step takes besides. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .model_config import ModelConfig

SLOTS, ROWS, CAPACITIES = (16, 32, 64, 128, 256), (1, 2, 4), (512, 1024, 2048, 4096, 8192)
"""Sizes of canvases, batches and prefixes; what is larger than the last is doubled until it fits."""
SLACK, GROWTH = 1024, 256
"""Tokens of a prefix that sliding layers keep behind their window, so that it can be cut back by as many and go on; and
how many more it may take before the oldest are dropped."""


class Size(NamedTuple):
    """One bucket: rows of `slots` slots behind up to `capacity` prefix tokens."""

    capacity: int
    rows: int
    slots: int

    @staticmethod
    def of(rows: int, slots: int, prefix: int) -> Size:
        """The smallest bucket that holds that."""
        return Size(_at_least(prefix, CAPACITIES), _at_least(rows, ROWS), _at_least(slots, SLOTS))


def seen(config: ModelConfig, sliding: bool, length: int) -> int:
    """How many of `length` prefix tokens a canvas sees."""
    return min(length, config.sliding_window - 1) if sliding else length


def seen_capacity(config: ModelConfig, sliding: bool, capacity: int) -> int:
    """Room for as many, in eights: torch's attention wants the lines of a mask to begin at a multiple of 16 bytes."""
    return -(-seen(config, sliding, capacity) // 8) * 8


def kept(config: ModelConfig, scratch: int) -> int:
    """Prefix tokens that a sliding layer always has: its window, the token itself, and what may be cut off again.

    Drafts and settled canvases are cut off again too; they fit into the `scratch` slots that a canvas may take."""
    return config.sliding_window + max(SLACK, scratch)


def cache_slots(config: ModelConfig, sliding: bool, capacity: int, scratch: int) -> int:
    """Slots of a prefix cache in one layer, for `capacity` prompt tokens and `scratch` canvas slots."""
    slots = min(capacity + scratch, config.max_positions)
    return min(slots, kept(config, scratch) + GROWTH + scratch) if sliding else slots


def room_bytes(config: ModelConfig, size: Size, itemsize: int) -> int:
    """Of `graph._Room`: keys and values of the prefix, as far as each layer sees it, and of the canvas; masks."""
    tokens = size.rows * size.slots
    keys_values = sum(
        2 * shape.kv_heads * shape.head_dim * (tokens + seen_capacity(config, shape.sliding, size.capacity))
        for shape in config.layers
    )
    masks = sum(mask_size(config, *kind, size.capacity, tokens) for kind in mask_kinds(config))
    return (keys_values + masks) * itemsize


def mask_kinds(config: ModelConfig) -> set[tuple[bool, int]]:
    """Whether layers slide and the groups of their heads: layers in which both are the same share a mask."""
    return {(shape.sliding, shape.groups) for shape in config.layers}


def mask_size(config: ModelConfig, sliding: bool, groups: int, capacity: int, tokens: int) -> int:
    """Numbers in the mask of `tokens` canvas slots, each seen by `groups` query heads as the same."""
    return tokens * groups * (tokens + seen_capacity(config, sliding, capacity))


def smaller(size: Size) -> list[Size]:
    """All buckets that a loop may come to hold whose largest is `size`, itself included."""
    return [
        Size(capacity, rows, slots)
        for capacity in {*CAPACITIES, size.capacity}
        for rows in {*ROWS, size.rows}
        for slots in {*SLOTS, size.slots}
        if capacity <= size.capacity and rows <= size.rows and slots <= size.slots
    ]


def bucket_bytes(config: ModelConfig, size: Size, itemsize: int) -> int:
    """Of `graph.Bucket`: rotary tables of each kind of layer, token masks, the rows' state."""
    tokens, rows = size.rows * size.slots, size.rows
    tables = sum(2 * tokens * width for _, width in {(shape.sliding, shape.head_dim) for shape in config.layers})
    vocabulary = (rows + 1) * config.vocab_size
    conditioning = tokens * config.hidden_size
    # Of every slot its ids and draft in 8 bytes, entropy and logprob in 4, held in 1, number in 8, mask's number in 4,
    # and 5 numbers of the report in 4.
    return (tables + conditioning) * itemsize + vocabulary + tokens * (2 * 8 + 2 * 4 + 1 + 8 + 4 + 5 * 4)


def _at_least(count: int, sizes: Sequence[int]) -> int:
    size = next((size for size in sizes if size >= count), sizes[-1])
    while size < count:
        size *= 2
    return size
