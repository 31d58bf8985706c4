"""Blocks of ggml's types, held to llama.cpp's own Python package bit by bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from stopgap.infill import ggml


@pytest.mark.parametrize("code", ggml.TYPES, ids=[own.name for own in ggml.TYPES.values()])
def test_any_bytes_mean_what_llama_cpp_makes_of_them(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes hold every code and every scale, infinite ones and NaNs too."""
    own, reference = ggml.TYPES[code], gguf.GGMLQuantizationType(code)
    assert (own.name, own.size, own.nbytes) == (reference.name, *gguf.GGML_QUANT_SIZES[reference])
    monkeypatch.setattr(ggml, "AT_ONCE", 7 * own.size)
    raw = np.random.default_rng(code).integers(0, 256, (40, 5 * own.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        wanted = dequantize(raw, reference).astype(np.float32)
    found = own.dense(torch.from_numpy(raw)).numpy()
    assert found.shape == wanted.shape == (40, 5 * own.size)
    numbers = ~np.isnan(wanted)
    assert numbers.mean() > 0.9 and np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found[numbers].view(np.uint32), wanted[numbers].view(np.uint32))


def test_no_rows_are_no_numbers() -> None:
    assert ggml.TYPES[12].dense(torch.empty(0, 144, dtype=torch.uint8)).numel() == 0
