"""The vocabulary head of a denoising step, against the plain formulas."""

from __future__ import annotations

import pytest
import torch

from stopgap.kernels.head import head

SOFTCAP, TEMPERATURE = 8.0, 0.5


@pytest.fixture
def logits() -> torch.Tensor:
    return 6 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0))


def tempered(logits: torch.Tensor) -> torch.Tensor:
    return torch.tanh(logits / SOFTCAP) * SOFTCAP / TEMPERATURE


def test_everything_is_read_from_the_capped_and_tempered_distribution(logits: torch.Tensor) -> None:
    out = head(logits, softcap=SOFTCAP, temperature=TEMPERATURE)
    logs = tempered(logits).log_softmax(-1)
    torch.testing.assert_close(out.probabilities, logs.exp())
    torch.testing.assert_close(out.entropy, -(logs.exp() * logs).sum(-1), atol=2e-5, rtol=0)
    torch.testing.assert_close(out.logprob, logs.amax(-1), atol=2e-5, rtol=0)
    assert torch.equal(out.argmax, logs.argmax(-1))


def test_a_sure_slot_has_no_negative_entropy() -> None:
    out = head(torch.eye(4) * 1000, softcap=1000.0, temperature=0.1)
    assert (out.entropy >= 0).all() and (out.entropy < 1e-6).all()


def test_banned_tokens_never_come_and_leave_no_trace(logits: torch.Tensor) -> None:
    banned = torch.zeros(40, dtype=torch.bool)
    banned[logits[0].argmax()] = banned[7] = True
    for noise in (None, 50 * torch.randn(5, 40), torch.Generator().manual_seed(1)):
        out = head(logits, softcap=SOFTCAP, temperature=TEMPERATURE, banned=banned, noise=noise)
        assert not banned[out.argmax].any() and not banned[out.sample].any()
        assert not out.probabilities[:, banned].any()
    kept = tempered(logits)[:, ~banned].log_softmax(-1)
    torch.testing.assert_close(out.entropy, -(kept.exp() * kept).sum(-1), atol=2e-5, rtol=0)


def test_a_slot_can_be_held_to_a_few_tokens(logits: torch.Tensor) -> None:
    allowed = {2: torch.tensor([3, 9])}
    free = head(logits, softcap=SOFTCAP, temperature=TEMPERATURE)
    out = head(logits, softcap=SOFTCAP, temperature=TEMPERATURE, allowed=allowed)
    assert out.probabilities[2, [3, 9]].sum().item() == pytest.approx(1)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(out.probabilities[others], free.probabilities[others])


def test_injected_gumbel_noise_decides_the_sample(logits: torch.Tensor) -> None:
    noise = torch.randn(5, 40)
    out = head(logits, softcap=SOFTCAP, temperature=TEMPERATURE, noise=noise)
    assert torch.equal(out.sample, (tempered(logits) + noise).argmax(-1))


def test_a_generator_draws_from_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -30.0]]).expand(20_000, 4)
    out = head(logits, softcap=1000.0, temperature=1.0, noise=torch.Generator().manual_seed(0))
    share = torch.bincount(out.sample, minlength=4) / len(logits)
    torch.testing.assert_close(share, out.probabilities[0], atol=0.015, rtol=0)
