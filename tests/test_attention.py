"""Attention over prefix and canvas: Triton against plain torch.

On a CPU Triton runs in its interpreter (`conftest`), see `test_matmul`.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stopgap.kernels import path
from stopgap.kernels.attention import attention, reference

EXACT, BF16 = 2e-6, 1.8e-3
"""Relative root mean square against fp32. Rounding a result to bf16 is 1.7e-3 of it; weights are not rounded so."""
UNSEEN = -1e30


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double(), expected.double()
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


def inputs(
    tokens: int, groups: int, kv_heads: int, width: int, length: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries whose scores differ by a few, and keys and values as they lie in a cache: behind other tokens."""
    queries = 2 * drawn(tokens, groups, kv_heads, width) * width**-0.25
    keys, values = drawn(2, kv_heads, length + 6, width)
    return (
        queries.to(dtype),
        (keys * width**-0.25).to(dtype)[None, :, 3 : 3 + length],
        values.to(dtype)[None, :, 3 : 3 + length],
    )


def seen(tokens: int, groups: int, length: int, unseen: float) -> Tensor:
    """[T * G, L], for a token its own key, the last one of all and chance."""
    visible = torch.rand((tokens, length), generator=torch.Generator().manual_seed(length)) < 0.6
    visible[torch.arange(tokens), torch.arange(tokens) % length] = True
    return torch.where(visible, 0.0, unseen).repeat_interleave(groups, dim=0)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    monkeypatch.setenv(path.SWITCH, "triton")


SHAPES = [
    (1, 1, 1, 16, 1),
    (4, 2, 2, 8, 5),
    (3, 2, 1, 24, 70),  # no power of two; two spans
    (20, 2, 1, 32, 150),  # two blocks of rows, three spans
    (2, 3, 2, 256, 200),
    (3, 8, 2, 512, 100),  # a full layer's heads
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("unseen", [None, UNSEEN, float("-inf")])
@pytest.mark.usefixtures("interpreted")
def test_triton_attends_as_the_reference_does(shape: tuple[int, ...], unseen: float | None) -> None:
    tokens, groups, _, _, length = shape
    queries, keys, values = inputs(*shape)
    mask = None if unseen is None else seen(tokens, groups, length, unseen)
    before = path.ran["attention", "triton"]
    got = attention(queries, keys, values, mask)
    told = reference(queries, keys, values, mask)
    assert got.shape == told.shape and error(got, told) < EXACT
    assert path.ran["attention", "triton"] == before + 1


@pytest.mark.parametrize("wanted", [1, 4])
@pytest.mark.usefixtures("interpreted")
def test_however_many_spans_the_keys_are_cut_into_the_result_is_the_same(
    wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stopgap.kernels import attention_triton

    monkeypatch.setattr(attention_triton, "WANTED", wanted)
    queries, keys, values = inputs(5, 2, 1, 16, 260)
    mask = seen(5, 2, 260, UNSEEN)
    assert error(attention(queries, keys, values, mask), reference(queries, keys, values, mask)) < EXACT


@pytest.mark.parametrize("wanted", [1, 132])
@pytest.mark.usefixtures("interpreted")
def test_in_bf16_only_the_result_is_rounded(wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from stopgap.kernels import attention_triton

    monkeypatch.setattr(attention_triton, "WANTED", wanted)
    queries, keys, values = inputs(4, 2, 2, 64, 130, torch.bfloat16)
    queries = queries / 4  # many keys count alike
    mask = seen(4, 2, 130, UNSEEN).bfloat16()
    got = attention(queries, keys, values, mask)
    assert got.dtype == torch.bfloat16
    assert error(got, reference(queries.float(), keys.float(), values.float(), mask.float())) < BF16


@pytest.mark.usefixtures("interpreted")
def test_a_cache_in_bf16_beside_fp32_activations_is_read_as_it_is() -> None:
    queries, keys, values = inputs(3, 2, 1, 16, 40)
    keys, values = keys.mT.contiguous().mT.bfloat16(), values.bfloat16()
    told = reference(queries.bfloat16().float(), keys.float(), values.float(), None)
    assert error(attention(queries.bfloat16().float(), keys, values, None), told) < 1e-5


@pytest.mark.usefixtures("interpreted")
def test_a_row_that_sees_one_key_of_a_late_span_gets_its_value() -> None:
    queries, keys, values = inputs(2, 1, 1, 16, 200)
    for unseen in (UNSEEN, float("-inf")):
        mask = torch.full((2, 200), unseen)
        mask[0, 0] = mask[1, 199] = 0.0
        got = attention(queries, keys, values, mask)
        torch.testing.assert_close(got, values[0, 0, [0, 199]])


@pytest.mark.usefixtures("interpreted")
def test_a_row_that_sees_nothing_is_the_references() -> None:
    """Of scores that are all the same the mean, as padding behind a whole row; of none at all zeros, and no NaN."""
    queries, keys, values = inputs(2, 1, 1, 16, 70)
    mask = torch.zeros((2, 70))
    mask[0] = float("-inf")
    assert not attention(queries, keys, values, mask)[0].any()
    mask[0] = UNSEEN
    torch.testing.assert_close(attention(queries, keys, values, mask)[0], values[0, 0].mean(0))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
@pytest.mark.usefixtures("interpreted")
def test_extreme_scores_choose_one_key() -> None:
    queries, keys, values = inputs(2, 2, 1, 16, 70)
    queries[0] *= 1e6
    got, told = attention(queries, keys, values, None), reference(queries, keys, values, None)
    assert got.isfinite().all()
    torch.testing.assert_close(got, told, atol=1e-4, rtol=1e-4)
    assert torch.equal(attention(queries[1:], keys, values, None), got[1:]), "rows do not know of each other"


@pytest.mark.usefixtures("interpreted")
def test_no_tokens_are_no_error() -> None:
    queries, keys, values = inputs(0, 2, 1, 16, 20)
    assert attention(queries, keys, values, None).shape == (0, 32)


@pytest.mark.parametrize(("length", "programs"), [(1, 8), (1055, 8), (8224, 8), (2080, 64), (70, 1000)])
def test_spans_cover_all_keys_and_none_is_empty(length: int, programs: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    from stopgap.kernels.attention_triton import WANTED, cut

    spans, span = cut(length, programs, 64)
    assert span % 64 == 0 and (spans - 1) * span < length <= spans * span
    assert spans == 1 or spans * programs <= WANTED
