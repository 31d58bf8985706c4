"""The vocabulary head of a denoising step: plain torch against the formulas, and Triton against plain torch.

Triton runs in its interpreter (`conftest`). Where both sides must agree to the last bit, weights and states are small
multiples of a power of two, so that no order of adding them up loses anything.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stopgap.kernels import path
from stopgap.kernels.head import Head, Philox, denoise_head, read
from stopgap.kernels.quantised import Int8Rows

Mode: Any = TorchDispatchMode
SOFTCAP, TEMPERATURE = 8.0, 0.5


@pytest.fixture(params=[40, 192])
def logits(request: pytest.FixtureRequest) -> torch.Tensor:
    """Of a vocabulary that is taken in one piece, and of one that is taken in blocks."""
    return 6 * torch.randn(5, request.param, generator=torch.Generator().manual_seed(0))


def tempered(logits: torch.Tensor) -> torch.Tensor:
    return torch.tanh(logits / SOFTCAP) * SOFTCAP / TEMPERATURE


def test_everything_is_read_from_the_capped_and_tempered_distribution(logits: torch.Tensor) -> None:
    out = read(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE)
    logs = tempered(logits).log_softmax(-1)
    torch.testing.assert_close(out.probabilities, logs.exp())
    torch.testing.assert_close(out.entropy, -(logs.exp() * logs).sum(-1), atol=2e-5, rtol=0)
    torch.testing.assert_close(out.logprob, logs.amax(-1), atol=2e-5, rtol=0)
    assert torch.equal(out.argmax, logs.argmax(-1))


def test_a_sure_slot_has_no_negative_entropy() -> None:
    out = read(torch.eye(4) * 1000, softcap=1000.0, temperature=0.1)
    assert (out.entropy >= 0).all() and (out.entropy < 1e-6).all()


def test_banned_tokens_never_come_and_leave_no_trace(logits: torch.Tensor) -> None:
    banned = torch.zeros(logits.shape[1], dtype=torch.bool)
    banned[logits[0].argmax()] = banned[7] = True
    for noise in (None, 50 * torch.randn(logits.shape), torch.Generator().manual_seed(1)):
        out = read(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE, banned=banned, noise=noise)
        assert not banned[out.argmax].any() and not banned[out.sample].any()
        assert not out.probabilities[:, banned].any()
    kept = tempered(logits)[:, ~banned].log_softmax(-1)
    torch.testing.assert_close(out.entropy, -(kept.exp() * kept).sum(-1), atol=2e-5, rtol=0)


def test_a_slot_can_be_held_to_a_few_tokens(logits: torch.Tensor) -> None:
    allowed = {2: torch.tensor([3, 9])}
    free = read(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE)
    out = read(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE, allowed=allowed)
    assert out.probabilities[2, [3, 9]].sum().item() == pytest.approx(1)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(out.probabilities[others], free.probabilities[others])


def test_injected_gumbel_noise_decides_the_sample(logits: torch.Tensor) -> None:
    noise = torch.randn(logits.shape)
    out = read(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE, noise=noise)
    assert torch.equal(out.sample, (tempered(logits) + noise).argmax(-1))


@pytest.mark.parametrize("repeats", [1, 48])
def test_a_generator_draws_from_the_distribution(repeats: int) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -30.0]).repeat(repeats).expand(20_000, -1)
    out = read(logits.clone(), softcap=1000.0, temperature=1.0, noise=torch.Generator().manual_seed(0))
    share = torch.bincount(out.sample, minlength=logits.shape[1]).view(repeats, 4).sum(0) / len(logits)
    expected = out.probabilities[0].view(repeats, 4).sum(0)
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_a_draw_never_takes_a_token_without_probability() -> None:
    """The share of a block's last tokens is lost to rounding here; the draw must not fall on what follows them."""
    banned = torch.ones(256, dtype=torch.bool)
    banned[[0, 63, 64, 130]] = False
    logits = torch.tensor([30.0, 0.0, 30.0, -30.0]).repeat_interleave(64).expand(4096, -1).clone()
    out = read(logits, softcap=1000.0, temperature=1.0, banned=banned, noise=torch.Generator().manual_seed(0))
    assert not banned[out.sample].any()


