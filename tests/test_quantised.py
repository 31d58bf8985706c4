"""The two formats of fewer bits: what is stored, and how much of a weight is lost."""

from __future__ import annotations

import pytest
import torch

from stopgap.kernels.quantised import GROUP, Int4Groups, Int8Rows, Quantised

FORMATS = (Int8Rows, Int4Groups)


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def lost(weight: torch.Tensor, stored: Quantised) -> float:
    """Relative root mean square error."""
    return float((stored.dense(torch.float32) - weight).norm() / weight.norm())


@pytest.mark.parametrize(("form", "most"), [(Int8Rows, 0.008), (Int4Groups, 0.093)])
def test_a_gaussian_weight_loses_no_more_than_its_bits_must(form: type[Quantised], most: float) -> None:
    weight = gaussian(64, 256)
    assert most / 3 < lost(weight, form.of(weight)) < most


def test_int4_clips_where_that_is_better() -> None:
    weight = gaussian(64, 256)
    assert lost(weight, Int4Groups.of(weight)) < lost(weight, Int4Groups.of(weight, clip=False))


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_format_can_hold_comes_back_unchanged(form: type[Quantised]) -> None:
    levels = torch.arange(-8.0, 8).repeat(2, 8) * torch.tensor([[0.5], [-2.0]])
    if form is Int8Rows:
        levels[:, 0] = 127 * torch.tensor([0.5, -2.0])
    torch.testing.assert_close(form.of(levels).dense(torch.float32), levels, rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMATS)
def test_a_weight_of_zeros_and_one_row_beside_it_are_kept(form: type[Quantised]) -> None:
    weight = gaussian(3, GROUP)
    weight[1] = 0.0
    dense = form.of(weight).dense(torch.float32)
    assert not dense[1].any()
    assert torch.equal(dense[2:], form.of(weight[2:]).dense(torch.float32))


def test_a_byte_holds_an_input_and_the_one_half_a_group_behind_it() -> None:
    weight = torch.zeros(1, 2 * GROUP)
    weight[0, GROUP + 5], weight[0, GROUP + 5 + GROUP // 2] = -8.0, 7.0
    stored = Int4Groups.of(weight, clip=False)
    assert stored.codes.shape == (1, GROUP) and stored.scale.shape == (1, 2)
    codes = stored.codes[0].int()
    assert (codes[GROUP // 2 + 5] & 15, codes[GROUP // 2 + 5] >> 4) == (0, 15)
    assert {int(code) for place, code in enumerate(codes) if place != GROUP // 2 + 5} == {0x88}


@pytest.mark.parametrize("form", FORMATS)
def test_experts_and_rows_can_be_taken_out(form: type[Quantised]) -> None:
    stored = form.of(gaussian(3, 8, GROUP))
    assert torch.equal(stored[1].dense(torch.float32), stored.dense(torch.float32)[1])
    assert torch.equal(stored[1][2:5].dense(torch.float32), stored.dense(torch.float32)[1, 2:5])


def test_int4_names_a_width_that_it_cannot_cut() -> None:
    with pytest.raises(ValueError, match="multiple of 64 inputs, not 100"):
        Int4Groups.of(torch.ones(2, 100))
