"""The step at fixed addresses gives the tokens of `Model.denoise` and the sampler; on a GPU, captured as a graph."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import build, random_shape, save

from stopgap.infill import buckets, device_loop, graph, work
from stopgap.infill.buckets import Size
from stopgap.infill.canvas import Row
from stopgap.infill.contract import Draft, FillRequest, Outcome
from stopgap.infill.engine import STARTER, InfillEngine, load_engine
from stopgap.infill.graph import GraphError, Loop
from stopgap.infill.model import Model
from stopgap.infill.planner import real_model
from stopgap.infill.prefix import PrefixCache
from stopgap.infill.random_weights import random_model, small_model
from stopgap.infill.sampler import Schedule, denoise
from stopgap.infill.tokenizer import Tokenizer
from stopgap.infill.weights import load_model
from stopgap.kernels import path

Rows = list[Row]


def tiny(folder: Path, seed: int) -> Model:
    folder.mkdir(exist_ok=True)
    return load_model(save(build(seed, **random_shape(seed)), folder), int8=False, threads=1)


def some_rows(model: Model, pick: random.Random, count: int) -> Rows:
    """Of unequal lengths; some with held slots, some healed, some seeded, one with nothing to do."""
    vocabulary = model.config.vocab_size

    def ids(length: int) -> list[int]:
        return [pick.randrange(vocabulary) for _ in range(length)]

    rows = [Row(ids(pick.randrange(1, 9)), ids(pick.randrange(5)), "noise") for _ in range(count)]
    for row in rows:
        if pick.random() < 0.3:
            row.held = [pick.random() < 0.5 for _ in row.hole]
        if pick.random() < 0.3:
            row.first = ids(3)
        if pick.random() < 0.3:
            row.conditioning = torch.randn(len(row.hole) + len(row.tail), model.config.hidden_size)
    if count > 2:
        rows[1].held = [True] * len(rows[1].hole)
    return rows


def on_the_host(
    model: Model, cache: PrefixCache, rows: Rows, schedule: Schedule, banned: torch.Tensor, delete: int | None
) -> Iterator[int]:
    number = 0

    def noise() -> int:
        return (7 * (number + 1)) % model.config.vocab_size

    for item in denoise(cache, rows, schedule, device=model.device, noise=noise, banned=banned, delete=delete):
        if isinstance(item, int):
            number = item
            yield item
        else:
            work.run(model, item)


@pytest.fixture
def noise_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise that both loops can have: an id that depends on nothing but the step."""

    def noise(state: device_loop.State, vocabulary: int) -> torch.Tensor:
        return torch.zeros_like(state.ids) + 7 * state.step % vocabulary

    monkeypatch.setattr(device_loop, "noise", noise)


@pytest.mark.usefixtures("noise_by_step")
@pytest.mark.parametrize("seed", range(12))
def test_every_step_gives_the_tokens_of_the_model_and_the_sampler(seed: int, tmp_path: Path) -> None:
    model = tiny(tmp_path, seed)
    pick = random.Random(seed)
    torch.manual_seed(seed)
    vocabulary = model.config.vocab_size
    delete = 9 if seed % 3 == 0 else None
    loop = Loop(model)
    cache = model.new_cache(40)
    banned = torch.zeros(vocabulary, dtype=torch.bool)
    banned[:7] = True
    for count in (1, 3, 4):
        model.encode(cache, [pick.randrange(vocabulary) for _ in range(pick.randrange(1, 13))])
        rows = some_rows(model, pick, count)
        copies = [replace(row) for row in rows]
        schedule = Schedule(max_steps=5, bound=pick.choice([0.1, 8.0, 30.0]), calm=3.0, patience=3, settle=2)
        theirs = on_the_host(model, cache, rows, schedule, banned, delete)
        ours = loop.denoise(cache, copies, schedule, noise=lambda: 3, banned=banned, delete=delete)
        for one, other in zip(theirs, ours, strict=True):
            assert one == other
            close = 5e-5 if one == 1 else 5e-3  # rounding grows from step to step through the conditioning
            for row, copy in zip(rows, copies, strict=True):
                known = (row.hole, row.draft, row.held, row.unchanged, row.steps, row.done)
                assert (copy.hole, copy.draft, copy.held, copy.unchanged, copy.steps, copy.done) == known
                assert copy.entropy == pytest.approx(row.entropy, abs=close)
                assert copy.logprob == pytest.approx(row.logprob, abs=close)
                if row.conditioning is not None:
                    torch.testing.assert_close(copy.conditioning, row.conditioning, atol=close, rtol=close)
    assert set(loop.ran) == {"eager"}


