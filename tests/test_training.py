"""The training loop: it learns, it resumes to the same weights, it survives a kill, it exports what it trained."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stopgap.infill import heldout, pipeline, shards
from stopgap.infill.corpus import SourceFile
from stopgap.infill.feed import Feed, make, order
from stopgap.infill.learner import Learner, Shape, from_checkpoint, to_checkpoint
from stopgap.infill.objective import Rows
from stopgap.infill.pipeline import _begin_from, default_config, export, run_training
from stopgap.infill.shards import KINDS, Shard
from stopgap.infill.training import Trainer
from stopgap.infill.training_config import MARKERS, Config, Phase, Progress, TrainingError, phase_at, read_config

SOURCE = "".join(f"def get_{i}(self):\n    return self.value_{i} + {i}\n\n\n" for i in range(30))
SHAPE = Shape(vocabulary=320, hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=32, expert=8)
CONFIG = Config(
    shape=SHAPE,
    compile=False,
    warmup=2,
    phases=(Phase(until=0.0005, length=64, rows=4), Phase(until=1e9, length=64, rows=4, canvases=2, slots=40)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with shards and a tokenizer, as the shards stage leaves it."""
    path = tmp_path_factory.mktemp("starter")
    tokenizer = shards.train_tokenizer([SOURCE], 320)
    tokenizer.save(str(path / "tokenizer.json"))
    files = [SourceFile("p", "a.py", "train", SOURCE)]
    made = shards.build(files, tokenizer, dict.fromkeys(KINDS, 1.0), 10, 120, 24, 0)
    for split in ("train", *pipeline.HELDOUT):
        made.save(path / f"{split}.npz")
    return path


@pytest.fixture
def new_trainer(folder: Path, tmp_path: Path) -> Callable[[], Trainer]:
    shard = Shard.load(folder / "train.npz")
    return lambda: Trainer(CONFIG, shard, tmp_path, torch.device("cpu"))


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.learner.parameters()])


def test_both_losses_fall(new_trainer: Callable[[], Trainer]) -> None:
    trainer = new_trainer()
    first = trainer.step()
    assert "canvas" not in first
    for _ in range(40):
        last = trainer.step()
    assert last["ar"] < first["ar"] - 1.5 and last["canvas"] < 5.5


def test_a_resumed_run_takes_the_very_steps_the_unbroken_run_takes(new_trainer: Callable[[], Trainer]) -> None:
    unbroken = new_trainer()
    for _ in range(3):
        unbroken.step()
    unbroken.save()
    resumed = new_trainer()
    assert resumed.load()
    for trainer in (unbroken, resumed):
        for _ in range(3):
            trainer.step()
    assert torch.equal(weights(unbroken), weights(resumed)) and unbroken.progress == resumed.progress


def test_a_torn_newest_checkpoint_does_not_hide_the_one_before(new_trainer: Callable[[], Trainer]) -> None:
    """A kill between the two renames of `save` leaves only `previous.pt`."""
    trainer = new_trainer()
    trainer.step()
    trainer.save()
    trainer.save()
    (trainer.folder / "checkpoint.pt").unlink()
    (trainer.folder / "checkpoint.partial").write_bytes(b"half a file")
    resumed = new_trainer()
    assert resumed.load() and torch.equal(weights(trainer), weights(resumed))


def test_a_signal_ends_the_step_in_hand_and_saves(new_trainer: Callable[[], Trainer]) -> None:
    trainer = new_trainer()
    ticks = iter(range(10_000))

    def clock() -> float:
        tick = next(ticks)
        if tick == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return float(tick)

    trainer.run(1e9, clock, lambda point: None)
    resumed = new_trainer()
    assert resumed.load() and resumed.progress == trainer.progress and trainer.progress.step < 10
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_decaying_branch_leaves_the_checkpoint_alone(new_trainer: Callable[[], Trainer]) -> None:
    trainer = new_trainer()
    trainer.step()
    trainer.save()
    before = (trainer.folder / "checkpoint.pt").read_bytes()
    ticks = iter(range(10_000))
    trainer.run(20.0, lambda: float(next(ticks)), lambda point: None, decay=True)
    assert trainer.progress.step > 1 and (trainer.folder / "checkpoint.pt").read_bytes() == before
    assert max(group["lr"] for o in trainer.optimisers for group in o.param_groups) < CONFIG.matrix_rate / 2


