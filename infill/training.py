"""The starter's training loop: optimiser, schedule, checkpoints that survive a kill, export.

Knows shards and the learner; nothing of text, downloads, sockets or wall clocks (a clock is passed in). One
TOML file holds every knob. A checkpoint is written whole or not at all; the data order depends only on the
seed and the step, so a resumed run sees exactly the rows it would have seen.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .feed import Batch, Feed, to_batch
from .learner import Learner
from .shards import Shard
from .training_config import Config, Progress, TrainingError, phase_at


def encoder_loss(learner: Learner, ids: Tensor, weight: Tensor) -> Tensor:
    """Mean next-token cross-entropy (nats) over weighted targets."""
    hidden, _ = learner.encode(ids[:, :-1])
    return _mean_loss(learner.logits(hidden), ids[:, 1:], weight)


def _mean_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return (each * weight.flatten()).sum() / weight.sum().clamp_min(1.0)


def joint_loss(learner: Learner, batch: Batch, conditioned: bool) -> tuple[Tensor, Tensor]:
    """(next-token loss of the encoder, denoising loss of the canvases); gradients reach the encoder's keys.

    `conditioned`: the canvases are decoded once without gradient, and the expected embedding of that first
    guess is fed to the decoding that counts. Clamped slots get their own token's, as they do at inference.
    """
    hidden, cache = learner.encode(batch.ids[:, :-1])
    ar = _mean_loss(learner.logits(hidden), batch.ids[:, 1:], batch.weight)
    soft = None
    if conditioned:
        with torch.no_grad():
            seen = [(keys.detach(), values.detach()) for keys, values in cache]
            guess = learner.decode(batch.canvas, batch.positions, batch.allowed, seen)
            soft = torch.where(
                batch.hole[..., None],
                learner.soft_embedding(learner.logits(guess)),
                F.embedding(batch.truth, learner.embed).to(guess.dtype) * math.sqrt(learner.shape.hidden),
            )
    decoded = learner.decode(batch.canvas, batch.positions, batch.allowed, cache, soft)
    return ar, _mean_loss(learner.logits(decoded), batch.truth, batch.canvas_weight)


class Trainer:
    """A learner, its optimisers and its place in the data; the loop is `run`."""

    def __init__(self, config: Config, shard: Shard, folder: Path, device: torch.device) -> None:
        self.config, self.shard, self.folder, self.device = config, shard, folder, device
        self.progress = Progress()
        self.feed = Feed(shard, config)
        dtype = torch.bfloat16
        self.learner = Learner(config.shape, dtype, config.seed).to(device)
        matrices = [p for n, p in self.learner.named_parameters() if p.dim() == 2 and n != "embed"]
        others = [p for n, p in self.learner.named_parameters() if p.dim() != 2 or n == "embed"]
        self.optimisers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=config.matrix_rate, weight_decay=config.decay, adjust_lr_fn="match_rms_adamw")
            if config.muon
            else torch.optim.AdamW(
                matrices, lr=config.matrix_rate, betas=(0.9, 0.95), weight_decay=config.decay, fused=True
            ),
            torch.optim.AdamW(others, lr=config.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
        )
        self.rates = (config.matrix_rate, config.vector_rate)
        wrap = torch.compile if config.compile else (lambda f, dynamic: f)
        self.encoder_loss = wrap(encoder_loss, dynamic=False)
        self.joint_loss = wrap(joint_loss, dynamic=False)

    def step(self, scale: float = 1.0) -> dict[str, float]:
        """One optimiser step at `scale` times the configured rates; losses in nats."""
        config, progress = self.config, self.progress
        phase = phase_at(config, progress.positions)
        made, conditioned = self.feed.take(progress)
        batch = to_batch(made, self.device)
        report = {}
        if phase.canvases:
            ar, denoise = self.joint_loss(self.learner, batch, conditioned)
            loss = phase.ar_loss * ar + phase.canvas_loss * denoise
            report["canvas"] = float(denoise.detach())
        else:
            loss = ar = self.encoder_loss(self.learner, batch.ids, batch.weight)
        loss.backward()
        report["ar"] = float(ar.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), config.clip)
        report["norm"] = float(norm)
        warm = min(1.0, (progress.step + 1) / config.warmup)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * warm * scale
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.progress = progress.after(phase)
        return report

    # -- checkpoints --------------------------------------------------------------------------------

    def save(self, name: str = "checkpoint.pt") -> None:
        """Everything needed to go on, under `name`; the checkpoint before it stays as `previous.pt`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target, partial = self.folder / name, self.folder / "checkpoint.partial"
        state = {
            "learner": self.learner.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "progress": asdict(self.progress),
            "shape": asdict(self.config.shape),
        }
        torch.save(state, partial)
        if target.exists() and name == "checkpoint.pt":
            target.replace(self.folder / "previous.pt")
        partial.replace(target)

    def load(self, names: Sequence[str] = ("checkpoint.pt", "previous.pt")) -> bool:
        """Goes on from the first of `names` that is in `folder`; False where there is none."""
        for name in names:
            path = self.folder / name
            if not path.exists():
                continue
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["shape"] != asdict(self.config.shape):
                raise TrainingError(f"{path} has another shape than the config: move it away or restore the shape")
            self.learner.load_state_dict(state["learner"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
            self.progress = Progress(**{f.name: state["progress"][f.name] for f in fields(Progress)})
            return True
        return False

    # -- the loop -----------------------------------------------------------------------------------

    def run(
        self,
        seconds: float,
        clock: Callable[[], float],
        log: Callable[[dict[str, Any]], None],
        evaluate: Callable[[Learner], dict[str, float]] | None = None,
        decay: bool = False,
    ) -> None:
        """Trains for `seconds`, or until SIGTERM or SIGINT, then saves.

        With `decay`, the rates fall linearly to zero over `seconds`: a branch off the constant-rate run
        (warm-up, stable, decay), saved apart as `decayed.pt`, so that the stable checkpoint can go on.
        """
        start = last_save = last_log = clock()
        last_check = start if decay else start - self.config.evaluate_seconds + 60
        before = self.progress.seconds
        mean: dict[str, float] = {}
        seen = self.progress.positions
        with _stoppable() as stopped:
            while not stopped() and (now := clock()) - start < seconds:
                scale = max(0.0, 1 - (now - start) / seconds) if decay else 1.0
                for name, value in self.step(scale).items():
                    mean[name] = value if name not in mean else 0.95 * mean[name] + 0.05 * value
                now = clock()
                self.progress = replace(self.progress, seconds=before + now - start)
                if now - last_log > 20:
                    speed = (self.progress.positions - seen) / (now - last_log)
                    log({**asdict(self.progress), **mean, "speed": speed, "left": seconds - (now - start)})
                    last_log, seen = now, self.progress.positions
                if evaluate and now - last_check > self.config.evaluate_seconds:
                    log({**asdict(self.progress), **evaluate(self.learner), "heldout": True})
                    last_check = last_log = clock()
                if not decay and now - last_save > self.config.checkpoint_seconds:
                    self.save()
                    last_save = now
        self.save("decayed.pt" if decay else "checkpoint.pt")


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and SIGINT only set a flag, so that the step in hand ends and the checkpoint is whole."""
    hit = False

    def handler(_number: int, _frame: object) -> None:
        nonlocal hit
        hit = True

    kept = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: hit
    finally:
        for number, old in kept.items():
            signal.signal(number, old)


def append_line(path: Path, point: dict[str, Any]) -> None:
    """One JSON line, numbers rounded, so that a curve of a long run stays small enough to commit."""
    short = {k: round(v, 4) if isinstance(v, float) else v for k, v in point.items()}
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(short) + "\n")
