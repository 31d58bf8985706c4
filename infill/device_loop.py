"""The sampler's bookkeeping as tensor operations: what a step's reading does to the rows, without asking the device.

Knows no model, no cache and no graph. `sampler` is the reference, slot by slot in Python; tests hold the two together.
Everything here has a size that the host knows and changes tensors in place, so that a captured graph can hold it
(`graph`). B rows of W slots: a row's hole first, then its tail, then padding of id 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Row
from .sampler import Schedule

UNKNOWN = -1
"""The draft of a slot before the first step: no id equals it."""
STEPS = 256
"""Steps with a temperature of their own: the longest `Schedule.horizon`."""
_COUNTS = 5
_WORD = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class State:
    """B canvases and their schedule. Tensors keep their addresses; only what they hold changes."""

    ids: Tensor
    """[B, W] int64, what the next step reads"""
    draft: Tensor
    """[B, W] int64; behind the hole the ids themselves"""
    entropy: Tensor
    """[B, W] fp32, nats"""
    logprob: Tensor
    """[B, W] fp32"""
    held: Tensor
    """[B, W] bool, hole slots that are clamped"""
    conditioning: Tensor
    """[B, W, D]; zeros before the first step and behind a row's end"""
    hole: Tensor
    """[B] int64, slots of the hole"""
    length: Tensor
    """[B] int64, slots of hole and tail"""
    unchanged: Tensor
    """[B] int64"""
    steps: Tensor
    """[B] int64"""
    sampled: Tensor
    """[B] bool"""
    done: Tensor
    """[B] bool"""
    step: Tensor
    """[] int64, number of the step to be run, from 1; noise and temperature depend on it"""
    seed: Tensor
    """[] int64"""
    temperatures: Tensor
    """[STEPS] fp32, of step 1, 2, …"""
    bound: Tensor
    """[] fp64, and as in `Schedule`"""
    calm: Tensor
    patience: Tensor
    """[] int64"""
    settle: Tensor
    hole_only: Tensor
    """[] bool"""
    report: Tensor
    """[B, 5 W + 5] int32: all that the host wants to know of a step, in one copy"""

    @property
    def temperature(self) -> Tensor:
        """[] fp32, of the step to be run."""
        return self.temperatures.index_select(0, (self.step - 1).clamp_max(STEPS - 1).view(1)).view(())


@dataclass(frozen=True, slots=True)
class Reading:
    """What a step says of every slot, [B, W], of which those that are not free are not looked at."""

    argmax: Tensor
    sample: Tensor
    entropy: Tensor
    logprob: Tensor
    conditioning: Tensor
    """[B, W, D]; slots that are not free carry their own token's embedding"""


def new_state(rows: int, width: int, hidden: int, device: torch.device, dtype: torch.dtype) -> State:
    """Room for `rows` canvases of `width` slots, all of them empty and done."""

    def zeros(*shape: int, of: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=of, device=device)

    real, exact = torch.float32, torch.float64
    return State(
        ids=zeros(rows, width),
        draft=zeros(rows, width),
        entropy=zeros(rows, width, of=real),
        logprob=zeros(rows, width, of=real),
        held=zeros(rows, width, of=torch.bool),
        conditioning=zeros(rows, width, hidden, of=dtype),
        hole=zeros(rows),
        length=zeros(rows),
        unchanged=zeros(rows),
        steps=zeros(rows),
        sampled=zeros(rows, of=torch.bool),
        done=torch.ones(rows, dtype=torch.bool, device=device),
        step=torch.ones((), dtype=torch.int64, device=device),
        seed=zeros(),
        temperatures=torch.ones(STEPS, dtype=real, device=device),
        bound=zeros(of=exact),
        calm=zeros(of=exact),
        patience=zeros(),
        settle=zeros(),
        hole_only=zeros(of=torch.bool),
        report=zeros(rows, 5 * width + _COUNTS, of=torch.int32),
    )


def load(state: State, rows: Sequence[Row], schedule: Schedule, seed: int, step: int = 1) -> None:
    """Put `rows` on the device, to be denoised from `step` on; places without a row are empty and done."""
    if schedule.horizon > STEPS:
        raise ValueError(f"horizon {schedule.horizon}: a schedule may cool for {STEPS} steps at most")
    height, width = state.ids.shape
    ids, draft, held, numbers = [], [], [], []
    for row in rows:
        length = len(row.hole) + len(row.tail)
        pad = [0] * (width - length)
        ids.append([*row.hole, *row.tail, *pad])
        draft.append([*(row.draft or [UNKNOWN] * len(row.hole)), *row.tail, *pad])
        held.append([*(not free for free in row.free), *[False] * (width - len(row.hole))])
        numbers.append([len(row.hole), length, row.unchanged, row.steps, row.sampled, row.done])
    empty = height - len(rows)
    ids, draft = ([*lines, *[[0] * width] * empty] for lines in (ids, draft))
    state.ids.copy_(torch.tensor(ids))
    state.draft.copy_(torch.tensor(draft))
    state.held.copy_(torch.tensor([*held, *[[False] * width] * empty]))
    columns = torch.tensor([*numbers, *[[0, 0, 0, 0, 0, 1]] * empty]).T
    places = (state.hole, state.length, state.unchanged, state.steps, state.sampled, state.done)
    for place, column in zip(places, columns, strict=True):
        place.copy_(column)
    state.entropy.zero_()
    state.logprob.zero_()
    state.conditioning.zero_()
    for at, row in enumerate(rows):
        if row.conditioning is not None:
            state.conditioning[at, : row.conditioning.shape[0]] = row.conditioning
    state.step.fill_(step)
    state.seed.fill_(seed)
    state.temperatures.copy_(torch.tensor([schedule.temperature(number) for number in range(1, STEPS + 1)]))
    state.bound.fill_(schedule.bound)
    state.calm.fill_(schedule.calm)
    state.patience.fill_(schedule.patience)
    state.settle.fill_(schedule.settle)
    state.hole_only.fill_(schedule.hole_only)


