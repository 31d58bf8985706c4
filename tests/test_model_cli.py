"""`stopgap model …` as a user meets it: real checkpoints, tiny; a hub that is a folder; every message."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_fixtures import Decided, decided, write_adapter, write_folder
from gemma_tokenizer import gemma_tokenizer
from safetensors.torch import load_file, save_file
from test_checkpoints import PACKINGS
from tiny_models import random_shape

from stopgap.daemon import cli, hub, shelf
from stopgap.daemon.hub import HubError, Remote
from stopgap.infill import importing
from stopgap.infill.engine import STARTER
from stopgap.infill.model import Model
from stopgap.infill.model_config import DECODER, ENCODER, ModelConfig, expected_shapes
from stopgap.infill.weights import load_model

ROOT = Path(__file__).parent.parent
SEEDS = 2
"""Of models that are sure of what they say, each for some of the packings: equality held for all of 0 to 2 with all."""


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def stopgap(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process, with a shelf and a configuration of its own, and nobody to ask."""
    for name in [name for name in os.environ if name.startswith("STOPGAP_")]:
        monkeypatch.delenv(name)
    for name, folder in {"DATA_DIR": "data", "RUNTIME_DIR": "run", "STATE_DIR": "state"}.items():
        monkeypatch.setenv(f"STOPGAP_{name}", str(tmp_path / folder))
    monkeypatch.setenv("STOPGAP_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["stopgap", "model", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        status = cli.main()
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts as Google publishes it, with a vision tensor beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = gemma_tokenizer(folder)
    text = random_shape(2) | {"vocab_size": len(tokenizer), "hidden_size": 64, "num_experts": 4, "top_k_experts": 2}
    text |= {"intermediate_size": 64, "moe_intermediate_size": 64, "hidden_activation": "gelu_pytorch_tanh"}
    raw = {"model_type": "diffusion_gemma", "canvas_length": 8, "text_config": text}
    (folder / "config.json").write_text(json.dumps(raw))
    shapes = expected_shapes(ModelConfig.from_dict(raw))
    seen = {"model.encoder.vision_tower.patch.weight": torch.zeros(4, dtype=torch.bfloat16)}
    weights = {name: torch.randn(shape).bfloat16() * 0.1 for name, shape in shapes.items()}
    save_file(weights | seen, folder / "model.safetensors")
    return folder


def test_a_checkpoint_is_imported_shown_verified_used_and_removed(stopgap: Run, checkpoint: Path) -> None:
    done = stopgap("import", checkpoint, "--bits", 4, "--name", "tiny")
    assert done.status == 0, done.err
    assert "at 4 bits from" in done.out and "left out: 1 vision tensor" in done.out
    assert "rounding changed the weights by" in done.out and "`stopgap model use tiny`" in done.out
    assert "packing tiny: 100 %" in done.err

    listed = json.loads(stopgap("list", "--json").out)
    assert [one["name"] for one in listed] == ["starter", "tiny"]
    assert listed[1]["bits"] == 4 and str(checkpoint) in listed[1]["source"]
    assert "tiny" in stopgap("list").out

    facts = json.loads(stopgap("info", "tiny", "--json").out)
    assert (facts["experts"], facts["experts_per_token"], facts["hidden_size"]) == (4, 2, 64)
    mean = facts["round_trip"].pop("mean")
    assert 0 < mean <= max(facts["round_trip"].values()) < 0.2 and len(facts["round_trip"]) == 5
    said = stopgap("info", "tiny").out
    assert f"{mean:.2%} of a weight's own size on average" in said and max(facts["round_trip"]) in said

    whole = stopgap("verify", "tiny")
    assert whole.out.startswith("tiny is whole: ") and "reading tiny: 100 %" in whole.err
    assert stopgap("use", "tiny").out.startswith("tiny is in use")
    assert stopgap("remove", "tiny", "--yes").status == 2
    stopgap("use", "starter")
    assert stopgap("remove", "tiny", "-y").out.startswith("removed tiny: ")
    assert len(json.loads(stopgap("list", "--json").out)) == 1


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Decided]:
    return cache(lambda seed: decided(tmp_path_factory.mktemp("decided"), seed))


def denoised(model: Model, told: Decided) -> torch.Tensor:
    """What greedy steps make of the first canvas, step by step."""
    prefix = model.new_cache(64)
    model.encode(prefix, told.prompt)
    canvas, conditioning = told.canvases[:1], None
    free, steps = torch.ones(1, canvas.shape[1], dtype=torch.bool), [canvas]
    for _ in told.canvases[1:]:
        step = model.denoise(prefix, canvas, free, conditioning=conditioning)
        canvas, conditioning = step.argmax.view(1, -1), step.conditioning
        steps.append(canvas)
    return torch.cat(steps)