def test_a_cropped_and_regrown_prefix_is_seen_as_it_is_now(tmp_path: Path) -> None:
    model = tiny(tmp_path, 1)
    loop, cache = Loop(model), model.new_cache(40)
    answers = []
    for end in ([20, 21], [30], [20, 21]):
        cache.crop(3)
        model.encode(cache, [11, 12, 13][len(cache) :] + end)
        row = Row([1, 2, 3, 4], [5], "noise")
        list(loop.denoise(cache, [row], Schedule(max_steps=2), noise=lambda: 3))
        answers.append(row.entropy)
    assert answers[0] == pytest.approx(answers[2], abs=1e-4)
    assert answers[0] != pytest.approx(answers[1], abs=1e-3)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("others", [[], [(6, 4)], [(6, 4), (30, 40)]], ids=["alone", "one", "a larger one too"])
def test_rows_go_on_as_if_nobody_else_had_been_denoised_between_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: list[tuple[int, int]], captured: bool
) -> None:
    """A rewrite that is suspended for keystrokes, of which one needs more room than there is."""
    monkeypatch.setattr(buckets, "CAPACITIES", (16, 64))
    model = tiny(tmp_path, 1)
    if captured:
        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        monkeypatch.setattr(graph.Bucket, "graph", property(lambda own: FakeGraph(own.step), lambda *_: None), False)
    schedule = Schedule(max_steps=5, calm=-1.0, patience=9)
    cache, alone = model.new_cache(40), model.new_cache(40)
    rows = [[Row([1, 2, 3, 4], [5], "noise"), Row([7, 8], [], "noise")] for _ in range(2)]
    for one in (cache, alone):
        model.encode(one, [10, 11, 12, 13])
    list(Loop(model).denoise(alone, rows[1], schedule, noise=lambda: 3))
    loop, asked = Loop(model), iter(others)
    for _ in loop.denoise(cache, rows[0], schedule, noise=lambda: 3):
        for length, slots in asked:
            other = model.new_cache(64)
            model.encode(other, list(range(20, 20 + length)))
            row = Row(list(range(1, 1 + slots)), [], "noise")
            list(loop.denoise(other, [row], Schedule(max_steps=2), noise=lambda: 9))
            break
    for ours, theirs in zip(*rows, strict=True):
        assert (ours.draft, ours.hole, ours.steps) == (theirs.draft, theirs.hole, theirs.steps)
        assert ours.entropy == pytest.approx(theirs.entropy, abs=1e-4)


def test_a_caller_that_stops_costs_no_further_step_on_a_cpu(tmp_path: Path) -> None:
    model = tiny(tmp_path, 2)
    loop, cache = Loop(model), model.new_cache(8)
    steps = loop.denoise(cache, [Row([1, 2, 3], [], "noise")], Schedule(patience=99, calm=0.0), noise=lambda: 3)
    assert [next(steps), next(steps)] == [1, 2]
    steps.close()  # type: ignore[attr-defined]
    assert loop.ran == {"eager": 2}


def test_rows_without_anything_to_do_cost_no_step(tmp_path: Path) -> None:
    model = tiny(tmp_path, 3)
    loop = Loop(model)
    row = Row([1], [2], "draft", held=[True])
    assert not list(loop.denoise(model.new_cache(8), [row], Schedule(), noise=lambda: 3))
    assert row.done and not loop.ran


def test_memory_that_was_given_back_is_taken_again(tmp_path: Path) -> None:
    model = tiny(tmp_path, 3)
    loop, cache = Loop(model), model.new_cache(8)
    loop.prepare([Size(512, 1, 16), Size(512, 2, 16)])
    before = loop.nbytes
    loop.drop()
    assert before and not loop.nbytes
    list(loop.denoise(cache, [Row([1, 2], [], "noise")], Schedule(max_steps=1), noise=lambda: 3))
    assert loop.nbytes and loop.how == "device (eager, 1 steps)"


def test_sizes_are_few_and_what_is_larger_than_all_is_doubled() -> None:
    assert Size.of(3, 17, 513) == Size(1024, 4, 32)
    assert Size.of(1, 1, 0) == Size(512, 1, 16)
    assert Size.of(5, 300, 9000) == Size(16384, 8, 512)


def test_a_larger_prefix_gets_more_room_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "CAPACITIES", (8, 16))
    model = tiny(tmp_path, 0)
    loop, cache = Loop(model), model.new_cache(64)
    before = []
    for length in (4, 20, 4):
        cache.crop(0)
        model.encode(cache, list(range(10, 10 + length)))
        row = Row([1, 2], [3], "noise")
        list(loop.denoise(cache, [row], Schedule(max_steps=1), noise=lambda: 3))
        before.append((row.entropy, loop.nbytes))
    assert before[0][0] == pytest.approx(before[2][0], abs=1e-5)
    assert before[0][1] < before[1][1] == before[2][1]


