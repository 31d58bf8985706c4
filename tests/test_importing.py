"""The streamed import: the same model as before, killed and resumed, and refused by name."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_fixtures import write_adapter
from filelock import FileLock
from test_packed import pack, save_checkpoint
from torch import Tensor

from stopgap.infill import importing, packing
from stopgap.infill.checkpoints import Source, open_source
from stopgap.infill.engine import STARTER
from stopgap.infill.importing import Progress, discard, import_model
from stopgap.infill.model import Model, ModelError
from stopgap.infill.model_config import DECODER, ENCODER
from stopgap.infill.packed import MANIFEST, WEIGHTS, Bits, read_manifest, verify
from stopgap.infill.weights import load_model, read_config

SMALL = 1 << 13
"""Weights read at once in these tests, so that even the tiny model comes in pieces."""


class Meddled:
    """A source of which a test changes something."""

    kind = "meddled"

    def __init__(self, source: Source) -> None:
        self.source = source
        self.config: Mapping[str, Any] = source.config
        self.tensors: Mapping[str, tuple[int, ...]] = dict(source.tensors)
        self.skipped: tuple[str, ...] = ()
        self.files = source.files
        self.origins = source.origins
        self.before: Callable[[str, slice], Tensor | None] = lambda _name, _rows: None
        self.reads: list[tuple[str, slice]] = []

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        self.reads.append((name, rows))
        changed = self.before(name, rows)
        return self.source.read(name, rows) if changed is None else changed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), experts=8)


@pytest.fixture
def source(checkpoint: Path) -> Meddled:
    return Meddled(open_source(checkpoint))


def bring(source: Source, out: Path, bits: Bits = 4, **options: Any) -> importing.Report:
    return import_model(source, out, bits, clock=time.monotonic, **options)


def load(folder: Path) -> Model:
    return load_model(folder, int8=False, threads=1)


@pytest.mark.parametrize(("bits", "median"), [(16, 0.01), (8, 0.06), (4, 0.16)])
def test_logits_move_no_further_than_rounding_explains(
    checkpoint: Path, tmp_path: Path, bits: Bits, median: float
) -> None:
    """Measured 0.005, 0.041 and 0.115. A random model's routing is close: where rounding swaps an expert, a token moves
    by tenths, so the median over tokens is what is bounded; each of some ten matrices adds its rounding error (0.008 in
    int8, 0.09 in int4) in squares.
    """
    before, after = load(checkpoint), load(pack(checkpoint, tmp_path / "packed", bits))
    ids = list(range(20))
    ours, theirs = (model.head(model.encode(model.new_cache(32), ids)) for model in (after, before))
    moved = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    assert 0 < float(moved.median()) < median


def test_the_starter_in_8_bits_drafts_the_same_line(tmp_path: Path) -> None:
    """A trained model is sure of most slots, so greedy steps of all widths of arithmetic agree."""
    report = bring(open_source(STARTER), tmp_path / "eight", 8)
    assert json.loads((report.folder / "stopgap.json").read_text())["family"] == "infill"
    models = [load(STARTER), load(report.folder), load_model(report.folder, int8=True, threads=1)]
    from stopgap.infill.tokenizer import Tokenizer

    prompt = Tokenizer(STARTER / "tokenizer.json").encode(b"import os\nimport sys\n\n\ndef main():\n    for name in ")
    first, *others = (greedy(model, prompt) for model in models)
    assert others == [first, first]


def greedy(model: Model, prompt: list[int]) -> list[int]:
    cache = model.new_cache(64)
    hidden, ids = model.encode(cache, prompt), list[int]()
    for _ in range(8):
        ids.append(int(model.head(hidden[-1:]).argmax()))
        hidden = model.encode(cache, ids[-1:])
    return ids


def test_an_import_in_pieces_is_the_import_at_once(
    source: Meddled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = bring(source, tmp_path / "at once").folder
    monkeypatch.setattr(importing, "READ_AT_ONCE", SMALL)
    monkeypatch.setattr(packing, "ROUNDED_AT_ONCE", 1000)
    source.reads.clear()
    pieces = bring(source, tmp_path / "pieces").folder
    assert (pieces / WEIGHTS).read_bytes() == (at_once / WEIGHTS).read_bytes()
    gate_up = f"{DECODER}layers.0.experts.gate_up_proj"
    assert [rows for name, rows in source.reads if name == gate_up] == [slice(at, at + 1) for at in range(8)]
    one, other = read_manifest(pieces), read_manifest(at_once)
    for name, record in one.tensors.items():
        assert record.error == pytest.approx(other.tensors[name].error, rel=1e-4)
        assert record.sha256 == other.tensors[name].sha256


KILLED = """
import os, signal, sys, time
from pathlib import Path
from stopgap.infill import importing, packing
from stopgap.infill.checkpoints import open_source

