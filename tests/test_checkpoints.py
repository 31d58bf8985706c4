"""Every published packing of a checkpoint: what is read, what is left out, and what is refused in which words."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import checkpoint_fixtures as fixtures
import pytest
import torch
from checkpoint_fixtures import Original, Tensors, original, write_adapter, write_folder, write_json
from safetensors.torch import load_file, save_file

from stopgap.infill import checkpoint_shards
from stopgap.infill.checkpoint_mlx import unpack_bits
from stopgap.infill.checkpoint_shards import Shards
from stopgap.infill.checkpoints import describe_skipped, open_source
from stopgap.infill.model import Model
from stopgap.infill.model_config import ModelConfig, ModelError
from stopgap.infill.weights import load_model

D, E = "model.decoder.", "model.encoder.language_model."
GATE_UP, DOWN = f"{D}layers.0.experts.gate_up_proj", f"{D}layers.0.experts.down_proj"

PACKINGS: dict[str, Callable[[Original, Path], Tensors]] = {
    "bf16": lambda of, folder: write_folder(folder, of.config, of.tensors) and of.expected,
    "bf16 in shards": lambda of, folder: write_folder(folder, of.config, of.tensors, shards=3) and of.expected,
    "fp8": fixtures.write_fp8,
    "fp8 with fp32 scales": lambda of, folder: fixtures.write_fp8(of, folder, torch.float32),
    "nvfp4 of modelopt": lambda of, folder: fixtures.write_nvfp4(of, folder, "modelopt"),
    "nvfp4 of compressed-tensors": lambda of, folder: fixtures.write_nvfp4(of, folder, "compressed-tensors"),
    "int4 in groups of 32": lambda of, folder: fixtures.write_integers(of, folder, 4, 32, symmetric=True),
    "int4 in groups of 64 with zero points": lambda of, folder: fixtures.write_integers(
        of, folder, 4, 64, symmetric=False
    ),
    "int8 in groups of 128": lambda of, folder: fixtures.write_integers(of, folder, 8, 128, symmetric=True),
    "int8 in rows with zero points": lambda of, folder: fixtures.write_integers(of, folder, 8, 0, symmetric=False),
    "mlx 4 bits": lambda of, folder: fixtures.write_mlx(of, folder, 4),
    "mlx 8 bits": lambda of, folder: fixtures.write_mlx(of, folder, 8),
    "mlx 5 bits": lambda of, folder: fixtures.write_mlx(of, folder, 5),
    "mlx mxfp4": lambda of, folder: fixtures.write_mlx(of, folder, 4, "mxfp4"),
    "mlx mxfp8": lambda of, folder: fixtures.write_mlx(of, folder, 8, "mxfp8"),
    "mlx nvfp4": lambda of, folder: fixtures.write_mlx(of, folder, 4, "nvfp4"),
    "gguf Q8_0": lambda of, folder: fixtures.write_gguf(of, folder / "model-Q8_0.gguf", fixtures.q8_0),
    "gguf Q4_K_M": lambda of, folder: fixtures.write_gguf(of, folder / "model-Q4_K_M.gguf", fixtures.q4_k_m),
}

LOGIT_ERRORS = {
    "bf16": 0,
    "bf16 in shards": 0,
    "fp8": 0.35,
    "fp8 with fp32 scales": 0.35,
    "nvfp4 of modelopt": 0.4,
    "nvfp4 of compressed-tensors": 0.9,
    "int4 in groups of 32": 0.9,
    "int4 in groups of 64 with zero points": 0.9,
    "int8 in groups of 128": 0.08,
    "int8 in rows with zero points": 0.14,
    "mlx 4 bits": 0.3,
    "mlx 8 bits": 0.12,
    "mlx 5 bits": 0.2,
    "mlx mxfp4": 0.4,
    "mlx mxfp8": 0.16,
    "mlx nvfp4": 0.4,
    "gguf Q8_0": 0.16,
    "gguf Q4_K_M": 0.8,
}
"""Norm of the logits' change over the norm of the logits, at most: about one and a half times what was measured.
Random queries and keys attend sharply, so a tiny random model makes much of any rounding of them."""


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return original(tmp_path_factory.mktemp("original"))


@dataclass(frozen=True)
class Written:
    folder: Path
    meant: Tensors

    def copy(self, folder: Path) -> Path:
        """To break."""
        return Path(shutil.copytree(self.folder, folder / "model"))


@pytest.fixture(scope="module")
def written(of: Original, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    def write(packing: str) -> Written:
        folder = tmp_path_factory.mktemp("written")
        return Written(folder, PACKINGS[packing](of, folder))

    return cache(write)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(of: Original, tmp_path: Path) -> Path:
    """A copy of the bf16 checkpoint to break."""
    return Path(shutil.copytree(of.folder, tmp_path / "model"))


def edit(folder: Path, change: Callable[[Tensors], object], file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / file)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    write_json(path, raw)


def logits(config: Any, tensors: Tensors, folder: Path) -> torch.Tensor:
    """Of a model of these dense tensors. Every expert is used: that one is chosen in place of another, with nearly
    the same score, would say nothing of the weights."""
    text = config["text_config"] | {"top_k_experts": config["text_config"]["num_experts"]}
    write_folder(folder, {**config, "text_config": text}, {name: own.float() for name, own in tensors.items()})
    (folder / "tokenizer.json").unlink()
    model: Model = load_model(folder, int8=False, threads=1)
    return model.head(model.encode(model.new_cache(32), list(range(20))))


def refusal(path: Path, adapter: Path | None = None) -> str:
    with pytest.raises(ModelError) as raised:
        open_source(path, adapter)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packing_is_read_as_the_numbers_it_holds(
    of: Original, written: Callable[[str], Written], packing: str
) -> None:
    source = open_source(written(packing).folder)
    assert source.tensors == {name: tuple(tensor.shape) for name, tensor in of.expected.items()}
    assert ModelConfig.from_dict(source.config) == ModelConfig.from_dict(of.config)
    assert not {"quantization", "quantization_config"} & set(source.config)
    assert [path.name for path in source.files] == ["tokenizer.json"]
    for name, tensor in written(packing).meant.items():
        read = source.read(name)
        assert read.dtype in (torch.bfloat16, torch.float32) and read.is_contiguous()
        # NVFP4's two scales may be multiplied in another order; all else is exact.
        torch.testing.assert_close(read.float(), tensor.float(), rtol=3e-7, atol=0)
        for rows in (slice(0, 1), slice(1, 3), slice(2, None), slice(5, 5)):
            assert torch.equal(source.read(name, rows), read[rows]), name


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_model_of_it_is_the_original_but_for_the_rounding(
    of: Original,
    written: Callable[[str], Written],
    tmp_path: Path,
    packing: str,
    record_property: Callable[[str, object], None],
) -> None:
    source = open_source(written(packing).folder)
    exact = logits(of.config, of.expected, tmp_path / "exact")
    found = logits(source.config, {name: source.read(name) for name in source.tensors}, tmp_path / "dense")
    error = ((found - exact).norm() / exact.norm()).item()
    record_property("logit error", error)
    assert error <= LOGIT_ERRORS[packing] and (error > 0) == (LOGIT_ERRORS[packing] > 0)


def test_a_row_is_read_without_its_neighbours(
    written: Callable[[str], Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = Shards.read

    def counted(self: Shards, name: str, rows: slice = slice(None)) -> torch.Tensor:
        tensor = whole(self, name, rows)
        read.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(Shards, "read", counted)
    for packing in ("bf16 in shards", "fp8", "nvfp4 of modelopt", "mlx 4 bits"):
        source = open_source(written(packing).folder)
        for name in (GATE_UP, f"{D}embed_tokens.weight"):
            read.clear()
            source.read(name, slice(1, 2))
            one = sum(read)
            read.clear()
            source.read(name)
            assert one * source.tensors[name][0] <= sum(read) * 1.01, (packing, name)


def test_a_mapping_that_has_been_read_through_is_made_anew(of: Original, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that were touched count as used memory until then."""
    opened: list[Path] = []
    mapped = checkpoint_shards._mapped
    monkeypatch.setattr(checkpoint_shards, "_mapped", lambda path: opened.append(path) or mapped(path))
    monkeypatch.setattr(checkpoint_shards, "RENEWED_AFTER", 1 << 20)
    source = open_source(of.folder)
    total = sum(source.read(name).nbytes for name in source.tensors)
    assert total >> 20 <= len(opened) <= 3 + (total >> 19)
    assert torch.equal(source.read(GATE_UP), of.tensors[GATE_UP])


