"""A prefix longer than sliding layers keep: however it came to be, it is seen as if it were new."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from tiny_models import build, random_shape, save

from stopgap.infill import buckets
from stopgap.infill import model as model_module
from stopgap.infill.canvas import Row
from stopgap.infill.contract import FillRequest, Outcome
from stopgap.infill.engine import load_engine
from stopgap.infill.graph import SWITCH, Loop
from stopgap.infill.model import Model
from stopgap.infill.model_config import ModelError
from stopgap.infill.prefix import Joined, PrefixCache
from stopgap.infill.sampler import Schedule
from stopgap.infill.weights import load_model

SLACK, GROWTH, SCRATCH = 12, 5, 12
"""Behind windows of 2 to 9 tokens: a sliding layer has 31 to 38 slots where a full one has 132."""
CAPACITY = 120
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(buckets, "SLACK", SLACK)
    monkeypatch.setattr(buckets, "GROWTH", GROWTH)
    monkeypatch.setattr(model_module, "CHUNK", GROWTH + SCRATCH)
    yield
    torch.set_num_threads(threads)


@cache
def tiny(seed: int) -> Model:
    with TemporaryDirectory() as folder:
        saved = save(build(seed, **random_shape(seed) | {"final_logit_softcapping": 30.0}), Path(folder))
        return load_model(saved, int8=False, threads=1)


@pytest.fixture(params=range(4))
def model(request: pytest.FixtureRequest) -> Model:
    return tiny(request.param)


def tokens(model: Model, count: int, salt: int = 0) -> list[int]:
    pick = random.Random(salt)
    return [pick.randrange(model.config.vocab_size) for _ in range(count)]


def new(model: Model) -> PrefixCache:
    return model.new_cache(CAPACITY, scratch=SCRATCH)


def whole(model: Model, ids: Sequence[int]) -> PrefixCache:
    """A cache of `ids` in which every layer keeps every token."""
    fresh = model.new_cache(CAPACITY, scratch=CAPACITY)
    model.encode(fresh, ids)
    assert fresh._sliding_slots == fresh._slots and not fresh._dropped
    return fresh


def answers(model: Model, cache: PrefixCache) -> list[torch.Tensor]:
    """What is read behind a prefix: a step of uneven rows, one of the whole scratch, scores."""
    canvas = torch.tensor([tokens(model, 5, salt=row) for row in range(2)])
    free = torch.tensor([[True, False, True, True, True], [True, True, False, False, False]])
    soft = torch.randn((2, 5, model.config.hidden_size), generator=torch.Generator().manual_seed(1))
    uneven = model.denoise(cache, canvas, free, lengths=[5, 2], conditioning=soft)
    wide = torch.tensor([tokens(model, SCRATCH, salt=3)])
    full = model.denoise(cache, wide, wide >= 0)
    found = [uneven.entropy, uneven.conditioning, full.logprob, full.conditioning]
    return found + (model.score(cache, [tokens(model, 4, salt=4), tokens(model, 3, salt=5)]) if cache.ids else [])


def assert_as_new(model: Model, cache: PrefixCache) -> None:
    for ours, fresh in zip(answers(model, cache), answers(model, whole(model, cache.ids)), strict=True):
        torch.testing.assert_close(ours, fresh, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("cut", [3, 11, 110])
def test_a_prefix_far_longer_than_is_kept_is_encoded_and_seen_as_if_all_were(model: Model, cut: int) -> None:
    ids, cache, hidden = tokens(model, 110), new(model), []
    for at in range(0, len(ids), cut):
        hidden.append(model.encode(cache, ids[at : at + cut]))
        if at % 5 == 0:
            assert_as_new(model, cache)
    fresh = model.encode(whole(model, []), ids)
    torch.testing.assert_close(torch.cat(hidden), fresh, atol=TOLERANCE, rtol=TOLERANCE)
    assert cache.ids == ids and cache._dropped


def test_sliding_layers_take_no_more_for_a_longer_prefix_and_full_ones_do() -> None:
    model = tiny(0)
    sliding, full = (next(s for s in model.config.layers if s.sliding is wanted) for wanted in (True, False))
    short, long = (model.new_cache(capacity, scratch=SCRATCH) for capacity in (60, 120))
    assert sliding and long.nbytes - short.nbytes == 60 * 2 * full.kv_heads * full.head_dim * 4
    assert model.new_cache(10, scratch=SCRATCH)._sliding_slots == 22, "a short prefix is kept whole"


@pytest.mark.parametrize("back", [1, SLACK])
def test_a_prefix_cut_back_by_the_slack_goes_on_exactly(model: Model, back: int) -> None:
    cache = new(model)
    for at in range(0, 80, 16):
        model.encode(cache, tokens(model, 16, salt=at))
        model.score(cache, [tokens(model, SCRATCH - 1)])  # drops as much as is ever dropped
        length = max(1, len(cache) - back)
        kept = [*cache.ids[:length], 63]
        assert cache.match(kept) >= length
        cache.crop(length)
        assert_as_new(model, cache)
        model.encode(cache, tokens(model, back, salt=at + 1))
        assert_as_new(model, cache)


def test_what_is_further_back_is_encoded_from_the_start(model: Model) -> None:
    ids, cache = tokens(model, 110), new(model)
    model.encode(cache, ids)
    window = model.config.sliding_window
    least = cache._dropped + window
    assert cache.match(ids[:least]) == least
    assert cache.match([*ids[: least - 1], -1]) == 0
    with pytest.raises(ModelError, match=rf"110 prompt tokens cannot be cut back to {least - 1}: encode them"):
        cache.crop(least - 1)
    assert cache.ids == ids
    assert_as_new(model, cache)
    cache.crop(0)
    assert_as_new(model, cache)
    model.encode(cache, ids[: least - 1])
    assert cache.ids == ids[: least - 1]
    assert_as_new(model, cache)


@pytest.mark.parametrize("seed", range(8))
def test_any_course_of_prompts_ends_as_if_the_last_were_the_first(seed: int) -> None:
    """As a fill does it: back to what is known, on to the prompt, a draft and back, canvases, scores."""
    model, pick = tiny(seed % 4), random.Random(seed)
    cache, ids = new(model), tokens(model, 60, salt=seed)
    again = 0
    for turn in range(8):
        at = pick.choice([len(ids), len(ids) - 3, len(ids) - 10, len(ids) // 2, 2])
        ids = [*ids[:at], *tokens(model, pick.randrange(1, 30), salt=100 * seed + turn)][-pick.choice([50, 90, 100]) :]
        known = cache.match(ids[:-1])
        again += known == 0
        cache.crop(known)
        model.encode(cache, ids[known:])
        model.encode(cache, tokens(model, pick.randrange(SLACK), salt=turn))
        if pick.random() < 0.5:
            answers(model, cache)
        cache.crop(len(ids))
        assert cache.ids == ids
        assert_as_new(model, cache)
    assert 0 < again < 8


def test_several_prefixes_in_one_pass_drop_what_they_must_each_for_itself() -> None:
    model = tiny(1)
    caches = [new(model) for _ in range(3)]
    for at in range(9):
        model.encode_many([(cache, tokens(model, 3 + 4 * n, salt=9 * at + n)) for n, cache in enumerate(caches)])
    fresh = [whole(model, cache.ids) for cache in caches]
    assert len({cache._dropped for cache in caches}) == 3
    canvas = torch.tensor([tokens(model, 4, salt=row) for row in range(3)])
    ours, theirs = (model.denoise(Joined(own, [1, 1, 1]), canvas, canvas >= 0) for own in (caches, fresh))
    torch.testing.assert_close(ours.conditioning, theirs.conditioning, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_cache_in_bf16_beside_activations_in_fp32_drops_and_goes_on_too() -> None:
    model = tiny(1)
    kept, every = (
        PrefixCache(model.config, CAPACITY, scratch, torch.device("cpu"), torch.float32, torch.bfloat16)
        for scratch in (SCRATCH, CAPACITY)
    )
    for prefix in (kept, every):
        for at in range(0, 110, 11):
            model.encode(prefix, tokens(model, 11, salt=at))
        prefix.crop(105)
    assert kept._dropped and not every._dropped
    for ours, fresh in zip(answers(model, kept), answers(model, every), strict=True):
        torch.testing.assert_close(ours, fresh, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("seed", range(4))
def test_the_loop_on_the_device_sees_what_is_kept(seed: int) -> None:
    model = tiny(seed)
    loop, cache = Loop(model), new(model)
    for at, count in enumerate((30, 40, 9, 25)):
        model.encode(cache, tokens(model, count, salt=at))
        rows = [[Row([1, 2, 3, 4], [5], "noise")] for _ in range(2)]
        for own, behind, row in zip((loop, Loop(model)), (cache, whole(model, cache.ids)), rows, strict=True):
            list(own.denoise(behind, row, Schedule(max_steps=2), noise=lambda: 3))
        assert rows[0][0].entropy == pytest.approx(rows[1][0].entropy, abs=1e-3)
        assert rows[0][0].hole == rows[1][0].hole


def test_more_at_once_than_is_kept_beside_a_window_is_refused_and_changes_nothing() -> None:
    model = tiny(0)
    cache, ids = new(model), tokens(model, 60)
    model.encode(cache, ids)
    with pytest.raises(ModelError, match="40 tokens at once do not fit behind 60 of the prompt; take fewer"):
        model.encode_many([(cache, tokens(model, 40))])
    assert cache.ids == ids
    assert_as_new(model, cache)


@pytest.mark.parametrize("how", ["host", "device"])
def test_fills_are_the_same_where_sliding_layers_keep_little(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter with a narrow window, typed into, then asked further up and again below."""
    monkeypatch.setenv(SWITCH, how)
    monkeypatch.setattr(buckets, "CAPACITIES", (512,))
    text = b"".join(
        b"def item_%d(items):\n    total = %d\n    return total + len(items)\n\n\n" % (i, i) for i in range(40)
    )
    below, above = (text.index(b"total =", len(text) * thirds // 3) for thirds in (2, 1))
    places = [below, below + 3, above, below + 5]
    engine = load_engine(
        "starter", engine="stopgap", device="cpu", threads=1, clock=time.monotonic, progress=lambda *_: None
    )
    engine.model.config = replace(engine.model.config, sliding_window=48)
    engine.strategy = replace(engine.strategy, context=256, longest=32, tail=8, slots=24, rows=2, finalists=2)
    fills: list[list[object]] = []
    for slack in (SLACK, 1 << 20):
        monkeypatch.setattr(buckets, "SLACK", slack)
        engine.drop_caches()
        found: list[object] = []
        for place in places:
            now = text[:place] + text[text.index(b"\n", place) :]
            request = FillRequest(now, "python", place, place, document="a", max_steps=1)
            *_, outcome = engine.fill(request, lambda: False)
            assert isinstance(outcome, Outcome)
            found.append([fill.text for fill in outcome.fills])
        dropped = engine._documents["a"].cache._dropped
        assert bool(dropped) == (slack == SLACK)
        fills.append(found)
    assert fills[0] == fills[1] and any(fills[0])
