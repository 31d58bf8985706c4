"""transformers' own DiffusionGemma behind the interface of `Model`: `--engine transformers`, for comparison.

Knows no text and no sampling. Rows run one after the other and a cropped prefix is encoded again from the start,
since transformers' cache drops what has left the sliding window. Importing this file imports transformers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache

from stopgap.kernels.head import Noise, read

from .cpu import choose_threads
from .model import Denoised, Model
from .model_config import ModelConfig, ModelError
from .prefix import Joined, PrefixCache
from .weights import read_config


def load_reference(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    threads: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> ReferenceModel:
    """Load a checkpoint folder (not a packed one); options as in `weights.load_model`. Raises `ModelError`."""
    config, device = read_config(folder), torch.device(device)
    if device.type == "cpu":
        torch.set_num_threads(threads) if threads else choose_threads(clock)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        network = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=dtype)
        torch.nn.Module.to(network, device).train(False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"transformers cannot load {folder}: {str(error).splitlines()[0]}") from None
    return ReferenceModel(network, config, folder.name)


class ReferenceCache(PrefixCache):
    """The ids, and transformers' cache of them; None after a crop, until it is needed again."""

    def __init__(self, capacity: int) -> None:
        self.ids: list[int] = []
        self.capacity = capacity
        self.keys_values: DynamicCache | None = None

    def crop(self, length: int) -> None:
        if length < len(self.ids):
            self.keys_values = None
        super().crop(length)

    @property
    def nbytes(self) -> int:
        layers: list[Any] = [] if self.keys_values is None else self.keys_values.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


class ReferenceModel(Model):
    """`network` with `Model`'s methods, except for several prefixes in one pass; see there."""

    joins = False

    def __init__(self, network: DiffusionGemmaForBlockDiffusion, config: ModelConfig, name: str) -> None:
        self.config = config
        self.name = name
        self.network = network
        self.device = network.device
        self.dtype = network.dtype
        self.nbytes = sum(tensor.nbytes for tensor in network.parameters())
        self.int8 = False
        self._soft: Tensor | None = None
        # The decoder takes the last step's logits; the interface carries their expected embedding instead.
        network.model.decoder.self_conditioning.register_forward_pre_hook(self._replace_soft)

    @property
    def kernels(self) -> str:
        return "torch"

    def new_cache(self, capacity: int, scratch: int | None = None) -> ReferenceCache:
        return ReferenceCache(capacity)

    @torch.inference_mode()
    def encode(self, cache: PrefixCache, ids: Sequence[int]) -> Tensor:
        assert isinstance(cache, ReferenceCache)
        if len(cache) + len(ids) > cache.capacity:
            raise ModelError(f"{len(cache) + len(ids)} prompt tokens do not fit the prefix cache of {cache.capacity}")
        if not ids:
            return torch.empty((0, self.config.hidden_size), device=self.device, dtype=self.dtype)
        new = list(ids) if cache.keys_values is not None else [*cache.ids, *ids]
        out = self.network.model.encoder(
            input_ids=torch.tensor([new], device=self.device), past_key_values=cache.keys_values
        )
        cache.keys_values = out.past_key_values
        cache.ids.extend(ids)
        hidden: Tensor = out.last_hidden_state[0, -len(ids) :]
        return hidden

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        cap = self.config.softcap
        return torch.tanh(self.network.lm_head(hidden).float() / cap) * cap

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
        prefix = self._prefix(cache)
        decoder = self.network.model.decoder
        following = torch.zeros((*canvas.shape, self.config.hidden_size), device=self.device, dtype=self.dtype)
        logits = []
        for row, length in enumerate([canvas.shape[1]] * len(canvas) if lengths is None else lengths):
            tokens = canvas[row : row + 1, :length]
            self._soft = None if conditioning is None else conditioning[row : row + 1, :length]
            hidden = decoder(decoder_input_ids=tokens, past_key_values=prefix).last_hidden_state
            logits.append(self.network.lm_head(hidden)[0][free[row, :length]])
            following[row, :length] = decoder.embed_tokens(tokens)[0]
        step = read(
            torch.cat(logits),
            softcap=self.config.softcap,
            temperature=temperature,
            banned=banned,
            allowed=allowed,
            noise=gumbel,
        )
        weight = decoder.embed_tokens.weight
        following[free] = step.probabilities.to(weight.dtype) @ weight * self.config.hidden_size**0.5
        return Denoised(step.argmax, step.sample, step.entropy, step.logprob, following)

    @torch.inference_mode()
    def score(self, cache: PrefixCache, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        if not cache.ids:
            raise ModelError("scoring needs at least one encoded token before the rows")
        scores = []
        for row in rows:
            hidden = self.encode(self.new_cache(len(cache) + len(row)), [*cache.ids, *row])[len(cache) - 1 : -1]
            chosen = torch.tensor(list(row), dtype=torch.int64, device=self.device)[:, None]
            scores.append(self.head(hidden).log_softmax(-1).gather(1, chosen)[:, 0])
        return scores

    def _prefix(self, cache: PrefixCache | Joined) -> DynamicCache:
        assert isinstance(cache, ReferenceCache)
        if cache.keys_values is None:
            ids = cache.ids.copy()
            cache.ids.clear()
            self.encode(cache, ids)
        assert cache.keys_values is not None, "the reference cannot denoise behind an empty prefix"
        return cache.keys_values

    def _replace_soft(self, module: object, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs if self._soft is None else (inputs[0], self._soft)