importing.READ_AT_ONCE = int(sys.argv[3])
packing.SAFE_AFTER = 0
opened = open_source(Path(sys.argv[1]))

class Mortal:
    kind, config, tensors, skipped, files = "meddled", opened.config, opened.tensors, (), opened.files
    origins = opened.origins
    def read(self, name, rows=slice(None)):
        if name == sys.argv[4] and rows.start == int(sys.argv[5]):
            os.kill(os.getpid(), signal.SIGKILL)
        return opened.read(name, rows)

importing.import_model(Mortal(), Path(sys.argv[2]), 4, clock=time.monotonic)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_an_import_that_was_killed_goes_on_where_it_stopped(
    checkpoint: Path, source: Meddled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = bring(source, tmp_path / "whole").folder, tmp_path / "out"
    partial = tmp_path / "out.partial"
    for name, row in (("layers.0.experts.down_proj", 3), ("embed_tokens.weight", 64)):
        words = [sys.executable, "-P", "-c", KILLED, checkpoint, out, str(SMALL), DECODER + name, str(row)]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        assert not out.exists() and (partial / packing.JOURNAL).is_file()
    # A line that the power went away under does not count, and what it was for is written again.
    journal = partial / packing.JOURNAL
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:-9])
    source.reads.clear()
    monkeypatch.setattr(importing, "READ_AT_ONCE", SMALL)
    report = bring(source, out)
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert 0.5 < report.resumed / report.total < 1
    assert not any("experts" in name for name, _ in source.reads), "what was finished is not read again"
    assert not partial.exists()
    verify(out, read_config(out))


