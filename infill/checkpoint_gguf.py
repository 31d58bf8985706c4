"""A GGUF file of DiffusionGemma, as llama.cpp's converter writes it and unsloth publishes it.

The container is read here: `gguf.GGUFReader` makes an array of every string and took 139 s and 1.4 GB for a header
with this model's vocabulary. What a block of codes means is told by `ggml`.
Sources: ggml's docs/gguf.md; llama.cpp pull requests 24423 and 24427 (src/models/diffusion-gemma.cpp and
conversion/diffusion_gemma.py) with the Gemma4Model class that they build on; header listings of unsloth's Q4_K_M
(692 tensors). By these: norms are stored as they are (no +1), queries and keys are not permuted, gate comes before
up in `ffn_gate_up_exps`, `ffn_gate_inp.scale` is router.scale and `ffn_down_exps.scale` is router.per_expert_scale.
A width that is no multiple of 256 (704, 2112) falls back to Q5_0 or Q8_0.

No config.json belongs to the file: it is rebuilt from the metadata, and how much of a full layer's head turns from
`rope_freqs`. The vocabulary in it is not used: tokenizer.json must lie beside it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ggml
from .checkpoint_shards import SourceError, Stored
from .model_config import ACTIVATION, ARCHITECTURE, DECODER, ENCODER

ARCH = "diffusion-gemma"
MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
MOST_AXES = 4
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF's value types as `struct` letters."""

TOP = {
    "token_embd.weight": f"{DECODER}embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "output_norm.weight": f"{DECODER}norm.weight",
    "self_cond_pre_norm.weight": f"{DECODER}self_conditioning.pre_norm.weight",
    "self_cond_gate.weight": f"{DECODER}self_conditioning.gate_proj.weight",
    "self_cond_up.weight": f"{DECODER}self_conditioning.up_proj.weight",
    "self_cond_down.weight": f"{DECODER}self_conditioning.down_proj.weight",
}
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
    "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
    "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight",
    "ffn_gate_inp.weight": "router.proj.weight",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
    "layer_output_scale.weight": "layer_scalar",
    # llama.cpp also loads the two halves apart; `checkpoints` joins them.
    "ffn_gate_exps.weight": "experts.gate_proj",
    "ffn_up_exps.weight": "experts.up_proj",
}
ENCODER_SCALAR = "enc_layer_output_scale.weight"
FREQUENCIES = "rope_freqs.weight"
NOT_TURNED = 1e29
"""Factors above this divide a frequency to nothing; the converter writes 1e30."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one tensor, each a whole number of blocks."""

    path: Path
    shape: tuple[int, ...]
    type: ggml.Type
    row_bytes: int
    offset: int

    def read(self, rows: slice = slice(None)) -> Tensor:
        outer = self.shape[0] if len(self.shape) > 1 else 1
        start, stop, _ = rows.indices(outer) if len(self.shape) > 1 else (0, 1, 1)
        inner = math.prod(self.shape[1:-1])
        shape = (stop - start, *self.shape[1:]) if len(self.shape) > 1 else self.shape
        if 0 in shape or stop <= start:
            return torch.empty(0, *self.shape[1:])
        count = (stop - start) * inner
        raw = torch.empty(count, self.row_bytes, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.offset + start * inner * self.row_bytes)
            if file.readinto(raw.numpy().data) != raw.numel():
                raise SourceError(f"{self.path} has become shorter while it was read; copy it again")
        dense = self.type.dense(raw).reshape(shape)
        return dense[rows] if len(self.shape) == 1 else dense


