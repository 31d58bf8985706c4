"""The mixture of experts against the loop that defines it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from stopgap.kernels.experts import experts


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