def test_what_is_left_out_is_said(of: Original, written: Callable[[str], Written], tmp_path: Path) -> None:
    folder = written("nvfp4 of modelopt").copy(tmp_path)
    layer = f"{D}layers.0.self_attn"
    scales = {f"{layer}.k_proj.k_scale": torch.ones(1), f"{layer}.v_proj.v_scale": torch.ones(1)}
    file = "model-00001-of-00002.safetensors"
    edit(folder, lambda tensors: tensors.update(scales), file)
    source = open_source(folder)
    vision = sum("vision" in name for name in of.tensors)
    assert describe_skipped(source.skipped) == f"{vision} vision tensors, 36 activation scales, 2 cache scales"
    assert source.kind == "modelopt NVFP4 safetensors"
    assert not set(source.skipped) & set(source.tensors)


def test_a_tied_copy_of_the_embedding_is_left_out_and_another_head_refused(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[f"{D}embed_tokens.weight"].clone()}))
    assert describe_skipped(open_source(folder).skipped).endswith("1 tied copies")
    edit(folder, lambda tensors: tensors["lm_head.weight"][5].add_(1))
    assert "lm_head.weight is not the same as" in refusal(folder)


def test_the_encoders_copy_of_a_weight_must_be_the_decoders(folder: Path) -> None:
    name = "layers.1.mlp.up_proj.weight"
    edit(folder, lambda tensors: tensors.update({E + name: tensors[D + name].clone()}))
    assert E + name in open_source(folder).skipped
    edit(folder, lambda tensors: tensors[E + name][0].add_(1))
    assert f"{E}{name} is not the same as {D}{name}" in refusal(folder)


