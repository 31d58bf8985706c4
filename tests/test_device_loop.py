"""The loop on the device is held to the sampler, step by step, on readings and noise that both are given."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stopgap.infill import device_loop
from stopgap.infill.canvas import Row
from stopgap.infill.device_loop import Reading
from stopgap.infill.model import Denoised
from stopgap.infill.sampler import Schedule, denoise
from stopgap.infill.work import Step

VOCABULARY, DELETE, HIDDEN = 40, 7, 3
CPU = torch.device("cpu")


def random_rows(pick: random.Random, truth: list[list[int]]) -> list[Row]:
    rows = []
    for answer in truth:
        hole = [id_ if pick.random() < 0.7 else pick.randrange(VOCABULARY) for id_ in answer]
        row = Row(hole, [pick.randrange(VOCABULARY) for _ in range(pick.randrange(4))], "noise")
        row.sampled = pick.random() < 0.3
        if pick.random() < 0.3:
            row.held = [pick.random() < 0.4 for _ in hole]
        if pick.random() < 0.3:
            row.draft = [*answer]
        if pick.random() < 0.3:
            row.conditioning = torch.rand(len(row.hole) + len(row.tail), HIDDEN)
        if pick.random() < 0.1:
            row.held = [True] * len(hole)
        rows.append(row)
    return rows


def random_reading(pick: random.Random, truth: list[list[int]], width: int) -> Reading:
    """Mostly the truth, mostly surely; entropies that are equal, zero and on either side of every threshold."""
    entropies = [0.0, 1e-4, 0.02, 0.05, 0.09, 0.5, 3.0]
    sure = pick.random() < 0.7
    argmax, entropy = [], []
    for answer in truth:
        known = [*answer, *[DELETE] * width][:width]
        argmax.append([id_ if pick.random() < 0.9 else pick.randrange(VOCABULARY) for id_ in known])
        entropy.append([pick.choice(entropies[:3] if sure else entropies) for _ in known])
    found = torch.tensor(argmax)
    other = torch.tensor(
        [[id_ if pick.random() < 0.8 else pick.randrange(VOCABULARY) for id_ in row] for row in argmax]
    )
    uncertain = torch.tensor(entropy, dtype=torch.float32)
    return Reading(found, other, uncertain, -uncertain - 0.25, torch.rand(*found.shape, HIDDEN))


def answer(step: Step, reading: Reading, live: list[int]) -> None:
    """What the sampler gets of a reading: the free slots of the rows that are not done."""
    width = step.canvas.ids.shape[1]
    own = [tensor[live][:, :width] for tensor in (reading.argmax, reading.sample, reading.entropy, reading.logprob)]
    free = step.canvas.free
    step.out = Denoised(*(tensor[free] for tensor in own), reading.conditioning[live][:, :width])


def as_they_stand(rows: list[Row]) -> list[tuple[object, ...]]:
    return [
        (
            row.hole, row.draft, row.entropy, row.logprob, row.held, row.unchanged, row.steps, row.done,
            None if row.conditioning is None else row.conditioning.tolist(),
        )
        for row in rows
    ]  # fmt: skip


def draws(drawn: Tensor, before: list[list[int]], rows: list[int], asked: Counter[str]) -> Iterator[int]:
    """The sampler asks slot by slot for what was not accepted; the state says afterwards where that was."""
    for at in rows:
        for slot in before[at]:
            asked["renoised"] += 1
            yield int(drawn[at, slot])


@pytest.mark.parametrize("seed", range(120))
def test_the_loop_does_to_every_row_what_the_sampler_does(seed: int) -> None:
    pick = random.Random(seed)
    torch.manual_seed(seed)
    truth = [
        [pick.choice([DELETE, *range(30, 36)]) for _ in range(pick.randrange(0 if seed % 5 == 0 else 1, 9))]
        for _ in range(pick.randrange(1, 5))
    ]
    rows = random_rows(pick, truth)
    schedule = Schedule(
        max_steps=9, bound=pick.choice([0.0, 0.1, 0.3]), calm=pick.choice([0.0, 0.03, 0.2]),
        patience=pick.choice([1, 2, 5]), settle=pick.choice([1, 3]), hole_only=pick.random() < 0.7,
    )  # fmt: skip
    delete = DELETE if seed % 2 else None
    copies = [replace(row) for row in rows]
    width = 16
    state = device_loop.new_state(5, width, HIDDEN, CPU, torch.float32)
    device_loop.load(state, copies, schedule, seed)
    asked: Counter[str] = Counter()
    given: Iterator[int] = iter(())
    loop = denoise(
        None,  # type: ignore[arg-type]
        rows,
        schedule,
        device=CPU,
        noise=lambda: next(given),
        delete=delete,
    )
    for step in loop:
        assert isinstance(step, Step)
        live = [at for at, row in enumerate(rows) if not row.done]
        reading = random_reading(pick, [*truth, *[[]] * (5 - len(truth))], width)
        assert state.temperature == torch.tensor(step.temperature, dtype=torch.float32)
        free = device_loop.free_slots(state)
        accepted = device_loop.accept(torch.where(free, reading.entropy, 0.0), free, state.bound)
        refused = [[slot for slot in range(len(row.hole)) if not accepted[at, slot]] for at, row in enumerate(copies)]
        drawn = device_loop.noise(state, VOCABULARY)
        device_loop.advance(state, reading, drawn, delete)
        for row in copies:
            row.done = row.done or not any(row.free)
        device_loop.store(state.report.clone(), state.conditioning.clone(), copies)
        answer(step, reading, live)
        given = draws(drawn, refused, live, asked)
        assert isinstance(next(loop), int)
        assert next(given, None) is None, "both refused the same slots"
        assert as_they_stand(copies) == as_they_stand(rows)
    assert all(row.done or not any(row.free) for row in copies) == all(row.done or not any(row.free) for row in rows)


def test_a_place_without_a_row_stays_empty() -> None:
    state = device_loop.new_state(3, 4, HIDDEN, CPU, torch.float32)
    device_loop.load(state, [Row([1, 2], [3], "noise")], Schedule(), 1)
    reading = random_reading(random.Random(1), [[9], [9], [9]], 4)
    device_loop.advance(state, reading, device_loop.noise(state, VOCABULARY), DELETE)
    assert state.done.tolist()[1:] == [True, True]
    assert state.ids[1:].tolist() == [[0] * 4] * 2
    assert not state.conditioning[1:].any()


def test_noise_covers_the_vocabulary_evenly_and_differs_by_step_slot_and_seed() -> None:
    state = device_loop.new_state(4, 256, 1, CPU, torch.float32)
    seen = []
    for seed in (0, 1, 1 << 40):
        state.seed.fill_(seed)
        for step in range(1, 9):
            state.step.fill_(step)
            seen.append(device_loop.noise(state, 16))
    assert len({tuple(drawn.flatten().tolist()) for drawn in seen}) == len(seen)
    counts = torch.stack(seen).flatten().bincount(minlength=16)
    expected = counts.sum() / 16
    assert ((counts - expected).square() / expected).sum() < 45, "chi-squared with 15 degrees of freedom, p = 1e-4"


def test_a_schedule_that_cools_for_longer_than_there_is_room_for_is_refused() -> None:
    state = device_loop.new_state(1, 4, HIDDEN, CPU, torch.float32)
    with pytest.raises(ValueError, match="256 steps"):
        device_loop.load(state, [Row([1], [], "noise")], Schedule(horizon=300), 1)
