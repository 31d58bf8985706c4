"""DiffusionGemma for inference: a causal encoder and a bidirectional decoder over one set of weights.

Knows no text, tokenizer, sampler or clock. One forward pass serves both sides: encoding appends to the prefix
cache, denoising and scoring write behind it and leave it as it was. The layer math is in `layers`, the cache
and who sees what in `prefix`, reading weights in `weights`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from stopgap.kernels import path, tuned
from stopgap.kernels.head import Allowed, Conditioning, Head, Noise, denoise_head
from stopgap.kernels.norm import rms_norm
from stopgap.kernels.quantised import Int8Rows

from .layers import Weights, block, each_tensor, self_condition
from .model_config import ModelConfig, ModelError, expected_shapes
from .prefix import Joined, PrefixCache, Window, join

__all__ = ["Denoised", "Model", "ModelConfig", "ModelError", "PrefixCache"]

CHUNK = 256
"""Most tokens encoded at once: bounds the attention mask, and lets early tokens skip late keys."""
SCORED_AT_ONCE = 1 << 24
"""Logits held while ranking: 64 tokens of the 26B, where all of them would take 1.6 GB; never fewer than all the
starter's."""


@dataclass(frozen=True, slots=True)
class Denoised:
    """One denoising step of N free slots, in row-major order of `free`.

    All of it is read from one distribution: soft-capped, divided by the temperature, without banned tokens.
    """

    argmax: Tensor
    """[N] int64"""
    sample: Tensor
    """[N] int64, drawn from the distribution, or the argmax if no noise was given"""
    entropy: Tensor
    """[N] fp32, nats"""
    logprob: Tensor
    """[N] fp32, of `argmax`, natural logarithm"""
    conditioning: Tensor
    """[B, C, D], to be passed to the next step: the expected embedding of free slots, the token's own
    embedding of clamped ones, zeros behind a row's end."""


