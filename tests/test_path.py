"""The switch between plain torch and Triton: it says what ran, and never gives way."""

from __future__ import annotations

import pytest
import torch

from stopgap.kernels import path
from stopgap.kernels.matmul import matmul
from stopgap.kernels.quantised import Int8Rows

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(path.SWITCH, raising=False)


def there_is(monkeypatch: pytest.MonkeyPatch, triton: bool) -> None:
    monkeypatch.setattr(path, "_installed", lambda: triton)


@pytest.mark.parametrize(("where", "triton", "expected"), [(CPU, True, "torch"), (CUDA, True, "triton")])
def test_unset_it_is_triton_on_cuda_only(
    where: torch.device, triton: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_is(monkeypatch, triton)
    assert path.chosen(where) == expected
    there_is(monkeypatch, False)
    assert path.chosen(where) == "torch"


def test_torch_can_be_asked_for_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(path.SWITCH, "torch")
    there_is(monkeypatch, True)
    assert path.chosen(CPU) == path.chosen(CUDA) == "torch"


@pytest.mark.parametrize(
    ("where", "value", "triton", "interpret", "message"),
    [
        (CUDA, "triton", False, "0", "triton is not installed"),
        (CPU, "triton", True, "0", "needs a CUDA device, not cpu"),
        (CPU, "cuda", True, "0", "set it to torch or triton"),
    ],
)
def test_what_cannot_be_done_is_an_error_and_no_silent_fallback(
    where: torch.device, value: str, triton: bool, interpret: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(path.SWITCH, value)
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    there_is(monkeypatch, triton)
    with pytest.raises(path.PathError, match=message) as raised:
        path.chosen(where)
    assert "\n" not in str(raised.value)
    if where == CPU:
        with pytest.raises(path.PathError, match=message):
            matmul(torch.ones(1, 4), Int8Rows.of(torch.ones(2, 4)))


def test_every_call_is_counted_under_the_path_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.ran["matmul", "torch"]
    matmul(torch.ones(1, 4), Int8Rows.of(torch.ones(2, 4)))
    assert path.ran["matmul", "torch"] == before + 1
