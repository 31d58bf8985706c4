"""The vocabulary head of a denoising step, against the plain formulas."""

from __future__ import annotations

import pytest
import torch

from stopgap.kernels.head import head

SOFTCAP, TEMPERATURE = 8.0, 0.5


@pytest.fixture(params=[40, 192])
def logits(request: pytest.FixtureRequest) -> torch.Tensor:
    """Of a vocabulary that is taken in one piece, and of one that is taken in blocks."""
    return 6 * torch.randn(5, request.param, generator=torch.Generator().manual_seed(0))


def tempered(logits: torch.Tensor) -> torch.Tensor:
    return torch.tanh(logits / SOFTCAP) * SOFTCAP / TEMPERATURE


def test_everything_is_read_from_the_capped_and_tempered_distribution(logits: torch.Tensor) -> None:
    out = head(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE)
    logs = tempered(logits).log_softmax(-1)
    torch.testing.assert_close(out.probabilities, logs.exp())
    torch.testing.assert_close(out.entropy, -(logs.exp() * logs).sum(-1), atol=2e-5, rtol=0)
    torch.testing.assert_close(out.logprob, logs.amax(-1), atol=2e-5, rtol=0)
    assert torch.equal(out.argmax, logs.argmax(-1))


def test_a_sure_slot_has_no_negative_entropy() -> None:
    out = head(torch.eye(4) * 1000, softcap=1000.0, temperature=0.1)
    assert (out.entropy >= 0).all() and (out.entropy < 1e-6).all()


def test_banned_tokens_never_come_and_leave_no_trace(logits: torch.Tensor) -> None:
    banned = torch.zeros(logits.shape[1], dtype=torch.bool)
    banned[logits[0].argmax()] = banned[7] = True
    for noise in (None, 50 * torch.randn(logits.shape), torch.Generator().manual_seed(1)):
        out = head(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE, banned=banned, noise=noise)
        assert not banned[out.argmax].any() and not banned[out.sample].any()
        assert not out.probabilities[:, banned].any()
    kept = tempered(logits)[:, ~banned].log_softmax(-1)
    torch.testing.assert_close(out.entropy, -(kept.exp() * kept).sum(-1), atol=2e-5, rtol=0)


def test_a_slot_can_be_held_to_a_few_tokens(logits: torch.Tensor) -> None:
    allowed = {2: torch.tensor([3, 9])}
    free = head(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE)
    out = head(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE, allowed=allowed)
    assert out.probabilities[2, [3, 9]].sum().item() == pytest.approx(1)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(out.probabilities[others], free.probabilities[others])


def test_injected_gumbel_noise_decides_the_sample(logits: torch.Tensor) -> None:
    noise = torch.randn(logits.shape)
    out = head(logits.clone(), softcap=SOFTCAP, temperature=TEMPERATURE, noise=noise)
    assert torch.equal(out.sample, (tempered(logits) + noise).argmax(-1))


@pytest.mark.parametrize("repeats", [1, 48])
def test_a_generator_draws_from_the_distribution(repeats: int) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -30.0]).repeat(repeats).expand(20_000, -1)
    out = head(logits.clone(), softcap=1000.0, temperature=1.0, noise=torch.Generator().manual_seed(0))
    share = torch.bincount(out.sample, minlength=logits.shape[1]).view(repeats, 4).sum(0) / len(logits)
    expected = out.probabilities[0].view(repeats, 4).sum(0)
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)


def test_a_draw_never_takes_a_token_without_probability() -> None:
    """The share of a block's last tokens is lost to rounding here; the draw must not fall on what follows them."""
    banned = torch.ones(256, dtype=torch.bool)
    banned[[0, 63, 64, 130]] = False
    logits = torch.tensor([30.0, 0.0, 30.0, -30.0]).repeat_interleave(64).expand(4096, -1).clone()
    out = head(logits, softcap=1000.0, temperature=1.0, banned=banned, noise=torch.Generator().manual_seed(0))
    assert not banned[out.sample].any()
