"""The mixture of experts: plain torch against the loop that defines it, and Triton against plain torch.

On a CPU Triton runs in its interpreter (`conftest`), see `test_matmul`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stopgap.kernels import path
from stopgap.kernels.experts import experts, reference
from stopgap.kernels.quantised import Int4Groups, Int8Rows, Quantised

Mode: Any = TorchDispatchMode
FORMATS = (Int8Rows, Int4Groups)
EXACT, BF16 = 2e-6, 2e-3
"""Relative root mean square against fp32. Rounding the result to bf16 is 1.7e-3; between the two products, where every
bf16 model rounds a second time (2.2e-3 in all), the hidden values keep three bits more."""


def by_loop(
    x: torch.Tensor, scores: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, top_k: int
) -> torch.Tensor:
    weights, chosen = scores.softmax(-1).topk(top_k)
    weights = weights / weights.sum(-1, keepdim=True)
    rows = []
    for token, row in enumerate(x):
        total = torch.zeros_like(row)
        for weight, expert in zip(weights[token], chosen[token], strict=True):
            gate, up = (row @ gate_up[expert]).chunk(2)
            total = total + weight * ((F.gelu(gate, approximate="tanh") * up) @ down[expert])
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize(("tokens", "count", "top_k"), [(1, 4, 1), (7, 4, 2), (32, 16, 8), (3, 8, 8)])
def test_the_experts_equal_the_loop_and_so_do_their_gradients(tokens: int, count: int, top_k: int) -> None:
    noise = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, 16), (tokens, count), (count, 16, 24), (count, 12, 16)]
    inputs = [torch.randn(shape, generator=noise).requires_grad_() for shape in shapes]
    ours, plain = (run(*inputs, top_k) for run in (experts, by_loop))
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    ours_gradients = torch.autograd.grad(ours.square().sum(), inputs)
    for got, expected in zip(ours_gradients, torch.autograd.grad(plain.square().sum(), inputs), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-2, rtol=1e-3)


def layer(count: int, width: int, hidden: int, form: type[Quantised]) -> tuple[Quantised, Quantised]:
    noise = torch.Generator().manual_seed(width + hidden)
    gate_up = torch.randn(count, 2 * hidden, width, generator=noise) / width**0.5
    return form.of(gate_up), form.of(torch.randn(count, width, hidden, generator=noise) / hidden**0.5)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double(), expected.double()
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    monkeypatch.setenv(path.SWITCH, "triton")


@pytest.mark.parametrize("form", FORMATS)
def test_quantised_experts_equal_the_loop_over_their_dense_weights(form: type[Quantised]) -> None:
    gate_up, down = layer(8, 64, 64, form)
    x, scores = drawn(5, 64), drawn(5, 8)
    dense = (weight.dense(torch.float32).mT for weight in (gate_up, down))
    torch.testing.assert_close(experts(x, scores, gate_up, down, 3), by_loop(x, scores, *dense, 3))


def test_dense_and_quantised_weights_are_not_mixed() -> None:
    gate_up, down = layer(2, 64, 64, Int8Rows)
    with pytest.raises(TypeError, match="both be dense or both be quantised"):
        experts(drawn(1, 64), drawn(1, 2), gate_up, down.codes, 1)


@pytest.mark.parametrize(
    ("tokens", "count", "width", "hidden", "top_k", "form"),
    [
        (1, 4, 64, 64, 2, Int4Groups),  # two of four experts have nothing to do
        (3, 4, 192, 64, 3, Int4Groups),  # three groups on four slices
        (20, 2, 64, 64, 1, Int4Groups),  # more than FULL pairs to an expert
        (2, 5, 100, 24, 5, Int8Rows),  # everybody, and widths that fit no block
        (24, 2, 64, 40, 1, Int8Rows),
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_triton_mixes_as_the_reference_does(
    tokens: int, count: int, width: int, hidden: int, top_k: int, form: type[Quantised]
) -> None:
    gate_up, down = layer(count, width, hidden, form)
    x, scores = drawn(tokens, width), drawn(tokens, count)
    before = path.ran["experts", "triton"]
    assert error(experts(x, scores, gate_up, down, top_k), reference(x, scores, gate_up, down, top_k)) < EXACT
    assert path.ran["experts", "triton"] == before + 1


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("size", "loud"),
    [
        (1.0, 1.0),
        (1e-12, 1.0),  # hidden values of 1e-24: below anything that fp16 holds
        (1e4, 1.0),  # of 1e8: above its largest, 65,504
        (1e12, 1.0),
        (1.0, 1e4),  # one hidden column is 1e8 times as large as the others
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_in_bf16_only_the_last_rounding_is_lost_however_large_the_hidden_values(
    form: type[Quantised], size: float, loud: float
) -> None:
    noise = torch.Generator().manual_seed(1)
    width, hidden = 64, 104 if form is Int8Rows else 128
    gate_up = torch.randn(2, 2 * hidden, width, generator=noise) / width**0.5
    gate_up[:, 70] *= loud
    gate_up[:, hidden + 70] *= loud
    down = form.of(torch.randn(2, width, hidden, generator=noise) / hidden**0.5)
    weight = form.of(gate_up)
    x, scores = (size * drawn(4, width)).bfloat16(), drawn(4, 2).bfloat16()
    got, expected = experts(x, scores, weight, down, 2), reference(x.float(), scores, weight, down, 2)
    assert got.dtype == torch.bfloat16
    assert error(got, expected) < BF16
    assert all(error(*rows) < 1.25 * BF16 for rows in zip(got, expected, strict=True)), "64 numbers say it less exactly"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("interpreted")
def test_hidden_values_that_are_no_numbers_break_only_their_token(form: type[Quantised]) -> None:
    gate_up, down = layer(2, 64, 64, form)
    x, scores = drawn(3, 64).bfloat16(), drawn(3, 2).bfloat16()
    x[0], x[1] = torch.nan, torch.inf
    got = experts(x, scores, gate_up, down, 2)
    assert not got[:2].isfinite().any()
    assert error(got[2], reference(x[2:].float(), scores[2:], gate_up, down, 2)[0]) < 1.25 * BF16


class Called(Mode):  # type: ignore[misc]
    """The names of all operations that reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("interpreted")
