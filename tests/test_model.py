"""Our forward pass held to transformers' own, on random tiny models that use every structural switch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import transformers
from tiny_models import build, random_shape, save
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from stopgap.infill import model as model_module
from stopgap.infill.layers import Dense
from stopgap.infill.model import Model, ModelError
from stopgap.infill.weights import load_model
from stopgap.kernels import path
from stopgap.kernels.quantised import Int8Rows

SEEDS = range(24)
TOLERANCE = 1e-4
WIDTH = 8


@pytest.fixture(autouse=True, scope="module")
def _quiet_and_alone() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Pair:
    """One model on both sides."""

    reference: DiffusionGemmaForBlockDiffusion
    ours: Model
    seed: int

    def tokens(self, count: int, salt: int = 0) -> list[int]:
        pick = random.Random(1000 * self.seed + salt)
        return [pick.randrange(self.ours.config.vocab_size) for _ in range(count)]

    def normal(self, *shape: int, salt: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * self.seed + salt))


@cache
def pair(seed: int) -> Pair:
    reference = build(seed, **random_shape(seed))
    with TemporaryDirectory() as folder:
        ours = load_model(save(reference, Path(folder)), int8=False, threads=1)
    return Pair(reference, ours, seed)


@pytest.fixture(params=SEEDS)
def both(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


@torch.no_grad()
def prefill(both: Pair, ids: Sequence[int]) -> tuple[Tensor, DynamicCache]:
    """The reference's causal logits [n, V] and its cache."""
    out = both.reference.model.encoder(input_ids=torch.tensor([list(ids)]))
    raw = both.reference.lm_head(out.last_hidden_state[0])
    cap = both.ours.config.softcap
    return torch.tanh(raw / cap) * cap, out.past_key_values


@torch.no_grad()
def reference_step(both: Pair, prefix: DynamicCache, canvas: Tensor, soft_logits: Tensor | None = None) -> Tensor:
    """The reference's denoising logits [B, C, V]."""
    out = both.reference(past_key_values=prefix, decoder_input_ids=canvas, self_conditioning_logits=soft_logits)
    logits: Tensor = out.logits
    return logits


def soft_embedding(both: Pair, logits: Tensor) -> Tensor:
    embedding = both.ours.weights.embedding
    return logits.softmax(-1) @ embedding * embedding.shape[1] ** 0.5