def inputs(count: int, vocabulary: int, width: int, kind: str, coarse: bool = True) -> tuple[Tensor, Tensor | Int8Rows]:
    """Hidden states and embedding; `kind` is the dtype of the states, and int8 if the embedding is."""
    pick = torch.Generator().manual_seed(count * vocabulary + width)
    dtype = torch.float32 if kind.startswith("float32") else torch.bfloat16
    if coarse:
        hidden = torch.randint(-8, 9, (count, width), generator=pick) / 4
        codes = torch.randint(-8, 9, (vocabulary, width), generator=pick)
    else:
        hidden = torch.randn(count, width, generator=pick)
        codes = 40 * torch.randn(vocabulary, width, generator=pick)
    steps = torch.tensor([0.0625, 0.125])[torch.randint(2, (vocabulary,), generator=pick)]
    if kind.endswith("int8"):
        return hidden.to(dtype), Int8Rows(codes.round().to(torch.int8), steps)
    return hidden.to(dtype), (codes * steps[:, None]).to(dtype)


def by(
    which: path.Path, monkeypatch: pytest.MonkeyPatch, hidden: Tensor, embedding: Tensor | Int8Rows, **how: object
) -> Head:
    """The head along one path, and proof that it was that one."""
    monkeypatch.setenv(path.SWITCH, which)
    before = path.ran.copy()
    rounding = hidden.dtype == torch.bfloat16
    options = {"softcap": 30.0, "temperature": 0.4, "round_logits": rounding} | how
    with torch.inference_mode():
        out = denoise_head(hidden, embedding, **options)  # type: ignore[arg-type]
    assert path.ran - before == {("head", which): 1}
    return out


def off(ours: Tensor, exact: Tensor) -> float:
    """Relative root mean square of the error."""
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