def find_gguf(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The model's config.json, and every tensor by its dense name or, where none is known, its own."""
    meta, blocks = read_header(path)
    if (found := meta.get("general.architecture")) != ARCH:
        raise SourceError(f"{path} holds a {found!r} model; only {ARCH!r} can be imported")
    if meta.get("split.count", 1) > 1:
        raise SourceError(f"{path} is one of {meta['split.count']} parts; join them first: llama-gguf-split --merge")
    frequencies = blocks.pop(FREQUENCIES, None)
    config = _config(path, meta, blocks, frequencies)
    return config, {_dense_name(name): block for name, block in blocks.items()}


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Block]]:
    """Metadata (arrays of strings as their length) and tensors; raises `SourceError`."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(data)
            if data[:4] != MAGIC:
                raise SourceError(f"{path} is no GGUF file; copy it again")
            cursor.at = 4
            (version,) = cursor.numbers("I")
            if version not in VERSIONS:
                raise SourceError(f"{path} is GGUF version {version}; only 2 and 3 can be read")
            tensors, entries = cursor.numbers("QQ")
            meta = {cursor.text(): cursor.value(cursor.numbers("I")[0]) for _ in range(entries)}
            listed = []
            for _ in range(tensors):
                name = cursor.text()
                (axes,) = cursor.numbers("I")
                if axes > MOST_AXES:
                    raise struct.error(f"{axes} axes")
                ne = cursor.numbers("Q" * axes)
                listed.append((name, tuple(reversed(ne)), *cursor.numbers("IQ")))
            align = meta.get("general.alignment", 32)
            if not isinstance(align, int) or align < 1:
                raise struct.error(f"alignment {align}")
            base = -(-cursor.at // align) * align
            size = len(data)
    except (struct.error, UnicodeDecodeError, OSError, KeyError, ValueError, MemoryError) as error:
        raise SourceError(f"{path} is cut short or no GGUF file ({error or 'memory'}); copy it again") from None
    blocks: dict[str, Block] = {}
    for name, shape, code, offset in listed:
        if name in blocks:
            raise SourceError(f"{path} holds {name} twice; download it again")
        if (kind := ggml.TYPES.get(code)) is None:
            raise SourceError(
                f"{name} in {path} is of ggml's type {code}; only "
                f"{', '.join(own.name for own in ggml.TYPES.values())} can be read, like those of a Q4_K_M or Q8_0 file"
            )
        if not shape or shape[-1] % kind.size:
            raise SourceError(f"{name} has the shape {list(shape)}, which is no whole number of {kind.name} blocks")
        row = shape[-1] // kind.size * kind.nbytes
        if base + offset + row * math.prod(shape[:-1]) > size:
            raise SourceError(f"{path} is cut short: {name} ends after the file does; copy it again")
        blocks[name] = Block(path, shape, kind, row, base + offset)
    return meta, blocks


class _Cursor:
    """Little-endian values one after the other; `struct.error` at the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, letters: str) -> tuple[Any, ...]:
        found = struct.unpack_from("<" + letters, self.data, self.at)
        self.at += struct.calcsize("<" + letters)
        return found

    def text(self) -> str:
        return self._bytes().decode()

    def _bytes(self) -> bytes:
        (length,) = self.numbers("Q")
        if length > len(self.data) - self.at:
            raise struct.error("a string longer than the file")
        self.at += length
        return self.data[self.at - length : self.at]

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.numbers(NUMBERS[kind])[0]
        kind, count = self.numbers("IQ")
        if kind == STRING:
            for _ in range(count):
                self._bytes()
            return count
        if count > len(self.data):
            raise struct.error("an array longer than the file")
        return self.numbers(f"{count}{NUMBERS[kind]}")


def _dense_name(name: str) -> str:
    if name in TOP:
        return TOP[name]
    head, _, rest = name.partition(".")
    number, _, part = rest.partition(".")
    if head == "blk" and number.isdecimal():
        if part == ENCODER_SCALAR:
            return f"{ENCODER}layers.{number}.layer_scalar"
        if part in LAYER:
            return f"{DECODER}layers.{number}.{LAYER[part]}"
    return name


def _shortest(number: float) -> float:
    """The number of fewest digits that is `number` in fp32; nine are always enough."""
    packed = struct.pack("<f", number)
    candidates = (float(f"{number:.{digits}g}") for digits in range(1, 10))
    return next((own for own in candidates if struct.pack("<f", own) == packed), number)


