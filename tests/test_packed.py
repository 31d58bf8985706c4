"""The packed format: what is written, that it loads as it was written, and which damage is noticed."""

from __future__ import annotations

import json
import shutil
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import build, save, wide_shape

from stopgap.infill import packed
from stopgap.infill.checkpoints import open_source
from stopgap.infill.importing import import_model
from stopgap.infill.layers import Dense, FewBits, pack_layer
from stopgap.infill.model_config import DECODER, ModelError
from stopgap.infill.packed import MANIFEST, WEIGHTS, Bits, plan, read_manifest, verify
from stopgap.infill.quant import Int8
from stopgap.infill.weights import load_model, read_config
from stopgap.kernels.quantised import Int4Groups, Int8Rows

BITS: tuple[Bits, ...] = (16, 8, 4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), experts=8)


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The checkpoint packed in each number of bits; not to be broken."""
    folder = tmp_path_factory.mktemp("packed")
    return {bits: pack(checkpoint, folder / str(bits), bits) for bits in BITS}


@pytest.fixture
def folder(models: dict[int, Path], tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(models[4], tmp_path / "model"))


def save_checkpoint(folder: Path, experts: int) -> Path:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shape = wide_shape(experts)
    save(build(2, **shape).to(torch.bfloat16), folder)
    vocabulary = {f"t{index}": index for index in range(shape["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    return folder


def pack(checkpoint: Path, out: Path, bits: Bits) -> Path:
    return import_model(open_source(checkpoint), out, bits, clock=time.monotonic).folder


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("bits", BITS)
def test_the_file_holds_what_the_plan_says(models: dict[int, Path], bits: int) -> None:
    config = read_config(models[bits])
    entries = plan(config, read_manifest(models[bits]).bits)
    parts = {part.name: part for own in packed.layout(entries)[1].values() for part in own}
    stored = load_file(models[bits] / WEIGHTS)
    assert stored.keys() == parts.keys()
    for name, tensor in stored.items():
        assert (tensor.shape, tensor.dtype) == (parts[name].shape, packed.DTYPES[parts[name].dtype])
    ends = sorted((part.start, part.end) for part in parts.values())
    assert ends[0][0] % 64 == 0 and ends[-1][1] == (models[bits] / WEIGHTS).stat().st_size
    assert all(before[1] == after[0] for before, after in pairwise(ends))
    assert all(part.start % packed.DTYPES[part.dtype].itemsize == 0 for part in parts.values())


def test_which_weights_get_how_many_bits(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    kinds = {bits: {name: entry.kind for name, entry in plan(config, bits).items()} for bits in BITS}
    assert set(kinds[16].values()) == {"bf16"}
    for name, kind in kinds[8].items():
        assert kind == ("bf16" if "norm" in name or "router" in name else "int8")
    for name, kind in kinds[4].items():
        assert kind == ("int4" if name.endswith(("mixture.gate_up", "mixture.down")) else kinds[8][name])


def test_the_codes_are_those_of_the_layer_packed_at_once(checkpoint: Path, models: dict[int, Path]) -> None:
    """Norms and scales are folded in before rounding, by the code that loads a checkpoint."""
    config = read_config(checkpoint)
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        raw = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    for index in range(len(config.layers)):
        prefix = f"{DECODER}layers.{index}."
        own = {name.removeprefix(prefix): tensor for name, tensor in raw.items() if name.startswith(prefix)}
        own["encoder.layer_scalar"] = raw[f"model.encoder.language_model.layers.{index}.layer_scalar"]
        layer = pack_layer(own, config, index)
        stored = load_file(models[4] / WEIGHTS)
        assert isinstance(layer.qkv, Dense) and layer.mixture is not None
        assert isinstance(layer.mixture.gate_up, torch.Tensor) and isinstance(layer.mixture.down, torch.Tensor)
        for name, wanted in (
            ("qkv", Int8Rows.of(layer.qkv.weight.mT)),
            ("mixture.gate_up", Int4Groups.of(layer.mixture.gate_up.mT)),
            ("mixture.down", Int4Groups.of(layer.mixture.down.mT)),
        ):
            assert torch.equal(stored[f"layers.{index}.{name}.codes"], wanted.codes)
            assert torch.equal(stored[f"layers.{index}.{name}.scale"], wanted.scale)
        assert torch.equal(stored[f"layers.{index}.qk_norm"], layer.qk_norm.bfloat16())
        assert torch.equal(stored[f"layers.{index}.mixture.router"], layer.mixture.router.mT.bfloat16())
        encoder, decoder = read_manifest(models[4]).scalars[index]
        assert (encoder, decoder) == (layer.encoder.scalar, layer.decoder.scalar)


def test_one_tied_embedding_is_kept_once(models: dict[int, Path]) -> None:
    weights = load_model(models[8], int8=False, threads=1).weights
    assert isinstance(weights.embedding, Int8Rows) and isinstance(weights.head, FewBits)
    assert weights.head.weight is weights.embedding
    dense = load_model(models[16], int8=False, threads=1).weights
    assert isinstance(dense.head, Dense) and isinstance(dense.embedding, torch.Tensor)
    assert dense.head.weight.data_ptr() == dense.embedding.data_ptr()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the process's memory map")
@pytest.mark.parametrize("int8", [False, True])
def test_codes_stay_in_the_mapped_file(models: dict[int, Path], int8: bool) -> None:
    model = load_model(models[8], int8=int8, threads=1)
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if str(models[8] / WEIGHTS) in line]
    layer = model.weights.layers[0]
    assert layer.mixture is not None and isinstance(layer.mixture.gate_up, Int8Rows)
    assert isinstance(layer.qkv, Int8 if int8 else FewBits)
    codes = layer.qkv.columns if isinstance(layer.qkv, Int8) else layer.qkv.weight.codes
    for tensor in (codes, layer.mixture.gate_up.codes):
        assert any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in spans)


def test_rows_of_int8_are_used_as_columns_without_a_copy(models: dict[int, Path]) -> None:
    layer = load_model(models[8], int8=True, threads=1).weights.layers[0]
    stored = load_file(models[8] / WEIGHTS)
    assert isinstance(layer.qkv, Int8)
    assert torch.equal(layer.qkv.columns.T, stored["layers.0.qkv.codes"])
    assert layer.qkv.columns.stride(0) == 1


@pytest.mark.parametrize("bits", BITS)
def test_the_manifest_tells_each_weights_rounding_error(models: dict[int, Path], bits: int) -> None:
    manifest = read_manifest(models[bits])
    worst = {"int4": 0.12, "int8": 0.012, "bf16": 0.003}
    assert manifest.nbytes < (models[bits] / WEIGHTS).stat().st_size
    for name, record in manifest.tensors.items():
        assert 0 <= record.error < worst[record.kind], name
        assert record.kind == "bf16" or record.error > worst[record.kind] / 10


def test_verify_names_the_tensor_of_one_flipped_bit(folder: Path) -> None:
    config = read_config(folder)
    _, parts = packed.layout(plan(config, 4))
    told: list[int] = []
    verify(folder, config, lambda done, whole: told.append(whole - done))
    assert told == sorted(told, reverse=True) and told[-1] == 0
    for name in ("embedding", "layers.1.mixture.down", "layers.0.encoder.feedforward_norm"):
        at = parts[name][-1].end - 1
        flip(folder / WEIGHTS, at)
        with pytest.raises(ModelError, match=f"the checksum of {name} differs"):
            verify(folder, config)
        flip(folder / WEIGHTS, at)
    verify(folder, config)


def test_a_large_file_is_only_read_by_verify(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(folder / WEIGHTS, -1)
    with pytest.raises(ModelError, match="is damaged"):
        load_model(folder, threads=1)
    monkeypatch.setattr(packed, "HASHED_AT_LOAD", 0)
    load_model(folder, threads=1)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "stopgap.json"])
def test_a_damaged_small_file_is_named(folder: Path, name: str) -> None:
    flip(folder / name, -2)
    with pytest.raises(ModelError, match=rf"{name} (is damaged|cannot be read)"):
        load_model(folder, threads=1)


def test_a_damaged_header_is_noticed(folder: Path) -> None:
    flip(folder / WEIGHTS, 100)
    with pytest.raises(ModelError, match="its header differs"):
        load_model(folder, threads=1)


def test_a_shortened_file_is_named(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"{WEIGHTS} has \d+ bytes instead of \d+"):
        load_model(folder, threads=1)


def test_a_folder_without_its_manifest_is_no_model(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_model(folder, threads=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "has format 1, this version reads 2: pack it again"),
        ({"bits": 3}, "cannot be read"),
        ({"tensors": []}, "cannot be read"),
        ({"scalars": [1.0]}, "cannot be read"),
        ({"scalars": [[1.0, 1.0]]}, r"does not fit its config.json \(1 layers in manifest.json\)"),
        ({"bits": 8}, r"has \d+ bytes instead of"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_in_one_line(
    folder: Path, change: dict[str, object], words: str
) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(raw | change))
    with pytest.raises(ModelError, match=words) as raised:
        load_model(folder, threads=1)
    assert "\n" not in str(raised.value)


def test_a_width_that_has_no_groups_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    raw = json.loads((checkpoint / "config.json").read_text())
    raw["text_config"]["moe_intermediate_size"] = 24
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelError, match=r"layers\.0\.mixture\.down has 24 inputs, no multiple of 64; .* 8 bits"):
        plan(read_config(tmp_path), 4)
    assert plan(read_config(tmp_path), 8)


def test_a_single_expert_shares_its_bits_with_the_mlp(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "checkpoint", experts=1)
    kinds = {name: entry.kind for name, entry in plan(read_config(checkpoint), 4).items()}
    assert {name for name in kinds if kinds[name] == "int4"} == {
        f"layers.{index}.{name}" for index in (0, 1) for name in ("gate_up", "down", "expert_down")
    }
    model = load_model(pack(checkpoint, tmp_path / "packed", 4), threads=1)
    assert isinstance(model.weights.layers[0].gate_up, Dense)
    assert len(model.encode(model.new_cache(8), [1, 2, 3])) == 3


@pytest.mark.parametrize(
    ("draw", "clipped", "plain"),
    [("normal", 0.091, 0.095), ("laplace", 0.119, 0.124), ("student", 0.135, 0.141)],
)
def test_int4_clips_each_group_where_it_loses_least(draw: str, clipped: float, plain: float) -> None:
    torch.manual_seed(0)
    weights = {
        "normal": torch.distributions.Normal(0.0, 1.0),
        "laplace": torch.distributions.Laplace(0.0, 1.0),
        "student": torch.distributions.StudentT(4.0),
    }[draw].sample(torch.Size((3, 100, 640)))

    def error(clip: bool) -> float:
        back = Int4Groups.of(weights, clip).dense(torch.float32)
        return float((back - weights).norm() / weights.norm())

    assert error(True) == pytest.approx(clipped, abs=0.0015)
    assert error(False) == pytest.approx(plain, abs=0.0015)


def test_int4_keeps_the_largest_of_a_group_on_either_side() -> None:
    weights = torch.zeros(2, 64)
    weights[0, 5], weights[1, 5] = 3.0, -3.0
    for clip in (False, True):
        assert torch.equal(Int4Groups.of(weights, clip).dense(torch.float32), weights)


def test_int4_of_nothing_and_of_nearly_nothing_is_nothing() -> None:
    for weights in (torch.zeros(3, 64), torch.full((3, 64), 1e-42)):
        assert not Int4Groups.of(weights).dense(torch.float32).any()
    assert Int4Groups.of(torch.empty(0, 7, 128)).codes.shape == (0, 7, 64)


def test_every_weight_is_described(checkpoint: Path) -> None:
    page = (Path(packed.__file__).parent / "PACKED.md").read_text(encoding="utf-8")
    for name in plan(read_config(checkpoint), 4):
        described = name.replace("layers.0.", "layers.N.").replace("layers.1.", "layers.N.")
        assert f"`{described}`" in page or f"`{described.removeprefix('layers.N.')}`" in page, name
