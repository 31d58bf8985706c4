"""A tokenizer of DiffusionGemma's kind and with its documented special ids, small enough to build in a test."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from stopgap.infill.tokenizer import Tokenizer

SPECIAL = {
    "<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "<|tool_response>": 50,
    "<|channel>": 100, "<channel|>": 101, "<|turn>": 105, "<turn|>": 106,
}  # fmt: skip
WORDS = {"\n": 107, "\n\n": 108, "▁▁": 138, "user": 2364, "model": 4368, "thought": 45518, "```": 20000, "````": 20001}
"""Pieces at the ids that the published tokenizer gives them; those of the fences are made up."""


def gemma_tokenizer(folder: Path) -> Tokenizer:
    """Characters, the pieces of `WORDS`, bytes for the rest; lines and runs of line breaks are split beforehand."""
    path = folder / "tokenizer.json"
    path.write_text(_layout(), encoding="utf-8")
    return Tokenizer(path)


@cache
def _layout() -> str:
    vocab = SPECIAL | WORDS
    merges: list[list[str]] = []
    extra: list[str] = [chr(code) for code in range(33, 127)] + ["▁"]
    for word in WORDS:
        for end in range(2, len(word) + 1):
            merges.append([word[: end - 1], word[end - 1]])
            extra.append(word[:end])
    merges.append(["``", "``"])
    extra += [f"<0x{byte:02X}>" for byte in range(256)]
    free = iter(range(50_000, 60_000))
    vocab |= {piece: next(free) for piece in dict.fromkeys(extra) if piece not in vocab}
    # `Tokenizer` counts on ids without gaps, as real vocabularies have them.
    taken = set(vocab.values())
    vocab |= {f"<unused{id_}>": id_ for id_ in range(max(taken)) if id_ not in taken}
    layout = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": id_, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for name, id_ in SPECIAL.items()],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[^\n]+|[\n]+"}, "behavior": "Isolated",
                          "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": merges},
    }  # fmt: skip
    return json.dumps(layout)