class Model:
    """Weights on one device. Not for two threads at once."""

    joins: ClassVar[bool] = True
    """Whether `encode_many` and `denoise` take several prefixes in one pass."""

    def __init__(self, config: ModelConfig, weights: Weights, name: str = "model") -> None:
        self.config = config
        self.weights = weights
        self.name = name
        table = weights.embedding
        self.device = (table.codes if isinstance(table, Int8Rows) else table).device
        self.dtype = weights.norm.dtype
        self._scale = math.sqrt(config.hidden_size)
        self.conditioning: Conditioning = "dense"
        """Over which tokens a step's expected embedding is taken."""
        seen: dict[int, Tensor] = {}
        each_tensor(weights, lambda tensor: seen.setdefault(tensor.data_ptr(), tensor))
        self.nbytes = sum(tensor.nbytes for tensor in seen.values())
        self.int8 = any(tensor.dtype == torch.int8 for tensor in seen.values())

    @property
    def precision(self) -> str:
        """What the matrices are stored in: int8, float32 or bfloat16."""
        return "int8" if self.int8 else str(self.dtype).removeprefix("torch.")

    @property
    def kernels(self) -> str:
        """Which kernels run this model, "torch" or "triton" with its block sizes; by name, what has run another way."""
        how, shown = path.chosen(self.device), tuned.described(self.device)
        others = sorted({kernel for kernel, which in path.ran if which != how})
        return f"{shown}, but not for {' and '.join(others)}" if others else shown

    @property
    def parameters(self) -> int:
        """How many numbers the checkpoint holds, the tied head counted once."""
        return sum(math.prod(shape) for shape in expected_shapes(self.config).values())

    def new_cache(self, capacity: int, scratch: int | None = None) -> PrefixCache:
        """A cache for `capacity` prompt tokens and `scratch` canvas slots at once (default: four canvases)."""
        room = 4 * self.config.canvas_length if scratch is None else scratch
        # The embedding is bf16 beside int8 weights if the processor is fast at it (`weights`); so is the cache then.
        embedding = self.weights.embedding
        stored = self.dtype if isinstance(embedding, Int8Rows) else embedding.dtype
        return PrefixCache(self.config, capacity, room, self.device, self.dtype, stored)

    @torch.inference_mode()
    def encode(self, cache: PrefixCache, ids: Sequence[int]) -> Tensor:
        """Append `ids` to the prefix; returns their final hidden states [n, D], which `head` takes.

        The same up to rounding however the ids are cut into calls. Raises `ModelError` if they do not fit.
        """
        if len(cache) + len(ids) > cache.capacity:
            cache.append_window(len(ids))
        hidden = [torch.empty((0, self.config.hidden_size), device=self.device, dtype=self.dtype)]
        for start in range(0, len(ids), CHUNK):
            chunk = list(ids[start : start + CHUNK])
            window = cache.append_window(len(chunk))
            tokens = torch.tensor(chunk, device=self.device)
            hidden.append(self._forward(self.embed(tokens), window, decoder=False))
            cache.ids.extend(chunk)
        return hidden[-1] if len(hidden) == 2 else torch.cat(hidden)

    @torch.inference_mode()
    def encode_many(self, parts: Sequence[tuple[PrefixCache, Sequence[int]]]) -> list[Tensor]:
        """`encode` for several caches in one pass, which should hold few tokens in all; each gets its own [n, D]."""
        window = join([cache.append_window(len(ids)) for cache, ids in parts])
        tokens = torch.tensor([token for _, ids in parts for token in ids], device=self.device)
        hidden = self._forward(self.embed(tokens), window, decoder=False)
        for cache, ids in parts:
            cache.ids.extend(ids)
        return list(torch.split(hidden, [len(ids) for _, ids in parts]))

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [n, D] to soft-capped logits [n, V], fp32."""
        cap = self.config.softcap
        return (self.weights.head(hidden).float() / cap).tanh_().mul_(cap)

    @torch.inference_mode()
    def denoise(
        self,
        cache: PrefixCache | Joined,
        canvas: Tensor,
        free: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        conditioning: Tensor | None = None,
        temperature: float | Tensor = 1.0,
        banned: Tensor | None = None,
        allowed: Mapping[int, Tensor] | None = None,
        gumbel: Noise = None,
    ) -> Denoised:
        """One step: every canvas row sees the prefix and all of itself; the head runs for free slots only.

        canvas [B, C] int64; free [B, C] bool; lengths: slots used per row (default all C; no slot behind
        that may be free); conditioning [B, C, D] from the step before, None at the first; banned [V] bool;
        allowed: number of a free slot to the only ids it may hold; gumbel: noise [N, V], what to draw it from,
        or None for greedy samples. The cache keeps its length, its scratch slots are overwritten.
        """
        rows, width = canvas.shape
        window = cache.canvas_window([width] * rows if lengths is None else lengths, width)
        tokens, is_free = canvas.reshape(-1), free.reshape(-1)
        soft = None if conditioning is None else conditioning.reshape(rows * width, -1)
        if (keep := window.keep) is not None:
            tokens, is_free = tokens[keep], is_free[keep]
            soft = None if soft is None else soft[keep]
        embedded = self.embed(tokens)
        slots = is_free.nonzero().squeeze(-1)
        step = self.read(
            window, embedded, slots, soft, temperature=temperature, banned=banned, allowed=allowed, gumbel=gumbel
        )
        following = embedded.index_copy(0, slots, step.conditioning)
        if keep is not None:
            padded = following.new_zeros((rows * width, self.config.hidden_size))
            following = padded.index_copy_(0, keep, following)
        return Denoised(step.argmax, step.sample, step.entropy, step.logprob, following.view(rows, width, -1))

    def read(
        self,
        window: Window,
        embedded: Tensor,
        slots: Tensor,
        soft: Tensor | None,
        *,
        temperature: float | Tensor,
        banned: Tensor | None,
        allowed: Allowed | None,
        gumbel: Noise,
    ) -> Head:
        """What `denoise` reads off the `slots` [N] of the embedded canvas tokens [T, D]: never asks the device.

        soft [T, D] is the last step's conditioning, or None; the conditioning that is returned is scaled."""
        x = self_condition(self.weights.self_conditioning, embedded, soft, self.config.rms_norm_eps)
        hidden = self._forward(x, window, decoder=True).index_select(0, slots)
        step = denoise_head(
            hidden,
            self.weights.embedding,
            softcap=self.config.softcap,
            temperature=temperature,
            banned=banned,
            allowed=allowed,
            noise=gumbel,
            conditioning=self.conditioning,
            round_logits=self.dtype == torch.bfloat16,
            project=self.weights.head,
        )
        return step._replace(conditioning=step.conditioning * self._scale)

    @torch.inference_mode()
    def score(self, cache: PrefixCache, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Per row, the log-probability [len(row)] fp32 of each of its tokens, left to right, after the prefix.

        The rows do not see each other and the cache stays as it was. Needs at least one encoded token.
        """
        if not cache.ids:
            raise ModelError("scoring needs at least one encoded token before the rows")
        rows = [list(row) for row in rows]
        lengths = [len(row) for row in rows]
        if not sum(lengths):
            return [torch.zeros(0) for _ in rows]
        tokens = torch.tensor([cache.ids[-1], *(token for row in rows for token in row)], device=self.device)
        hidden = self._forward(self.embed(tokens), cache.score_window(lengths), decoder=False)
        # Token t of a row is judged by the state before it; the first one of every row by the shared state 0.
        before = torch.arange(len(tokens) - 1)
        starts = torch.tensor([sum(lengths[:index]) for index, length in enumerate(lengths) if length])
        before[starts] = 0
        most = max(1, SCORED_AT_ONCE // self.config.vocab_size)
        pairs = zip(torch.split(before.to(self.device), most), torch.split(tokens[1:], most), strict=True)
        logs = [self.head(hidden[at]).log_softmax(-1).gather(1, ids[:, None]).squeeze(1) for at, ids in pairs]
        return list(torch.split(torch.cat(logs), lengths))

    def embed(self, tokens: Tensor) -> Tensor:
        """Scaled embeddings [T, D] of tokens [T]."""
        embedding = self.weights.embedding
        if isinstance(embedding, Int8Rows):
            rows = embedding.codes.index_select(0, tokens) * embedding.scale.index_select(0, tokens)[:, None]
        else:
            rows = embedding.index_select(0, tokens)
        return rows.to(self.dtype) * self._scale

    def _forward(self, x: Tensor, window: Window, *, decoder: bool) -> Tensor:
        """x [T, D] through all layers and the final norm."""
        eps = self.config.rms_norm_eps
        normed, last = rms_norm(x, None, eps), self.weights.layers[-1]
        for layer, span in zip(self.weights.layers, window.spans, strict=True):
            side = layer.decoder if decoder else layer.encoder
            following = self.weights.norm if layer is last else None
            x, normed = block(layer, x, normed, span.tables, span.attend, side, eps, following)
        return normed