def test_layer_scalars_written_once_are_the_encoders_too(folder: Path) -> None:
    """NeMo keeps one stack and exports no scalars for the encoder; half of them are a damaged download."""
    scalars = [f"{E}layers.{index}.layer_scalar" for index in range(3)]
    edit(folder, lambda tensors: tensors.pop(scalars[0]))
    assert f"lack {scalars[0]};" in refusal(folder)
    edit(folder, lambda tensors: [tensors.pop(name) for name in scalars[1:]])
    source = open_source(folder)
    assert [source.read(name).item() for name in scalars] == [
        source.read(f"{D}layers.{index}.layer_scalar").item() for index in range(3)
    ]


def test_gate_and_up_experts_of_a_gguf_may_lie_apart(of: Original, tmp_path: Path) -> None:
    """As llama.cpp accepts them."""
    meant = fixtures.write_gguf(of, tmp_path / "model.gguf", fixtures.q8_0, halves=True)
    source = open_source(tmp_path)
    assert torch.equal(source.read(GATE_UP), meant[GATE_UP])
    assert torch.equal(source.read(GATE_UP, slice(1, 3)), meant[GATE_UP][1:3])


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_of_any_width_come_out_of_their_words(bits: int) -> None:
    pick = random.Random(bits)
    codes = [pick.randrange(1 << bits) for _ in range(64)]
    stream = sum(code << bits * index for index, code in enumerate(codes))
    words = [stream >> 32 * index & 0xFFFFFFFF for index in range(2 * bits)]
    packed = torch.tensor(words, dtype=torch.int64).to(torch.uint32).view(torch.int32)
    assert unpack_bits(packed, bits).tolist() == codes


Damage = Callable[[Tensors], object]


def without(*names: str) -> Damage:
    return lambda own: [own.pop(name) for name in names]


def put(name: str, value: Callable[[Tensors], torch.Tensor]) -> Damage:
    return lambda own: own.update({name: value(own)})


Q = f"{D}layers.0.self_attn.q_proj"
UP, DOWN_2 = f"{D}layers.0.experts.2.up_proj", f"{D}layers.0.experts.2.down_proj"
FP8, NVFP4, MLX = "fp8", "nvfp4 of modelopt", "mlx 4 bits"
INT4 = "int4 in groups of 64 with zero points"

