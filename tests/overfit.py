"""Trains the test fixture: `python tests/overfit.py --minutes 12` writes tests/data/overfitted.

The starter is taught `overfit_text` by heart: it knows how canvases work already, and only has the text to learn. What
the engine makes of such a model says how good the engine is, since the model knows every answer. Minutes are processor
time; a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from overfit_text import texts
from safetensors.torch import load_file
from tokenizers import Tokenizer

from stopgap.infill import pipeline, shards
from stopgap.infill.checkpoints import open_source
from stopgap.infill.corpus import SourceFile
from stopgap.infill.engine import STARTER
from stopgap.infill.importing import import_model
from stopgap.infill.learner import from_checkpoint
from stopgap.infill.training import Trainer
from stopgap.infill.training_config import read_config

CONFIG = Path(__file__).with_suffix(".toml")
FIXTURE = Path(__file__).parent / "data" / "overfitted"
DECAY = 0.4
"""Share of the time in which the rates fall to zero."""


def train(minutes: float, folder: Path, out: Path) -> None:
    """All of it in `folder`, which may hold an unfinished run; the packed model goes to `out`."""
    knobs, document = read_config(CONFIG)
    holes = document["holes"]
    files = [SourceFile("generated", name, "train", text) for name, text in texts().items()]
    folder.mkdir(parents=True, exist_ok=True)
    shard = shards.build(
        files * holes["copies"],
        Tokenizer.from_file(str(STARTER / "tokenizer.json")),
        holes["weights"],
        holes["tokens_per_hole"],
        holes["longest_bytes"],
        holes["longest_tokens"],
        holes["seed"],
        holes["healed"],
    )
    print(shards.describe(shard), flush=True)
    trainer = Trainer(knobs, shard, folder, torch.device("cpu"))
    if not trainer.load():
        from_checkpoint(trainer.learner, load_file(STARTER / "model.safetensors"))

    def log(point: dict[str, Any]) -> None:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in point.items()}, flush=True)

    stable = 60 * minutes * (1 - DECAY) - trainer.progress.seconds
    if stable > 0:
        begun = trainer.progress.seconds
        trainer.run(stable, time.process_time, log)
        if trainer.progress.seconds - begun < stable:
            return  # told to stop; the same command goes on from here
    trainer.run(60 * minutes * DECAY, time.process_time, log, decay=True)
    save(trainer, out)


def save(trainer: Trainer, out: Path) -> None:
    """What the trainer holds, in int8."""
    whole = trainer.folder / "export"
    pipeline.export(trainer, STARTER / "tokenizer.json", whole)
    card = json.loads((whole / "stopgap.json").read_text(encoding="utf-8"))
    (whole / "stopgap.json").write_text(json.dumps(card | {"name": "overfitted"}, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    import_model(
        open_source(whole), out, 8, clock=time.process_time, progress=lambda _: None, origin="tests/overfit.py"
    )


def main() -> None:
    """Read the options and train."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--minutes", type=float, default=12, help="processor time")
    reader.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stopgap-overfit")
    reader.add_argument("--out", type=Path, default=FIXTURE)
    given = reader.parse_args()
    torch.set_num_threads(1)
    train(given.minutes, given.folder, given.out)


if __name__ == "__main__":
    main()