@pytest.mark.parametrize(("packing", "seed"), [(packing, at % SEEDS) for at, packing in enumerate(PACKINGS)])
def test_a_source_of_any_kind_denoises_like_the_original_when_imported(
    stopgap: Run, sure: Callable[[int], Decided], tmp_path: Path, packing: str, seed: int
) -> None:
    """Greedy steps say the same, and logits move no further than 8 bits explain.

    The second half is for matrices without which the steps are as sure: the median token's logits moved by 0.023 at
    most, and by 0.22 at least where any one matrix was zeros.
    """
    told = sure(seed)
    meant = PACKINGS[packing](told.of, tmp_path / "source")
    done = stopgap("import", tmp_path / "source", "--bits", 8, "--name", "imported")
    assert done.status == 0, done.err
    assert stopgap("verify", "imported").status == 0
    imported = load_model(shelf.models_dir() / "imported", int8=False, threads=1)
    assert torch.equal(denoised(imported, told), told.canvases)
    write_folder(tmp_path / "dense", told.of.config, {name: own.float() for name, own in meant.items()})
    dense = load_model(tmp_path / "dense", int8=False, threads=1)
    ours, theirs = (own.head(own.encode(own.new_cache(32), told.prompt)) for own in (imported, dense))
    moved = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    assert float(moved.median()) < 0.06


def test_an_adapter_of_two_sides_needs_one_to_be_named(stopgap: Run, checkpoint: Path, tmp_path: Path) -> None:
    module, width = "layers.0.mlp.up_proj", 64
    factors = [torch.ones(4, width), torch.ones(width, 4)]
    pairs = {
        f"{stack}{module}.lora_{which}.weight": at * own
        for at, stack in enumerate((DECODER, ENCODER), 1)
        for which, own in zip("AB", factors, strict=True)
    }
    adapter = write_adapter(tmp_path / "adapter", pairs)
    ran = stopgap("import", checkpoint, "--name", "tuned", "--adapter", adapter)
    assert ran.status == 2 and "--adapter-side decoder or --adapter-side encoder" in ran.err.splitlines()[-1]
    done = stopgap("import", checkpoint, "--name", "tuned", "--adapter", adapter, "--adapter-side", "encoder")
    assert done.status == 0, done.err
    assert "with the adapter adapter, its encoder side" in json.loads(stopgap("info", "tuned", "--json").out)["source"]


def test_a_damaged_model_is_found_by_verify(stopgap: Run) -> None:
    stopgap("import", STARTER, "--bits", 8, "--name", "s")
    weights = shelf.models_dir() / "s" / "packed.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    ran = stopgap("verify", "s")
    assert ran.status == 2 and ran.err.splitlines()[-1].startswith("stopgap: ") and "damaged" in ran.err