DAMAGES: list[tuple[str, Damage, str]] = [
    ("bf16", without(GATE_UP), f"the weights lack {GATE_UP};"),
    ("bf16", without(GATE_UP, DOWN, f"{D}norm.weight"), "and 2 more; the download is not whole"),
    ("bf16", put("model.new", lambda own: torch.ones(2)), "hold model.new, which is no part of this model"),
    ("bf16", lambda own: own.update(a=torch.ones(2), b=torch.ones(2)), "hold a and 1 more"),
    ("bf16", put(DOWN, lambda own: own[DOWN][:, :, :-1]), f"{DOWN} has the shape [4, 256, 63]"),
    ("bf16", put(DOWN, lambda own: own[DOWN].to(torch.uint8)), f"{DOWN} is stored as U8 without scales"),
    ("bf16", put(f"{Q}.weight_scale", lambda own: torch.ones(1)), f"hold {Q}.weight_scale"),
    (FP8, without(f"{UP}.weight", f"{UP}.weight_scale"), f"lack {UP}.weight;"),
    (FP8, without(f"{UP}.weight"), f"{UP} has only weight_scale; no known format"),
    (FP8, without(f"{UP}.weight_scale"), "is stored as F8_E4M3 without scales"),
    (FP8, put(f"{Q}.weight_scale", lambda own: torch.ones(3, 1)), "[3, 1], which fits no rows of [256, 256]"),
    (FP8, put(f"{Q}.weight_scale", lambda own: torch.ones(256).int()), "weight_scale is stored as I32"),
    (FP8, put(f"{Q}.weight", lambda own: own[f"{Q}.weight"].view(torch.uint8)), "stored as U8; only F8_E4M3"),
    (FP8, put(f"{Q}.bias", lambda own: torch.ones(256)), f"hold {Q}.bias"),
    (NVFP4, without(f"{DOWN_2}.weight_scale_2"), "weight is stored as U8; only F8_E4M3 and I8"),
    (NVFP4, without(f"{DOWN_2}.weight_scale"), "has only weight, weight_scale_2; no known format"),
    (NVFP4, put(f"{DOWN_2}.weight_scale", lambda own: own[f"{UP}.weight_scale"]), "no groups of 16 in [256, 32]"),
    (NVFP4, put(f"{DOWN_2}.weight_scale_2", lambda own: torch.ones(4)), "it must be one number"),
    (NVFP4, put(f"{DOWN_2}.weight_scale_2", lambda own: torch.zeros(1)), "weight_scale_2 is 0.0"),
    (INT4, without(f"{Q}.weight_shape"), f"{Q} has only weight_packed, weight_scale, weight_zero_point;"),
    (INT4, put(f"{Q}.weight_g_idx", lambda own: torch.zeros(256).int()), f"{Q} has only weight_g_idx, weight_packed"),
    (INT4, put(f"{Q}.weight_shape", lambda own: torch.tensor([256, 300])), "holds no [256, 300] codes of 4 or 8 bits"),
    (INT4, put(f"{Q}.weight_shape", lambda own: torch.tensor([256])), "holds no [256] codes"),
    (INT4, put(f"{Q}.weight_scale", lambda own: torch.ones(256, 3)), "[256, 3], which fits no groups of [256, 256]"),
    (INT4, put(f"{Q}.weight_zero_point", lambda own: torch.zeros(16, 4).int()), "[16, 4] instead of [32, 4]"),
    (INT4, put(f"{Q}.weight_packed", lambda own: torch.zeros(256, 32)), "stored as F32; only I32"),
    (MLX, without(f"{Q}.scales"), f"{Q} has only biases, weight;"),
    (MLX, without(f"{Q}.biases"), "not stored as the mode affine stores them"),
    (MLX, without(f"{Q}.scales", f"{Q}.biases"), f"{Q}.weight is stored as U32 without scales"),
    (MLX, put(f"{Q}.scales", lambda own: own[f"{Q}.scales"][:, :-1]), "need [256, 4]"),
    (MLX, put(f"{Q}.biases", lambda own: own[f"{Q}.biases"].float()), "shape and dtype of its scales"),
]


@pytest.mark.parametrize(("packing", "damage", "words"), DAMAGES, ids=[words for _, _, words in DAMAGES])
def test_damaged_tensors_are_named(
    written: Callable[[str], Written], tmp_path: Path, packing: str, damage: Damage, words: str
) -> None:
    folder = written(packing).copy(tmp_path)
    if (index := folder / "model.safetensors.index.json").is_file():
        index.unlink()
        shards = [load_file(path) for path in folder.glob("model-*")]
        save_file({name: own for shard in shards for name, own in shard.items()}, folder / "model.safetensors")
    edit(folder, damage)
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "gptq"}, "quantised by 'gptq'; only compressed-tensors, modelopt and MLX can be read"),
        ({"quant_method": "fp8"}, "quantised by 'fp8'"),
        ({"quant_method": ["fp8"]}, "quantised by ['fp8']"),
        ({"load_in_4bit": True}, "quantised by None"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "compressed-tensors 'marlin-24'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "modelopt 'W4A8_AWQ'; only FP8, NVFP4"),
    ],
)
def test_an_unknown_quantisation_is_refused_by_name(folder: Path, quantization: Any, words: str) -> None:
    edit_json(folder / "config.json", lambda raw: raw.update(quantization_config=quantization))
    assert words in refusal(folder)


