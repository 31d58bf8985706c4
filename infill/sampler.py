"""The denoising loop: uniform-state diffusion on the hole slots, everything else clamped.

Knows ids and probabilities only: no text, no syntax, no deadline. It yields every step it wants of the model, and
again when that step is taken in, so that the caller may look at the drafts, stop, or go on.

Follows the sampler of DiffusionGemma (transformers, `generation_diffusion_gemma.py`): tempered sampling,
entropy-bound acceptance (arXiv 2505.24857), renoising of what was not accepted, self-conditioning, stable-and-
confident stopping. Three things differ because most of a canvas is known here: acceptance and stopping count
hole slots only (a mean over clamped slots stops too early), the temperature depends on the step and not on the
cap (a smaller cap must not mean a colder schedule), and slots the model deletes are removed physically.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .canvas import Row, batch, close_up
from .prefix import PrefixCache
from .work import Step


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a canvas cools. Defaults are the checkpoint's generation config except where noted.

    max_steps   cap on denoising steps
    hot, cold   temperature at the first step and from step `horizon` on; linear in between
    bound       entropy bound of a step's acceptance, nats, over the hole slots of one row
    calm        a row whose draft did not change and whose mean hole entropy is below this is done, nats
    patience    a row whose draft did not change for so many steps is done however unsure it is
    settle      step from which confident deletions are carried out
    hole_only   False counts clamped slots in the stopping mean, as the reference does (for ablations)
    """

    max_steps: int = 12
    hot: float = 0.8
    cold: float = 0.4
    horizon: int = 12
    bound: float = 0.1
    calm: float = 0.05
    patience: int = 2
    settle: int = 2
    hole_only: bool = True

    def temperature(self, step: int) -> float:
        """Temperature of step 1, 2, …: the same for every cap."""
        done = min((step - 1) / max(self.horizon - 1, 1), 1.0)
        return self.hot + (self.cold - self.hot) * done


def accept(entropy: Sequence[float], free: Sequence[bool], bound: float) -> list[bool]:
    """Entropy-bound acceptance over the free slots: the surest, while those before it sum to at most `bound`.

    At least one free slot is always accepted. Held slots are accepted as they are.
    """
    order = sorted((e, i) for i, e in enumerate(entropy) if free[i])
    taken = [not f for f in free]
    spent = 0.0
    for e, i in order:
        if spent > bound:
            break
        taken[i] = True
        spent += e
    return taken


def denoise(
    cache: PrefixCache,
    rows: Sequence[Row],
    schedule: Schedule,
    *,
    device: torch.device,
    noise: Callable[[], int],
    banned: Tensor | None = None,
    delete: int | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Step | int]:
    """Denoise `rows` in place: yields each step for the caller to run, then, when it is taken in, its number from 1.

    `banned` [V] bool: ids no slot may take. `delete`: the id whose slots are closed up, None if the model has none.
    Ends when every row is done or after `schedule.max_steps`. A row without free slots is done at once.
    """
    for number in range(1, schedule.max_steps + 1):
        for row in rows:
            row.done = row.done or not any(row.free)
        live = [row for row in rows if not row.done]
        if not live:
            return
        step = _step(cache, live, device, schedule.temperature(number), banned, generator)
        yield step
        _take(live, step, schedule, number, noise, delete)
        yield number


def _step(
    cache: PrefixCache,
    rows: Sequence[Row],
    device: torch.device,
    temperature: float,
    banned: Tensor | None,
    generator: torch.Generator | None,
) -> Step:
    allowed: dict[int, Tensor] = {}
    offset = 0
    for row in rows:
        if row.first is not None and row.free[0]:
            allowed[offset] = torch.tensor(row.first, device=device)
        offset += sum(row.free)
    return Step(cache, batch(rows, device), temperature, banned, allowed or None, generator)


def _take(
    rows: Sequence[Row], step: Step, schedule: Schedule, number: int, noise: Callable[[], int], delete: int | None
) -> None:
    """What came out of a step goes into its rows."""
    out, canvas = step.out, step.canvas
    argmax, sample = out.argmax.tolist(), out.sample.tolist()
    entropy, logprob = out.entropy.tolist(), out.logprob.tolist()
    offset = 0
    for i, row in enumerate(rows):
        at = {slot: offset + n for n, slot in enumerate(s for s, free in enumerate(row.free) if free)}
        offset += len(at)
        draft = [argmax[at[s]] if s in at else id_ for s, id_ in enumerate(row.hole)]
        chosen = [sample[at[s]] if s in at else id_ for s, id_ in enumerate(row.hole)] if row.sampled else draft
        row.entropy = [entropy[at[s]] if s in at else 0.0 for s in range(len(row.hole))]
        row.logprob = [logprob[at[s]] if s in at else 0.0 for s in range(len(row.hole))]
        row.unchanged = row.unchanged + 1 if draft == row.draft else 0
        row.draft = draft
        row.steps += 1
        row.conditioning = out.conditioning[i, : canvas.lengths[i]]
        # A seeded row that comes back as it went in has nothing left to settle.
        confirmed = draft == row.hole
        mean = sum(row.entropy) / (len(at) if schedule.hole_only else canvas.lengths[i])
        stable = row.unchanged >= 1 or confirmed
        row.done = (stable and mean < schedule.calm) or row.unchanged >= schedule.patience
        taken = accept(row.entropy, row.free, schedule.bound)
        row.hole = [id_ if yes else noise() for id_, yes in zip(chosen, taken, strict=True)]
        if delete is not None and (number >= schedule.settle or row.done):
            gone = [s for s, id_ in enumerate(row.draft) if id_ == delete and (taken[s] or row.done)]
            if gone:
                close_up(row, gone)
                row.unchanged = 0 if not row.done else row.unchanged
