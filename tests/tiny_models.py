"""Random tiny DiffusionGemma models, built with transformers' own class, for tests and benchmarks.

Every weight is random, also those that start at one (norms, scalars, router scales): a swapped or forgotten
tensor then shows.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DiffusionGemmaConfig,
    DiffusionGemmaForBlockDiffusion,
    DiffusionGemmaTextConfig,
    Gemma4VisionConfig,
)

ROPES: list[dict[str, Any]] = [
    {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 50.0, "factor": 2.0},
    {"rope_type": "default", "rope_theta": 1000.0},
]


def random_shape(seed: int) -> dict[str, Any]:
    """Text config for `build`. Seeds 0, 1, 2, … step through the structural switches, the sizes are random."""
    pick = random.Random(seed)
    kinds = [
        ["sliding_attention", "full_attention"],
        ["sliding_attention", "sliding_attention", "full_attention"],
        ["full_attention", "sliding_attention", "full_attention"],
        ["full_attention"],
    ][seed % 4]
    heads = pick.choice([2, 4, 6])
    experts = [1, 4, 8][seed % 3]
    return {
        "vocab_size": pick.choice([64, 96, 130]),
        "hidden_size": pick.choice([16, 32, 48]),
        "intermediate_size": pick.choice([24, 40]),
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "num_attention_heads": heads,
        "num_key_value_heads": pick.choice([n for n in (1, 2, 3) if heads % n == 0]),
        "head_dim": pick.choice([8, 16]),
        "global_head_dim": pick.choice([8, 16, 32]),
        "num_global_key_value_heads": [None, 1, 2][seed // 2 % 3],
        "num_experts": experts,
        "top_k_experts": pick.choice([n for n in (1, 2, 3) if n <= experts]),
        "moe_intermediate_size": pick.choice([8, 24]),
        "sliding_window": pick.choice([2, 3, 6, 9]),
        "rms_norm_eps": pick.choice([1e-6, 1e-3]),
        "max_position_embeddings": 256,
        "use_bidirectional_attention": pick.choice([None, "vision"]),
        "final_logit_softcapping": pick.choice([30.0, 4.0]),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": pick.choice([100.0, 10000.0])},
            "full_attention": dict(ROPES[seed // 3 % 3]),
        },
    }


def wide_shape(experts: int = 8) -> dict[str, Any]:
    """Text config for `build` whose widths int4 can cut into groups: a sliding and a full layer, several experts."""
    return random_shape(0) | {
        "hidden_size": 128,
        "intermediate_size": 64,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 1,
        "head_dim": 32,
        "global_head_dim": 64,
        "num_experts": experts,
        "top_k_experts": min(2, experts),
        "vocab_size": 130,
        "sliding_window": 6,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
    }


def build(seed: int, **text: Any) -> DiffusionGemmaForBlockDiffusion:
    """transformers' model of that text config with random weights; the vision tower is as small as it gets."""
    vocab = text["vocab_size"]
    vision = Gemma4VisionConfig(
        num_hidden_layers=1,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=1,
        head_dim=16,
        position_embedding_size=16,
    )
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**text),
        vision_config=vision,
        canvas_length=8,
        image_token_id=vocab,
        boi_token_id=vocab + 1,
        eoi_token_id=vocab + 2,
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name or "embed_scale" in name or "vision" in name:
                continue
            draw = torch.randn(tensor.shape, generator=noise)
            if tensor.ndim == 1:
                tensor.copy_(1 + 0.3 * draw)
            else:
                tensor.copy_(draw * tensor.shape[-1] ** -0.5)
    return model


def save(model: DiffusionGemmaForBlockDiffusion, folder: Path, **options: Any) -> Path:
    """The model as transformers itself writes it."""
    model.save_pretrained(folder, **options)
    return folder