def test_an_interrupted_import_says_what_goes_on_and_that_goes_on(
    stopgap: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importing.import_model

    def interrupted(*arguments: Any, progress: Any, **options: Any) -> Any:
        def some(at: Any) -> None:
            progress(at)
            if at.done > at.total // 2:
                raise KeyboardInterrupt

        return real(*arguments, progress=some, **options)

    monkeypatch.setattr(importing, "import_model", interrupted)
    ran = stopgap("import", STARTER, "--name", "s", "--bits", 8)
    again = f"stopgap model import {STARTER} --bits 8 --name s"
    assert ran.status == 130
    assert ran.err.endswith(f"stopgap: stopped; what is done is kept, and `{again}` goes on with it\n")
    (_, unfinished) = json.loads(stopgap("list", "--json").out)
    assert (unfinished["name"], unfinished["unfinished"]) == ("s", again)
    assert f"unfinished: {again}" in stopgap("list").out

    monkeypatch.setattr(importing, "import_model", real)
    done = stopgap(*again.split()[2:])
    assert done.status == 0 and "% of it was there from before" in done.out
    assert stopgap("verify", "s").status == 0


@dataclass
class FakeHub:
    """huggingface_hub as far as `hub` uses it, over one folder."""

    folder: Path
    names: list[str]
    size: int = 1000
    error: Exception | None = None
    fetched: list[str] = field(default_factory=list)

    def HfApi(self) -> Any:
        siblings = [SimpleNamespace(rfilename=name) for name in self.names]
        return SimpleNamespace(model_info=lambda repo, timeout: self._answer(SimpleNamespace(siblings=siblings)))

    @property
    def utils(self) -> Any:
        return SimpleNamespace(disable_progress_bars=lambda: None)

    def snapshot_download(
        self, repo: str, local_dir: Path, allow_patterns: list[str], dry_run: bool = False
    ) -> list[SimpleNamespace]:
        if dry_run:
            return [SimpleNamespace(file_size=self.size, will_download=True)]
        self.fetched += allow_patterns
        shutil.copytree(self.folder, local_dir, dirs_exist_ok=True)
        return []

    def _answer(self, value: Any) -> Any:
        if self.error:
            raise self.error
        return value


def test_a_hub_id_is_fetched_imported_and_the_download_removed(
    stopgap: Run, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    fake = FakeHub(checkpoint, ["model.safetensors", "config.json"])
    monkeypatch.setattr(hub, "_library", lambda: fake)
    done = stopgap("import", "someone/Tiny-Model", "--bits", 8)
    assert done.status == 0, done.err
    assert "fetching someone/Tiny-Model from huggingface.co into" in done.err
    assert "*.safetensors" in fake.fetched
    assert json.loads(stopgap("info", "tiny-model-8bit", "--json").out)["source"].startswith("someone/Tiny-Model ")
    assert not any(shelf.downloads_dir().iterdir())
    done = stopgap("import", "someone/Tiny-Model", "--bits", 8, "--name", "kept", "--keep-download")
    assert done.status == 0 and (shelf.downloads_dir() / "someone--Tiny-Model" / "config.json").is_file()


def named(name: str) -> Exception:
    """An error of the hub's library, which is only known by its name."""
    return type(name, (Exception,), {})("401 Client Error.\nlong story")


HUB_ERRORS: list[tuple[Exception, str]] = [
    (named("GatedRepoError"), "wants its terms accepted: do that on https://huggingface.co/someone/m"),
    (named("RepositoryNotFoundError"), "there is no model someone/m on huggingface.co, or it is private"),
    (named("OfflineModeIsEnabled"), "switched off by HF_HUB_OFFLINE: unset it"),
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space and run the same command"),
    (ConnectionError("no route"), "cannot be fetched (no route); check the network and run the same command"),
    (TimeoutError(), "cannot be fetched (TimeoutError)"),
]


@pytest.mark.parametrize(("error", "says"), HUB_ERRORS, ids=lambda value: type(value).__name__)
def test_whatever_the_hub_raises_is_one_line(
    stopgap: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, says: str
) -> None:
    monkeypatch.setattr(hub, "_library", lambda: FakeHub(tmp_path, ["model.safetensors"], error=error))
    ran = stopgap("import", "someone/m")
    assert ran.status == 2 and says in ran.err.splitlines()[-1]
    assert len(ran.err.splitlines()) == 2 and ran.out == "", "the line before says what is being fetched"


def test_a_download_that_the_disk_cannot_hold_is_refused_with_both_sizes(
    stopgap: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "_library", lambda: FakeHub(tmp_path, ["model.safetensors"], size=10**18))
    ran = stopgap("import", "someone/m")
    assert ran.status == 2
    assert "the download needs 1000000000.0 GB and the disk of" in ran.err and "STOPGAP_DATA_DIR" in ran.err


GGUFS = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-F16.gguf", "README.md"]


@pytest.mark.parametrize(
    ("text", "names", "result"),
    [
        ("a/b", ["config.json", "model-00001-of-00002.safetensors"], ""),
        ("a/b:Q8_0", GGUFS, "m-Q8_0.gguf"),
        ("a/b:q4_k_m", GGUFS, "m-Q4_K_M.gguf"),
        ("a/b", ["only.gguf", "mmproj.gguf"], "only.gguf"),
    ],
)
def test_only_what_an_import_needs_is_fetched(text: str, names: list[str], result: str) -> None:
    remote = Remote.parse(text)
    assert remote is not None
    patterns, found = hub.choose(remote, names)
    assert found == result
    assert (result in patterns) if result else ("*.safetensors" in patterns)
    assert not any("mmproj" in pattern for pattern in patterns)


@pytest.mark.parametrize(
    ("text", "names", "says"),
    [
        ("a/b", GGUFS, r"a/b holds 2 GGUF files; name one: a/b:VARIANT with Q4_K_M, Q8_0"),
        ("a/b:Q5", GGUFS, "name one: a/b:VARIANT"),
        ("a/b", ["README.md"], "it is no model that can be imported"),
    ],
)
def test_a_repository_without_one_clear_file_says_what_there_is(text: str, names: list[str], says: str) -> None:
    remote = Remote.parse(text)
    assert remote is not None
    with pytest.raises(HubError, match=says):
        hub.choose(remote, names)


@pytest.mark.parametrize("text", ["x", "a/b/c", "/a/b", "~/a", "./a", "../a", "a b/c", "a/", "https://x.y/z", ""])
def test_what_cannot_be_a_hub_id_is_none(text: str) -> None:
    assert Remote.parse(text) is None


def broken(folder: Path, checkpoint: Path, change: str) -> Path:
    """`checkpoint` with one thing wrong."""
    shutil.copytree(checkpoint, folder)
    if change == "no config":
        (folder / "config.json").unlink()
    elif change == "other architecture":
        (folder / "config.json").write_text('{"model_type": "llama"}')
    elif change == "cut short":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "a tensor less":
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.decoder.norm.weight"]
        save_file(tensors, folder / "model.safetensors")
    elif change == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no config", "config.json is missing"),
        ("other architecture", "only 'diffusion_gemma' models can be run"),
        ("cut short", "model.safetensors"),
        ("a tensor less", "model.decoder.norm.weight"),
        ("empty", "is missing"),
    ],
)
def test_what_is_no_whole_model_is_refused_in_one_line_and_leaves_nothing(
    stopgap: Run, checkpoint: Path, tmp_path: Path, change: str, says: str
) -> None:
    ran = stopgap("import", broken(tmp_path / "source", checkpoint, change), "--name", "x")
    assert ran.status == 2 and ran.out == ""
    assert says in ran.err and ran.err.startswith("stopgap: ") and ran.err.count("\n") == 1
    assert len(json.loads(stopgap("list", "--json").out)) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import"], "Missing argument"),
        (["import", "/nowhere/at/all"], "there is no /nowhere/at/all: name a folder, a .gguf file or a hub id"),
        (["import", "just-a-word"], "hub id like google/diffusiongemma-26B-A4B-it"),
        (["import", "STARTER", "--bits", "5"], "--bits 5: 4, 8 or 16 was expected"),
        (["import", "STARTER", "--bits", "four"], "--bits"),
        (["import", "STARTER", "--name", "../x"], "'../x' cannot be a model's name"),
        (["import", "STARTER", "--name", "starter"], "choose another name"),
        (["import", "STARTER", "--adapter", "/nowhere"], "/nowhere is no adapter"),
        (["import", "STARTER", "--adapter-side", "decoder"], "name the adapter with --adapter FOLDER"),
        (["import", "STARTER", "--adapter-side", "both"], "'both' is not one of 'decoder', 'encoder'"),
        (["use"], "Missing argument"),
        (["use", "nope"], "there is no model 'nope'; there are starter"),
        (["info", "startr"], "did you mean 'starter'"),
        (["verify", "starter"], "is no packed model and has no checksums"),
        (["remove", "starter", "--yes"], "part of stopgap and cannot be removed"),
        (["remove", "nope"], "there is no model 'nope'"),
        (["list", "--wide"], "--wide"),
        (["lsit"], "lsit"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_2(stopgap: Run, arguments: list[str], says: str) -> None:
    ran = stopgap(*(STARTER if word == "STARTER" else word for word in arguments))
    assert ran.status == 2 and ran.out == ""
    assert says in ran.err and ran.err.startswith("stopgap: ") and ran.err.count("\n") == 1


def test_a_taken_name_is_refused_before_anything_is_read(stopgap: Run) -> None:
    (shelf.models_dir() / "mine").mkdir(parents=True)
    ran = stopgap("import", STARTER, "--name", "mine")
    assert ran.status == 2 and "already; choose another --name" in ran.err


def test_removing_asks_and_without_anybody_to_ask_it_wants_yes(stopgap: Run) -> None:
    stopgap("import", STARTER, "--bits", 8, "--name", "s")
    ran = stopgap("remove", "s")
    assert (ran.status, ran.err) == (2, "stopgap: removing s needs --yes where nobody can be asked\n")
    assert (shelf.models_dir() / "s").is_dir()


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(stopgap: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    ran = stopgap("import", STARTER, "--bits", 8, "--name", "s")
    assert ran.status == 2 and "0.0 GB free" in ran.err and ran.err.splitlines()[-1].startswith("stopgap: ")


@pytest.mark.parametrize(("command", "offline"), [(["list"], "1"), (["import", "/nowhere"], "0")])
def test_the_hub_is_off_except_for_an_import(stopgap: Run, command: list[str], offline: str) -> None:
    stopgap(*command)
    assert os.environ["HF_HUB_OFFLINE"] == offline


def test_only_one_file_knows_the_hubs_library() -> None:
    knowing = {
        path.name
        for folder in ("daemon", "lsp", "infill", "kernels")
        for path in (ROOT / folder).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(one.name.startswith("huggingface_hub") for one in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("huggingface_hub"))
    }
    assert knowing == {"hub.py"}


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    """With the real library, against a port where nobody listens."""
    environment = dict(os.environ) | {"HF_ENDPOINT": "http://127.0.0.1:9", "STOPGAP_DATA_DIR": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-P", "-m", "stopgap.daemon", "model", "import", "someone/m"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "someone/m cannot be fetched (" in done.stderr.splitlines()[-1]