@pytest.fixture
def logits_seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What `denoise` hands to the head, soft-capped."""
    seen: list[Tensor] = []
    head = model_module.denoise_head

    def recording(hidden: Tensor, embedding: Tensor, *, softcap: float, **rest: object) -> object:
        seen.append(torch.tanh(hidden @ embedding.T / softcap) * softcap)
        return head(hidden, embedding, softcap=softcap, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model_module, "denoise_head", recording)
    return seen


def close(ours: Tensor, reference: Tensor) -> bool:
    assert ours.shape == reference.shape
    return float((ours - reference).abs().max()) <= TOLERANCE


def test_the_seeds_use_every_structural_switch() -> None:
    configs = [pair(seed).ours.config for seed in SEEDS]
    shapes = [shape for config in configs for shape in config.layers]
    full = [shape for shape in shapes if not shape.sliding]
    assert any(shape.sliding for shape in shapes)
    assert {shape.groups > 1 for shape in shapes} == {True, False}
    assert any(a.head_dim != b.head_dim and a.kv_heads != b.kv_heads for a in shapes for b in full)
    assert {config.num_experts > 1 for config in configs} == {True, False}
    assert {config.top_k_experts for config in configs} >= {1, 2, 3}
    assert {config.full_rope.rotated for config in configs if config.full_rope} == {0.25, 0.5, 1.0}
    assert {config.softcap for config in configs} == {30.0, 4.0}
    assert any(layer.encoder.scalar != layer.decoder.scalar for layer in pair(0).ours.weights.layers)


def test_prefill_equals_the_reference(both: Pair) -> None:
    ids = both.tokens(21)
    cache = both.ours.new_cache(64)
    assert close(both.ours.head(both.ours.encode(cache, ids)), prefill(both, ids)[0])
    assert cache.ids == ids


def test_chunks_across_the_sliding_window_change_nothing(both: Pair) -> None:
    ids, cuts = both.tokens(21), random.Random(both.seed)
    cache, done, logits = both.ours.new_cache(64), 0, []
    while done < len(ids):
        count = cuts.choice([1, 2, 5, 11])
        logits.append(both.ours.head(both.ours.encode(cache, ids[done : done + count])))
        done += count
    assert close(torch.cat(logits), prefill(both, ids)[0])


def test_long_prompts_are_cut_into_chunks_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    both = pair(1)
    monkeypatch.setattr(model_module, "CHUNK", 4)
    ids = both.tokens(21)
    assert close(both.ours.head(both.ours.encode(both.ours.new_cache(64), ids)), prefill(both, ids)[0])


def test_a_cropped_prefix_continues_as_if_new(both: Pair, logits_seen: list[Tensor]) -> None:
    cache = both.ours.new_cache(64)
    both.ours.encode(cache, both.tokens(25))
    kept = random.Random(both.seed).randrange(1, 20)
    cache.crop(kept)
    ids = [*both.tokens(25)[:kept], *both.tokens(9, salt=1)]
    assert cache.match(ids) == kept
    logits = both.ours.head(both.ours.encode(cache, ids[kept:]))
    reference, prefix = prefill(both, ids)
    assert close(logits, reference[kept:])
    canvas = torch.tensor([both.tokens(WIDTH, salt=2)])
    both.ours.denoise(cache, canvas, torch.ones_like(canvas, dtype=torch.bool))
    assert close(logits_seen[0], reference_step(both, prefix, canvas)[0])


@pytest.mark.parametrize("prefix_length", [1, 4, 23])
def test_a_denoising_step_equals_the_reference(both: Pair, logits_seen: list[Tensor], prefix_length: int) -> None:
    ids = both.tokens(prefix_length)
    _, prefix = prefill(both, ids)
    cache = both.ours.new_cache(64)
    both.ours.encode(cache, ids)
    canvas = torch.tensor([both.tokens(WIDTH, salt=1)])
    free = torch.tensor([[True, False, True, True, False, True, True, False]])
    # The first step has no signal from the step before, the second has the reference's own.
    first = reference_step(both, prefix, canvas)
    out = both.ours.denoise(cache, canvas, free)
    assert close(logits_seen[0], first[free])
    spread = 3 * both.normal(1, WIDTH, both.ours.config.vocab_size)
    out = both.ours.denoise(cache, canvas, free, conditioning=soft_embedding(both, spread), temperature=0.7)
    second = reference_step(both, prefix, canvas, spread)
    assert close(logits_seen[1], second[free])

    tempered = second[free] / 0.7
    distribution = torch.distributions.Categorical(logits=tempered)
    assert torch.equal(out.argmax, tempered.argmax(-1)) and torch.equal(out.sample, out.argmax)
    assert close(out.entropy, distribution.entropy())
    assert close(out.logprob, tempered.log_softmax(-1).amax(-1))
    known = both.reference.model.decoder.embed_tokens(canvas)
    following = torch.where(free[..., None], soft_embedding(both, second / 0.7), known)
    assert close(out.conditioning, following.detach())
    assert cache.ids == ids
    # Canvas rows came and went behind the prefix.
    assert close(
        both.ours.head(both.ours.encode(cache, both.tokens(3, salt=3))),
        prefill(both, ids + both.tokens(3, salt=3))[0][-3:],
    )


def test_rows_of_unequal_length_do_not_see_each_other(both: Pair, logits_seen: list[Tensor]) -> None:
    ids, lengths = both.tokens(13), [5, 8, 1, 3]
    _, prefix = prefill(both, ids)
    cache = both.ours.new_cache(64)
    both.ours.encode(cache, ids)
    canvas = torch.tensor([both.tokens(WIDTH, salt=row) for row in range(4)])
    free = torch.zeros_like(canvas, dtype=torch.bool)
    for row, length in enumerate(lengths):
        free[row, :length] = torch.tensor([slot % 3 != 1 for slot in range(length)])
    spread = 2 * both.normal(4, WIDTH, both.ours.config.vocab_size)
    soft = soft_embedding(both, spread)
    together = both.ours.denoise(cache, canvas, free, lengths=lengths, conditioning=soft)
    expected = [
        reference_step(both, prefix, canvas[row : row + 1, :length], spread[row : row + 1, :length])[0]
        for row, length in enumerate(lengths)
    ]
    assert close(logits_seen[0], torch.cat([expected[row][free[row, : lengths[row]]] for row in range(4)]))
    for row, length in enumerate(lengths):
        assert not together.conditioning[row, length:].any()
        mine = free[row, :length]
        assert close(together.conditioning[row, :length][mine], soft_embedding(both, expected[row])[mine])


def test_scores_are_the_causal_log_probabilities(both: Pair) -> None:
    ids = both.tokens(11)
    cache = both.ours.new_cache(64)
    both.ours.encode(cache, ids)
    rows = [both.tokens(5, salt=1), [], both.tokens(1, salt=2), both.tokens(9, salt=3)]
    scores = both.ours.score(cache, rows)
    assert cache.ids == ids
    for row, score in zip(rows, scores, strict=True):
        logs = prefill(both, ids + row)[0].log_softmax(-1)[len(ids) - 1 : -1]
        assert len(score) == len(row)
        if row:
            assert close(score, logs.gather(1, torch.tensor(row)[:, None])[:, 0])


@pytest.mark.parametrize("seed", [2, 3, 4, 7, 8])
def test_a_whole_sampling_run_is_equal_token_by_token(seed: int) -> None:
    """Entropy-bound sampling with a clamped suffix, both sides fed the same noise.

    Only seeds whose random model is calm: in the others self-conditioning makes rounding grow tenfold a step.
    """
    both, steps, known = pair(seed), 10, slice(6, WIDTH)
    vocabulary = both.ours.config.vocab_size
    ids = both.tokens(17)
    _, prefix = prefill(both, ids)
    cache = both.ours.new_cache(64)
    both.ours.encode(cache, ids)
    start = torch.tensor([both.tokens(WIDTH, salt=1)])
    free = torch.ones_like(start, dtype=torch.bool)
    free[:, known] = False
    random_bits = torch.Generator().manual_seed(seed)

    canvases = [start.clone(), start.clone()]
    soft_logits: Tensor | None = None
    conditioning: Tensor | None = None
    for step in range(steps, 0, -1):
        temperature = 0.4 + 0.4 * step / steps
        gumbel = -torch.empty(6, vocabulary).exponential_(generator=random_bits).log()
        renoise = torch.randint(vocabulary, (6,), generator=random_bits)

        logits = reference_step(both, prefix, canvases[0], soft_logits) / temperature
        logits[0, known] = -1e4
        logits[0, known].scatter_(1, start[0, known, None], 1e4)
        entropy = torch.distributions.Categorical(logits=logits[0, :6]).entropy()
        canvases[0][0, :6] = accept(entropy, (logits[0, :6] + gumbel).argmax(-1), renoise)
        soft_logits = logits

        out = both.ours.denoise(
            cache, canvases[1], free, conditioning=conditioning, temperature=temperature, gumbel=gumbel
        )
        canvases[1][0, :6] = accept(out.entropy, out.sample, renoise)
        conditioning = out.conditioning

        assert torch.equal(out.argmax, logits[0, :6].argmax(-1)), f"step {step}"
        assert torch.equal(canvases[0], canvases[1]), f"step {step}"
    assert not torch.equal(canvases[1], start)


def accept(entropy: Tensor, sample: Tensor, renoise: Tensor) -> Tensor:
    """Keep the surest tokens while their summed entropies, the largest left out, stay below 0.1; renoise the rest."""
    ordered, order = entropy.sort()
    kept = torch.zeros_like(entropy, dtype=torch.bool)
    kept[order] = ordered.cumsum(0) - ordered <= 0.1
    return torch.where(kept, sample, renoise)


def test_int8_weights_stay_close_and_rows_stay_independent() -> None:
    both = pair(0)
    with TemporaryDirectory() as folder:
        small = load_model(save(both.reference, Path(folder)), int8=True, threads=1)
    assert small.precision == "int8" and small.nbytes < both.ours.nbytes
    ids = both.tokens(21)
    cache, exact = small.new_cache(64), prefill(both, ids)[0]
    logits = small.head(small.encode(cache, ids))
    assert torch.nn.functional.cosine_similarity(logits, exact, dim=-1).min() > 0.97
    again, split = small.new_cache(64), []
    for start in (0, 1, 7):
        split.append(small.head(small.encode(again, ids[start : {0: 1, 1: 7, 7: 21}[start]])))
    assert close(torch.cat(split), logits)


def test_bf16_runs_and_stays_close() -> None:
    both = pair(2)
    with TemporaryDirectory() as folder:
        small = load_model(save(both.reference, Path(folder)), dtype=torch.bfloat16, threads=1)
    ids = both.tokens(12)
    logits = small.head(small.encode(small.new_cache(64), ids))
    assert torch.nn.functional.cosine_similarity(logits, prefill(both, ids)[0], dim=-1).min() > 0.97


def test_a_prompt_that_does_not_fit_changes_nothing() -> None:
    ours = pair(0).ours
    cache = ours.new_cache(8)
    ours.encode(cache, [1, 2, 3])
    with pytest.raises(ModelError, match="9 prompt tokens do not fit the prefix cache of 8"):
        ours.encode(cache, [4] * 6)
    assert cache.ids == [1, 2, 3]


def test_too_many_canvas_slots_are_refused() -> None:
    ours = pair(0).ours
    cache = ours.new_cache(8, scratch=8)
    ours.encode(cache, [1, 2, 3])
    canvas = torch.zeros((2, 8), dtype=torch.int64)
    with pytest.raises(ModelError, match="use fewer rows"):
        ours.denoise(cache, canvas, canvas == 0)


def test_scoring_without_a_prefix_is_refused() -> None:
    ours = pair(0).ours
    with pytest.raises(ModelError, match="at least one encoded token"):
        ours.score(ours.new_cache(8), [[1]])


@pytest.mark.parametrize("seed", [2, 3])
def test_encoding_and_a_step_of_uneven_rows_equal_the_reference_on_triton_kernels(
    seed: int, logits_seen: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many experts and one, sliding layers and full ones."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    both, lengths = pair(seed), [4, 2]
    ids = both.tokens(5)
    _, prefix = prefill(both, ids)
    monkeypatch.setenv(path.SWITCH, "triton")
    path.ran.clear()
    cache = both.ours.new_cache(16)
    assert close(both.ours.head(both.ours.encode(cache, ids)), prefill(both, ids)[0])
    canvas = torch.tensor([both.tokens(4, salt=row) for row in range(2)])
    free = torch.tensor([[True, False, True, True], [True, True, False, False]])
    soft = both.normal(2, 4, both.ours.config.vocab_size)
    both.ours.denoise(cache, canvas, free, lengths=lengths, conditioning=soft_embedding(both, soft))
    expected = [
        reference_step(both, prefix, canvas[row : row + 1, :length], soft[row : row + 1, :length])[0]
        for row, length in enumerate(lengths)
    ]
    assert close(logits_seen[0], torch.cat([expected[row][free[row, : lengths[row]]] for row in range(2)]))
    layers = len(both.ours.config.layers)
    ran = {kernel: count for (kernel, which), count in path.ran.items() if which == "triton" and kernel != "head"}
    assert ran == {"attention": 2 * layers, "heads": 2 * layers, "residual": 4 * layers}


@pytest.mark.parametrize("tied_in_int8", [False, True])
def test_a_step_is_the_same_along_either_path_and_the_model_says_which(
    tied_in_int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a dense embedding and with one in int8, which the head, the input and the expected embedding share."""
    both = pair(0)
    weights = both.ours.weights
    assert isinstance(weights.embedding, Tensor)
    if tied_in_int8:
        small = Int8Rows.of(weights.embedding)
        weights = replace(weights, embedding=small, head=Dense(small.dense(torch.float32).T))
    ours = Model(both.ours.config, weights)
    cache = ours.new_cache(64)
    ours.encode(cache, both.tokens(9))
    canvas = torch.tensor([both.tokens(WIDTH, salt=1)])
    free = torch.tensor([[True, False, True, True, False, True, True, False]])
    path.ran.clear()
    steps = []
    for which in ("torch", "triton"):
        monkeypatch.setenv(path.SWITCH, which)
        soft = both.normal(1, WIDTH, ours.config.hidden_size)
        steps.append(ours.denoise(cache, canvas, free, conditioning=soft, temperature=0.5))
        assert path.ran["head", "triton"] == (which == "triton")
        fused = "triton (built-in block sizes), but not for attention and head and heads and residual"
        assert ours.kernels == {"torch": "torch", "triton": fused}[which]
    plain, fused = steps
    assert torch.equal(fused.argmax, plain.argmax)
    assert close(fused.entropy, plain.entropy) and close(fused.logprob, plain.logprob)
    assert close(fused.conditioning, plain.conditioning)


def test_an_embedding_in_int8_is_read_as_the_numbers_it_stands_for() -> None:
    """Held to the same rounded numbers kept dense: how far rounding moves a random model is another matter, since one
    token that takes another expert moves a lot."""
    both = pair(1)
    assert isinstance(both.ours.weights.embedding, Tensor)
    small = Int8Rows.of(both.ours.weights.embedding)
    same = small.dense(torch.float32)
    models = [
        Model(both.ours.config, replace(both.ours.weights, embedding=embedding, head=Dense(same.T)))
        for embedding in (small, same)
    ]
    assert [model.int8 for model in models] == [True, False]
    ids, canvas = both.tokens(12), torch.tensor([both.tokens(WIDTH, salt=1)])
    caches = [model.new_cache(64) for model in models]
    ours, dense = (model.head(model.encode(cache, ids)) for model, cache in zip(models, caches, strict=True))
    assert close(ours, dense)
    ours, dense = (
        model.denoise(cache, canvas, canvas >= 0).conditioning for model, cache in zip(models, caches, strict=True)
    )
    assert close(ours, dense)
