"""Queries, keys and values between product and attention: Triton against plain torch, which `test_model` holds.

On a CPU Triton runs in its interpreter (`conftest`), see `test_matmul`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stopgap.infill.layers import rope_tables
from stopgap.infill.model_config import Rope
from stopgap.kernels import path
from stopgap.kernels.heads import reference, turn_heads

EPS = 1e-6
EXACT, BF16 = 2e-6, 2e-3
"""Relative root mean square against fp32: rounding to bf16 alone is 1.7e-3."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double(), expected.double()
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def inputs(tokens: int, units: int, groups: int, kv_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """heads, norms, cos, sin"""
    cos, sin = rope_tables(Rope(100.0, 0.5, 1.0), width, 3 + torch.arange(tokens), torch.float32)
    norms = 1 + 0.3 * drawn(groups + 1, 1, width).expand(-1, kv_heads, -1).contiguous()
    return drawn(tokens, units, kv_heads, width), norms, cos, sin


def room(tokens: int, kv_heads: int, width: int, dtype: torch.dtype, by_place: bool = False) -> Tensor:
    """A cache of more slots than are written, and how it looks to its new tokens."""
    slots = torch.full((kv_heads, tokens + 5, width), 7.0, dtype=dtype)
    if by_place:
        slots = slots.mT.contiguous().mT
    return slots[None, :, 2 : 2 + tokens].permute(2, 0, 1, 3)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    monkeypatch.setenv(path.SWITCH, "triton")


SHAPES = [
    (1, 4, 2, 2, 8),  # a sliding layer: values of its own
    (3, 3, 2, 2, 16),  # a full one: values are its keys
    (2, 2, 1, 1, 32),
    (2, 5, 3, 3, 24),  # no size a power of two
    (17, 4, 2, 8, 16),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.usefixtures("interpreted")
def test_triton_turns_and_stores_as_the_reference_does(shape: tuple[int, ...], by_place: bool) -> None:
    tokens, units, groups, kv_heads, width = shape
    given = inputs(tokens, units, groups, kv_heads, width)
    places = [room(tokens, kv_heads, width, torch.float32, by_place) for _ in range(4)]
    before = path.ran["heads", "triton"]
    queries = turn_heads(*given, *places[:2], EPS)
    told = reference(*given, *places[2:], EPS)
    assert queries.shape == told.shape and error(queries, told) < EXACT
    for mine, theirs in zip(places[:2], places[2:], strict=True):
        assert error(mine, theirs) < EXACT
        whole = mine._base
        assert whole is not None and (whole == 7.0).sum() == 5 * kv_heads * width, "other slots stay as they are"
    assert path.ran["heads", "triton"] == before + 1


@pytest.mark.parametrize("units", [3, 4])
@pytest.mark.usefixtures("interpreted")
def test_in_bf16_one_rounding_is_lost(units: int) -> None:
    exact = inputs(4, units, 2, 2, 64)
    rounded = tuple(tensor.bfloat16() for tensor in exact)
    places = [room(4, 2, 64, torch.bfloat16) for _ in range(2)]
    told = [room(4, 2, 64, torch.float32) for _ in range(2)]
    heads, norms, cos, sin = rounded
    queries = turn_heads(heads, norms, cos, sin, *places, EPS)
    want = reference(heads.float(), norms.float(), cos.float(), sin.float(), *told, EPS)
    assert queries.dtype == torch.bfloat16 and error(queries, want) < BF16
    assert all(error(mine, theirs) < BF16 for mine, theirs in zip(places, told, strict=True))


@pytest.mark.usefixtures("interpreted")
def test_padding_stays_zero_and_extremes_stay_numbers() -> None:
    heads, norms, cos, sin = inputs(3, 4, 2, 2, 16)
    heads[0], heads[1] = 0.0, 1e15 * heads[1]
    places = [room(3, 2, 16, torch.float32) for _ in range(2)]
    queries = turn_heads(heads, norms, cos, sin, *places, EPS)
    for found in (queries, *places):
        assert not found[0].any() and found.isfinite().all()


@pytest.mark.usefixtures("interpreted")
def test_no_tokens_are_no_error() -> None:
    given = inputs(0, 4, 2, 2, 16)
    assert turn_heads(*given, *(room(0, 2, 16, torch.float32) for _ in range(2)), EPS).shape == (0, 2, 2, 16)