def _config(
    path: Path, meta: Mapping[str, Any], blocks: Mapping[str, Block], frequencies: Block | None
) -> dict[str, Any]:
    """transformers' form of the metadata; whether the tensors fit it is for others to check."""

    def need(key: str, *kinds: type, prefix: str = ARCH + ".") -> Any:
        if not isinstance(value := meta.get(prefix + key), kinds or (int,)):
            raise SourceError(f"the metadata of {path} give {prefix + key} as {value!r}; download another conversion")
        # Numbers are fp32 here: 1e-6 must not become 9.999999974752427e-07.
        return _shortest(value) if isinstance(value, float) else value

    for key in ("attention.shared_kv_layers", "embedding_length_per_layer_input"):
        if meta.get(f"{ARCH}.{key}", 0) != 0:
            raise SourceError(f"the metadata of {path} set {ARCH}.{key}, which is not supported")
    sliding, layers = need("attention.sliding_window_pattern", tuple), need("block_count")
    heads_kv = need("attention.head_count_kv", int, tuple)
    heads_kv = heads_kv if isinstance(heads_kv, tuple) else (heads_kv,) * len(sliding)
    if not 0 < layers == len(sliding) == len(heads_kv):
        raise SourceError(f"the metadata of {path} do not list the {layers} layers; download a newer conversion")
    by_kind = {kind: {n for n, own in zip(heads_kv, sliding, strict=True) if own is kind} for kind in (True, False)}
    if any(len(counts) > 1 for counts in by_kind.values()):
        raise SourceError(f"layers of one kind in {path} have different numbers of key heads; not supported")
    local, full = (next(iter(by_kind[kind]), heads_kv[0]) for kind in (True, False))
    rotated, head_dim = 1.0, need("attention.key_length")
    if not all(sliding):
        if frequencies is None or frequencies.shape != (head_dim // 2,) or head_dim < 2:
            raise SourceError(f"{path} lacks {FREQUENCIES} of {head_dim // 2} numbers for its full-attention layers")
        factors = frequencies.read()
        turned = factors < NOT_TURNED
        if not torch.equal(factors[turned], torch.ones(int(turned.sum()))):
            raise SourceError(f"{FREQUENCIES} in {path} scales positions, which is not supported")
        rotated = int(turned.sum()) / len(factors)
    if (embedding := blocks.get("token_embd.weight")) is None:
        raise SourceError(f"{path} lacks token_embd.weight; download it again")
    text: dict[str, Any] = {
        "model_type": ARCHITECTURE + "_text",
        "vocab_size": embedding.shape[0],
        "hidden_size": need("embedding_length"),
        "intermediate_size": need("feed_forward_length"),
        "moe_intermediate_size": need("expert_feed_forward_length"),
        "num_experts": need("expert_count"),
        "top_k_experts": need("expert_used_count"),
        "num_hidden_layers": layers,
        "layer_types": ["sliding_attention" if own else "full_attention" for own in sliding],
        "num_attention_heads": need("attention.head_count"),
        "num_key_value_heads": local,
        "num_global_key_value_heads": full,
        "head_dim": need("attention.key_length_swa"),
        "global_head_dim": head_dim,
        "sliding_window": need("attention.sliding_window"),
        "max_position_embeddings": need("context_length"),
        "rms_norm_eps": need("attention.layer_norm_rms_epsilon", float),
        "final_logit_softcapping": need("final_logit_softcapping", float),
        "hidden_activation": ACTIVATION,
        "attention_bias": False,
        "use_bidirectional_attention": "vision",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": need("rope.freq_base_swa", float)},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": need("rope.freq_base", float),
                "partial_rotary_factor": rotated,
            },
        },
    }
    return {
        "model_type": ARCHITECTURE,
        "architectures": ["DiffusionGemmaForBlockDiffusion"],
        "canvas_length": need("diffusion.canvas_length", prefix=""),
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "text_config": text,
    }