SHAPES = [(1, 130, 16), (3, 257, 48), (17, 300, 40), (33, 128, 64)]
KINDS = ["float32", "bfloat16", "float32 int8", "bfloat16 int8"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "vocabulary", "width"), SHAPES)
def test_the_fused_head_equals_the_plain_one(
    count: int, vocabulary: int, width: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties abound in coarse numbers: the lowest id wins on both sides. Slot 0 may hold two ids only."""
    hidden, embedding = inputs(count, vocabulary, width, kind)
    pick = torch.Generator().manual_seed(1)
    how = {
        "temperature": 0.4 if count % 2 else 0.8,
        "banned": torch.rand(vocabulary, generator=pick) < 0.2,
        "noise": -torch.empty(count, vocabulary).exponential_(generator=pick).log(),
        "allowed": {0: torch.tensor([3, vocabulary - 1])},
    }
    plain, fused = (by(which, monkeypatch, hidden, embedding, **how) for which in ("torch", "triton"))
    assert torch.equal(fused.argmax, plain.argmax)
    assert torch.equal(fused.sample, plain.sample)
    torch.testing.assert_close(fused.entropy, plain.entropy, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(fused.logprob, plain.logprob, atol=1e-4, rtol=1e-5)
    assert fused.conditioning.dtype == hidden.dtype
    assert off(fused.conditioning, plain.conditioning) < (2e-3 if "bfloat16" in kind else 1e-5)


@pytest.mark.parametrize("kind", ["bfloat16", "bfloat16 int8"])
def test_the_expected_embedding_of_a_flat_and_of_a_sharp_row_is_within_bf16(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against fp64, for what rounding probabilities costs a row as a whole. It ends in bf16, which is 1.6e-3 alone."""
    hidden, embedding = inputs(8, 300, 40, kind)
    hidden = hidden * torch.tensor([0.0, 0.125, 0.25, 0.5, 1, 1, 2, 2])[:, None].to(hidden.dtype)
    table = (embedding.dense(torch.float32) if isinstance(embedding, Int8Rows) else embedding).double()
    raw = (hidden.double() @ table.T).to(torch.bfloat16).double()
    exact = (torch.tanh(raw / 30) * 30 / 0.4).softmax(-1) @ table
    fused = by("triton", monkeypatch, hidden, embedding).conditioning
    assert max(off(ours, row) for ours, row in zip(fused, exact, strict=True)) < 4e-3
    assert off(fused, exact) < 2e-3


@pytest.mark.parametrize("kind", ["float32", "bfloat16 int8"])
def test_of_uneven_logits_the_argmax_is_the_same_unless_two_nearly_tie(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, embedding = inputs(20, 300, 32, kind, coarse=False)
    table = embedding.dense(torch.float32) if isinstance(embedding, Int8Rows) else embedding.float()
    exact = torch.tanh(hidden.double() @ table.double().T / 30) * 30 / 0.4
    fused = by("triton", monkeypatch, hidden, embedding, round_logits=False)
    first, second = exact.topk(2).values.unbind(-1)
    clear = first - second > 1e-3
    assert clear.sum() >= 15
    assert torch.equal(fused.argmax[clear], exact.argmax(-1)[clear])
    logs = exact.log_softmax(-1)
    torch.testing.assert_close(fused.entropy.double(), -(logs.exp() * logs).sum(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(fused.logprob.double(), logs.amax(-1), atol=1e-4, rtol=0)


class Made(Mode):  # type: ignore[misc]
    """Every tensor that an operation of torch returns."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.tensors += [one for one in (out if isinstance(out, tuple | list) else [out]) if isinstance(one, Tensor)]
        return out


@pytest.mark.parametrize("kind", ["bfloat16", "bfloat16 int8"])
@pytest.mark.parametrize("conditioning", ["dense", 4])
def test_the_logits_of_all_slots_never_lie_in_memory_in_fp32(
    kind: str, conditioning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, embedding = inputs(20, 1000, 40, kind)
    noise = Philox(torch.tensor(1), torch.tensor(1))
    plain, fused = Made(), Made()
    for which, made in (("torch", plain), ("triton", fused)):
        with made:
            by(which, monkeypatch, hidden, embedding, conditioning=conditioning, noise=noise)
    wide, narrow = ({one.dtype for one in made.tensors if one.numel() >= 20 * 1000} for made in (plain, fused))
    assert torch.float32 in wide, "the plain head does, so this test can see it"
    assert torch.bfloat16 in narrow and torch.float32 not in narrow


@pytest.mark.parametrize("which", ["torch", "triton"])
@pytest.mark.parametrize("left", [0, 127, 128, 299])
def test_the_only_token_left_always_comes(which: path.Path, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, embedding = inputs(3, 300, 16, "float32")
    assert isinstance(embedding, Tensor)
    banned = torch.arange(300) != left
    out = by(which, monkeypatch, hidden, embedding, banned=banned, noise=torch.Generator().manual_seed(0))
    assert (out.argmax == left).all() and (out.sample == left).all()
    assert not out.entropy.any() and not out.logprob.any()
    torch.testing.assert_close(out.conditioning, embedding[left].expand(3, -1))


@pytest.mark.parametrize("which", ["torch", "triton"])
def test_the_lowest_of_equal_ids_wins(which: path.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, embedding = torch.ones(2, 16), torch.ones(300, 16)
    banned = torch.arange(300) < 130
    out = by(which, monkeypatch, hidden, embedding, banned=banned)
    assert (out.argmax == 130).all() and (out.sample == 130).all()
    torch.testing.assert_close(out.entropy, torch.full((2,), math.log(170)))


def test_logits_far_beyond_the_cap_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.tensor([[1e4], [-1e4], [0.0], [1.0]])
    embedding = torch.linspace(-1, 1, 200)[:, None].contiguous()
    plain, fused = (by(which, monkeypatch, hidden, embedding) for which in ("torch", "triton"))
    assert all(value.isfinite().all() for value in fused)
    for ours, reference in zip(fused[2:], plain[2:], strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)
    assert fused.argmax[1] == 0 and fused.argmax[2] == 0


@pytest.mark.parametrize("which", ["torch", "triton"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16 int8"])
def test_an_expectation_over_the_best_few_tokens(which: path.Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, embedding = inputs(5, 300, 24, kind, coarse=False)
    some, all_of_them = (by(which, monkeypatch, hidden, embedding, conditioning=k).conditioning for k in (4, 300))
    table = embedding.dense(torch.float32) if isinstance(embedding, Int8Rows) else embedding
    raw = hidden.float() @ table.T
    raw = raw.bfloat16().float() if hidden.dtype == torch.bfloat16 else raw
    best, ids = (torch.tanh(raw / 30) * 30 / 0.4).softmax(-1).topk(4)
    expected = (best / best.sum(-1, keepdim=True))[:, None] @ table[ids]
    assert off(some, expected[:, 0]) < 3e-3
    dense = by(which, monkeypatch, hidden, embedding).conditioning
    assert off(all_of_them, dense) < 3e-3


def test_drawn_samples_follow_the_distribution_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six tokens, three in either tile. Fixed seed; the bound is what one seed in a thousand exceeds."""
    ids, shares = torch.tensor([2, 5, 127, 128, 150, 199]), torch.tensor([0.05, 0.1, 0.25, 0.3, 0.2, 0.1])
    draws = 4000
    embedding = torch.full((200, 16), 0.0)
    embedding[ids] = shares.log()[:, None] / 16
    banned = torch.ones(200, dtype=torch.bool)
    banned[ids] = False
    noise = torch.Generator().manual_seed(0)
    out = by(
        "triton",
        monkeypatch,
        torch.ones(draws, 16),
        embedding,
        softcap=1e4,
        temperature=1.0,
        banned=banned,
        noise=noise,
    )
    counts = torch.bincount(out.sample, minlength=200)
    assert counts.sum() == counts[ids].sum()
    expected = draws * shares
    assert float(((counts[ids] - expected) ** 2 / expected).sum()) < 20.5


def test_noise_depends_on_seed_and_step_alone_and_a_generator_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, embedding = torch.zeros(16, 16), torch.zeros(200, 16)

    def drawn(noise: Philox | torch.Generator) -> list[int]:
        return by("triton", monkeypatch, hidden, embedding, noise=noise).sample.tolist()

    def philox(seed: int, step: int) -> Philox:
        return Philox(torch.tensor(seed), torch.tensor(step))

    assert drawn(philox(7, 0)) == drawn(philox(7, 0))
    generator = torch.Generator().manual_seed(3)
    streams = [drawn(philox(7, 0)), drawn(philox(7, 1)), drawn(philox(8, 0)), drawn(generator), drawn(generator)]
    assert all(
        sum(a == b for a, b in zip(one, other, strict=True)) < 4
        for one in streams
        for other in streams
        if one is not other
    )
    assert all(len(set(stream)) > 8 for stream in streams)


@pytest.mark.parametrize("which", ["torch", "triton"])
def test_a_temperature_on_the_device_is_the_same_temperature(which: path.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, embedding = inputs(3, 200, 16, "float32")
    told, held = (by(which, monkeypatch, hidden, embedding, temperature=t) for t in (0.7, torch.tensor(0.7)))
    torch.testing.assert_close(told, held, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", ["torch", "triton"])
def test_no_free_slot_is_no_work(which: path.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = by(which, monkeypatch, torch.zeros(0, 16), torch.zeros(200, 16))
    assert [len(value) for value in out] == [0] * 5 and out.conditioning.shape == (0, 16)
