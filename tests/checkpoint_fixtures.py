"""Tiny checkpoints in every published packing, made from one random bf16 model.

The packers follow the formats' descriptions bit by bit and share nothing with the readers: each returns what its
own codes and scales mean, by the names of `expected_shapes`. Widths keep the traits of the real ones: 256 divides
the hidden size only, and 64 all of them (2816, 2112 and 704 there, 256, 192 and 64 here).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import build, save

from stopgap.infill.model_config import DECODER, ENCODER, ModelConfig, expected_shapes

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 256,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "global_head_dim": 128,
    "num_global_key_value_heads": 1,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 64,
    "sliding_window": 6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 256,
    "use_bidirectional_attention": "vision",
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    },
}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Original:
    """The bf16 checkpoint that all others are made from; `tensors` includes vision."""

    folder: Path
    config: dict[str, Any]
    tensors: Tensors

    @property
    def expected(self) -> Tensors:
        return {name: self.tensors[name] for name in expected_shapes(ModelConfig.from_dict(self.config))}


def original(folder: Path, model: transformers.PreTrainedModel | None = None) -> Original:
    """Of random weights, unless there is a model."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    save(model or build(1, **SHAPE), folder)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {f"t{index}": index for index in range(SHAPE["vocab_size"])}
    write_json(folder / "tokenizer.json", {"model": {"vocab": vocabulary}, "added_tokens": []})
    return Original(folder, json.loads((folder / "config.json").read_text()), tensors)


@dataclass(frozen=True)
class Decided:
    """A model that is sure of every slot, and what it says: greedy steps turn each canvas into the next one."""

    of: Original
    prompt: list[int]
    canvases: torch.Tensor


