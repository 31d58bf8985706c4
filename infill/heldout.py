"""Held-out numbers while training: cheap enough to run every few minutes on the core that trains.

Knows the learner and shards; the full score card is `evaluation`'s. Reported: next-token and canvas
cross-entropy (nats per token), and greedy left-to-right drafts of single lines against the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .baselines import Choice, Copier
from .contract import FillRequest, Outcome
from .feed import to_batch
from .learner import Learner
from .metrics import similarity
from .objective import Ints, Noise, rows, window
from .prompt import InfillMarkers
from .shards import KINDS, Shard
from .training import joint_loss
from .training_config import PAD


@torch.no_grad()
def losses(learner: Learner, shard: Shard, markers: InfillMarkers, count: int, length: int) -> dict[str, float]:
    """Cross-entropies over `count` random windows: encoder, canvas at t = 1 and t = 0.5, and t = 1 refined once."""
    device = learner.embed.device
    holes = np.random.default_rng(5).permutation(len(shard))[:count]
    out: dict[str, float] = {}
    for name, share in (("t1", 1.0), ("t5", 0.5)):
        noise = Noise(full=float(share == 1.0), low=share, clean_weight=0.0, spare_weight=0.0)
        if share != 1.0:
            noise = Noise(full=0.0, low=share, clean_weight=0.0, spare_weight=0.0)
        total: dict[str, list[float]] = {}
        for at in range(0, count, 16):
            part = holes[at : at + 16]
            made = rows(
                shard, part, length, 1, 64, markers, noise, PAD, learner.shape.vocabulary, np.random.default_rng(at)
            )
            batch = to_batch(made, device)
            ar, canvas = joint_loss(learner, batch, conditioned=False)
            total.setdefault("ar", []).append(float(ar))
            total.setdefault(f"canvas {name}", []).append(float(canvas))
            if share == 1.0:
                _, refined = joint_loss(learner, batch, conditioned=True)
                total.setdefault("canvas t1 refined", []).append(float(refined))
        out |= {key: float(np.mean(values)) for key, values in total.items()}
    return out


def lines(shard: Shard, markers: InfillMarkers, count: int, prompt: int) -> tuple[Ints, Ints, list[list[int]]]:
    """Holes of single lines whose prompt fills its length exactly.

    Returns the holes' numbers [count], the prompts [count, prompt] and the ids each asks for.
    """
    chosen: list[int] = []
    prompts: list[list[int]] = []
    truths: list[list[int]] = []
    order = np.random.default_rng(11).permutation(len(shard))
    for index in order:
        if len(prompts) == count:
            break
        size = int(shard.cuts[index, 2] - shard.cuts[index, 1])
        if KINDS[int(shard.hole_kind[index])] != "line" or size > 32:
            continue
        made = window(shard, int(index), prompt + size + 1, markers, np.random.default_rng(int(index)))
        if made.hole_at == prompt:
            chosen.append(int(index))
            prompts.append(made.ids[:prompt])
            truths.append(made.ids[prompt:-1])
    return np.array(chosen, dtype=np.int64), np.array(prompts, dtype=np.int64), truths


def copy_scores(
    choice: Choice, shard: Shard, tokenizer: Tokenizer, markers: InfillMarkers, count: int, prompt: int
) -> dict[str, float]:
    """The same holes as `line_scores`, answered by copying a line from anywhere before the hole in the file."""
    copier = Copier(choice, lambda: 0.0)
    pairs = []
    for index in lines(shard, markers, count, prompt)[0]:
        a, b, c, d = shard.cuts[index]
        file = shard.hole_file[index]
        before = shard.tokens[shard.file_start[file] : shard.hole_before[index]]
        after = shard.tokens[shard.hole_after[index] : shard.file_start[file + 1]]
        prefix = text(tokenizer, [*before, *shard.pieces[a:b]]).encode()
        suffix = text(tokenizer, [*shard.pieces[c:d], *after]).encode()
        request = FillRequest(prefix + suffix, "python", len(prefix), len(prefix))
        outcome = [event for event in copier.fill(request, lambda: False) if isinstance(event, Outcome)][-1]
        pairs.append((text(tokenizer, shard.pieces[b:c]), outcome.fills[0].text if outcome.fills else ""))
    return _scores(pairs)


def _scores(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    one_line = [(wanted.strip(), got.lstrip().partition("\n")[0].rstrip()) for wanted, got in pairs]
    return {
        "exact": 100 * float(np.mean([wanted.strip() == got.strip() for wanted, got in pairs])),
        "exact first line": 100 * float(np.mean([wanted == got for wanted, got in one_line])),
        "similarity": 100 * float(np.mean([similarity(wanted, got) for wanted, got in pairs])),
        "similarity first line": 100 * float(np.mean([similarity(wanted, got) for wanted, got in one_line])),
    }


@torch.no_grad()
def draft(learner: Learner, prompts: Tensor, most: int, markers: InfillMarkers) -> list[list[int]]:
    """Greedy continuations of `prompts` [b, n] up to `<end>`, at most `most` ids each."""
    banned = torch.zeros(learner.shape.vocabulary, dtype=torch.bool, device=prompts.device)
    banned[: markers.end] = True
    banned[markers.delete : 16] = True
    hidden, cache = learner.encode(prompts)
    out = []
    for _ in range(most):
        logits = learner.logits(hidden[:, -1]).masked_fill(banned, -1e9)
        chosen = logits.argmax(-1)
        out.append(chosen)
        hidden, cache = learner.encode(chosen[:, None], cache)
    drafts = torch.stack(out, dim=1).tolist()
    return [row[: row.index(markers.end)] if markers.end in row else row for row in drafts]


def line_scores(
    learner: Learner, shard: Shard, tokenizer: Tokenizer, markers: InfillMarkers, count: int, prompt: int
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """Exact match and edit similarity (percent) of greedy drafts, and the (wanted, drafted) pairs."""
    _, prompts, truths = lines(shard, markers, count, prompt)
    drafts = draft(learner, torch.from_numpy(prompts).to(learner.embed.device), 32, markers)
    pairs = [(text(tokenizer, t), text(tokenizer, d)) for t, d in zip(truths, drafts, strict=True)]
    first = [t[:1] == d[:1] for t, d in zip(truths, drafts, strict=True)]
    return _scores(pairs) | {"first token": 100 * float(np.mean(first))}, pairs


def text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
