"""transformers behind our interface gives what ours gives, so `--engine transformers` compares like with like."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import build, random_shape, save

from stopgap.infill.contract import FillError
from stopgap.infill.engine import load_engine
from stopgap.infill.model import Model, ModelError
from stopgap.infill.reference import load_reference
from stopgap.infill.weights import load_model


@pytest.fixture(scope="module", params=[5, 9])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    folder = save(build(request.param, **random_shape(request.param)), tmp_path_factory.mktemp("model"))
    return load_model(folder, int8=False, threads=1), load_reference(folder, threads=1)


def test_encoding_cropping_and_denoising_agree(both: tuple[Model, Model]) -> None:
    results: list[list[torch.Tensor]] = []
    for model in both:
        cache = model.new_cache(64)
        seen = [model.head(model.encode(cache, list(range(20)))), model.head(model.encode(cache, [3]))]
        cache.crop(7)
        seen.append(model.head(model.encode(cache, [9, 8])))
        cache.crop(8)
        canvas = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
        free = torch.tensor([[True, False, True, True], [True, True, False, False]])
        first = model.denoise(cache, canvas, free, lengths=[4, 2], temperature=0.8)
        step = model.denoise(cache, canvas, free, lengths=[4, 2], temperature=0.6, conditioning=first.conditioning)
        assert cache.ids == [*range(7), 9]
        seen += [first.entropy, first.conditioning, step.entropy, step.logprob, step.conditioning, step.argmax]
        seen += model.score(cache, [[4, 5], [6]])
        results.append(seen)
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=2e-4, rtol=0)


def test_what_does_not_fit_is_refused_in_the_same_words(both: tuple[Model, Model]) -> None:
    for model in both:
        with pytest.raises(ModelError, match="9 prompt tokens do not fit the prefix cache of 8"):
            model.encode(model.new_cache(8), [1] * 9)


def test_a_folder_without_weights_is_one_line(tmp_path: Path) -> None:
    folder = save(build(9, **random_shape(9)), tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="transformers cannot load"):
        load_reference(folder, threads=1)


def test_the_comparison_says_what_it_needs_where_transformers_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "stopgap.infill.reference")
    with pytest.raises(FillError, match="needs transformers: pip install transformers"):
        load_engine(
            "starter",
            engine="transformers",
            device="cpu",
            threads=1,
            clock=time.monotonic,
            progress=lambda *_: None,
        )
