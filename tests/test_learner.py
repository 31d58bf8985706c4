"""The trained network against transformers' class of the same weights: names, arithmetic, masks, gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stopgap.infill.learner import Learner, Shape, class_config, from_checkpoint, to_checkpoint

SHAPE = Shape(
    vocabulary=97, hidden=32, layers=3, heads=4, kv_heads=2, head_dim=8, intermediate=48, expert=16, window=64
)


@pytest.fixture(scope="module")
def learner() -> Learner:
    made = Learner(SHAPE, torch.float32, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in made.parameters():  # every norm and the self-conditioning must matter in the comparison
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def reference(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    from transformers.models.diffusion_gemma import DiffusionGemmaForBlockDiffusion

    folder = tmp_path_factory.mktemp("starter")
    export(learner, folder)
    model, report = DiffusionGemmaForBlockDiffusion.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    text = [name for name in report["missing_keys"] if "vision" not in name]
    assert not text and not report["unexpected_keys"] and not report["mismatched_keys"]
    model.eval()
    return model  # type: ignore[no-any-return]


def export(learner: Learner, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(class_config(SHAPE, 64)))
    save_file(to_checkpoint(learner, torch.float32), folder / "model.safetensors", metadata={"format": "pt"})


def test_the_encoder_equals_transformers(learner: Learner, reference: torch.nn.Module) -> None:
    ids = torch.randint(8, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = reference.model.encoder(input_ids=ids).last_hidden_state  # type: ignore[union-attr,operator]
        ours, _ = learner.encode(ids)
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("conditioned", [False, True])
def test_the_canvas_equals_transformers(learner: Learner, reference: torch.nn.Module, conditioned: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(8, 97, (2, 20), generator=generator)
    canvas = torch.randint(8, 97, (2, 9), generator=generator)
    before = 4 * torch.randn(2, 9, 97, generator=generator) if conditioned else None
    with torch.no_grad():
        theirs = reference(input_ids=ids, decoder_input_ids=canvas, self_conditioning_logits=before).logits
        _, cache = learner.encode(ids)
        positions = torch.arange(20, 29).expand(2, 9)
        allowed = torch.ones(2, 1, 9, 29, dtype=torch.bool)
        soft = None if before is None else learner.soft_embedding(before)
        ours = learner.logits(learner.decode(canvas, positions, allowed, cache, soft))
    assert (ours - theirs).abs().max() < 1e-4


def test_packed_canvases_equal_one_canvas_over_a_shorter_prefix(learner: Learner) -> None:
    """Two canvases cut at different places of one window see nothing of each other or of what follows."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(8, 97, (1, 20), generator=generator)
    canvas = torch.randint(8, 97, (1, 12), generator=generator)
    cuts = (7, 20)
    positions = torch.cat([torch.arange(cut, cut + 6) for cut in cuts])[None]
    allowed = torch.zeros(1, 1, 12, 32, dtype=torch.bool)
    for k, cut in enumerate(cuts):
        own = slice(6 * k, 6 * k + 6)
        allowed[..., own, :cut] = True
        allowed[..., own, 20 + 6 * k : 26 + 6 * k] = True
    with torch.no_grad():
        _, cache = learner.encode(ids)
        packed = learner.decode(canvas, positions, allowed, cache)
        for k, cut in enumerate(cuts):
            _, short = learner.encode(ids[:, :cut])
            alone = learner.decode(
                canvas[:, 6 * k : 6 * k + 6],
                torch.arange(cut, cut + 6)[None],
                torch.ones(1, 1, 6, cut + 6, dtype=torch.bool),
                short,
            )
            assert (packed[:, 6 * k : 6 * k + 6] - alone).abs().max() < 1e-5


def test_a_checkpoint_restores_every_weight(learner: Learner) -> None:
    other = Learner(SHAPE, torch.float32, seed=9)
    from_checkpoint(other, to_checkpoint(learner, torch.float32))
    for (name, a), b in zip(learner.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_weights_of_another_shape_are_named_as_such() -> None:
    with pytest.raises(ValueError, match="not a starter of this shape"):
        from_checkpoint(Learner(SHAPE), {})


def test_every_weight_gets_a_gradient(learner: Learner) -> None:
    ids = torch.randint(8, 97, (1, 12), generator=torch.Generator().manual_seed(5))
    hidden, cache = learner.encode(ids)
    allowed = torch.ones(1, 1, 4, 16, dtype=torch.bool)
    soft = torch.randn(1, 4, SHAPE.hidden, generator=torch.Generator().manual_seed(6))
    decoded = learner.decode(ids[:, :4], torch.arange(12, 16)[None], allowed, cache, soft)
    (learner.logits(decoded).square().sum() + learner.logits(hidden).sum()).backward()
    assert [n for n, p in learner.named_parameters() if p.grad is None or not p.grad.any()] == []
