"""What only a GPU can show: Triton's machine code against the references at the sizes of the 26B, and captured steps.

`TRITON_INTERPRET=0 pytest -m gpu`. Everything here is skipped without a CUDA device.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stopgap.infill import work
from stopgap.infill.bench_gpu import random_rows
from stopgap.infill.buckets import Size
from stopgap.infill.canvas import Row
from stopgap.infill.graph import GraphError, Loop
from stopgap.infill.model import Model
from stopgap.infill.planner import real_model
from stopgap.infill.random_weights import random_model, small_model
from stopgap.infill.sampler import Schedule, denoise
from stopgap.kernels import attention as attention_module
from stopgap.kernels import experts as experts_module
from stopgap.kernels import gated as gated_module
from stopgap.kernels import head as head_module
from stopgap.kernels import heads as heads_module
from stopgap.kernels import matmul as matmul_module
from stopgap.kernels import path
from stopgap.kernels import residual as residual_module
from stopgap.kernels.head import Philox
from stopgap.kernels.quantised import Int4Groups, Int8Rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "0", reason="set TRITON_INTERPRET=0"),
]
WIDTH, HIDDEN, VOCABULARY = 2816, 704, 262_144
ERROR = 2e-3
"""Relative root mean square error of a bf16 path against fp32."""


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    path.ran.clear()
    yield
    torch.cuda.synchronize()


def gpu(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inputs", "outputs"), [(WIDTH, 8192), (4096, WIDTH), (2112, WIDTH), (8192, WIDTH)])
@pytest.mark.parametrize("rows", [1, 16, 17, 32, 64, 128, 256, 1024])
def test_products_are_those_of_fp32(rows: int, inputs: int, outputs: int, bits: int) -> None:
    of = Int4Groups.of if bits == 4 else Int8Rows.of
    weight, x = of(torch.randn((outputs, inputs), device="cuda")), gpu(rows, inputs)
    assert relative(matmul_module.matmul(x, weight), matmul_module.reference(x.float(), weight)) <= ERROR
    assert path.ran["matmul", "triton"] == 1


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 17, 32, 256])
def test_gated_products_are_those_of_fp32(rows: int, bits: int) -> None:
    of = Int4Groups.of if bits == 4 else Int8Rows.of
    weight, x = of(torch.randn((2 * 2112, WIDTH), device="cuda") * WIDTH**-0.5), gpu(rows, WIDTH)
    assert relative(gated_module.gated(x, weight), gated_module.reference(x.float(), weight)) <= ERROR
    assert path.ran["gated", "triton"] == 1


SLIDING, FULL = (2, 8, 256), (8, 2, 512)
"""Groups, key heads and dimensions of the 26B's two kinds of layers."""


@pytest.mark.parametrize("shape", [SLIDING, FULL])
@pytest.mark.parametrize("tokens", [1, 16, 32, 100, 256])
@pytest.mark.parametrize("length", [300, 1023, 8192])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_is_that_of_fp32(shape: tuple[int, int, int], tokens: int, length: int, masked: bool) -> None:
    groups, kv_heads, width = shape
    queries = gpu(tokens, groups, kv_heads, width) * width**-0.5
    keys, values = (gpu(1, kv_heads, length + tokens + 3, width)[:, :, 3:] for _ in range(2))
    mask = None
    if masked:
        mask = torch.zeros((tokens, length + tokens), device="cuda", dtype=torch.bfloat16)
        mask = mask.masked_fill_(torch.rand_like(mask) < 0.5, -1e30).repeat_interleave(groups, dim=0)
    got = attention_module.attention(queries, keys, values, mask)
    exact = None if mask is None else mask.float()
    assert relative(got, attention_module.reference(queries.float(), keys.float(), values.float(), exact)) <= ERROR
    assert torch.equal(got, attention_module.attention(queries, keys, values, mask))
    assert path.ran["attention", "triton"] == 2