def decided(folder: Path, seed: int) -> Decided:
    """A random model after 25 steps of training (1.4 s): its surest wrong token is some 6 below the right one.

    What a model of random weights says is a matter of hundredths; whether rounding changes it is chance. The chain
    is six canvases of eight slots long, the first one as good as noise, and no token is in it twice.
    """
    model, noise = build(seed, **SHAPE), torch.Generator().manual_seed(seed)
    chain = torch.randperm(SHAPE["vocab_size"], generator=noise)[:56].view(7, 8)
    canvas, wanted = chain[:-1], chain[1:]
    prompt = torch.arange(20)
    # Each step but the first has the last one's certainty as its condition.
    condition = {
        "self_conditioning_logits": 30.0 * torch.nn.functional.one_hot(canvas, SHAPE["vocab_size"]),
        "self_conditioning_mask": torch.arange(len(canvas)) > 0,
    }
    adam = torch.optim.Adam([own for name, own in model.named_parameters() if "vision" not in name], lr=2e-3)
    for _ in range(25):
        out = model(input_ids=prompt.expand(len(canvas), -1), decoder_input_ids=canvas, **condition)
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), wanted.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
    return Decided(original(folder, model), prompt.tolist(), chain)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors, shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", {"model": {"vocab": {}}, "added_tokens": []})
    if shards == 1:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
        return folder
    where = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = {name: tensors[name].contiguous() for name in list(tensors)[shard::shards]}
        save_file(own, folder / file)
        where |= dict.fromkeys(own, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return folder


def unfused(tensors: Tensors) -> Tensors:
    """Experts as single matrices, the way quantisers for vLLM store them."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith(".experts.gate_up_proj"):
            half = tensor.shape[1] // 2
            for expert, own in enumerate(tensor):
                prefix = name.removesuffix("gate_up_proj") + str(expert)
                result |= {f"{prefix}.gate_proj.weight": own[:half], f"{prefix}.up_proj.weight": own[half:]}
        elif name.endswith(".experts.down_proj"):
            for expert, own in enumerate(tensor):
                result[f"{name.removesuffix('down_proj')}{expert}.down_proj.weight"] = own
        else:
            result[name] = tensor
    return result


def fused(tensors: Tensors, of: Original) -> Tensors:
    """The other way round, fp32; only the tensors that are expected."""
    result: Tensors = {}
    for name, shape in expected_shapes(ModelConfig.from_dict(of.config)).items():
        prefix, _, kind = name.rpartition(".experts.")
        if not prefix or name in tensors:
            result[name] = tensors[name].float()
            continue
        kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        each = [
            torch.cat([tensors[f"{prefix}.experts.{expert}.{own}.weight"].float() for own in kinds])
            for expert in range(shape[0])
        ]
        result[name] = torch.stack(each)
    return result


LINEAR = re.compile(
    rf"{re.escape(DECODER)}layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.\w+_proj|experts\.\d+\.\w+)\.weight"
)
"""What RedHatAI's recipe quantises: every Linear but lm_head, embeddings, router, vision and self-conditioning."""

E4M3 = torch.tensor(
    [
        (-1.0 if code & 128 else 1.0)
        * (2.0 ** ((code >> 3 & 15) - 7) * (1 + (code & 7) / 8) if code >> 3 & 15 else 2.0**-6 * (code & 7) / 8)
        for code in range(256)
        if code & 127 != 127
    ]
)
"""Every number of the format, in the order of the codes without the two NaNs (0x7f, 0xff)."""

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def e4m3_codes(values: torch.Tensor) -> torch.Tensor:
    """The nearest code of each, uint8."""
    magnitudes = E4M3[:127]
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    codes = torch.bucketize(values.abs().contiguous(), middles)
    return (codes + 128 * (values < 0)).to(torch.uint8)


def e4m3_values(codes: torch.Tensor) -> torch.Tensor:
    return E4M3[codes.long() - (codes > 127).long()]


def write_fp8(of: Original, folder: Path, scale_dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """compressed-tensors float-quantized, one scale for each output row."""
    stored: Tensors = {}
    meant: Tensors = {}
    for name, tensor in unfused(of.tensors).items():
        if not LINEAR.fullmatch(name):
            stored[name] = meant[name] = tensor
            continue
        scale = (tensor.float().abs().amax(1, keepdim=True) / 448).to(scale_dtype)
        codes = e4m3_codes(tensor.float() / scale.float())
        stored[name] = codes.view(torch.float8_e4m3fn)
        stored[name + "_scale"] = scale
        meant[name] = e4m3_values(codes) * scale.float()
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    quantization = compressed_tensors("float-quantized", weights)
    write_folder(folder, of.config | {"quantization_config": quantization}, stored)
    return fused(meant, of)


def compressed_tensors(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def write_nvfp4(of: Original, folder: Path, dialect: str) -> Tensors:
    """dialect "modelopt": only experts are packed, as NVIDIA does; "compressed-tensors": every Linear."""
    stored: Tensors = {}
    meant: Tensors = {}
    for name, tensor in unfused(of.tensors).items():
        packs = LINEAR.fullmatch(name) and (dialect != "modelopt" or ".experts." in name)
        if not packs:
            stored[name] = meant[name] = tensor
            continue
        groups = tensor.float().reshape(len(tensor), -1, 16)
        common = groups.abs().max() / (6 * 448)
        scale = e4m3_codes(groups.abs().amax(-1) / 6 / common)
        each = (e4m3_values(scale) * common)[..., None]
        codes = torch.bucketize((groups / each.clamp(min=1e-20)).abs(), (E2M1[1:] + E2M1[:-1]) / 2)
        meant[name] = (torch.where(groups < 0, -1, 1) * E2M1[codes] * each).reshape(tensor.shape)
        nibbles = (codes + 8 * (groups < 0)).reshape(len(tensor), -1, 2).to(torch.uint8)
        packed = nibbles[..., 0] + 16 * nibbles[..., 1]
        module = name.removesuffix(".weight")
        stored[f"{module}.weight_scale"] = scale.view(torch.float8_e4m3fn)
        if dialect == "modelopt":
            stored[name], stored[f"{module}.weight_scale_2"] = packed, common
            stored[f"{module}.input_scale"] = torch.tensor(0.01)
        else:
            stored[f"{module}.weight_packed"], stored[f"{module}.weight_global_scale"] = packed, 1 / common[None]
            stored[f"{module}.input_global_scale"] = torch.tensor([100.0])
    quantization: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {}}
    if dialect != "modelopt":
        weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
        quantization = compressed_tensors("nvfp4-pack-quantized", weights)
    write_folder(folder, of.config | {"quantization_config": quantization}, stored, shards=2)
    return fused(meant, of)


def write_integers(of: Original, folder: Path, bits: int, group: int, symmetric: bool) -> Tensors:
    """compressed-tensors pack-quantized; a matrix that the groups do not divide stays as it is. group 0: whole rows."""
    stored: Tensors = {}
    meant: Tensors = {}
    half = 1 << (bits - 1)
    for name, tensor in unfused(of.tensors).items():
        width = group or tensor.shape[-1]
        if not LINEAR.fullmatch(name) or tensor.shape[1] % width:
            stored[name] = meant[name] = tensor
            continue
        groups = tensor.float().reshape(len(tensor), -1, width)
        low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        if symmetric:
            scale = (groups.abs().amax(-1) / (half - 0.5)).bfloat16().float()
            zero = torch.zeros_like(scale)
        else:
            scale = ((high - low) / (2 * half - 1)).bfloat16().float()
            zero = (-half - low / scale).round().clamp(-half, half - 1)
        codes = (groups / scale[..., None] + zero[..., None]).round().clamp(-half, half - 1)
        meant[name] = ((codes - zero[..., None]) * scale[..., None]).reshape(tensor.shape)
        module = name.removesuffix(".weight")
        stored[f"{module}.weight_packed"] = words_of(codes.flatten(1) + half, bits)
        stored[f"{module}.weight_scale"] = scale.bfloat16()
        stored[f"{module}.weight_shape"] = torch.tensor(tensor.shape)
        if not symmetric:
            stored[f"{module}.weight_zero_point"] = words_of((zero + half).T, bits).T
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": group, "symmetric": symmetric}
    quantization = compressed_tensors("pack-quantized", weights)
    write_folder(folder, of.config | {"quantization_config": quantization}, stored)
    return fused(meant, of)


def words_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes >= 0 of [n, m] as int32 [n, m * bits / 32, rounded up], the first in the lowest bits."""
    each = 32 // bits
    rows = [row + [0] * (-len(row) % each) for row in codes.int().tolist()]
    words = [
        [
            sum(code << bits * at for at, code in enumerate(row[start : start + each]))
            for start in range(0, len(row), each)
        ]
        for row in rows
    ]
    return torch.tensor(words).to(torch.uint32).view(torch.int32)


def write_mlx(of: Original, folder: Path, bits: int, mode: str = "affine") -> Tensors:
    """mlx-vlm's conversion: embedding, attention, dense MLP and router are affine of 8 bits in any case."""
    group = {"affine": 64, "mxfp4": 32, "mxfp8": 32, "nvfp4": 16}[mode]
    quantization: dict[str, Any] = {"group_size": group, "bits": bits, "mode": mode}
    stored: Tensors = {}
    meant: Tensors = {}
    for name, tensor in of.tensors.items():
        module = name.removesuffix(".weight")
        if tensor.ndim < 2 or "vision" in name:
            stored[name] = meant[name] = tensor
            continue
        own = quantization
        if re.search(r"embed_tokens|\.mlp\.|self_attn|router", name):
            own = quantization[module] = {"group_size": 64, "bits": 8}
        codes, scales, biases, meant[name] = mlx_quantised(tensor, own)
        streamed = np.unpackbits(codes.numpy()[..., None], axis=-1, bitorder="little")[..., : own["bits"]]
        words = np.packbits(streamed.reshape(*tensor.shape[:-1], -1), axis=-1, bitorder="little").view("<u4")
        stored[f"{module}.weight"] = torch.from_numpy(words.copy())
        stored[f"{module}.scales"] = scales
        if biases is not None:
            stored[f"{module}.biases"] = biases
    config = of.config | {"quantization": quantization, "quantization_config": quantization}
    write_folder(folder, config, stored)
    return fused(meant, of)


def mlx_quantised(
    tensor: torch.Tensor, own: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Codes (uint8), scales, biases and what they mean."""
    groups = tensor.float().reshape(*tensor.shape[:-1], -1, own["group_size"])
    mode = own.get("mode", "affine")
    if mode == "affine":
        low, high = groups.amin(-1), groups.amax(-1)
        scales, biases = ((high - low) / (2 ** own["bits"] - 1)).bfloat16(), low.bfloat16()
        codes = ((groups - biases[..., None].float()) / scales[..., None].float()).round()
        codes = codes.clamp(0, 2 ** own["bits"] - 1)
        meant = codes * scales[..., None].float() + biases[..., None].float()
        return codes.to(torch.uint8).reshape(tensor.shape), scales, biases, meant.reshape(tensor.shape)
    if mode == "nvfp4":
        scales = e4m3_codes(groups.abs().amax(-1) / 6)
        each = e4m3_values(scales)[..., None]
    else:
        scales = (groups.abs().amax(-1) / (6 if mode == "mxfp4" else 448)).log2().ceil().add(127).to(torch.uint8)
        each = 2.0 ** (scales.float() - 127)[..., None]
    if mode == "mxfp8":
        codes = e4m3_codes(groups / each)
        values = e4m3_values(codes)
    else:
        magnitudes = torch.bucketize((groups / each.clamp(min=1e-20)).abs(), (E2M1[1:] + E2M1[:-1]) / 2)
        values = torch.where(groups < 0, -1, 1) * E2M1[magnitudes]
        codes = (magnitudes + 8 * (groups < 0)).to(torch.uint8)
    return codes.reshape(tensor.shape), scales, None, (values * each).reshape(tensor.shape)


Packer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""float32 [rows, columns] to its bytes, uint8 [rows, n], and what they mean."""


def half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16)


def as_bytes(*parts: np.ndarray) -> np.ndarray:
    """Fields of [rows, blocks, n], one block after the other."""
    fields = [np.ascontiguousarray(part).view(np.uint8) for part in parts]
    return np.concatenate(fields, -1).reshape(len(fields[0]), -1)


def pack_q8_0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks = x.reshape(len(x), -1, 32)
    d = half(np.abs(blocks).max(-1, keepdims=True) / 127)
    q = np.clip(np.rint(blocks / d.astype(np.float32)), -127, 127).astype(np.int8)
    return as_bytes(d, q), (d.astype(np.float32) * q).reshape(x.shape)


def pack_q5_0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks = x.reshape(len(x), -1, 32)
    d = half(np.abs(blocks).max(-1, keepdims=True) / 15)
    q = np.clip(np.rint(blocks / d.astype(np.float32)) + 16, 0, 31).astype(np.uint8)
    high = np.packbits(q >> 4, axis=-1, bitorder="little")
    low = (q[..., :16] & 15) | (q[..., 16:] & 15) << 4
    return as_bytes(d, high, low), (d.astype(np.float32) * (q.astype(np.float32) - 16)).reshape(x.shape)


def pack_q4_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = x.reshape(len(x), -1, 8, 32)
    low = np.maximum(-parts.min(-1), 0)
    step = (parts.max(-1) + low) / 15
    d, dmin = half(step.max(-1, keepdims=True) / 63), half(low.max(-1, keepdims=True) / 63)
    fd, fmin = d.astype(np.float32), dmin.astype(np.float32)
    sc = np.clip(np.rint(step / fd), 1, 63).astype(np.uint8)
    mn = np.clip(np.rint(low / np.maximum(fmin, 1e-20)), 0, 63).astype(np.uint8)
    each, under = (fd * sc)[..., None], (fmin * mn)[..., None]
    q = np.clip(np.rint((parts + under) / each), 0, 15).astype(np.uint8)
    scales = np.concatenate(
        [
            sc[..., :4] | sc[..., 4:] >> 4 << 6,
            mn[..., :4] | mn[..., 4:] >> 4 << 6,
            sc[..., 4:] & 15 | (mn[..., 4:] & 15) << 4,
        ],
        -1,
    )
    pairs = q.reshape(*q.shape[:2], 4, 2, 32)
    nibbles = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(*q.shape[:2], 128)
    return as_bytes(d, dmin, scales, nibbles), (each * q - under).reshape(x.shape).astype(np.float32)


def pack_q6_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = x.reshape(len(x), -1, 16, 16)
    step = np.abs(parts).max(-1) / 31
    d = half(step.max(-1, keepdims=True) / 127)
    fd = d.astype(np.float32)
    sc = np.clip(np.rint(step / fd), 1, 127).astype(np.int8)
    each = (fd * sc)[..., None]
    q = (np.clip(np.rint(parts / each), -32, 31) + 32).astype(np.uint8)
    a, b, c, e = (q.reshape(*q.shape[:2], 2, 4, 32)[..., n, :] for n in range(4))
    low = np.concatenate([a & 15 | (c & 15) << 4, b & 15 | (e & 15) << 4], -1)
    high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6
    meant = each * (q.astype(np.float32) - 32)
    flat = (*q.shape[:2], -1)
    return as_bytes(low.reshape(flat), high.reshape(flat), sc, d), meant.reshape(x.shape).astype(np.float32)


def pack_f32(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.view(np.uint8), x


def pack_bf16(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (x.view(np.uint32) >> 16).astype("<u2").view(np.uint8), x


PACKERS: dict[str, Packer] = {
    "F32": pack_f32,
    "BF16": pack_bf16,
    "Q8_0": pack_q8_0,
    "Q5_0": pack_q5_0,
    "Q4_K": pack_q4_k,
    "Q6_K": pack_q6_k,
}


def q8_0(name: str, width: int) -> str:
    return "F32" if name.endswith(("norm", "scale", "ffn_gate_inp", "norm_1", "norm_2")) else "Q8_0"


def q4_k_m(name: str, width: int) -> str:
    """llama.cpp's mix: more bits for values, some down projections and the embedding, and rows that are no
    multiple of 256 fall back to types in blocks of 32."""
    if q8_0(name, width) == "F32":
        return "F32"
    if width % 256:
        return "Q8_0" if name.startswith(("blk.0.", "self_cond")) else "Q5_0"
    if name == "blk.0.attn_q":
        return "BF16"
    return "Q6_K" if name == "token_embd" or "attn_v" in name else "Q4_K"


GGUF_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "layer_scalar": "layer_output_scale.weight",
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "self_conditioning.pre_norm.weight": "self_cond_pre_norm.weight",
    "self_conditioning.gate_proj.weight": "self_cond_gate.weight",
    "self_conditioning.up_proj.weight": "self_cond_up.weight",
    "self_conditioning.down_proj.weight": "self_cond_down.weight",
}


def gguf_name(name: str) -> str:
    match = re.fullmatch(
        rf"(?P<stack>{re.escape(DECODER)}|{re.escape(ENCODER)})(layers\.(?P<n>\d+)\.)?(?P<rest>.+)", name
    )
    assert match
    if match["stack"] == ENCODER:
        return f"blk.{match['n']}.enc_layer_output_scale.weight"
    return (f"blk.{match['n']}." if match["n"] else "") + GGUF_NAMES[match["rest"]]


def write_gguf(
    of: Original,
    path: Path,
    kind: Callable[[str, int], str],
    leave: Iterable[str] = (),
    halves: bool = False,
    **meta: Any,
) -> Tensors:
    """`kind` chooses a tensor's type by its name (no suffix) and width; `meta` overrides the architecture's keys.

    halves: gate and up of the experts as two tensors.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.parent / "tokenizer.json", {"model": {"vocab": {}}, "added_tokens": []})
    config = ModelConfig.from_dict(of.config)
    assert config.sliding_rope and config.full_rope
    writer = gguf.GGUFWriter(path, meta.pop("arch", "diffusion-gemma"))
    sliding, full = config.layers[0], config.layers[-1]
    values: dict[str, Any] = {
        "block_count": len(config.layers),
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "expert_count": config.num_experts,
        "expert_used_count": config.top_k_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "attention.head_count": sliding.heads,
        "attention.head_count_kv": [layer.kv_heads for layer in config.layers],
        "attention.key_length": full.head_dim,
        "attention.key_length_swa": sliding.head_dim,
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [layer.sliding for layer in config.layers],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.shared_kv_layers": 0,
        "attention.causal": False,
        "rope.freq_base": config.full_rope.theta,
        "rope.freq_base_swa": config.sliding_rope.theta,
        "final_logit_softcapping": config.softcap,
    } | meta
    for key, value in values.items():
        if value is not None:
            add_value(writer, f"{writer.arch}.{key}", value)
    writer.add_uint32("diffusion.canvas_length", config.canvas_length)
    writer.add_token_list([f"t{index}" for index in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    turned = int(full.head_dim * config.full_rope.rotated / 2)
    factors = [1.0] * turned + [1e30] * (full.head_dim // 2 - turned)
    writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    meant: Tensors = {}
    for name, tensor in of.expected.items():
        own = gguf_name(name)
        if own in leave:
            continue
        dense = tensor.float().numpy()
        chosen = kind(own.removesuffix(".weight"), dense.shape[-1])
        data, values_meant = PACKERS[chosen](np.ascontiguousarray(dense.reshape(-1, dense.shape[-1])))
        shape = (*dense.shape[:-1], data.shape[-1])
        raw = data.reshape(shape) if chosen != "F32" else dense
        pieces = {own: raw}
        if halves and "gate_up" in own:
            middle = raw.shape[1] // 2
            pieces = {own.replace("_up", ""): raw[:, :middle], own.replace("gate_", ""): raw[:, middle:]}
        for piece, data in pieces.items():
            raw_dtype = gguf.GGMLQuantizationType[chosen] if chosen != "F32" else None
            writer.add_tensor(piece, np.ascontiguousarray(data), raw_dtype=raw_dtype)
        meant[name] = torch.from_numpy(values_meant.reshape(dense.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case _:
            writer.add_array(key, value)


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A PEFT adapter; `tensors` by module path, without PEFT's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none"}
    write_json(folder / "adapter_config.json", base | {"init_lora_weights": True, "use_dora": False} | config)
    save_file(
        {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder
