"""Several fills in the same passes: each comes out as it would alone, on random tiny models in fp32."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers
from scripted import byte_tokenizer
from tiny_models import build, random_shape, save
from torch import Tensor

from stopgap.infill import together
from stopgap.infill.canvas import Row, batch
from stopgap.infill.contract import Draft, FillError, FillRequest, Outcome, Together
from stopgap.infill.engine import InfillEngine
from stopgap.infill.model import Model
from stopgap.infill.prefix import PrefixCache
from stopgap.infill.sampler import Schedule
from stopgap.infill.strategy import Strategy
from stopgap.infill.together import run_many
from stopgap.infill.weights import load_model
from stopgap.infill.work import Encode, Logits, Score, Step, run

SEEDS = range(6)
TOLERANCE = 1e-4
PROMPTS = (3, 13, 21)
"""Tokens of three prefixes; the sliding windows of the models are 2 to 9."""
FILE = b"""\
class Cart:
    def add(self, item):
        ...

    def total(self):
        ...

    def names(self, order):
        ...
"""


@pytest.fixture(autouse=True, scope="module")
def _quiet_and_alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@cache
def tiny(seed: int, **sizes: int) -> Model:
    with TemporaryDirectory() as folder:
        return load_model(save(build(seed, **random_shape(seed) | sizes), Path(folder)), int8=False, threads=1)


def prefixes(model: Model) -> list[PrefixCache]:
    made = []
    for count in PROMPTS:
        made.append(model.new_cache(64))
        model.encode(made[-1], tokens(model, count, salt=count))
    return made


def tokens(model: Model, count: int, salt: int) -> list[int]:
    pick = random.Random(salt)
    return [pick.randrange(model.config.vocab_size) for _ in range(count)]


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one.float() - other.float()).abs().max()) <= TOLERANCE


def steps(model: Model, *, told: bool) -> list[Step]:
    """Two canvases behind the first prefix, one and three behind the others, all of other lengths."""
    made = []
    for number, (prefix, rows) in enumerate(zip(prefixes(model), [(4, 7), (5,), (3, 3, 8)], strict=True)):
        canvases = [Row(tokens(model, size, salt=size), tokens(model, number, salt=9), "noise") for size in rows]
        for row in canvases[: 2 if told else 0]:
            shape = (len(row.hole) + len(row.tail), model.config.hidden_size)
            row.conditioning = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        allowed = {1: torch.tensor([5, 6])} if number else None
        banned = torch.arange(model.config.vocab_size) < 3
        made.append(Step(prefix, batch(canvases, model.device), 0.7, banned, allowed, None))
    return made


@pytest.mark.parametrize("told", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_step_of_several_fills_is_that_of_each(seed: int, told: bool) -> None:
    model = tiny(seed)
    alone, at_once = steps(model, told=told), steps(model, told=told)
    for step in alone:
        run(model, step)
    run_many(model, at_once)
    for one, other in zip(alone, at_once, strict=True):
        width = one.canvas.ids.shape[1]
        assert torch.equal(one.out.argmax, other.out.argmax)
        assert close(one.out.logprob, other.out.logprob) and close(one.out.entropy, other.out.entropy)
        assert close(one.out.conditioning, other.out.conditioning[:, :width])


@pytest.mark.parametrize("seed", SEEDS)
def test_prefixes_grow_together_as_they_do_alone(seed: int) -> None:
    model = tiny(seed)
    alone, at_once = prefixes(model), prefixes(model)
    for ids in ([[7], [8, 9, 10], [11, 12]], [[13], [14], [15]]):
        ones = [Encode(*pair) for pair in zip(alone, ids, strict=True)]
        others = [Encode(*pair) for pair in zip(at_once, ids, strict=True)]
        for work in ones:
            run(model, work)
        run_many(model, others)
        assert all(close(one.out, other.out) for one, other in zip(ones, others, strict=True))
    assert [prefix.ids for prefix in alone] == [prefix.ids for prefix in at_once]
    last = [Logits(work.out[-1:]) for work in others]
    run_many(model, last)
    for work in last:
        assert close(work.out, model.head(work.hidden))


class Bench:
    """An engine over a tiny model, which says nonsense, and the number of its passes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = tiny(0, vocab_size=264, max_position_embeddings=4096)
        self.passes = 0
        forward = self.model._forward

        def counted(*args: object, **kwargs: object) -> Tensor:
            self.passes += 1
            return forward(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(self.model, "_forward", counted)
        card: dict[str, object] = {"name": "tiny", "family": "infill"}
        self.engine = InfillEngine(
            self.model,
            byte_tokenizer(folder),
            card,
            clock=lambda: 0.0,
            strategy=Strategy(Schedule(max_steps=4), context=120, repairs=1, rows=3, slots=24, shortest=8, longest=24),
        )

    def alone(self, requests: Sequence[FillRequest]) -> list[list[Draft | Outcome]]:
        return [list(self.engine.fill(request, lambda: False)) for request in requests]

    def at_once(
        self, requests: Sequence[FillRequest], stops: Sequence[Callable[[], bool]] = ()
    ) -> list[list[Draft | Outcome | FillError]]:
        said: list[list[Draft | Outcome | FillError]] = [[] for _ in requests]
        for item in self.engine.fill_many(requests, stops or [lambda: False] * len(requests)):
            if item is not None:
                said[item[0]].append(item[1])
        return said


def requests(**fields: object) -> list[FillRequest]:
    places = [at for at in range(len(FILE)) if FILE.startswith(b"...", at)]
    return [
        FillRequest(FILE, "python", at, at, "placeholder", seed=at, document=f"{at}.py", candidates=3, **fields)  # type: ignore[arg-type]
        for at in places
    ]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_fills_made_together_are_those_made_alone_and_cost_fewer_passes(bench: Bench) -> None:
    assert isinstance(bench.engine, Together)
    alone = bench.alone(requests())
    passes, bench.passes = bench.passes, 0
    bench.engine.drop_caches()
    assert bench.at_once(requests()) == alone
    assert bench.passes < 0.6 * passes


def test_holes_of_one_document_do_not_disturb_each_other(bench: Bench) -> None:
    same = [replace(request, document="one.py") for request in requests()]
    assert bench.at_once(same) == bench.alone(requests())


def test_stopping_one_ends_it_after_the_step_under_way_and_no_other(bench: Bench) -> None:
    asked = requests()
    alone = bench.alone(asked)
    bench.engine.drop_caches()
    seen: list[int] = []
    stops = [lambda: False, lambda: len(seen) >= 2, lambda: False]
    ends: dict[int, object] = {}
    for item in bench.engine.fill_many(asked, stops):
        if item is not None and item[0] == 1 and isinstance(item[1], Draft):
            seen.append(item[1].step)
        if item is not None and not isinstance(item[1], Draft):
            ends[item[0]] = item[1]
    assert len(seen) == 2
    stopped = ends[1]
    assert isinstance(stopped, Outcome) and stopped.stopped == "cancelled" and not stopped.fills
    assert [ends[0], ends[2]] == [alone[0][-1], alone[2][-1]]


def test_a_request_that_cannot_be_served_leaves_the_others_alone(bench: Bench) -> None:
    asked = requests()
    asked[1] = FillRequest(FILE, "klingon", 0, 0)
    first, second, third = bench.at_once(asked)
    assert isinstance(first[-1], Outcome) and isinstance(third[-1], Outcome)
    assert len(second) == 1 and isinstance(second[0], FillError) and "klingon" in str(second[0])


def test_a_batch_that_nobody_wants_any_more_gives_its_caches_back(bench: Bench) -> None:
    going = bench.engine.fill_many(requests(), [lambda: False] * 3)
    for _ in range(5):
        next(going)
    assert any(document.busy for document in bench.engine._documents.values())
    going.close()  # type: ignore[attr-defined]
    assert not any(document.busy for document in bench.engine._documents.values())


def test_a_model_that_cannot_join_prefixes_runs_the_same_fills_pass_by_pass(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = bench.alone(requests())
    passes, bench.passes = bench.passes, 0
    bench.engine.drop_caches()
    monkeypatch.setattr(Model, "joins", False)
    assert bench.at_once(requests()) == alone
    assert bench.passes == passes


def test_a_pass_is_bounded_and_those_behind_go_first(bench: Bench) -> None:
    """Work of unlike fills: what is earlier in a fill goes first, as much as fits, and at least one."""
    model = bench.model
    prefix = model.new_cache(600)
    encode = [Encode(prefix, [1] * size) for size in (100, 100, 100, 1)]
    score = Score(prefix, [[1]])
    wanted = {0: score, 1: encode[0], 2: encode[1], 3: encode[2], 4: encode[3]}
    assert together._choose(wanted, 256) == [1, 2, 4]  # type: ignore[arg-type]
    assert together._choose({0: score, 1: encode[0]}, 50) == [1]
    cold, warm = steps(model, told=False)[:2]
    warm.temperature = 0.6
    assert together._choose({0: cold, 1: warm}, 256) == [0], "a step has one temperature"
