"""Model folders: what loads, what is refused and in which words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import build, random_shape, save

from stopgap.infill import cpu, devices, weights
from stopgap.infill.model import Model, ModelConfig, ModelError
from stopgap.infill.weights import load_model, read_config

SEED = 5  # sliding and full layers of different head sizes, eight experts


def folder_of(seed: int, folder: Path, **options: Any) -> Path:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    save(build(seed, **random_shape(seed)), folder, **options)
    vocabulary = {f"t{index}": index for index in range(random_shape(seed)["vocab_size"])}
    write_json(folder / "tokenizer.json", {"model": {"vocab": vocabulary}, "added_tokens": []})
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(SEED, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(stored, tmp_path / "model"))


def load(folder: Path, **options: Any) -> Model:
    return load_model(folder, **({"int8": False, "threads": 1} | options))


def logits(model: Model) -> torch.Tensor:
    return model.head(model.encode(model.new_cache(32), list(range(20))))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / "config.json").read_text())
    change(raw)
    write_json(folder / "config.json", raw)


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_shards_load_like_one_file(stored: Path, tmp_path: Path) -> None:
    folder_of(SEED, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(load(tmp_path)), logits(load(stored)))


def test_a_bf16_checkpoint_loads_as_the_numbers_it_holds(stored: Path, folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({k: v.bfloat16() for k, v in tensors.items()}))
    assert load(folder).dtype == torch.float32
    assert (logits(load(folder)) - logits(load(stored))).abs().max() < 1.0


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder_of(SEED, tmp_path, max_shard_size="20KB")
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(ModelError, match=r"model-00002.* is missing"):
        load(tmp_path)


def test_missing_weights_are_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_truncated_weights_are_an_error(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cut short or no safetensors file"):
        load(folder)


def test_a_tensor_of_the_wrong_shape_is_named(folder: Path) -> None:
    name = "model.decoder.layers.1.mlp.down_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:, :-1].contiguous()}))
    with pytest.raises(ModelError, match=rf"{name} has the shape \[.*\], but config.json asks for"):
        load(folder)


def test_a_tensor_that_is_missing_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("model.decoder.layers.0.experts.down_proj"))
    with pytest.raises(ModelError, match=r"the weights lack model\.decoder\.layers\.0\.experts\.down_proj; "):
        load(folder)


def test_packed_foreign_formats_are_refused(folder: Path) -> None:
    name = "model.decoder.layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.uint8)}))
    with pytest.raises(ModelError, match=rf"{name} is stored as U8"):
        load(folder)


def test_a_tokenizer_that_does_not_match_is_refused(folder: Path) -> None:
    write_json(folder / "tokenizer.json", {"model": {"vocab": {"a": 0, "b": 5000}}, "added_tokens": []})
    with pytest.raises(ModelError, match=r"tokenizer\.json has 5001 tokens, the model \d+"):
        load(folder)


def test_too_little_memory_is_noticed_before_loading(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda _: 1000)
    with pytest.raises(ModelError, match=r"needs \d+\.\d GB of memory and 0\.0 GB are free"):
        load(stored)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_refused(stored: Path) -> None:
    with pytest.raises(ModelError, match="no CUDA device"):
        load_model(stored, device="cuda")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.update(model_type="llama"), "describes 'llama'; only 'diffusion_gemma'"),
        (lambda raw: raw.pop("text_config"), "lacks 'text_config'"),
        (lambda raw: raw["text_config"].pop("sliding_window"), "lacks 'sliding_window'"),
        (lambda raw: raw["text_config"].pop("rope_parameters"), "lacks 'rope_parameters'"),
        (lambda raw: raw["text_config"].pop("per_layer_config"), "lacks 'global_head_dim'"),
        (lambda raw: raw["text_config"].update(hidden_size="32"), "'hidden_size' to '32'"),
        (lambda raw: raw["text_config"].update(attention_bias=True), "attention_bias to True"),
        (lambda raw: raw["text_config"].update(hidden_activation="silu"), "hidden_activation to 'silu'"),
        (lambda raw: raw["text_config"].update(use_bidirectional_attention="all"), "use_bidirectional_attention"),
        (lambda raw: raw["text_config"].update(top_k_experts=99), "more experts per token than there are"),
        (lambda raw: raw["text_config"].update(per_layer_config={"7": {}}), "names 7, which is no layer"),
        (lambda raw: raw["text_config"].update(layer_types=["full_attention"]), "different number of layer_types"),
        (lambda raw: raw.update(tie_word_embeddings=False), "unties"),
        (
            lambda raw: raw["text_config"]["rope_parameters"]["full_attention"].update(rope_type="yarn"),
            "'yarn' rotary positions",
        ),
    ],
)
def test_a_config_that_cannot_be_run_is_refused_by_name(
    folder: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit_config(folder, change)
    with pytest.raises(ModelError) as raised:
        load(folder)
    assert words in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json (cannot be read|holds no JSON object)"):
        load(folder)


def test_full_layers_are_read_from_either_notation(folder: Path) -> None:
    """Layer numbers are padded with zeros from ten layers on; checkpoints before 5.2x have two `global_` keys."""
    shapes = read_config(folder).layers
    ((number, own),) = json.loads((folder / "config.json").read_text())["text_config"]["per_layer_config"].items()
    edit_config(folder, lambda raw: raw["text_config"].update(per_layer_config={f"0{number}": own}))
    assert read_config(folder).layers == shapes

    def older(raw: dict[str, Any]) -> None:
        del raw["text_config"]["per_layer_config"]
        raw["text_config"]["global_head_dim"] = own["head_dim"]
        raw["text_config"]["num_global_key_value_heads"] = own.get("num_key_value_heads")

    edit_config(folder, older)
    assert read_config(folder).layers == shapes


def test_the_published_26b_config_is_understood() -> None:
    """Shapes from the model card and three ports; see the numbers in the project's research notes."""
    text = {
        "vocab_size": 262144,
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "num_hidden_layers": 30,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 5,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_global_key_value_heads": 2,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 1024,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "final_logit_softcapping": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
    }
    config = ModelConfig.from_dict({"model_type": "diffusion_gemma", "canvas_length": 256, "text_config": text})
    count = sum(torch.Size(shape).numel() for shape in weights.expected_shapes(config).values())
    assert 25.2e9 < count < 25.3e9


def test_loading_imports_no_transformers(stored: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from stopgap.infill.weights import load_model;"
        "model = load_model(Path(sys.argv[1])); model.encode(model.new_cache(8), [1, 2]);"
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(stored)], check=True)


class Ticks:
    """A clock that costs `per_thread` seconds a reading, by the number of threads torch is set to."""

    def __init__(self, **per_thread: float) -> None:
        self.now, self.costs = 0.0, {int(name[1:]): cost for name, cost in per_thread.items()}

    def __call__(self) -> float:
        self.now += self.costs[torch.get_num_threads()]
        return self.now


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        ({"t1": 1.0, "t2": 25.0}, 1),
        ({"t1": 1.0, "t2": 0.9}, 1),
        ({"t1": 1.0, "t2": 0.5, "t4": 0.45, "t8": 0.1}, 2),
        ({"t1": 1.0, "t2": 0.5, "t4": 0.25, "t8": 0.2}, 8),
    ],
)
def test_more_threads_are_used_only_while_they_pay(
    monkeypatch: pytest.MonkeyPatch, costs: dict[str, float], chosen: int
) -> None:
    monkeypatch.setattr(cpu, "_cores", lambda: 8)
    before = torch.get_num_threads()
    try:
        assert cpu.choose_threads(Ticks(**costs)) == chosen == torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