def test_tokens_are_sorted_by_expert_without_asking_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Triton's kernels cannot do themselves is to make room: nothing is counted, copied or read by the host."""
    gate_up, down = layer(3, 64, 64, Int4Groups)
    x, scores = drawn(5, 64).bfloat16(), drawn(5, 3)
    with (fused := Called()):
        experts(x, scores, gate_up, down, 2)
    with (plain := Called()):
        reference(x, scores, gate_up, down, 2)
    own = {name for name in fused.names if not name.startswith(("aten.copy_.", "aten.set_."))}  # the interpreter's
    assert own == {"aten.empty.memory_format", "aten.new_empty.default"}
    assert "aten.bincount.default" in plain.names


@pytest.mark.usefixtures("interpreted")
def test_all_tokens_may_choose_the_same_expert() -> None:
    gate_up, down = layer(3, 64, 64, Int4Groups)
    x, scores = drawn(18, 64), torch.tensor([-1e30, 1e30, -1e30]).expand(18, 3)  # two tiles of one expert
    assert error(experts(x, scores, gate_up, down, 1), reference(x, scores, gate_up, down, 1)) < EXACT


@pytest.mark.usefixtures("interpreted")
def test_of_equal_scores_the_lower_expert_comes_first() -> None:
    gate_up, down = layer(4, 64, 64, Int8Rows)
    x = drawn(1, 64)
    tied, ranked = torch.tensor([[0.0, 2.0, 2.0, 2.0]]), torch.tensor([[-1.0, 2.0, 2.0, -1.0]])
    got = experts(x, tied, gate_up, down, 2)
    assert torch.equal(got, experts(x, ranked, gate_up, down, 2))
    assert error(got, reference(x, tied, gate_up, down, 2)) < EXACT


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
@pytest.mark.usefixtures("interpreted")
def test_extreme_values_are_those_of_the_reference_and_stay_in_their_row() -> None:
    gate_up, down = layer(2, 64, 64, Int8Rows)
    x, scores = drawn(3, 64), drawn(3, 2)
    x[0] *= 1e9  # the gate is closed or open; cubes of it leave fp32
    scores[1] = torch.tensor([float("-inf"), 3e38])
    got, expected = experts(x, scores, gate_up, down, 2), reference(x, scores, gate_up, down, 2)
    for row in range(3):
        assert error(got[row], expected[row]) < EXACT
    assert torch.equal(experts(x[2:], scores[2:], gate_up, down, 2), got[2:])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter is numpy
