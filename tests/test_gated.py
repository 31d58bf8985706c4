"""The gated product: plain torch against dense weights, and Triton against plain torch.

On a CPU Triton runs in its interpreter (`conftest`), see `test_matmul`.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stopgap.kernels import path
from stopgap.kernels.gated import gated, reference
from stopgap.kernels.quantised import Int4Groups, Int8Rows, Quantised

EXACT, BF16 = 2e-6, 2e-3
"""Relative root mean square against fp32: rounding to bf16 alone is 1.7e-3."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double(), expected.double()
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def matrix(hidden: int, width: int, form: type[Quantised]) -> Quantised:
    return form.of(drawn(2 * hidden, width) / width**0.5)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    monkeypatch.setenv(path.SWITCH, "triton")


def test_plain_torch_is_gate_times_up_of_the_dense_weight() -> None:
    weight, x = matrix(24, 64, Int8Rows), drawn(3, 64)
    first, second = (x @ weight.dense(torch.float32).T).split(24, dim=1)
    before = path.ran["gated", "torch"]
    torch.testing.assert_close(gated(x, weight), F.gelu(first, approximate="tanh") * second)
    assert path.ran["gated", "torch"] == before + 1


@pytest.mark.parametrize(
    ("rows", "hidden", "width", "form"),
    [
        (1, 24, 64, Int8Rows),
        (4, 40, 100, Int8Rows),  # fits no block
        (17, 24, 64, Int4Groups),
        (3, 16, 192, Int4Groups),  # three groups on four slices
        (70, 16, 64, Int8Rows),  # two blocks of rows
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_triton_gates_as_the_reference_does(rows: int, hidden: int, width: int, form: type[Quantised]) -> None:
    weight, x = matrix(hidden, width, form), drawn(rows, width)
    before = path.ran["gated", "triton"]
    assert error(gated(x, weight), reference(x, weight)) < EXACT
    assert path.ran["gated", "triton"] == before + 1


@pytest.mark.usefixtures("interpreted")
def test_in_bf16_one_rounding_is_lost() -> None:
    weight, x = matrix(32, 64, Int4Groups), drawn(4, 64).bfloat16()
    got = gated(x, weight)
    assert got.dtype == torch.bfloat16
    assert error(got, reference(x.float(), weight)) < BF16


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
@pytest.mark.usefixtures("interpreted")
def test_a_gate_far_open_or_closed_is_no_nan() -> None:
    weight, x = matrix(16, 64, Int8Rows), drawn(2, 64)
    x[0] *= 1e9  # cubes of it leave fp32
    got = gated(x, weight)
    assert error(got[0], reference(x, weight)[0]) < EXACT
    assert torch.equal(gated(x[1:], weight), got[1:])


@pytest.mark.usefixtures("interpreted")
def test_no_rows_are_no_error() -> None:
    assert gated(drawn(0, 64), matrix(16, 64, Int8Rows)).shape == (0, 16)
