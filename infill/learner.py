"""The starter's network as it is trained: a batched, differentiable forward of the DiffusionGemma class.

Same tensors, names and arithmetic as transformers' `DiffusionGemmaForBlockDiffusion` (the parity test holds
them together), for one dense expert per layer. Knows nothing of text, windows, noise, losses' weights or
files. Master weights are float32; `dtype` is what the matrix products and the residual stream run in.

What is folded away, exactly: the weight of a norm in front of a linear layer goes into that layer, so the
dense branch and the expert share one product; one expert makes the router's weight 1; `layer_scalar` and
`per_expert_scale` stay 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Rotary = tuple[Tensor, Tensor]
Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a starter. The last layer is a full-attention layer (key = value), the others are sliding."""

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    intermediate: int = 512
    expert: int = 64
    window: int = 1024
    eps: float = 1e-6

    def full(self, layer: int) -> bool:
        return layer == self.layers - 1


class Layer(nn.Module):
    """Parameters of one layer; `Learner` does the arithmetic."""

    def __init__(self, shape: Shape, full: bool) -> None:
        super().__init__()
        h, d, e, m = shape.hidden, shape.head_dim, shape.expert, shape.intermediate
        self.input_layernorm = nn.Parameter(torch.ones(h))
        self.q_proj = nn.Parameter(torch.empty(shape.heads * d, h))
        self.k_proj = nn.Parameter(torch.empty(shape.kv_heads * d, h))
        self.v_proj = None if full else nn.Parameter(torch.empty(shape.kv_heads * d, h))
        self.o_proj = nn.Parameter(torch.empty(h, shape.heads * d))
        self.q_norm = nn.Parameter(torch.full((d,), d**-0.5))  # attention scaling is 1.0 in this class
        self.k_norm = nn.Parameter(torch.ones(d))
        self.post_attention_layernorm = nn.Parameter(torch.ones(h))
        self.pre_feedforward_layernorm = nn.Parameter(torch.ones(h))
        self.gate_proj = nn.Parameter(torch.empty(m, h))
        self.up_proj = nn.Parameter(torch.empty(m, h))
        self.down_proj = nn.Parameter(torch.empty(h, m))
        self.post_feedforward_layernorm_1 = nn.Parameter(torch.ones(h))
        self.pre_feedforward_layernorm_2 = nn.Parameter(torch.ones(h))
        self.expert_gate_up = nn.Parameter(torch.empty(2 * e, h))
        self.expert_down = nn.Parameter(torch.empty(h, e))
        self.post_feedforward_layernorm_2 = nn.Parameter(torch.ones(h))
        self.post_feedforward_layernorm = nn.Parameter(torch.ones(h))


