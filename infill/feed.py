"""Rows for the loop, in an order that depends only on the seed and the step; made ahead by workers on a GPU.

Knows shards, the objective and the config; no networks, optimisers or files.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from .objective import Ints, Rows, rows
from .shards import Shard
from .training_config import MARKERS, PAD, Config, Progress, phase_at


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> Ints:
    return np.random.default_rng((seed, epoch)).permutation(size)


def order(size: int, seed: int, start: int, count: int) -> Ints:
    """Items `start`..`start + count` of the endless shuffled order of `size` holes."""
    out: list[int] = []
    while len(out) < count:
        epoch, at = divmod(start + len(out), size)
        out += _permutation(seed, epoch, size)[at : at + count - len(out)].tolist()
    return np.array(out, dtype=np.int64)


def make(shard: Shard, config: Config, progress: Progress) -> tuple[Rows, bool]:
    """The rows of the step that begins at `progress`, and whether it trains self-conditioning."""
    phase = phase_at(config, progress.positions)
    rng = np.random.default_rng((config.seed, 7, progress.step))
    made = rows(
        shard,
        order(len(shard), config.seed, progress.holes, phase.rows),
        phase.length,
        phase.canvases,
        phase.slots,
        MARKERS,
        config.noise,
        PAD,
        config.shape.vocabulary,
        rng,
        config.hole_weight,
    )
    return made, bool(rng.random() < config.self_conditioning)


_shard: Shard | None = None
"""A worker process's own; a shard is too large to be sent with every task."""


def _begin(shard: Shard) -> None:
    global _shard  # noqa: PLW0603
    _shard = shard


def _work(config: Config, progress: Progress) -> tuple[Rows, bool]:
    assert _shard is not None
    return make(_shard, config, progress)


class Feed:
    """`take` gives the rows of one step after the other; with workers, the next ones are made meanwhile."""

    def __init__(self, shard: Shard, config: Config) -> None:
        self.shard, self.config = shard, config
        self._ahead: deque[tuple[Progress, Future[tuple[Rows, bool]]]] = deque()
        self._pool = None
        if config.workers:
            self._pool = ProcessPoolExecutor(config.workers, get_context("spawn"), _begin, (shard,))

    def take(self, progress: Progress) -> tuple[Rows, bool]:
        if self._pool is None:
            return make(self.shard, self.config, progress)
        if self._ahead and self._ahead[0][0].step != progress.step:
            self._ahead.clear()  # the run was moved to another place
        while len(self._ahead) < 2 * self.config.workers:
            last = self._ahead[-1][0] if self._ahead else None
            following = progress if last is None else last.after(phase_at(self.config, last.positions))
            self._ahead.append((following, self._pool.submit(_work, self.config, following)))
        return self._ahead.popleft()[1].result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """`Rows` as tensors; the k canvases of a row are one sequence of k * c slots."""

    ids: Tensor
    weight: Tensor
    canvas: Tensor
    truth: Tensor
    canvas_weight: Tensor
    hole: Tensor
    positions: Tensor
    """[b, k * c] where each slot stands behind its own prefix."""
    allowed: Tensor
    """[b, 1, k * c, n + k * c] bool: the encoder up to the canvas's cut, then the canvas's own slots."""


def to_batch(made: Rows, device: torch.device) -> Batch:
    """Tensors on `device`, where the attention mask is also made: it is larger than all the rest."""
    b, k, c = made.canvas.shape
    n = made.weight.shape[1]

    def send(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    cut = send(made.cut).repeat_interleave(c, dim=1)
    prefix = torch.arange(n, device=device) < cut[..., None]
    group = torch.arange(k, device=device).repeat_interleave(c)
    own = (group[:, None] == group) & send(made.used).view(b, 1, k * c)
    own |= torch.eye(k * c, dtype=torch.bool, device=device)  # or the softmax of an empty slot is undefined
    return Batch(
        send(made.ids),
        send(made.weight),
        send(made.canvas).view(b, k * c),
        send(made.truth).view(b, k * c),
        send(made.canvas_weight).view(b, k * c),
        send(made.hole).view(b, k * c),
        cut + torch.arange(c, device=device).repeat(k),
        torch.cat((prefix, own), dim=2)[:, None],
    )