@pytest.mark.parametrize(("groups", "kv_heads", "width"), [SLIDING, FULL])
@pytest.mark.parametrize("tokens", [1, 32, 1024])
def test_heads_go_into_the_cache_as_those_of_fp32(groups: int, kv_heads: int, width: int, tokens: int) -> None:
    given = [gpu(tokens, groups + 1 + (width == 256), kv_heads, width), gpu(groups + 1, kv_heads, width)]
    given += [gpu(tokens, 1, 1, width) for _ in range(2)]
    places = [gpu(kv_heads, tokens + 9, width)[None, :, 5 : 5 + tokens].permute(2, 0, 1, 3) for _ in range(2)]
    told = [torch.zeros_like(place, dtype=torch.float32) for place in places]
    queries = heads_module.turn_heads(*given, *places, 1e-6)
    want = heads_module.reference(*(tensor.float() for tensor in given), *told, 1e-6)
    for mine, theirs in zip((queries, *places), (want, *told), strict=True):
        assert relative(mine, theirs) <= ERROR
    assert path.ran["heads", "triton"] == 1


@pytest.mark.parametrize("tokens", [1, 32, 1024])
def test_residuals_and_their_norms_are_those_of_fp32(tokens: int) -> None:
    x, first, second = (gpu(tokens, WIDTH) for _ in range(3))
    norms = [gpu(WIDTH) for _ in range(4)]

    def run(sums: Callable[..., tuple[Tensor, Tensor]], *given: Tensor) -> tuple[Tensor, Tensor]:
        x, one, other, by_one, by_other, by_both, following = given
        return sums(x, (one, by_one), (other, by_other), by_both, 0.7, 1e-6, following)

    given = (x, first, second, *norms)
    got = run(residual_module.add_two_normed, *given)
    want = run(residual_module.reference_two, *(tensor.float() for tensor in given))
    assert all(relative(mine, theirs) <= ERROR for mine, theirs in zip(got, want, strict=True))
    got = residual_module.add_normed(x, (first, norms[0]), 1e-6)
    want = residual_module.reference(x.float(), (first.float(), norms[0].float()), 1e-6)
    assert all(relative(mine, theirs) <= ERROR for mine, theirs in zip(got, want, strict=True))
    assert path.ran["residual", "triton"] == 2


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 8, 32, 256, 1024])
@pytest.mark.parametrize("routing", ["even", "one expert"])
def test_experts_are_those_of_fp32_and_the_same_every_time(tokens: int, bits: int, routing: str) -> None:
    of = Int4Groups.of if bits == 4 else Int8Rows.of
    gate_up = of(torch.randn((128, 2 * HIDDEN, WIDTH), device="cuda") * WIDTH**-0.5)
    down = of(torch.randn((128, WIDTH, HIDDEN), device="cuda") * HIDDEN**-0.5)
    x, scores = gpu(tokens, WIDTH), gpu(tokens, 128)
    if routing == "one expert":
        scores[:, 5] = 50.0
    got = experts_module.experts(x, scores, gate_up, down, 8)
    assert relative(got, experts_module.reference(x.float(), scores, gate_up, down, 8)) <= ERROR
    assert torch.equal(got, experts_module.experts(x, scores, gate_up, down, 8))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("rows", [1, 32, 256])
def test_the_head_says_what_the_reference_says(rows: int, int8: bool) -> None:
    dense = torch.randn((VOCABULARY, WIDTH), device="cuda", dtype=torch.bfloat16) * WIDTH**-0.5
    table: Tensor | Int8Rows = Int8Rows.of(dense) if int8 else dense
    hidden = gpu(rows, WIDTH)
    banned = torch.zeros(VOCABULARY, dtype=torch.bool, device="cuda")
    banned[:1000] = True
    noise = Philox(torch.tensor(3, device="cuda"), torch.tensor(1, device="cuda"))
    temperature = torch.tensor(0.7, device="cuda")
    got = head_module.denoise_head(
        hidden, table, softcap=30.0, temperature=temperature, banned=banned, noise=noise, round_logits=True
    )
    fp32 = table.dense(torch.float32) if isinstance(table, Int8Rows) else table.float()
    raw = hidden.float() @ fp32.T
    want = head_module.read(raw.clone(), softcap=30.0, temperature=0.7, banned=banned)
    best = raw[:, 1000:].topk(2).values
    apart = best[:, 0] - best[:, 1] > best.abs().amax(1) * 2.0**-7
    assert torch.equal(got.argmax[apart], want.argmax[apart])
    assert (got.entropy - want.entropy).abs().max() < 0.02
    assert relative(got.conditioning, want.probabilities @ fp32) <= 4 * ERROR, "probabilities of logits in bf16"
    assert (got.sample >= 1000).all()


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(small_model(real_model()), 4, "cuda")


