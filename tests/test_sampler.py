"""The denoising loop on models that know the answer."""

from itertools import count

import pytest
import torch
from scripted import DELETE, ScriptedModel

from stopgap.infill import work
from stopgap.infill.canvas import NOISE, Row, close_up, new_row, renoise, slots_in, uniform_noise
from stopgap.infill.sampler import Schedule, accept, denoise

TRUTH = [40, 41, 42, 43, 44]
TAIL = [50, 51, 52]


def run(model: ScriptedModel, rows: list[Row], schedule: Schedule | None = None, *, delete: int | None = None) -> int:
    """Denoise to the end; the number of steps."""
    noise = uniform_noise(model.vocabulary, 1)
    steps = 0
    for item in denoise(
        model.new_cache(8),  # type: ignore[arg-type]
        rows,
        schedule or Schedule(),
        device=model.device,
        noise=noise,
        delete=delete,
    ):
        if isinstance(item, int):
            steps = item
        else:
            work.run(model, item)  # type: ignore[arg-type]
    return steps


def cold(slots: int, tail: list[int] = TAIL) -> Row:
    return new_row([NOISE] * slots, tail, "noise", uniform_noise(264, 2))


def test_a_sure_model_is_done_after_two_steps() -> None:
    row = cold(5)
    assert run(ScriptedModel(TRUTH), [row]) == 2
    assert row.draft == TRUTH


@pytest.mark.parametrize("noise", [0.2, 0.5])
def test_an_unsure_model_still_settles_on_what_it_says_most_surely(noise: float) -> None:
    row = cold(5)
    run(ScriptedModel(TRUTH, noise=noise), [row], Schedule(max_steps=60, patience=99))
    assert row.draft == TRUTH


def test_the_suffix_is_clamped_at_every_step() -> None:
    model = ScriptedModel(TRUTH, noise=0.5)
    run(model, [cold(5), cold(3)], Schedule(max_steps=8, patience=99))
    for ids, free, lengths in model.seen:
        for row, row_free, length in zip(ids, free, lengths, strict=True):
            assert row[length - len(TAIL) : length] == TAIL
            assert not any(row_free[length - len(TAIL) :])


def test_slots_the_model_deletes_are_closed_up_before_the_end() -> None:
    row = cold(9)
    model = ScriptedModel(TRUTH, noise=0.3)
    run(model, [row], Schedule(max_steps=30, patience=99), delete=DELETE)
    assert row.draft == TRUTH
    assert model.seen[-1][2] == [len(TRUTH) + len(TAIL)], "later steps run on the shorter canvas"


def test_the_temperature_depends_on_the_step_and_not_on_the_cap() -> None:
    runs = []
    for cap in (4, 12):
        model = ScriptedModel(TRUTH, noise=1.0)
        run(model, [cold(5)], Schedule(max_steps=cap, patience=99))
        runs.append(model.temperatures)
    assert len(runs[0]) == 4
    assert runs[0] == runs[1][:4]
    assert runs[1][-1] == pytest.approx(0.4)


def test_stopping_counts_hole_slots_only() -> None:
    """With 60 clamped slots the reference's mean over the canvas is calm although the hole is not."""
    unsure = [cold(2, tail=[50] * 60) for _ in range(2)]

    class Unsure(ScriptedModel):
        def denoise(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def, override]
            out = super().denoise(*args, **kwargs)  # type: ignore[arg-type]
            out.entropy.fill_(0.5)
            return out

    assert run(Unsure(TRUTH), [unsure[0]], Schedule(patience=99, max_steps=9)) == 9
    assert run(Unsure(TRUTH), [unsure[1]], Schedule(patience=99, max_steps=9, hole_only=False)) == 2


def test_rows_stop_one_by_one() -> None:
    quick, slow = cold(5), cold(5)
    quick.hole = list(TRUTH)
    model = ScriptedModel(TRUTH)
    run(model, [quick, slow])
    assert [len(lengths) for _, _, lengths in model.seen] == [2, 1], "a confirmed seed leaves the batch at once"


@pytest.mark.parametrize(
    ("entropy", "bound", "taken"),
    [
        ([0.0, 0.05, 0.04, 2.0], 0.1, [True, True, True, True]),
        ([0.0, 0.06, 0.05, 2.0], 0.1, [True, True, True, False]),
        ([3.0, 2.0, 4.0], 0.1, [False, True, False]),
    ],
)
def test_acceptance_spends_an_entropy_budget(entropy: list[float], bound: float, taken: list[bool]) -> None:
    assert accept(entropy, [True] * len(entropy), bound) == taken


def test_held_slots_are_accepted_and_cost_nothing() -> None:
    assert accept([9.0, 3.0, 4.0], [False, True, True], 0.1) == [True, True, False]


def test_a_healed_first_slot_takes_an_allowed_id_only() -> None:
    row = cold(5)
    row.first = [99, 98]
    run(ScriptedModel(TRUTH), [row])
    assert row.draft == [99, *TRUTH[1:]]


def test_repair_renoises_the_error_and_its_neighbours_and_holds_the_rest() -> None:
    row = cold(5)
    run(ScriptedModel(TRUTH), [row])
    row.draft = [40, 41, 42, 43, 99]
    numbers = count(200)
    renoise(row, {4}, lambda: next(numbers))
    assert row.held == [True, True, True, False, False]
    assert row.hole == [40, 41, 42, 200, 201]
    model = ScriptedModel(TRUTH)
    run(model, [row])
    assert row.draft == TRUTH
    assert all(ids[0][:3] == TRUTH[:3] for ids, _, _ in model.seen)


@pytest.mark.parametrize("held", [[], [True, True]])
def test_a_row_without_free_slots_is_done_at_once(held: list[bool]) -> None:
    row = new_row([40, 41] if held else [], TAIL, "draft", lambda: 9)
    row.held = held
    assert run(ScriptedModel(TRUTH), [row]) == 0


def test_closing_up_keeps_slots_and_conditioning_together() -> None:
    row = cold(4)
    row.conditioning = torch.arange(7.0)[:, None]
    row.draft, row.entropy, row.logprob = [1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], [-1.0, -2.0, -3.0, -4.0]
    close_up(row, [1, 2])
    assert (row.draft, row.entropy, row.logprob) == ([1, 4], [0.1, 0.4], [-1.0, -4.0])
    assert row.conditioning[:, 0].tolist() == [0, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("start", "end", "slots"), [(0, 1, {0}), (2, 2, {1}), (1, 4, {0, 1}), (3, 9, {1, 2}), (9, 9, set())]
)
def test_byte_ranges_find_their_slots(start: int, end: int, slots: set[int]) -> None:
    assert slots_in([(0, 2), (2, 4), (4, 6)], start, end) == slots


def test_noise_is_seeded_and_covers_the_full_vocabulary() -> None:
    draw = uniform_noise(5, 7)
    first = [draw() for _ in range(200)]
    again = uniform_noise(5, 7)
    assert first == [again() for _ in range(200)]
    assert set(first) == {0, 1, 2, 3, 4}