def test_the_data_order_has_no_gap_and_no_repeat_within_an_epoch(folder: Path) -> None:
    shard = Shard.load(folder / "train.npz")
    size = len(shard)
    everything = order(size, 1, 0, 2 * size)
    assert sorted(everything[:size]) == sorted(everything[size:]) == list(range(size))
    assert (order(size, 1, size - 3, 6) == everything[size - 3 : size + 3]).all()


def test_workers_make_the_rows_the_loop_would_make_itself(folder: Path) -> None:
    shard = Shard.load(folder / "train.npz")
    feed = Feed(shard, replace(CONFIG, workers=1))
    try:
        progress = Progress()
        for _ in range(4):
            ahead, here = feed.take(progress), make(shard, CONFIG, progress)
            assert ahead[1] == here[1]
            assert all(np.array_equal(getattr(ahead[0], f), getattr(here[0], f)) for f in Rows.__slots__)
            progress = progress.after(phase_at(CONFIG, progress.positions))
    finally:
        feed.close()


def test_training_goes_on_from_shipped_weights_alone(folder: Path, tmp_path: Path) -> None:
    trainer = Trainer(CONFIG, Shard.load(folder / "train.npz"), tmp_path, torch.device("cpu"))
    trainer.step()
    export(trainer, folder / "tokenizer.json", tmp_path / "out")
    fresh = Trainer(CONFIG, trainer.shard, tmp_path, torch.device("cpu"))
    _begin_from(fresh, tmp_path / "out")
    assert fresh.progress == replace(trainer.progress, step=0, seconds=0)
    assert torch.allclose(weights(fresh), weights(trainer), atol=0.01, rtol=0.01)  # bf16
    assert not torch.equal(weights(fresh), weights(Trainer(CONFIG, trainer.shard, tmp_path, torch.device("cpu"))))


def test_another_shape_is_refused_with_the_remedy(new_trainer: Callable[[], Trainer], folder: Path) -> None:
    trainer = new_trainer()
    trainer.save()
    shape = Shape(vocabulary=320, hidden=48, layers=2, heads=2, kv_heads=1, head_dim=16, intermediate=32, expert=8)
    other = Trainer(Config(shape=shape, compile=False), trainer.shard, trainer.folder, torch.device("cpu"))
    with pytest.raises(TrainingError, match="another shape"):
        other.load()


def test_the_export_holds_the_trained_weights_and_says_what_they_are(
    new_trainer: Callable[[], Trainer], folder: Path, tmp_path: Path
) -> None:
    trainer = new_trainer()
    trainer.step()
    export(trainer, folder / "tokenizer.json", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "stopgap.json").read_text())
    assert card["family"] == "infill" and card["positions_trained"] == 256 and card["context_length"] == 64
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert card["canvas_length"] == config["canvas_length"] == 40
    stored = load_file(tmp_path / "out" / "model.safetensors")
    loaded = Learner(SHAPE)
    from_checkpoint(loaded, stored)
    assert all(torch.equal(stored[name], weight) for name, weight in to_checkpoint(trainer.learner).items())
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_a_draft_continues_each_row_as_if_it_were_alone(folder: Path) -> None:
    learner = Learner(SHAPE, torch.float32, seed=2)
    prompts = torch.randint(16, 320, (3, 20), generator=torch.Generator().manual_seed(0))
    together = heldout.draft(learner, prompts, 5, MARKERS)
    alone = [heldout.draft(learner, row[None], 5, MARKERS)[0] for row in prompts]
    assert together == alone


def test_the_shipped_config_is_readable() -> None:
    config, document = read_config(default_config())
    assert config.phases[-1].canvases and set(document["holes"]["weights"]) == set(KINDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train", "cannot read the training config"),
        ("[train]\nphases = []\nspeed = 3\n", "speed"),
        ("[train]\n", "phases"),
    ],
)
def test_a_bad_config_gets_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message) as caught:
        run_training(path, "train", clock=lambda: 0.0, log=print, folder=tmp_path)
    assert "\n" not in str(caught.value)


def test_training_without_shards_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="run the shards stage first"):
        run_training(default_config(), "train", clock=lambda: 0.0, log=print, folder=tmp_path)