def test_a_captured_step_gives_the_tokens_of_the_same_step_run_eagerly(model: Model) -> None:
    rows = random_rows(model.config, 3, 20)
    cache = model.new_cache(64)
    model.encode(cache, list(range(50)))
    loop, size = Loop(model), Size(512, 4, 32)
    reports = []
    for captured in (True, False):
        bucket = loop.bucket(size, cache, rows, Schedule(calm=-1.0, patience=1 << 30))
        assert bucket.graph is not None
        said = []
        for _ in range(6):
            bucket.again() if captured else bucket.step()
            said.append(bucket.state.report.clone())
        reports.append(torch.stack(said))
    assert torch.equal(*reports)


def test_the_captured_loop_gives_the_tokens_of_the_sampler(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything accepted no noise is drawn, and both see the same canvases; near ties may part in bf16."""
    pick = random.Random(1)
    cache = model.new_cache(64)
    model.encode(cache, list(range(40)))
    same = steps = 0
    for count in (1, 2, 4):
        rows = [
            Row([pick.randrange(1024) for _ in range(pick.randrange(4, 30))], [7, 8], "noise") for _ in range(count)
        ]
        copies = [replace(row) for row in rows]
        schedule = Schedule(max_steps=4, bound=1e9, calm=-1.0, patience=99)
        for item in denoise(cache, rows, schedule, device=model.device, noise=lambda: 3):
            if not isinstance(item, int):
                work.run(model, item)
        loop = Loop(model)
        assert list(loop.denoise(cache, copies, schedule, noise=lambda: 3)) == [1, 2, 3, 4]
        assert loop.ran == {"graph": 4}
        for row, copy in zip(rows, copies, strict=True):
            steps += len(row.draft)
            same += sum(one == other for one, other in zip(row.draft, copy.draft, strict=True))
    assert same >= 0.9 * steps


def test_a_caller_that_stops_wastes_one_step_and_the_next_fill_is_right(model: Model) -> None:
    cache = model.new_cache(64)
    model.encode(cache, list(range(40)))
    loop = Loop(model)
    alone = Row([1, 2, 3], [4], "noise")
    list(loop.denoise(cache, [alone], Schedule(max_steps=2), noise=lambda: 3))
    loop.ran.clear()
    steps = loop.denoise(cache, [Row([9, 9, 9], [], "noise")], Schedule(patience=99, calm=-1.0), noise=lambda: 3)
    assert next(steps) == 1
    steps.close()  # type: ignore[attr-defined]
    assert loop.ran["graph"] == 2
    again = Row([1, 2, 3], [4], "noise")
    list(loop.denoise(cache, [again], Schedule(max_steps=2), noise=lambda: 3))
    assert (again.draft, again.entropy) == (alone.draft, alone.entropy)


def test_what_cannot_be_captured_is_an_error_that_says_why(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(path.SWITCH, "torch")  # asks the device which experts are hit
    cache = model.new_cache(8)
    model.encode(cache, [1, 2])
    with pytest.raises(GraphError, match=r"cannot be captured as a CUDA graph .*STOPGAP_LOOP=host"):
        list(Loop(model).denoise(cache, [Row([1], [], "noise")], Schedule(), noise=lambda: 3))
