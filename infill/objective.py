"""Training rows from a shard: encoder ids with next-token targets, and canvases with noise, masks and targets.

Numpy in, numpy out; nothing of networks, optimisers or files. A row is `bos <suf> S <pre> P hole <end>`, the
order of `prompt.infill_prompt`: the hole after P is the left-to-right draft, and every canvas of the row is
decoded over the encoder positions up to its own cut, so one encoded window serves several canvases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .prompt import InfillMarkers, infill_prompt
from .shards import Shard

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Noise:
    """How canvases are spoilt; every number is a knob of the config file."""

    full: float = 0.4
    """Share of canvases whose whole hole is noise (t = 1); for the others t is uniform in `low`..1."""
    low: float = 0.2
    clean_weight: float = 0.3
    """Loss weight of hole tokens that were left as they are."""
    spare_weight: float = 0.2
    """Loss weight of the `<del>` slots after the first one."""
    near: tuple[int, int] = (16, 48)
    """Fewest and most suffix tokens clamped behind the hole."""
    head: float = 0.15
    """Share of windows that show their file's head, of those that begin far behind it."""
    far: float = 2.0
    """How far that is: so many times the window's room lie before the hole."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch. b rows, n encoder positions, k canvases of c slots a row."""

    ids: Ints
    """[b, n + 1]: inputs are `[:, :-1]`, next-token targets `[:, 1:]`."""
    weight: Floats
    """[b, n] loss weight of each target; 0 for padding and for markers whose place is chance."""
    canvas: Ints
    """[b, k, c] what the decoder sees."""
    truth: Ints
    """[b, k, c] what it should say."""
    canvas_weight: Floats
    """[b, k, c] loss weight; 0 for clamped and empty slots."""
    hole: Bools
    """[b, k, c] slots that are the hole's (free at inference); the rest is clamped suffix or empty."""
    used: Bools
    """[b, k, c] slots that exist."""
    cut: Ints
    """[b, k] how many encoder positions the canvas sees; its first slot has position `cut`."""


@dataclass(frozen=True, slots=True)
class Window:
    """One row before padding: its ids, where the hole begins, and which file tokens P shows."""

    ids: list[int]
    hole_at: int
    prefix_at: int
    """Row position of P's first file token that is in place (`first`)."""
    first: int
    """Index of that token in `shard.tokens`."""
    last: int
    """Index one past the last file token of P."""


