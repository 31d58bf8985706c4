"""Models that know the answer: the mechanics of sampling and filling are judged on these, not on a trained one."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stopgap.infill.model import Denoised
from stopgap.infill.tokenizer import Tokenizer

SPECIALS = ["<pad>", "<eos>", "<bos>", "<unk>", "<suf>", "<pre>", "<end>", "<del>"]
DELETE, END = 7, 6


def byte_tokenizer(folder: Path) -> Tokenizer:
    """Every byte is a token; ids 0-7 are the specials."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in keep]
    chars = {b: chr(b) for b in keep} | {b: chr(256 + i) for i, b in enumerate(others)}
    vocab = {name: i for i, name in enumerate(SPECIALS)} | {chars[b]: 8 + b for b in range(256)}
    layout = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, name in enumerate(SPECIALS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": []},
    }  # fmt: skip
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(layout), encoding="utf-8")
    return Tokenizer(path)


class ScriptedCache:
    """A prefix cache that holds ids only."""

    def __init__(self, capacity: int) -> None:
        self.ids: list[int] = []
        self.capacity = capacity
        self.nbytes = capacity

    def __len__(self) -> int:
        return len(self.ids)

    def crop(self, length: int) -> None:
        del self.ids[length:]

    def match(self, ids: Sequence[int]) -> int:
        same = 0
        for a, b in zip(self.ids, ids, strict=False):
            if a != b:
                break
            same += 1
        return same


class ScriptedModel:
    """Knows `truth`, the ids of the hole, and errs on purpose.

    noise    chance that a free slot is answered with a random id, at high entropy, while the whole hole is wrong;
             it falls with the share of wrong slots, as a denoiser's does
    drafts   ids the causal side continues the prompt with (then `<end>`); None = the truth
    Records every canvas it is shown.
    """

    def __init__(
        self,
        truth: Sequence[int],
        *,
        noise: float = 0.0,
        drafts: Sequence[int] | None = None,
        vocabulary: int = 264,
    ) -> None:
        self.truth, self.noise, self.vocabulary = list(truth), noise, vocabulary
        self.drafted = list(truth if drafts is None else drafts)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.parameters = self.nbytes = 0
        self.kernels = "torch"
        self.random = random.Random(0)
        self.seen: list[tuple[list[list[int]], list[list[bool]], list[int]]] = []
        self.temperatures: list[float] = []
        self.on_step: Callable[[], None] = lambda: None
        self.encoded = 0
        self.prompt = 0

    def new_cache(self, capacity: int, scratch: int = 0) -> ScriptedCache:
        return ScriptedCache(capacity)

    def encode(self, cache: ScriptedCache, ids: Sequence[int]) -> Tensor:
        first = len(cache)
        cache.ids.extend(ids)
        self.encoded += len(ids)
        return torch.arange(first + 1, len(cache) + 1, dtype=torch.float32)[:, None]

    def head(self, hidden: Tensor) -> Tensor:
        """The draft's next id, counted from the first position `head` was ever asked about."""
        at = int(hidden[-1, 0])
        self.prompt = self.prompt or at
        logits = torch.zeros(1, self.vocabulary)
        wanted = [*self.drafted, END]
        logits[0, wanted[min(at - self.prompt, len(wanted) - 1)]] = 20.0
        return logits

    def denoise(
        self,
        cache: ScriptedCache,
        canvas: Tensor,
        free: Tensor,
        *,
        lengths: Sequence[int] | None,
        conditioning: Tensor | None,
        temperature: float,
        banned: Tensor | None,
        allowed: Mapping[int, Tensor] | None,
        gumbel: Tensor | torch.Generator | None,
    ) -> Denoised:
        assert lengths is not None
        self.on_step()
        self.seen.append((canvas.tolist(), free.tolist(), list(lengths)))
        self.temperatures.append(temperature)
        argmax: list[int] = []
        entropy: list[float] = []
        for ids, row in zip(canvas.tolist(), free.tolist(), strict=True):
            slots = [i for i, f in enumerate(row) if f]
            wanted = {slot: self.truth[slot] if slot < len(self.truth) else DELETE for slot in slots}
            noise = self.noise * sum(ids[slot] != wanted[slot] for slot in slots) / max(len(slots), 1)
            for truth in wanted.values():
                wrong = self.random.random() < noise
                id_ = self.random.randrange(8, self.vocabulary) if wrong else truth
                if allowed and (choice := allowed.get(len(argmax))) is not None and id_ not in choice.tolist():
                    id_ = int(choice[0])
                argmax.append(id_)
                entropy.append(3.0 if wrong else 0.001)
        answer = torch.tensor(argmax)
        return Denoised(
            argmax=answer,
            sample=answer,
            entropy=torch.tensor(entropy),
            logprob=-torch.tensor(entropy),
            conditioning=torch.zeros(*canvas.shape, 1),
        )

    def score(self, cache: ScriptedCache, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """-0.01 per token of the truth (and its end), -5 per other token."""
        wanted = [*self.truth, END]
        return [
            torch.tensor([-0.01 if i < len(wanted) and wanted[i] == id_ else -5.0 for i, id_ in enumerate(row)])
            for row in rows
        ]