class Learner(nn.Module):
    """`encode` is the causal pass, `decode` the canvas pass over its keys and values."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        h, m = shape.hidden, shape.intermediate
        self.embed = nn.Parameter(torch.empty(shape.vocabulary, h))
        self.layers = nn.ModuleList(Layer(shape, shape.full(i)) for i in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(h))
        self.sc_norm = nn.Parameter(torch.ones(h))
        self.sc_gate = nn.Parameter(torch.empty(m, h))
        self.sc_up = nn.Parameter(torch.empty(m, h))
        self.sc_down = nn.Parameter(torch.zeros(h, m))  # starts as "no self-conditioning"
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name == "embed":
                    weight.normal_(0, 0.04, generator=generator)
                elif weight.dim() == 2 and name != "sc_down":
                    weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
                elif "layernorm" in name and "post" in name:
                    weight.fill_((2 * shape.layers) ** -0.5)

    def stack(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    # -- pieces -------------------------------------------------------------------------------------

    def _norm(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        x32 = x.float()
        y = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.shape.eps)
        return (y if weight is None else y * weight).to(x.dtype)

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight.to(x.dtype))

    def rotary(self, positions: Tensor, full: bool) -> Rotary:
        """cos and sin for int positions [..., n]: [..., n, 1, head_dim], in the compute dtype.

        Sliding layers: base 1e4 over the whole head. Full layers: base 1e6, only the first quarter of the
        frequencies turn ("proportional"), the others stand still.
        """
        d = self.shape.head_dim
        index = torch.arange(0, d, 2, device=positions.device, dtype=torch.float32) / d
        inverse = (1e6 if full else 1e4) ** -index
        if full:
            inverse = torch.where(torch.arange(d // 2, device=positions.device) < d // 8, inverse, 0.0)
        angle = positions[..., None].float() * inverse
        angle = torch.cat((angle, angle), dim=-1)[..., None, :]
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def _rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        left, right = x.chunk(2, dim=-1)
        return x * rotary[0] + torch.cat((-right, left), dim=-1) * rotary[1]

    def _qkv(self, layer: Layer, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """x [b, n, h] to q [b, heads, n, d] and k, v [b, kv_heads, n, d], normed and turned."""
        s = self.shape
        weights = [layer.q_proj, layer.k_proj] + ([] if layer.v_proj is None else [layer.v_proj])
        fused = torch.cat([w * layer.input_layernorm for w in weights])
        out = self._linear(self._norm(x), fused).view(*x.shape[:-1], -1, s.head_dim)
        parts = torch.split(out, [s.heads] + [s.kv_heads] * (len(weights) - 1), dim=-2)
        q = self._rotate(self._norm(parts[0], layer.q_norm), rotary)
        k = self._rotate(self._norm(parts[1], layer.k_norm), rotary)
        v = self._norm(parts[-1])
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
        """`allowed` is bool, broadcastable to [b, 1, n, m]. Written out: on CPU twice as fast as SDPA here."""
        b, heads, n, d = q.shape
        group = heads // k.shape[1]
        q = q.reshape(b, k.shape[1], group * n, d)
        score = (q @ k.transpose(-1, -2)).view(b, heads, n, -1)
        weight = score.float().masked_fill(~allowed, -1e9).softmax(-1).to(v.dtype)
        out = weight.view(b, k.shape[1], group * n, -1) @ v
        return out.view(b, heads, n, d).transpose(1, 2).reshape(b, n, heads * d)

    def _mix(self, layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
        """Residual, attention output, dense branch and expert branch of one layer."""
        s = self.shape
        x = x + self._norm(self._linear(attended, layer.o_proj), layer.post_attention_layernorm)
        pre, pre2 = layer.pre_feedforward_layernorm, layer.pre_feedforward_layernorm_2
        fused = torch.cat([layer.gate_proj * pre, layer.up_proj * pre, layer.expert_gate_up * pre2])
        gate, up, expert_gate, expert_up = torch.split(
            self._linear(self._norm(x), fused), [s.intermediate, s.intermediate, s.expert, s.expert], dim=-1
        )
        dense = self._linear(F.gelu(gate, approximate="tanh") * up, layer.down_proj)
        expert = self._linear(F.gelu(expert_gate, approximate="tanh") * expert_up, layer.expert_down)
        both = self._norm(dense, layer.post_feedforward_layernorm_1) + self._norm(
            expert, layer.post_feedforward_layernorm_2
        )
        return x + self._norm(both, layer.post_feedforward_layernorm)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states [..., h] to soft-capped float32 logits [..., vocabulary]."""
        return 30.0 * torch.tanh(self._linear(x, self.embed).float() / 30.0)

    # -- passes -------------------------------------------------------------------------------------

    def encode(self, ids: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """ids [b, n] to hidden states [b, n, h] and each layer's (keys, values) [b, kv_heads, m, d].

        With `past` the ids continue what it holds, and m counts both.
        """
        known = 0 if past is None else past[0][0].shape[2]
        everything = torch.arange(known + ids.shape[1], device=ids.device)
        positions = everything[known:]
        back = positions[:, None] - everything
        x = F.embedding(ids, self.embed).to(self.dtype) * math.sqrt(self.shape.hidden)
        cache = []
        for i, layer in enumerate(self.stack()):
            full = self.shape.full(i)
            allowed = (back >= 0) if full else (back >= 0) & (back < self.shape.window)
            q, k, v = self._qkv(layer, x, self.rotary(positions, full))
            if past is not None:
                k, v = torch.cat((past[i][0], k), dim=2), torch.cat((past[i][1], v), dim=2)
            cache.append((k, v))
            x = self._mix(layer, x, self._attend(q, k, v, allowed))
        return self._norm(x, self.norm), cache

    def decode(
        self,
        canvas: Tensor,
        positions: Tensor,
        allowed: Tensor,
        cache: Cache,
        soft: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [b, c, h] of the canvas slots.

        `canvas` [b, c] ids, `positions` [b, c] int, `allowed` [b, 1, c, n + c] bool over encoder positions
        and then slots, `cache` from `encode` on the same rows, `soft` [b, c, h] the expected embedding of
        the step before (zeros where there was none).
        """
        s = self.shape
        x = F.embedding(canvas, self.embed).to(self.dtype) * math.sqrt(s.hidden)
        if soft is not None:
            normed = self._norm(soft.to(self.dtype), self.sc_norm)
            gated = F.gelu(self._linear(normed, self.sc_gate), approximate="tanh") * self._linear(normed, self.sc_up)
            x = x + self._linear(gated, self.sc_down)
        x = self._norm(x)
        for i, layer in enumerate(self.stack()):
            q, k, v = self._qkv(layer, x, self.rotary(positions, s.full(i)))
            keys, values = torch.cat((cache[i][0], k), dim=2), torch.cat((cache[i][1], v), dim=2)
            x = self._mix(layer, x, self._attend(q, keys, values, allowed))
        return self._norm(x, self.norm)

    def soft_embedding(self, logits: Tensor) -> Tensor:
        """What self-conditioning is fed: the expected embedding under `logits` [..., vocabulary]."""
        probabilities = logits.softmax(-1).to(self.dtype)
        return (probabilities @ self.embed.to(self.dtype)) * math.sqrt(self.shape.hidden)


# -- the class's names ------------------------------------------------------------------------------

_NAMES = {
    **{f"self_attn.{n}": n for n in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")},
    **{f"mlp.{n}": n for n in ("gate_proj", "up_proj", "down_proj")},
    **{n: n for n in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm")},
    **{f"post_feedforward_layernorm{n}": f"post_feedforward_layernorm{n}" for n in ("", "_1", "_2")},
    "pre_feedforward_layernorm_2": "pre_feedforward_layernorm_2",
}


def _trained(learner: Learner) -> dict[str, Tensor]:
    """Every parameter under the class's name; the expert's are views with the expert axis in front."""
    out: dict[str, Tensor] = {
        "embed_tokens.weight": learner.embed,
        "norm.weight": learner.norm,
        "self_conditioning.pre_norm.weight": learner.sc_norm,
        "self_conditioning.gate_proj.weight": learner.sc_gate,
        "self_conditioning.up_proj.weight": learner.sc_up,
        "self_conditioning.down_proj.weight": learner.sc_down,
    }
    for i, layer in enumerate(learner.stack()):
        for theirs, ours in _NAMES.items():
            if (weight := getattr(layer, ours)) is not None:
                out[f"layers.{i}.{theirs}.weight"] = weight
        out[f"layers.{i}.experts.gate_up_proj"] = layer.expert_gate_up[None]
        out[f"layers.{i}.experts.down_proj"] = layer.expert_down[None]
    return {f"model.decoder.{name}": weight for name, weight in out.items()}


def to_checkpoint(learner: Learner, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """The text tensors under the class's names, tied ones once; the router is the no-op of one expert."""
    out = _trained(learner)
    for i in range(learner.shape.layers):
        at = f"model.decoder.layers.{i}."
        out[f"{at}router.proj.weight"] = torch.zeros(1, learner.shape.hidden)
        out[f"{at}router.scale"] = torch.ones(learner.shape.hidden)
        out[f"{at}router.per_expert_scale"] = torch.ones(1)
        out[f"{at}layer_scalar"] = torch.ones(1)
        out[f"model.encoder.language_model.layers.{i}.layer_scalar"] = torch.ones(1)
    return {name: weight.detach().to("cpu", dtype).contiguous() for name, weight in out.items()}


@torch.no_grad()
def from_checkpoint(learner: Learner, tensors: dict[str, Tensor]) -> None:
    """Copies a checkpoint written by `to_checkpoint` into `learner` (new training from shipped weights)."""
    for name, weight in _trained(learner).items():
        if name not in tensors or tensors[name].shape != weight.shape:
            raise ValueError(f"these weights are not a starter of this shape: look at {name}")
        weight.copy_(tensors[name])


def class_config(shape: Shape, length: int, canvas: int = 64) -> dict[str, object]:
    """config.json as transformers' `DiffusionGemmaConfig` reads it.

    The vision tower cannot be left out (its default is a full-size one), so it is the smallest that loads;
    `image_token_id` must be an id the text never uses, not None.
    """
    text = {
        "model_type": "diffusion_gemma_text",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "global_head_dim": shape.head_dim,
        "num_global_key_value_heads": shape.kv_heads,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": length,
        "rms_norm_eps": shape.eps,
        "sliding_window": shape.window,
        "layer_types": ["full_attention" if shape.full(i) else "sliding_attention" for i in range(shape.layers)],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1_000_000.0,
            },
        },
        "final_logit_softcapping": 30.0,
        "num_experts": 1,
        "top_k_experts": 1,
        "moe_intermediate_size": shape.expert,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    vision = {
        "model_type": "gemma4_vision",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "global_head_dim": 16,
        "position_embedding_size": 16,
    }
    return {
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "model_type": "diffusion_gemma",
        "text_config": text,
        "vision_config": vision,
        "boi_token_id": shape.vocabulary,
        "eoi_token_id": shape.vocabulary + 1,
        "image_token_id": shape.vocabulary + 2,
        "canvas_length": canvas,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