def store(report: Tensor, conditioning: Tensor, rows: Sequence[Row]) -> None:
    """What a report on the host says of `rows`; one that was done before stays as it is.

    conditioning [B, W, D] must be that of the same step, and nobody else's to write to.
    """
    width = (report.shape[1] - _COUNTS) // 5
    ids, draft, entropy, logprob, held, counts = torch.split(report, [width] * 5 + [_COUNTS], dim=1)
    entropy, logprob = (bits.contiguous().view(torch.float32) for bits in (entropy, logprob))
    for at, row in enumerate(rows):
        if row.done:
            continue
        hole, length, row.unchanged, row.steps, done = counts[at].tolist()
        row.hole, row.draft = ids[at, :hole].tolist(), draft[at, :hole].tolist()
        row.entropy, row.logprob = entropy[at, :hole].tolist(), logprob[at, :hole].tolist()
        row.held = held[at, :hole].bool().tolist() if row.held else []
        row.done = bool(done)
        row.conditioning = conditioning[at, :length]


def free_slots(state: State) -> Tensor:
    """[B, W] bool: what the step to be run denoises."""
    return _hole(state) & ~state.held


def used_slots(state: State) -> Tensor:
    """[B, W] bool: all but the padding."""
    return _places(state) < state.length[:, None]


def noise(state: State, vocabulary: int) -> Tensor:
    """[B, W] ids drawn uniformly for this step: the same on every device, and in any order."""
    place = torch.arange(state.ids.numel(), device=state.ids.device).view(state.ids.shape)
    return _mixed(place + _mixed(state.step + _mixed(state.seed ^ (state.seed >> 32)))) % vocabulary


def advance(state: State, read: Reading, drawn: Tensor, delete: int | None = None) -> None:
    """Take a step's reading in, as `sampler` does row by row; `drawn` [B, W] are the ids that renoise what was not
    accepted. `delete`: the id whose slots are closed up, None if the model has none."""
    free, hole = free_slots(state), _hole(state)
    state.done.logical_or_(~free.any(1))
    live = ~state.done
    draft = torch.where(free, read.argmax, state.ids)
    chosen = torch.where(free & state.sampled[:, None], read.sample, draft)
    entropy, logprob = (torch.where(free, found, 0.0) for found in (read.entropy, read.logprob))
    same = ((draft == state.draft) | ~hole).all(1)
    unchanged = torch.where(same, state.unchanged + 1, 0)
    confirmed = ((draft == state.ids) | ~hole).all(1)
    mean = entropy.double().sum(1) / torch.where(state.hole_only, free.sum(1), state.length)
    done = (((unchanged >= 1) | confirmed) & (mean < state.calm)) | (unchanged >= state.patience)
    taken = accept(entropy, free, state.bound)
    renoised = torch.where(hole & ~taken, drawn, chosen)

    def put(place: Tensor, found: Tensor) -> None:
        place.copy_(torch.where(live.view(-1, *[1] * (place.dim() - 1)), found, place))

    put(state.ids, renoised)
    put(state.draft, draft)
    put(state.entropy, entropy)
    put(state.logprob, logprob)
    put(state.conditioning, read.conditioning * used_slots(state)[..., None])
    put(state.unchanged, unchanged)
    put(state.done, done)
    state.steps.add_(live)
    if delete is not None:
        late = (state.step >= state.settle) | done
        _close_up(state, hole & (draft == delete) & (taken | done[:, None]) & (late & live)[:, None])
    state.step.add_(1)
    _report(state)


def accept(entropy: Tensor, free: Tensor, bound: Tensor) -> Tensor:
    """[B, W] bool: see `sampler.accept`. The sums are in fp64 and in the same order."""
    found, order = torch.where(free, entropy, float("inf")).sort(dim=1, stable=True)
    spent = F.pad(torch.where(found.isinf(), 0.0, found).double()[:, :-1], (1, 0)).cumsum(1)
    return torch.zeros_like(free).scatter(1, order, spent <= bound) | ~free


def _close_up(state: State, gone: Tensor) -> None:
    """Move what follows the slots in `gone` up to their places; see `canvas.close_up`."""
    count = gone.sum(1)
    order = gone.byte().sort(dim=1, stable=True).indices
    state.hole.sub_(count)
    state.length.sub_(count)
    used = used_slots(state)
    for place in (state.ids, state.draft, state.entropy, state.logprob, state.held):
        place.copy_(place.gather(1, order) * used)
    wide = order[..., None].expand(-1, -1, state.conditioning.shape[2])
    state.conditioning.copy_(state.conditioning.gather(1, wide) * used[..., None])
    state.unchanged.mul_((count == 0) | state.done)


def _report(state: State) -> None:
    bits = state.entropy.view(torch.int32), state.logprob.view(torch.int32)
    counts = torch.stack((state.hole, state.length, state.unchanged, state.steps, state.done.long()), 1)
    whole = (state.ids.int(), state.draft.int(), *bits, state.held.int(), counts.int())
    torch.cat(whole, dim=1, out=state.report)


def _places(state: State) -> Tensor:
    return torch.arange(state.ids.shape[1], device=state.ids.device)[None]


def _hole(state: State) -> Tensor:
    return _places(state) < state.hole[:, None]


def _mixed(x: Tensor) -> Tensor:
    """32 bits of x, well mixed: the finaliser of MurmurHash3 with a multiplier that int64 holds."""
    for _ in range(2):
        x = x & _WORD
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & _WORD
    return x ^ (x >> 16)
