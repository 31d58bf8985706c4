"""`stopgap train`: corpus, tokenizer and shards, training, decay, export; each stage leaves files for the next.

Everything large lives in the user's cache folder; the repository gets the manifest, the curve and the packed
model. Knows no command line and no wall clock: the caller passes a clock and takes progress as dictionaries.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from . import corpus, heldout, shards
from .baselines import Choice
from .files import write_whole
from .learner import Learner, class_config, from_checkpoint, to_checkpoint
from .training import Trainer, append_line
from .training_config import MARKERS, Config, Progress, TrainingError, read_config, trained_length, trained_slots

Stage = Literal["corpus", "shards", "train", "decay", "export"]
Log = Callable[[dict[str, Any]], None]
HELDOUT = ("heldout-package", "heldout-module")
STABLE = ("checkpoint.pt", "previous.pt")
COPIES: tuple[Choice, ...] = ("random line", "previous line", "retrieval")


def default_config() -> Path:
    return Path(__file__).with_name("data") / "starter.toml"


def default_folder() -> Path:
    """Where corpus, shards and checkpoints live: a few hundred megabytes, safe to delete between runs."""
    return platformdirs.user_cache_path("stopgap") / "starter"


def run_training(
    config: Path,
    stage: Stage,
    *,
    clock: Callable[[], float],
    log: Log,
    folder: Path | None = None,
    out: Path | None = None,
    seconds: float = float("inf"),
    benchmark: Path | None = None,
    device: str = "cpu",
    weights: Path | None = None,
) -> None:
    """Runs one stage of the build.

    corpus   downloads and cleans the text; `benchmark` is a folder of *.jsonl.gz whose text must not be in it
    shards   trains the tokenizer, cuts the holes
    train    trains for `seconds` from the newest checkpoint in `folder`, else from `weights` (a model folder,
             fresh optimiser state), else from scratch
    decay    branches off the newest checkpoint: rates to zero over `seconds`, then exports to `out`
    export   packs the newest state, decayed or not, as it is into `out`

    `log` gets progress points (losses in nats, "speed" in encoder positions a second, "left" in seconds).
    Raises `TrainingError` or `CorpusError`, one line for the user.
    """
    knobs, document = read_config(config)
    folder = folder or default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if stage == "corpus":
        _corpus(document["corpus"], folder, benchmark, log)
    elif stage == "shards":
        _shards(document, folder, knobs.seed, log)
    else:
        trainer = _trainer(knobs, folder, device)
        if not trainer.load(_newest(folder) if stage == "export" else STABLE):
            if stage != "train":
                raise TrainingError(f"no checkpoint in {folder}: run the train stage first")
            if weights is not None:
                _begin_from(trainer, weights)
        if stage in {"train", "decay"}:
            evaluate = _evaluator(knobs, folder, log)
            curve = folder / ("curve.jsonl" if stage == "train" else "decay.jsonl")

            def both(point: dict[str, Any]) -> None:
                log(point)
                append_line(curve, point)

            trainer.run(seconds, clock, both, evaluate, decay=stage == "decay")
            if stage == "decay":
                both({"positions": trainer.progress.positions, **evaluate(trainer.learner), "heldout": True})
        if stage in {"decay", "export"}:
            if out is None:
                raise TrainingError("say where the packed model should go")
            export(trainer, folder / "tokenizer.json", out)
            write_card(trainer, folder, out)


def _newest(folder: Path) -> list[str]:
    there = [path for name in ("decayed.pt", *STABLE) if (path := folder / name).exists()]
    return [path.name for path in sorted(there, key=lambda path: path.stat().st_mtime, reverse=True)]


def _begin_from(trainer: Trainer, weights: Path) -> None:
    """Shipped weights and their place in the data; the optimisers begin anew, with a warm-up."""
    try:
        from_checkpoint(trainer.learner, load_file(weights / "model.safetensors"))
        card = json.loads((weights / "stopgap.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"cannot begin from {weights}: {error}") from None
    trainer.progress = Progress(
        positions=card["positions_trained"],
        slots=card["slots_trained"],
        holes=card["holes_trained"],
        seconds=card["seconds_trained"],
    )


def _corpus(table: dict[str, Any], folder: Path, benchmark: Path | None, log: Log) -> None:
    grams = corpus.benchmark_grams(benchmark) if benchmark else set()
    files, manifest, hits = corpus.collect(
        table["packages"], table["heldout_packages"], table["heldout_modules"], folder / "corpus", grams
    )
    corpus.save(files, folder / "files.jsonl")
    corpus.write_manifest(manifest, folder / "corpus.json")
    size = sum(package.bytes for package in manifest)
    log({"files": len(files), "bytes": size, "left out for 13-grams": hits, "checked": bool(grams)})


def _shards(document: dict[str, Any], folder: Path, seed: int, log: Log) -> None:
    files = corpus.load(folder / "files.jsonl")
    train = [file for file in files if file.split == "train"]
    random.Random(seed).shuffle(train)
    table, holes = document["tokenizer"], document["holes"]
    tokenizer = shards.train_tokenizer([file.text for file in train[: table["files"]]], table["vocabulary"])
    tokenizer.save(str(folder / "tokenizer.json"))
    for split in (*HELDOUT, "train"):
        part = train if split == "train" else [file for file in files if file.split == split]
        made = shards.build(
            part,
            tokenizer,
            holes["weights"],
            holes["tokens_per_hole"],
            holes["longest_bytes"],
            holes["longest_tokens"],
            holes["seed"],
            holes["healed"] if split == "train" else 0.0,  # held-out holes stay as they were: one curve
        )
        made.save(folder / f"{split}.npz")
        log({"split": split, **json.loads(shards.describe(made))})


def _trainer(knobs: Config, folder: Path, device: str) -> Trainer:
    path = folder / "train.npz"
    if not path.exists():
        raise TrainingError(f"{path} is missing: run the shards stage first")
    return Trainer(knobs, shards.Shard.load(path), folder, torch.device(device))


def _evaluator(knobs: Config, folder: Path, log: Log) -> Callable[[Learner], dict[str, float]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    packages = shards.Shard.load(folder / "heldout-package.npz")
    length = knobs.phases[-1].length

    def evaluate(learner: Learner) -> dict[str, float]:
        found = heldout.losses(learner, packages, MARKERS, 64, length)
        scores, pairs = heldout.line_scores(learner, packages, tokenizer, MARKERS, 200, 192)
        log({"wanted / drafted": [f"{w!r} / {g!r}" for w, g in pairs[:8]]})
        return found | scores

    return evaluate


def export(trainer: Trainer, tokenizer: Path, out: Path) -> None:
    """The packed model: bf16 weights, config.json, tokenizer.json and stopgap.json, each replaced atomically."""
    out.mkdir(parents=True, exist_ok=True)
    shape, progress = trainer.config.shape, trainer.progress
    length = trained_length(trainer.config, progress.positions)
    slots = trained_slots(trainer.config, progress.positions)
    partial = out / "model.partial"
    save_file(to_checkpoint(trainer.learner), partial, metadata={"format": "pt"})
    partial.chmod(0o644)  # safetensors writes for the owner only
    partial.replace(out / "model.safetensors")
    card = {
        "name": "starter",
        "family": "infill",
        "languages": ["python"],
        "context_length": length,
        "canvas_length": slots,
        "markers": {name: getattr(MARKERS, name) for name in MARKERS.__slots__},
        "positions_trained": progress.positions,
        "slots_trained": progress.slots,
        "holes_trained": progress.holes,
        "seconds_trained": round(progress.seconds),
    }
    for name, content in (("config.json", class_config(shape, 4096, slots)), ("stopgap.json", card)):
        write_whole(out / name, json.dumps(content, indent=2) + "\n")
    write_whole(out / "tokenizer.json", tokenizer.read_text(encoding="utf-8"))


def write_card(trainer: Trainer, folder: Path, out: Path) -> None:
    """MODEL_CARD.md beside the weights, every number measured on what `trainer` holds now."""
    packages = shards.Shard.load(folder / f"{HELDOUT[0]}.npz")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    count, prompt = 200, 192
    scores, _ = heldout.line_scores(trainer.learner, packages, tokenizer, MARKERS, count, prompt)
    rows = [("starter, left to right", scores)]
    for choice in COPIES:
        copied = heldout.copy_scores(choice, packages, tokenizer, MARKERS, count, prompt)
        rows.append((f"no model: {choice}", copied))
    losses = heldout.losses(
        trainer.learner, packages, MARKERS, 64, trained_length(trainer.config, trainer.progress.positions)
    )
    manifest = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    progress = trainer.progress
    text = (
        Path(__file__)
        .with_name("data")
        .joinpath("starter_card.md")
        .read_text(encoding="utf-8")
        .format(
            parameters=sum(p.numel() for p in trainer.learner.parameters()) / 1e6,
            megabytes=(out / "model.safetensors").stat().st_size / 1e6,
            tokens=len(trainer.shard.tokens) / 1e6,
            packages=len({row["name"] for row in manifest if row["split"] == "train"}) - 1,
            positions=progress.positions / 1e6,
            slots=progress.slots / 1e6,
            minutes=progress.seconds / 60,
            length=trained_length(trainer.config, trainer.progress.positions),
            canvas=trained_slots(trainer.config, progress.positions),
            count=count,
            rows="\n".join(f"| {name} | {s['exact']:.1f} | {s['similarity']:.1f} |" for name, s in rows),
            ar=losses["ar"],
            t1=losses["canvas t1"],
            refined=losses["canvas t1 refined"],
            t5=losses["canvas t5"],
        )
    )
    write_whole(out / "MODEL_CARD.md", text)
