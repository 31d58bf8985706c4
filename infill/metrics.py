"""The numbers of an evaluation, as pure functions of texts and arrays. Knows no sample, engine or file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RESAMPLES = 1000


def similarity(left: str, right: str) -> float:
    """Edit similarity in 0..1: `1 - d / (len(left) + len(right))`, d = insertions + deletions.

    The ratio that CrossCodeEval (Ding et al. 2023) and RepoBench (Liu et al. 2023) report as ES, taken from
    the longest common subsequence: `2 * lcs / (len(left) + len(right))`. White space around both is ignored,
    or every indented line would resemble every other. Two empty texts are alike.
    """
    left, right = left.strip(), right.strip()
    total = len(left) + len(right)
    return 2 * common_subsequence(left, right) / total if total else 1.0


def common_subsequence(left: str, right: str) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer row per character."""
    places: dict[str, int] = {}
    for index, character in enumerate(left):
        places[character] = places.get(character, 0) | 1 << index
    row = full = (1 << len(left)) - 1
    for character in right:
        match = row & places.get(character, 0)
        row = ((row + match) | (row - match)) & full
    return len(left) - row.bit_count()


def common_prefix(left: str, right: str) -> int:
    """How many characters both begin with."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of them lie, linear between ranks; nan of nothing."""
    return float(np.quantile(values, share)) if len(values) else float("nan")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the 95 % interval around it."""

    mean: float
    low: float
    high: float


def _totals(values: Sequence[float], clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Per cluster: sum of its values and their number, both shape [clusters]."""
    index = {name: at for at, name in enumerate(dict.fromkeys(clusters))}
    where = np.array([index[name] for name in clusters])
    counts = np.bincount(where, minlength=len(index)).astype(np.float64)
    sums = np.bincount(where, weights=np.asarray(values, np.float64), minlength=len(index))
    return sums.astype(np.float64), counts


def bootstrap(values: Sequence[float], clusters: Sequence[str], seed: int) -> Interval:
    """Mean with a percentile bootstrap interval (Efron 1979) over clusters: holes of one file move together.

    With a single cluster nothing can be resampled and the interval is the mean itself. nan of nothing.
    """
    if not values:
        return Interval(float("nan"), float("nan"), float("nan"))
    sums, counts = _totals(values, clusters)
    draws = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)), dtype=np.int32)
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def paired(left: Sequence[float], right: Sequence[float], clusters: Sequence[str], seed: int) -> Interval:
    """`right - left` on the same samples, with the same kind of interval: clear of 0 means a real difference."""
    return bootstrap([b - a for a, b in zip(left, right, strict=True)], clusters, seed)