@pytest.mark.parametrize("own", [{"bits": 7}, {"mode": "ternary"}, {"group_size": 0}, {"group_size": "64"}])
def test_an_unknown_way_of_mlx_is_refused(
    written: Callable[[str], Written], tmp_path: Path, own: dict[str, Any]
) -> None:
    folder = written("mlx 4 bits").copy(tmp_path)
    edit_json(folder / "config.json", lambda raw: raw["quantization_config"].update(own))
    assert "config.json quantises model.decoder." in refusal(folder)


def test_an_older_export_of_modelopt_says_so_in_a_file_of_its_own(
    written: Callable[[str], Written], tmp_path: Path
) -> None:
    folder = written("nvfp4 of modelopt").copy(tmp_path)
    edit_json(folder / "config.json", lambda raw: raw.pop("quantization_config"))
    write_json(folder / "hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4", "group_size": 16}})
    assert torch.equal(open_source(folder).read(DOWN), written("nvfp4 of modelopt").meant[DOWN])


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights_are_an_error(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors is cut short or no safetensors file" in refusal(folder)


def test_shards_must_hold_what_their_index_says(of: Original, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    write_folder(tmp_path, of.config, of.tensors, shards=3)
    whole = index.read_text()
    edit_json(index, lambda raw: raw["weight_map"].update({DOWN: "model-00001-of-00003.safetensors"}))
    assert f"lacks {DOWN}, which" in refusal(tmp_path)
    edit_json(index, lambda raw: raw["weight_map"].update({DOWN: "../model.safetensors"}))
    assert "holds no weight_map of file names" in refusal(tmp_path)
    index.write_text(whole)
    extra = {DOWN: of.tensors[DOWN]}
    for number in (1, 2, 3):
        edit(tmp_path, lambda own: own.update(extra), f"model-0000{number}-of-00003.safetensors")
    assert f"{DOWN} is in model-0000" in refusal(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in refusal(tmp_path)


def test_a_folder_of_nothing_is_refused(of: Original, tmp_path: Path) -> None:
    assert "is no folder of a model and no .gguf file" in refusal(tmp_path / "absent")
    assert "config.json is missing" in refusal(tmp_path)
    write_json(tmp_path / "config.json", of.config)
    assert "model.safetensors is missing" in refusal(tmp_path)
    write_json(tmp_path / "config.json", of.config | {"model_type": "gemma4"})
    (tmp_path / "model.safetensors").write_bytes((of.folder / "model.safetensors").read_bytes())
    assert "describes 'gemma4'; only 'diffusion_gemma' models" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "gemma4"}, "holds a 'gemma4' model; only 'diffusion-gemma'"),
        ({"block_count": None}, "give diffusion-gemma.block_count as None"),
        ({"block_count": 2}, "do not list the 2 layers"),
        ({"attention.sliding_window_pattern": 6}, "sliding_window_pattern as 6"),
        ({"attention.head_count_kv": [2, 1, 1]}, "different numbers of key heads"),
        ({"attention.shared_kv_layers": 2}, "shared_kv_layers, which is not supported"),
        ({"attention.key_length": 64}, "lacks rope_freqs.weight of 32 numbers"),
        ({"embedding_length": 128}, "has the shape [96, 256], but config.json asks for [96, 128]"),
        ({"leave": ["token_embd.weight"]}, "lacks token_embd.weight"),
        ({"leave": ["blk.1.ffn_down_exps.weight"]}, f"lack {D}layers.1.experts.down_proj;"),
        ({"leave": ["blk.2.enc_layer_output_scale.weight"]}, f"lack {E}layers.2.layer_scalar;"),
    ],
)
def test_a_gguf_that_does_not_fit_is_refused(of: Original, tmp_path: Path, options: Any, words: str) -> None:
    path = tmp_path / "model.gguf"
    fixtures.write_gguf(of, path, fixtures.q8_0, **options)
    assert words in refusal(path)


