"""The two kinds of models behind one interface: plain infillers (the starter) and instruction followers.

A family turns the pieces of context into a `Prompt` and says how a fill ends. Knows no tensors and no sampling; a
remote engine that takes prompts but no canvases could be a third kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from . import languages
from .context import Context
from .contract import FillError, FillRequest
from .prompt import MARKERS, Ask, InfillMarkers, infill_prompt, instruct_prompt
from .strategy import Strategy
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is shown of one request.

    ids      of the encoder, ending where the hole begins (less `overlap`)
    overlap  bytes before the hole that the fill's first token repeats (token healing); cut off every text again
    tail     ids the canvas may clamp behind the hole: the near suffix, then what closes the text
    ends     ids that end a left-to-right draft
    after    ids a good fill is followed by; their likelihood counts in the ranking
    """

    ids: list[int]
    overlap: bytes
    tail: list[int]
    ends: frozenset[int]
    after: list[int]


class Family(Protocol):
    """How one kind of model is asked."""

    instructions: bool
    delete: int | None
    """The id whose slots are closed up, for models that learnt to shorten a hole."""
    strategy: Strategy
    """What the engine does unless it is told otherwise."""

    def prompt(self, pieces: Context, request: FillRequest, old: bytes, *, overlap: bytes) -> Prompt: ...


class Infiller:
    """The starter's kind: context, suffix and prefix between markers; learnt `<end>` and `<del>`."""

    instructions = False
    strategy = Strategy()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encode = tokenizer.encode
        names = ("<bos>", "<suf>", "<pre>", "<end>", "<del>")
        self.markers = InfillMarkers(*_ids(tokenizer, names, "a stopgap infill model"))
        self.delete: int | None = self.markers.delete

    def prompt(self, pieces: Context, request: FillRequest, old: bytes, *, overlap: bytes) -> Prompt:
        if request.instruction:
            raise FillError("this model fills holes but does not follow instructions: try without one")
        suffix = self.encode(pieces.suffix)
        prefix = self.encode(pieces.prefix[: len(pieces.prefix) - len(overlap)])
        ids = infill_prompt(self.encode(pieces.snippets), prefix, suffix, self.markers)
        return Prompt(ids, overlap, suffix, frozenset({self.markers.end}), [self.markers.end])


class Instructed:
    """DiffusionGemma-it's kind: the task in the user's turn, the code before the hole in the model's own.

    The suffix is in the user's turn *and*, as far as there is room, clamped behind the hole. Every special id is
    masked in the canvas, also those that would end it: short asks otherwise fill it with ends. What may end is a
    left-to-right draft.
    """

    instructions = True
    delete: int | None = None
    # A few thousand tokens, as its recall falls off behind (MRCR at 128k: 32 %); ends need no help. Not measured yet.
    strategy = Strategy(context=3072, tail=96, end_bonus=0.0, retrieved=1, renamed=0, finalists=8, rank="causal")

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.encode = tokenizer, tokenizer.encode
        _ids(tokenizer, MARKERS, "a DiffusionGemma instruction model")
        self.special = tokenizer.special

    def prompt(self, pieces: Context, request: FillRequest, old: bytes, *, overlap: bytes) -> Prompt:
        ask = Ask(
            language=request.language,
            path=request.path,
            context=_text(pieces.snippets),
            prefix=_text(pieces.prefix[: len(pieces.prefix) - len(overlap)]),
            old=_text(old) if _rewrites(request, old) else "",
            suffix=_text(pieces.suffix),
            instruction=request.instruction,
        )
        ids = instruct_prompt(lambda text: self.encode(text.encode()), self.special, ask)
        suffix = self.encode(pieces.suffix)
        closing = self.encode(("" if ask.suffix.endswith("\n") else "\n").encode() + ask.fence.encode())
        ends = {self.special["<turn|>"], self.special["<eos>"]}
        if self.tokenizer.token_bytes[closing[-1]] == ask.fence.encode():
            ends.add(closing[-1])  # of a fence in pieces the last may be a lone backtick, which code has too
        tail = [*suffix, *closing, self.special["<turn|>"]]
        return Prompt(ids, overlap, tail, frozenset(ends), (suffix or closing)[:8])


def _text(piece: bytes) -> str:
    return piece.decode(errors="replace").replace("\r\n", "\n")


def _rewrites(request: FillRequest, old: bytes) -> bool:
    """Whether `old` is code to be improved on, not a stand-in or what a keystroke happens to replace."""
    if request.target in ("cursor", "placeholder") or not old.strip():
        return False
    placeholder = languages.by_name(request.language).placeholder
    return not (placeholder and re.fullmatch(placeholder.encode(), old.strip(), re.DOTALL))


def _ids(tokenizer: Tokenizer, names: Sequence[str], what: str) -> list[int]:
    missing = [name for name in names if name not in tokenizer.special]
    if missing:
        raise FillError(f"the tokenizer has no {', '.join(missing)}: this is not {what}")
    return [tokenizer.special[name] for name in names]


def family(name: object, tokenizer: Tokenizer) -> Family:
    """The family that stopgap.json names."""
    if name == "infill":
        return Infiller(tokenizer)
    if name == "instruct":
        return Instructed(tokenizer)
    raise FillError(f'stopgap.json names the family {name!r}; known are "infill" and "instruct"')