@pytest.mark.usefixtures("interpreted")
def test_scores_that_are_no_numbers_break_only_their_token() -> None:
    gate_up, down = layer(3, 64, 64, Int8Rows)
    x, scores = drawn(2, 64), drawn(2, 3)
    scores[0] = float("nan")
    got = experts(x, scores, gate_up, down, 2)
    assert got[0].isnan().all()
    assert error(got[1], reference(x[1:], scores[1:], gate_up, down, 2)[0]) < EXACT


@pytest.mark.usefixtures("interpreted")
def test_many_tokens_go_in_parts_without_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    from stopgap.kernels import experts_triton

    gate_up, down = layer(2, 64, 64, Int8Rows)
    x, scores = drawn(3, 64), drawn(3, 2)
    whole = experts(x, scores, gate_up, down, 1)
    monkeypatch.setattr(experts_triton, "AT_ONCE", 2)
    assert torch.equal(experts(x, scores, gate_up, down, 1), whole)


@pytest.mark.usefixtures("interpreted")
def test_no_tokens_are_no_error() -> None:
    gate_up, down = layer(2, 64, 64, Int8Rows)
    assert experts(drawn(0, 64), drawn(0, 2), gate_up, down, 1).shape == (0, 64)


@pytest.mark.usefixtures("interpreted")
def test_every_pair_has_one_place_in_its_experts_tiles() -> None:
    """Chosen experts as routers leave them: none, few, a full tile, more than one; in several chunks."""
    from stopgap.kernels import experts_triton

    chosen = torch.tensor([3] * 16 + [0] * 35 + [4] * 2 + [3] * 1 + [0] * 13, dtype=torch.int32)
    pairs, count, tile = len(chosen), 6, experts_triton.TILE
    order = torch.full((pairs,), -1, dtype=torch.int32)
    table = torch.full((pairs // tile + count, 3), -1, dtype=torch.int32)
    experts_triton.group_kernel[(count,)](chosen, order, table, pairs, CHUNK=32, TILE=tile)
    assert order.tolist() == sorted(range(pairs), key=lambda pair: (int(chosen[pair]), pair))
    covered = []
    for expert, start, size in table.tolist():
        assert 0 <= size <= tile
        covered += [(expert, place) for place in range(start, start + size)]
    assert covered == [(int(chosen[pair]), place) for place, pair in enumerate(order.tolist())]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tokens", [1, 8, 32, 256])
@pytest.mark.parametrize("form", FORMATS)
def test_a_gpu_mixes_the_26b_as_the_reference_does_and_can_be_captured(
    tokens: int, form: type[Quantised], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(path.SWITCH, "triton")
    noise = torch.Generator(device="cuda").manual_seed(0)
    gate_up = form.of(torch.randn((128, 1408, 2816), generator=noise, device="cuda") / 2816**0.5)
    down = form.of(torch.randn((128, 2816, 704), generator=noise, device="cuda") / 704**0.5)
    x = torch.randn((tokens, 2816), generator=noise, device="cuda", dtype=torch.bfloat16)
    scores = torch.randn((tokens, 128), generator=noise, device="cuda")
    got = experts(x, scores, gate_up, down, 8)
    assert error(got, reference(x.float(), scores, gate_up, down, 8)) < BF16
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = experts(x, scores, gate_up, down, 8)
    x.copy_(x.flip(0)), scores.copy_(scores.flip(0))
    graph.replay()
    assert torch.equal(captured, got.flip(0)), "a token's result must not depend on its place"