@pytest.mark.parametrize(("value", "how"), [("", graph.DEFAULT), ("host", "host"), ("device", "device")])
def test_the_switch_chooses_the_loop(value: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_LOOP", value)
    assert graph.chosen() == how


def test_a_switch_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_LOOP", "graph")
    with pytest.raises(GraphError, match="set it to host or device"):
        graph.chosen()


def test_the_starter_fills_through_it_and_status_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_LOOP", "device")
    monkeypatch.setattr(buckets, "CAPACITIES", (64,))
    engine = load_engine(
        "starter", engine="stopgap", device="cpu", threads=1, clock=time.monotonic, progress=lambda *_: None
    )
    source = b"def total(items):\n    result = 0\n    for item in items:\n        result += \n    return result\n"
    at = source.index(b"+= ") + 3
    request = FillRequest(source, "python", at, at, max_steps=3)
    outcome = outcome_of(engine.fill(request, lambda: False))
    assert engine.loop and outcome.steps == sum(engine.loop.ran.values()) > 0
    assert engine.info().kernels.endswith(f", loop device (eager, {outcome.steps} steps)")
    engine.drop_caches()
    assert not engine.loop.nbytes
    engine.loop.ran.clear()
    ran = engine.loop.ran
    stopped = outcome_of(engine.fill(request, lambda: ran["eager"] > 0))
    assert (stopped.stopped, stopped.fills, ran["eager"]) == ("cancelled", (), 1)


def outcome_of(items: Iterator[Draft | Outcome]) -> Outcome:
    *_, last = items
    assert isinstance(last, Outcome)
    return last


def test_transformers_has_no_loop_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_LOOP", "device")
    model = tiny(tmp_path, 3)
    monkeypatch.setattr(Model, "joins", False)
    card: dict[str, object] = {"name": "tiny", "family": "infill"}
    with pytest.raises(GraphError, match="not transformers"):
        InfillEngine(model, Tokenizer(STARTER / "tokenizer.json"), card, clock=time.monotonic)


class FakeEvent:
    """What has been launched on a CPU is there at once."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class FakeGraph:
    def __init__(self, step: Callable[[], None]) -> None:
        self.replay = step


def with_a_graph(loop: Loop, cache: PrefixCache, monkeypatch: pytest.MonkeyPatch) -> Loop:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    bucket = loop.bucket(Size(512, 1, 16), cache, [], Schedule())
    bucket.graph = FakeGraph(bucket.step)  # type: ignore[assignment]
    return loop


def test_the_step_after_the_one_that_is_read_runs_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(tmp_path, 4)
    cache = model.new_cache(16)
    model.encode(cache, [5, 6, 7])
    answers, ran = [], []
    for loop in (Loop(model), with_a_graph(Loop(model), cache, monkeypatch)):
        for patience in (99, 0):
            row = Row([1, 2, 3, 4], [5], "noise")
            schedule = Schedule(max_steps=4, patience=patience, calm=-1.0)
            list(loop.denoise(cache, [row], schedule, noise=lambda: 3))
            assert row.conditioning is not None
            answers.append((row.draft, row.hole, row.entropy, row.steps, row.conditioning.tolist()))
        ran.append(dict(loop.ran))
    assert answers[:2] == answers[2:]
    assert ran[1]["graph"] == ran[0]["eager"] + 1, "none beyond the cap, one wasted where the row is done before it"


def test_one_step_at_most_runs_on_after_a_caller_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(tmp_path, 4)
    cache = model.new_cache(16)
    loop = with_a_graph(Loop(model), cache, monkeypatch)
    steps = loop.denoise(cache, [Row([1, 2], [], "noise")], Schedule(patience=99, calm=-1.0), noise=lambda: 3)
    assert next(steps) == 1
    steps.close()  # type: ignore[attr-defined]
    assert loop.ran == {"graph": 2}


def test_the_step_runs_on_triton_kernels_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    model = random_model(replace(small_model(real_model()), vocab_size=256, num_experts=4))
    monkeypatch.setattr(buckets, "CAPACITIES", (16,))  # the interpreter is slow
    cache = model.new_cache(8)
    model.encode(cache, [5, 6, 7])
    answers = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv(path.SWITCH, kernels)
        path.ran.clear()
        row = Row([1, 2, 3, 4], [5, 6], "noise", first=[200, 201])
        list(Loop(model).denoise(cache, [row], Schedule(max_steps=1), noise=lambda: 3))
        assert {which for _, which in path.ran} == {kernels}
        assert row.draft[0] in (200, 201)
        answers.append(row)
    assert answers[0].draft == answers[1].draft and answers[0].hole == answers[1].hole
    assert answers[0].entropy == pytest.approx(answers[1].entropy, abs=1e-3)