def window(
    shard: Shard, index: int, length: int, markers: InfillMarkers, rng: Rng, head: float = 0.15, far: float = 2.0
) -> Window:
    """Hole `index` with as much of its suffix and prefix as `length` ids hold; shorter only at file ends,
    longer only where the hole leaves fewer than 16 ids for them. `head` and `far` as in `Noise`."""
    a, b, c, d = shard.cuts[index]
    file = shard.hole_file[index]
    begin, finish = shard.file_start[file], shard.file_start[file + 1]
    before, after = shard.hole_before[index], shard.hole_after[index]
    hole = shard.pieces[b:c]
    room = max(16, length - len(hole) - 4)  # bos, <suf>, <pre>, <end>
    available = int((b - a) + before - begin)
    context: list[int] = []
    if available > far * room and rng.random() < head:  # the file's head, where its imports stand
        context = shard.tokens[begin : begin + int(rng.integers(16, max(17, room // 4)))].tolist()
        room -= len(context)
    share = 0 if rng.random() < 0.1 else int(rng.integers(8, max(9, room // 2)))
    share = max(share, min(room // 2, room - available))
    suffix = np.concatenate((shard.pieces[c:d], shard.tokens[after : after + share]))
    suffix = suffix[: min(share, int(d - c + finish - after))]
    budget = room - len(suffix)
    from_file = max(0, min(budget - int(b - a), int(before - begin)))
    first = int(before) - from_file
    patch = shard.pieces[a:b][-budget:]
    prefix = np.concatenate((shard.tokens[first:before], patch))
    prompt = infill_prompt(context, prefix.tolist(), suffix.tolist(), markers)
    return Window([*prompt, *hole.tolist(), markers.end], len(prompt), len(prompt) - len(prefix), first, int(before))


def rows(
    shard: Shard,
    indices: Sequence[int] | Ints,
    length: int,
    canvases: int,
    slots: int,
    markers: InfillMarkers,
    noise: Noise,
    pad: int,
    vocabulary: int,
    rng: Rng,
    hole_weight: float = 1.0,
) -> Rows:
    """The batch of holes `indices`; noise is uniform over all `vocabulary` ids, as it is at inference.

    A row's own window ends anywhere, and shorter ones fill the rest, the last one cut off: when every row ended
    with `<end>`, the model learnt the row's length, and drafts in that place were empty.

    Next-token targets of the hole and its `<end>` weigh `hole_weight`: they are a twentieth of the row, and a
    draft that does not learn to stop is useless. The first half of a row's canvases is the row's own hole at
    different noise; the others are other holes of the same file whose prefix lies inside P, where the near
    suffix is what P itself goes on with.
    """
    b = len(indices)
    ids = np.full((b, length + 1), pad, dtype=np.int64)
    weight = np.zeros((b, length), dtype=np.float32)
    shape = (b, canvases, slots)
    truth = np.full(shape, pad, dtype=np.int64)
    hole = np.zeros(shape, dtype=np.bool_)
    used = np.zeros(shape, dtype=np.bool_)
    spare = np.zeros(shape, dtype=np.bool_)
    cut = np.ones((b, canvases), dtype=np.int64)
    for row, index in enumerate(indices):
        long = rng.random() < 0.5
        low, high = (length * 2 // 5, length + 1) if long else (length // 4, length // 2)
        made = window(shard, int(index), int(rng.integers(low, high + 1)), markers, rng, noise.head, noise.far)
        _lay(ids[row], weight[row], made, 0, hole_weight)
        at = len(made.ids)
        while at < length - 16:
            size = int(rng.integers(length // 4, length // 2))
            filler = window(shard, int(rng.integers(len(shard))), size, markers, rng, noise.head, noise.far)
            at = _lay(ids[row], weight[row], filler, at, hole_weight)
        if not canvases:
            continue
        others = _others(shard, int(index), made, rng)
        for k in range(canvases):
            own = k < (canvases + 1) // 2 or not len(others)
            which = int(index) if own else int(others[k % len(others)])
            o, p, q, r = shard.cuts[which]
            cut[row, k] = made.hole_at if own else made.prefix_at + shard.hole_before[which] - made.first + p - o
            middle = shard.pieces[p:q][: slots - noise.near[0]]
            most = slots - noise.near[0] - len(middle)
            extra = int(rng.integers(0, min(most, 3 + len(middle)) + 1)) if rng.random() < 0.7 else most
            free = len(middle) + extra
            near = min(slots - free, int(rng.integers(noise.near[0], noise.near[1] + 1)))
            after = int(shard.hole_after[which])
            finish = int(shard.file_start[shard.hole_file[which] + 1])
            suffix = np.concatenate((shard.pieces[q:r], shard.tokens[after : min(finish, after + near)]))[:near]
            truth[row, k, : len(middle)] = middle
            truth[row, k, len(middle) : free] = markers.delete
            truth[row, k, free : free + len(suffix)] = suffix
            spare[row, k, len(middle) + 1 : free] = True
            hole[row, k, :free] = True
            used[row, k, : free + len(suffix)] = True
    weight[np.isin(ids[:, 1:], (markers.bos, markers.suffix, markers.prefix, pad))] = 0.0
    canvas, spoilt = spoil(truth, hole, noise, vocabulary, rng)
    canvas_weight = np.where(spoilt, 1.0, noise.clean_weight) * np.where(spare, noise.spare_weight, 1.0) * hole
    return Rows(ids, weight, canvas, truth, canvas_weight.astype(np.float32), hole, used, cut)


def _lay(ids: Ints, weight: Floats, made: Window, at: int, hole_weight: float) -> int:
    """Writes a window into a row from `at` on, cut off at the row's end; returns where it ends."""
    end = min(len(ids), at + len(made.ids))
    ids[at:end] = made.ids[: end - at]
    weight[at : end - 1] = 1.0
    weight[at + made.hole_at - 1 : end - 1] = hole_weight
    return end


def _others(shard: Shard, index: int, made: Window, rng: Rng) -> Ints:
    """Holes of the same file that begin inside P, at a place where the row has the same tokens."""
    file = shard.hole_file[index]
    low, high = np.searchsorted(shard.hole_file, (file, file + 1))
    near = np.arange(low, high)
    before = shard.hole_before[near]
    whole = shard.cuts[near, 1] - shard.cuts[near, 0]
    fits = (before + whole + 8 < made.last) & (before > made.first + 8) & (near != index)
    # the part of the prefix behind `hole_before` must stand in the file's own tokens
    good = [int(i) for i in near[fits] if _in_place(shard, int(i))]
    return rng.permutation(np.array(good, dtype=np.int64))


def _in_place(shard: Shard, index: int) -> bool:
    a, b = shard.cuts[index, :2]
    before = shard.hole_before[index]
    return bool(np.array_equal(shard.pieces[a:b], shard.tokens[before : before + b - a]))


def spoil(truth: Ints, hole: Bools, noise: Noise, vocabulary: int, rng: Rng) -> tuple[Ints, Bools]:
    """Uniform-state corruption of the hole's slots: the canvas, and which slots were replaced."""
    b, k, c = truth.shape
    t = np.where(rng.random((b, k)) < noise.full, 1.0, rng.uniform(noise.low, 1.0, (b, k)))
    spoilt = hole & (rng.random((b, k, c)) < t[..., None])
    random = rng.integers(0, vocabulary, (b, k, c))
    return np.where(spoilt, random, truth), spoilt


def describe(batch: Rows) -> dict[str, Any]:
    """Counts for the log and the tests."""
    return {
        "positions": int((batch.weight > 0).sum()),
        "slots": int(batch.used.sum()),
        "hole slots": int(batch.hole.sum()),
    }
