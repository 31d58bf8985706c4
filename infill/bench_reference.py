"""transformers' own DiffusionGemma and its denoising step, to be timed beside ours. Imports transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, DiffusionGemmaTextConfig
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    EntropyBoundSamplerConfig,
)

from .model_config import ModelConfig

Settings: Any = DiffusionGemmaGenerationConfig


def reference_step(
    network: DiffusionGemmaForBlockDiffusion, prefix: Sequence[int], canvas: Tensor
) -> Callable[[], object]:
    """transformers' own step, with its default sampler and stopping test, for rows of canvas [B, C] behind one prefix.

    It has no clamped slots.
    """
    ids = torch.tensor([list(prefix)], device=canvas.device).expand(len(canvas), -1)
    with torch.inference_mode():
        cache = network.model.encoder(input_ids=ids).past_key_values
        before = network(past_key_values=cache, decoder_input_ids=canvas).logits.to(network.dtype)
    settings = Settings(
        max_denoising_steps=48,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.1),
        t_min=0.4,
        t_max=0.8,
        stability_threshold=1,
        confidence_threshold=0.005,
    )
    sampler, loop = network._prepare_sampler(settings), network
    sampler.canvas_length = canvas.shape[1]
    given: Mapping[str, Any] = {
        "decoder_forward": network.forward,
        "current_canvas": canvas,
        "argmax_canvas": canvas,
        "input_ids": ids,
        "decoder_position_ids": torch.arange(len(prefix), len(prefix) + canvas.shape[1], device=canvas.device)[None],
        "self_conditioning_logits": before,
        "mask_mapping": {"full_attention": None, "sliding_attention": None},
        "past_key_values": cache,
        "cur_step": 24,
        "sampler": sampler,
        "logits_processor": network._prepare_logits_processor(settings),
        "diffusion_stopping_criteria": network._prepare_diffusion_stopping_criteria(settings),
    }

    @torch.inference_mode()
    def run() -> object:
        return loop._denoising_step(**given, finished_denoising=torch.zeros_like(canvas[:, 0], dtype=torch.bool))

    return run


def reference_network(config: ModelConfig, device: torch.device) -> Any:
    """transformers' own model of these shapes with random weights, in bf16 and made on the device."""
    tower = transformers.Gemma4VisionConfig(
        num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=1, head_dim=16,
        position_embedding_size=16,
    )  # fmt: skip
    sliding, full = ([shape for shape in config.layers if shape.sliding is wanted] for wanted in (True, False))
    ropes: dict[str, Any] = {}
    for name, rope in (("sliding_attention", config.sliding_rope), ("full_attention", config.full_rope)):
        if rope is not None:
            kind = "default" if rope.rotated == 1.0 else "proportional"
            ropes[name] = {"rope_type": kind, "rope_theta": rope.theta, "partial_rotary_factor": rope.rotated}
    make: Any = DiffusionGemmaTextConfig
    text = make(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=len(config.layers),
        layer_types=["sliding_attention" if shape.sliding else "full_attention" for shape in config.layers],
        num_attention_heads=config.layers[0].heads,
        num_key_value_heads=sliding[0].kv_heads,
        head_dim=sliding[0].head_dim,
        num_global_key_value_heads=full[0].kv_heads,
        global_head_dim=full[0].head_dim,
        num_experts=config.num_experts,
        top_k_experts=config.top_k_experts,
        moe_intermediate_size=config.moe_intermediate_size,
        sliding_window=config.sliding_window,
        rope_parameters=ropes,
        max_position_embeddings=config.max_positions,
    )
    whole: Any = DiffusionGemmaConfig(
        text_config=text,
        vision_config=tower,
        canvas_length=config.canvas_length,
        image_token_id=config.vocab_size,
        boi_token_id=config.vocab_size + 1,
        eoi_token_id=config.vocab_size + 2,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with _parameters_without_memory():
            network: Any = DiffusionGemmaForBlockDiffusion(whole)
    finally:
        torch.set_default_dtype(before)
    made: dict[int, nn.Parameter] = {}
    draw = torch.Generator(device).manual_seed(0)
    for module in network.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:  # tied ones are one object, and stay one
                if id(tensor) not in made:
                    made[id(tensor)] = nn.Parameter(_drawn(tensor.shape, draw, device), requires_grad=False)
                    made[-id(tensor)] = tensor  # kept alive, so that its id is not given away
                module._parameters[name] = made[id(tensor)]
        for name, tensor in module._buffers.items():
            if tensor is not None:
                module._buffers[name] = tensor.to(device)
    network.train(False)
    return network


def _drawn(shape: Sequence[int], draw: torch.Generator, device: torch.device) -> Tensor:
    place = torch.empty(tuple(shape), dtype=torch.bfloat16, device=device)
    return place.normal_(0.0, shape[-1] ** -0.5, generator=draw) if len(shape) > 1 else place.fill_(1.0)


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Modules made inside have parameters of the right shapes and nothing in them; buffers are real."""
    owner: Any = nn.Module
    register = owner.register_parameter

    def shape_only(self: nn.Module, name: str, tensor: nn.Parameter | None) -> None:
        register(self, name, None if tensor is None else nn.Parameter(tensor.to("meta"), requires_grad=False))

    owner.register_parameter = shape_only
    try:
        yield
    finally:
        owner.register_parameter = register
