"""What follows a sublayer: plain torch against its definition in fp64, and Triton against plain torch.

On a CPU Triton runs in its interpreter (`conftest`), see `test_matmul`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stopgap.kernels import path
from stopgap.kernels.residual import add_normed, add_two_normed

EPS = 1e-6
EXACT, BF16 = 1e-6, 2e-3
"""Relative root mean square against fp32: rounding to bf16 alone is 1.7e-3."""


def drawn(*shape: int, salt: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + salt))


def error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double(), expected.double()
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def inputs(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, two values, then four weights."""
    rows = [drawn(tokens, width, salt=salt).to(dtype) for salt in range(3)]
    return rows + [(1 + 0.3 * drawn(width, salt=10 + salt)).to(dtype) for salt in range(4)]


def unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    monkeypatch.setenv(path.SWITCH, "triton")


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize(("tokens", "width"), [(1, 16), (3, 100), (4, 256)])
@pytest.mark.parametrize("followed", [True, False])
@pytest.mark.usefixtures("interpreted")
def test_either_path_is_the_sum_and_its_norm(
    kernels: str, tokens: int, width: int, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(path.SWITCH, kernels)
    given = inputs(tokens, width)
    x, y, z, by_y, by_z, by_both, last = (tensor.double() for tensor in given)
    following = given[6] if followed else None
    last = last if followed else torch.ones_like(last)
    before = path.ran["residual", "triton"]
    one, two = x + unit(y) * by_y, 0.7 * x + unit(unit(y) * by_y + unit(z) * by_z) * by_both
    got = add_normed(given[0], (given[1], given[3]), EPS, following)
    for mine, told in zip(got, (one, unit(one) * last), strict=True):
        assert error(mine, told) < EXACT
    got = add_two_normed(given[0], (given[1], given[3]), (given[2], given[4]), given[5], 0.7, EPS, following)
    for mine, told in zip(got, (two, unit(two) * last), strict=True):
        assert error(mine, told) < EXACT
    assert path.ran["residual", "triton"] == before + 2 * (kernels == "triton")


@pytest.mark.usefixtures("interpreted")
def test_in_bf16_one_rounding_is_lost() -> None:
    rounded = inputs(4, 256, torch.bfloat16)
    x, y, z, by_y, by_z, by_both, last = (tensor.double() for tensor in rounded)
    total = 0.7 * x + unit(unit(y) * by_y + unit(z) * by_z) * by_both
    got = add_two_normed(
        rounded[0], (rounded[1], rounded[3]), (rounded[2], rounded[4]), rounded[5], 0.7, EPS, rounded[6]
    )
    for mine, told in zip(got, (total, unit(total) * last), strict=True):
        assert mine.dtype == torch.bfloat16
        assert error(mine, told) < BF16


@pytest.mark.usefixtures("interpreted")
def test_padding_stays_zero_and_extremes_stay_numbers() -> None:
    x, y, z, by_y, by_z, by_both, _ = inputs(4, 64)
    for row, factor in enumerate((0.0, 1e-30, 1e15)):
        x[row], y[row], z[row] = factor * x[row], factor * y[row], factor * z[row]
    total, normed = add_two_normed(x, (y, by_y), (z, by_z), by_both, 0.5, EPS)
    assert not total[0].any() and not normed[0].any()
    assert total.isfinite().all() and normed.isfinite().all()
    alone = add_two_normed(x[3:], (y[3:], by_y), (z[3:], by_z), by_both, 0.5, EPS)
    assert torch.equal(alone[0], total[3:]) and torch.equal(alone[1], normed[3:])


@pytest.mark.usefixtures("interpreted")
def test_no_tokens_are_no_error() -> None:
    x, y, _, weight, *_ = inputs(0, 16)
    total, normed = add_normed(x, (y, weight), EPS)
    assert total.shape == normed.shape == (0, 16)


@pytest.mark.usefixtures("interpreted")
def test_a_slice_of_a_wider_product_is_read_by_its_rows() -> None:
    x, wide, _, _, *_ = inputs(3, 64)
    weight = torch.ones(32)
    got = add_normed(x[:, :32], (wide[:, 32:], weight), EPS)
    told = add_normed(x[:, :32].clone(), (wide[:, 32:].clone(), weight), EPS)
    assert torch.equal(got[0], told[0]) and torch.equal(got[1], told[1])