def test_what_was_half_written_is_not_trusted(source: Meddled, tmp_path: Path) -> None:
    whole, out = bring(source, tmp_path / "whole").folder, tmp_path / "out"

    def fail(name: str, _rows: slice) -> None:
        if name.endswith("layers.1.experts.down_proj"):
            raise OSError("gone")

    source.before = fail
    with pytest.raises(ModelError, match=r"layers\.1\.experts\.down_proj cannot be read: gone"):
        bring(source, out)
    file = tmp_path / "out.partial" / "model" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-100:] = b"\xff" * 100  # of a tensor that the journal does not name
    file.write_bytes(content)
    source.before = lambda _name, _rows: None
    assert bring(source, out).resumed > 0
    assert (out / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


@pytest.mark.parametrize("what", ["bits", "weights"])
def test_another_import_under_the_same_name_starts_over(source: Meddled, tmp_path: Path, what: str) -> None:
    def stop(name: str, _rows: slice) -> None:
        if name.endswith("norm.weight") and "layers" not in name and source.reads.count((name, slice(None))) > 1:
            raise OSError("gone")

    source.before = stop
    with pytest.raises(ModelError, match="gone"):
        bring(source, tmp_path / "out", 4)
    scaled = f"{DECODER}layers.0.self_attn.o_proj.weight"
    source.before = lambda name, rows: 2 * source.source.read(name, rows) if name == scaled else None
    report = bring(source, tmp_path / "out", 8 if what == "bits" else 4)
    assert report.resumed == 0
    verify(report.folder, read_config(report.folder))


@pytest.mark.parametrize("change", ["of the experts", "of one side"])
def test_another_adapter_does_not_go_on_with_the_leftovers_of_one(
    checkpoint: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two adapters that differ in nothing but the experts, or in the side that is asked for, no row of any other
    tensor tells one from the other."""

    def adapter(folder: str, scale: float) -> Path:
        pair = {"lora_A.weight": torch.ones(4 * 8, 64), "lora_B.weight": torch.full((128, 4 * 8), scale)}
        sides = {DECODER: 1, ENCODER: 2} if change == "of one side" else {DECODER: 1}
        tensors = {f"{side}layers.0.experts.{end}": at * own for side, at in sides.items() for end, own in pair.items()}
        return write_adapter(tmp_path / folder / "adapter", tensors)

    one = open_source(checkpoint, adapter("one", 0.1), adapter_side="decoder")
    if change == "of one side":
        other = open_source(checkpoint, adapter("one", 0.1), adapter_side="encoder")
    else:
        other = open_source(checkpoint, adapter("other", 0.2), adapter_side="decoder")
    whole = bring(other, tmp_path / "whole").folder

    def stop(at: Progress) -> None:
        if at.name == "norm":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bring(one, tmp_path / "out", progress=stop)
    report = bring(other, tmp_path / "out")
    assert report.resumed == 0
    assert (report.folder / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_progress_counts_weights_and_tells_the_time_left(source: Meddled, tmp_path: Path) -> None:
    ticks, told = iter(range(10_000)), list[Progress]()
    report = import_model(source, tmp_path / "out", 8, clock=lambda: float(next(ticks)), progress=told.append)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert told[-1].done == told[-1].total == report.total
    assert told[-1].left == 0 and told[0].left > 0
    assert told[0].name == "layers.0.qkv" and told[-1].name == "embedding"


def test_the_small_files_travel_along(source: Meddled, tmp_path: Path) -> None:
    folder = bring(source, tmp_path / "mine", origin="somewhere/some-model").folder
    card = json.loads((folder / "stopgap.json").read_text())
    assert card == {"family": "instruct", "canvas_length": 8, "name": "mine"}
    assert json.loads((folder / "config.json").read_text()) == source.config
    manifest = read_manifest(folder)
    assert manifest.source == "somewhere/some-model (meddled)"
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {MANIFEST, WEIGHTS}
    assert "tokenizer.json" in manifest.files


def test_the_card_of_a_stopgap_model_travels_along_under_the_new_name(source: Meddled, tmp_path: Path) -> None:
    (tmp_path / "stopgap.json").write_text(json.dumps({"name": "old", "family": "infill", "markers": {"bos": 2}}))
    source.files = (*source.files, tmp_path / "stopgap.json")
    folder = bring(source, tmp_path / "new").folder
    card = json.loads((folder / "stopgap.json").read_text())
    assert card == {"name": "new", "family": "infill", "markers": {"bos": 2}}


GATE_UP = f"{DECODER}layers.1.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda all_: all_.pop(GATE_UP), f"the weights lack {GATE_UP}"),
        (lambda all_: all_.update({"model.decoder.extra": (1,)}), "the weights hold model.decoder.extra"),
        (lambda all_: all_.update({GATE_UP: (8, 64, 128)}), f"{GATE_UP} has the shape [8, 64, 128]"),
    ],
)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_named(
    source: Meddled, tmp_path: Path, tensors: Callable[[dict[str, tuple[int, ...]]], object], words: str
) -> None:
    tensors(source.tensors)  # type: ignore[arg-type]
    with pytest.raises(ModelError) as raised:
        bring(source, tmp_path / "out")
    assert words in str(raised.value) and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda own: own * float("nan"), "holds numbers that are not finite"),
        (lambda own: own[:, :-1], r"layers\.1\.mixture\.gate_up came in another size"),
    ],
)
def test_a_tensor_that_is_not_what_was_promised_is_named(
    source: Meddled, tmp_path: Path, answer: Callable[[Tensor], Tensor], words: str
) -> None:
    source.before = lambda name, rows: answer(source.source.read(name, rows)) if name == GATE_UP else None
    with pytest.raises(ModelError, match=words):
        bring(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_noticed_before_anything_is_read(
    source: Meddled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(ModelError, match=r"has 0\.1 GB free and 0\.1 GB are needed: free some") as raised:
        bring(source, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert discard(tmp_path / "out") and not discard(tmp_path / "out")


def test_a_name_that_is_taken_is_refused(source: Meddled, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="exists already: remove that model or choose another name"):
        bring(source, tmp_path / "out")


def test_two_imports_do_not_write_one_model(source: Meddled, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    with FileLock(tmp_path / "out.partial" / "lock"), pytest.raises(ModelError, match="another import is writing"):
        bring(source, tmp_path / "out")