@pytest.fixture
def gguf_file(written: Callable[[str], Written]) -> Path:
    return written("gguf Q8_0").folder / "model-Q8_0.gguf"


def test_a_gguf_needs_a_tokenizer_beside_it(gguf_file: Path, tmp_path: Path) -> None:
    copy = tmp_path / gguf_file.name
    shutil.copy(gguf_file, copy)
    assert "put tokenizer.json of the original model beside model-Q8_0.gguf" in refusal(copy)
    (tmp_path / "mmproj-F16.gguf").touch()
    assert "put tokenizer.json" in refusal(tmp_path)
    (tmp_path / "model-Q4_K_M.gguf").touch()
    assert "holds 2 .gguf files; name one of them" in refusal(tmp_path)


def test_a_gguf_of_types_that_cannot_be_read_is_refused_by_tensor_and_type(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()
    whole, name = gguf_file.read_bytes(), b"blk.1.ffn_down_exps.weight"
    at = whole.index(name) + len(name) + 4 + 3 * 8  # behind the number of axes and three of them
    assert whole[at] == 8
    (tmp_path / "m.gguf").write_bytes(whole[:at] + bytes([10]) + whole[at + 1 :])
    said = refusal(tmp_path / "m.gguf")
    assert f"{name.decode()} in" in said and "is of ggml's type 10; only F32, F16, Q4_0" in said


def test_a_gguf_that_is_cut_or_garbled_is_one_clear_line(gguf_file: Path, tmp_path: Path) -> None:
    """Wherever it ends and whatever byte of its header is wrong, it opens or is refused."""
    whole = gguf_file.read_bytes()
    (tmp_path / "tokenizer.json").write_bytes((gguf_file.parent / "tokenizer.json").read_bytes())
    path, pick = tmp_path / "m.gguf", random.Random(0)
    header = whole.index(b"self_cond_down.weight") + 64
    for end in [0, 3, 4, 8, 20, *(pick.randrange(header) for _ in range(20)), len(whole) - 64]:
        path.write_bytes(whole[:end])
        assert str(path) in refusal(path)
    refused = 0
    for _ in range(60):
        at = pick.randrange(header)
        path.write_bytes(whole[:at] + bytes([pick.randrange(256)]) + whole[at + 1 :])
        try:
            open_source(path)
        except ModelError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 15


def factors(*shape: int, seed: int = 0, rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """A [r, in] and B [out, r] for a matrix of this shape; for experts as PEFT lays them out."""
    noise = torch.Generator().manual_seed(seed)
    rows = rank * (shape[0] if len(shape) == 3 else 1)
    a = torch.randn(rows, shape[-1], generator=noise) * shape[-1] ** -0.5
    return a, torch.randn(shape[-2], rows, generator=noise)


def pair(module: str, *shape: int, **options: int) -> Tensors:
    a, b = factors(*shape, **options)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def merged_by_hand(of: Original, name: str, change: torch.Tensor) -> torch.Tensor:
    return of.tensors[name].float() + change


def check(of: Original, adapter: Path, changed: dict[str, torch.Tensor], side: str | None = None) -> None:
    """The named tensors are the original's plus these, whole and by rows; all others are the original's."""
    source = open_source(of.folder, adapter, adapter_side=side)
    assert source.kind.endswith(f"with the adapter {adapter.name}" + (f", its {side} side" if side else ""))
    for name, tensor in of.expected.items():
        wanted = tensor.float() + changed.get(name, torch.zeros(()))
        read = source.read(name)
        torch.testing.assert_close(read.float(), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(source.read(name, slice(1, 3)).float(), wanted[1:3], rtol=1e-5, atol=1e-6)


def test_an_adapter_is_added_with_its_scale(of: Original, tmp_path: Path) -> None:
    module, other = f"{D}layers.0.self_attn.q_proj", f"{D}layers.1.mlp.down_proj"
    tensors = pair(module, 256, 256) | pair(other, 256, 192, seed=1, rank=2)
    a, b, c, d = tensors.values()
    patterns = {"rank_pattern": {"mlp.down_proj": 2}, "alpha_pattern": {r"layers\.1\..*": 3}}
    changed = {f"{module}.weight": b @ a * 8 / 4, f"{other}.weight": d @ c * 3 / 2}
    check(of, write_adapter(tmp_path / "plain", tensors, **patterns), changed)
    changed = {f"{module}.weight": b @ a * 8 / 4**0.5, f"{other}.weight": d @ c * 3 / 2**0.5}
    check(of, write_adapter(tmp_path / "rs", tensors, use_rslora=True, **patterns), changed)


@pytest.mark.parametrize("flipped", [False, True], ids=["PEFT 0.19 and later", "PEFT before 0.19"])
def test_fused_experts_are_adapted_one_by_one(of: Original, tmp_path: Path, flipped: bool) -> None:
    """`target_parameters`: the expert is the outer index of A's rows and the inner one of B's columns."""
    down = factors(4, 64, 256) if flipped else factors(4, 256, 64)
    gate_up = factors(4, 256, 128, seed=1) if flipped else factors(4, 128, 256, seed=1)
    module = f"{D}layers.0.experts"
    names = [f"{module}.base_layer.lora_{which}.weight" for which in "AB"] + [f"{module}.lora_{w}.weight" for w in "AB"]
    changed = {}
    for name, (a, b) in ((DOWN, down), (GATE_UP, gate_up)):
        each = [
            sum(torch.outer(b[:, r * 4 + expert], a[expert * 4 + r]) for r in range(4)) * 2.0 for expert in range(4)
        ]
        changed[name] = torch.stack([own.T if flipped else own for own in each])
    check(of, write_adapter(tmp_path, dict(zip(names, (*gate_up, *down), strict=True))), changed)


def test_single_experts_may_be_adapted(of: Original, tmp_path: Path) -> None:
    up, down = f"{D}layers.0.experts.2.up_proj", f"{D}layers.0.experts.1.down_proj"
    tensors = pair(up, 64, 256) | pair(down, 256, 64)
    a, b, c, d = tensors.values()
    changed = {GATE_UP: torch.zeros(4, 128, 256), DOWN: torch.zeros(4, 256, 64)}
    changed[GATE_UP][2, 64:], changed[DOWN][1] = b @ a * 2, d @ c * 2
    check(of, write_adapter(tmp_path, tensors), changed)


def test_an_embedding_and_whole_modules_come_with_the_adapter(of: Original, tmp_path: Path) -> None:
    embedding, norm = f"{D}embed_tokens", f"{D}norm.weight"
    a, b = torch.randn(4, 96), torch.randn(256, 4)
    whole = {f"{embedding}.base_layer.weight": of.tensors[f"{embedding}.weight"] + 1, norm: torch.ones(256)}
    tensors = whole | {
        "lm_head.weight": whole[f"{embedding}.base_layer.weight"].clone(),
        f"{embedding}.lora_embedding_A": a,
        f"{embedding}.lora_embedding_B": b,
        f"{D.replace('decoder', 'encoder')}vision_tower.x.lora_A.weight": torch.ones(4, 4),
        f"{D.replace('decoder', 'encoder')}vision_tower.x.lora_B.weight": torch.ones(4, 4),
    }
    adapter = write_adapter(tmp_path, tensors)
    bigger = whole[f"{embedding}.base_layer.weight"].float() - of.tensors[f"{embedding}.weight"].float()
    changed = {f"{embedding}.weight": bigger + (b @ a).T * 2, norm: 1 - of.tensors[norm].float()}
    check(of, adapter, changed)
    vision = sum("vision" in name for name in of.tensors)
    assert describe_skipped(open_source(of.folder, adapter).skipped) == f"{vision + 2} vision tensors"


def test_an_adapter_is_merged_into_any_packing(written: Callable[[str], Written], tmp_path: Path) -> None:
    base = written("fp8")
    tensors = pair(f"{D}layers.0.self_attn.q_proj", 256, 256)
    a, b = tensors.values()
    name = f"{D}layers.0.self_attn.q_proj.weight"
    source = open_source(base.folder, write_adapter(tmp_path, tensors))
    torch.testing.assert_close(source.read(name), base.meant[name] + b @ a * 2)
    assert describe_skipped(source.skipped).endswith("vision tensors")


def test_an_adapter_of_two_sides_is_merged_where_they_agree(of: Original, tmp_path: Path) -> None:
    """transformers makes two modules of the weights that encoder and decoder share, and PEFT adapts both."""
    module = "layers.0.self_attn.q_proj"
    one, same, other = pair(D + module, 256, 256), pair(E + module, 256, 256), pair(E + module, 256, 256, seed=1)
    (a, b), (c, d) = one.values(), other.values()
    check(of, write_adapter(tmp_path / "same", one | same), {f"{D}{module}.weight": b @ a * 2})
    check(of, write_adapter(tmp_path / "encoder", other), {f"{D}{module}.weight": d @ c * 2})
    differing = write_adapter(tmp_path / "differing", one | other)
    said = refusal(of.folder, differing)
    assert said.startswith(f"{D}{module}.weight is one weight that encoder and decoder share, and this adapter")
    assert "choose whose is merged with --adapter-side decoder or --adapter-side encoder" in said
    check(of, differing, {f"{D}{module}.weight": b @ a * 2}, "decoder")
    check(of, differing, {f"{D}{module}.weight": d @ c * 2}, "encoder")
    with pytest.raises(ModelError, match="decoder or encoder, not 'both'"):
        open_source(of.folder, differing, adapter_side="both")


def test_whole_modules_of_two_sides_are_told_apart(of: Original, tmp_path: Path) -> None:
    norm, scalar = "norm.weight", "layers.0.layer_scalar"
    shape = of.tensors[D + scalar].shape
    both = {D + norm: torch.ones(256), E + norm: torch.full((256,), 2.0)}
    adapter = write_adapter(tmp_path, both | {E + scalar: torch.full(shape, 3.0)})
    assert f"{D}{norm} is one weight that encoder and decoder share" in refusal(of.folder, adapter)
    for side, value in (("decoder", 1.0), ("encoder", 2.0)):
        source = open_source(of.folder, adapter, adapter_side=side)
        assert torch.equal(source.read(D + norm), torch.full((256,), value))
        assert torch.equal(source.read(E + scalar), torch.full(shape, 3.0)), "each side has layer scalars of its own"
        assert torch.equal(source.read(D + scalar), of.tensors[D + scalar])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "LOHA"}, "describes 'LOHA'; only LORA adapters"),
        ({"use_dora": True}, "sets use_dora, which cannot be merged"),
        ({"bias": "lora_only"}, "sets bias to 'lora_only'"),
        ({"fan_in_fan_out": True}, "sets fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base"),
        ({"r": 8}, "[4, 256] and [256, 4] of rank 8, fit no matrix"),
        ({"r": None}, "the r None; it must be a positive number"),
        ({"lora_alpha": -1}, "the lora_alpha -1; it must be a positive number"),
        ({"rank_pattern": {"(": 2}}, "has a rank_pattern that cannot be read"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(of: Original, tmp_path: Path, config: Any, words: str) -> None:
    adapter = write_adapter(tmp_path, pair(f"{D}layers.0.self_attn.q_proj", 256, 256), **config)
    assert words in refusal(of.folder, adapter)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (pair(f"{D}layers.9.self_attn.q_proj", 256, 256), "changes model.decoder.layers.9.self_attn.q_proj, which is"),
        (pair("lm_head", 96, 256), "changes lm_head, which is no matrix of this model"),
        (pair(f"{D}layers.0.self_attn.q_proj", 256, 128), "fit no matrix of the model"),
        (pair(f"{D}layers.0.experts", 3, 128, 256), "fit no matrix of the model"),
        (pair(f"{D}layers.0.experts.7.up_proj", 64, 256), "fit no matrix of the model"),
        ({f"{D}layers.0.mlp.up_proj.lora_A.weight": torch.ones(4, 256)}, "only one factor of"),
        ({f"{D}layers.0.mlp.up_proj.lora_magnitude_vector": torch.ones(192)}, "fits no part of this model"),
        ({f"{D}norm.weight": torch.ones(7)}, "[7], which fits no part of this model"),
        ({f"{D}norm.weight": torch.ones(256, dtype=torch.int8)}, "stored as I8 without scales"),
        ({"lm_head.weight": torch.ones(96, 256)}, "lm_head.weight is not its embedding"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(of: Original, tmp_path: Path, tensors: Tensors, words: str) -> None:
    assert words in refusal(of.folder, write_adapter(tmp_path, tensors))


def test_an_adapter_that_is_not_whole_is_refused(of: Original, tmp_path: Path) -> None:
    assert "adapter_config.json is missing" in refusal(of.folder, tmp_path)
    write_adapter(tmp_path, pair(f"{D}layers.0.self_attn.q_proj", 256, 256))
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    assert "adapter_model.safetensors is cut short" in refusal(of.folder, tmp_path)
    weights.unlink()
    assert "adapter_model.safetensors is missing" in refusal(of.folder, tmp_path)
