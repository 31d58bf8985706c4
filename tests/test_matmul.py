"""Rows times a quantised weight: plain torch against the dense product, and Triton against plain torch.

On a CPU Triton runs in its interpreter (`conftest`): right numbers, but no tensor cores, no pipeline and none of the
machine's own unpacking of nibbles. Those are held by the test marked gpu.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stopgap.kernels import matmul as plain
from stopgap.kernels import path
from stopgap.kernels.matmul import matmul, reference
from stopgap.kernels.quantised import Int4Groups, Int8Rows, Quantised

FORMATS = (Int8Rows, Int4Groups)
EXACT, BF16 = 2e-6, 2e-3
"""Relative root mean square against fp32. Rounding a result to bf16 is 1.7e-3 of it."""


def inputs(rows: int, width: int, outputs: int, form: type[Quantised]) -> tuple[Tensor, Quantised]:
    noise = torch.Generator().manual_seed(rows * width + outputs)
    weight = torch.randn(outputs, width, generator=noise) / width**0.5
    return torch.randn(rows, width, generator=noise), form.of(weight)


def error(got: Tensor, expected: Tensor) -> float:
    got, expected = got.double(), expected.double()
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux on x86-64)")
    monkeypatch.setenv(path.SWITCH, "triton")


@pytest.mark.parametrize("form", FORMATS)
def test_the_reference_is_the_product_with_the_dense_weight(
    form: type[Quantised], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = inputs(3, 128, 20, form)
    monkeypatch.setattr(plain, "AT_ONCE", 7 * 128)  # three parts
    torch.testing.assert_close(reference(x, weight), x @ weight.dense(torch.float32).T)
    assert matmul(x.bfloat16(), weight).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("rows", "width", "outputs", "form"),
    [
        (1, 64, 16, Int4Groups),  # one group
        (5, 704, 24, Int4Groups),  # 11 groups are no multiple of four; outputs end inside a block
        (40, 64, 20, Int4Groups),  # two blocks of rows, the second part full
        (66, 128, 8, Int4Groups),  # warps that share the inputs
        (5, 100, 40, Int8Rows),  # inputs end inside a run
        (33, 256, 17, Int8Rows),
        (66, 72, 8, Int8Rows),
        (130, 64, 70, Int8Rows),  # three blocks of rows by two of outputs
    ],
)
@pytest.mark.usefixtures("interpreted")
def test_triton_multiplies_as_the_reference_does(rows: int, width: int, outputs: int, form: type[Quantised]) -> None:
    x, weight = inputs(rows, width, outputs, form)
    before = path.ran["matmul", "triton"]
    assert error(matmul(x, weight), reference(x, weight)) < EXACT
    assert path.ran["matmul", "triton"] == before + 1
    given = x.bfloat16()
    assert error(matmul(given, weight), reference(given.float(), weight)) < BF16


@pytest.mark.usefixtures("interpreted")
def test_scales_may_lie_by_group_in_memory() -> None:
    x, weight = inputs(2, 128, 16, Int4Groups)
    turned = Int4Groups(weight.codes, weight.scale.mT.contiguous().mT)
    assert turned.scale.stride() == (1, 16)
    assert torch.equal(matmul(x, turned), matmul(x, weight))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("interpreted")
def test_extreme_values_stay_finite_and_rows_do_not_meet(form: type[Quantised]) -> None:
    x, weight = inputs(3, 64, 16, form)
    x[0] *= 1e30
    x[1] = 0.0
    got = matmul(x, weight)
    assert error(got[0], reference(x, weight)[0]) < EXACT
    assert not got[1].any()
    assert error(got[2], reference(x, weight)[2]) < EXACT
    assert torch.equal(matmul(x[2:], weight), got[2:]), "a row's result must not depend on the others"


@pytest.mark.usefixtures("interpreted")
def test_no_rows_are_no_error() -> None:
    x, weight = inputs(1, 64, 16, Int8Rows)
    assert matmul(x[:0], weight).shape == (0, 16)


def follow(code: str, dtype: torch.dtype, given: str, word: int) -> dict[str, int]:
    """The registers after a few lines of PTX with `word` in register `given`; numbers are pairs of `dtype`."""
    held = {given: word}

    def value(name: str) -> int:
        return held[name] if name in held else int(name, 0)

    for line in code.splitlines():
        operation, _, rest = line.rstrip(";}").partition(" ")
        into, *names = rest.split(", ")
        match operation:
            case "mov.b32":
                held[into] = value(names[0])
            case "and.b32":
                held[into] = value(names[0]) & value(names[1])
            case "xor.b32":
                held[into] = value(names[0]) ^ value(names[1])
            case "shr.u32":
                held[into] = value(names[0]) >> value(names[1])
            case "prmt.b32":
                both = value(names[0]).to_bytes(4, "little") + value(names[1]).to_bytes(4, "little")
                picked = (both[value(names[2]) >> 4 * place & 7] for place in range(4))
                held[into] = int.from_bytes(picked, "little")
            case "fma.rn.bf16x2" | "add.rn.f16x2":
                first, *others, last = (halves(value(name), dtype) for name in names)
                total = (first * others[0] if others else first) + last
                held[into] = int.from_bytes(bytes(total.view(torch.uint8).tolist()), "little")
            case _:
                assert operation in {"{", ".reg", ""}, operation
    return held


def halves(word: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor(list(word.to_bytes(4, "little")), dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.usefixtures("interpreted")
def test_the_machine_code_that_unpacks_four_bytes_gives_their_numbers_in_order(dtype: torch.dtype) -> None:
    """The interpreter cannot run it and takes another way, so its instructions are followed here."""
    from stopgap.kernels.matmul_triton import BYTES_HALF, UNPACK, UNPACK_HALF

    def run(code: str, outputs: int, word: int) -> list[float]:
        held = follow(code, dtype, f"${outputs}", word)
        return [number for place in range(outputs) for number in halves(held[f"${place}"], dtype).tolist()]

    for first in range(0, 256, 4):
        four = list(range(first, first + 4))
        word = int.from_bytes(bytes(four), "little")
        nibbles = [(byte & 15) - 8 for byte in four] + [(byte >> 4) - 8 for byte in four]
        assert run((UNPACK if dtype == torch.bfloat16 else UNPACK_HALF).value, 4, word) == nibbles
        if dtype == torch.float16:
            assert run(BYTES_HALF.value, 2, word) == [byte - 256 if byte > 127 else byte for byte in four]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("rows", [1, 16, 24, 32, 64, 128, 256])
@pytest.mark.parametrize(("outputs", "width"), [(8192, 2816), (2816, 4096), (2816, 2112)])
@pytest.mark.parametrize("form", FORMATS)
def test_a_gpu_multiplies_the_26b_as_the_reference_does(
    rows: int, outputs: int, width: int, form: type[Quantised], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(path.SWITCH, "triton")
    x, weight = inputs(rows, width, outputs, form)
    on_gpu = form(weight.codes.cuda(), weight.scale.cuda())
    given = x.bfloat16().cuda()
    assert error(matmul(given, on_gpu), reference(given.float(), on_gpu)) < BF16
