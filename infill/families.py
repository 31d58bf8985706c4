"""The two kinds of models behind one interface: plain infillers (the starter) and instruction followers.

A family turns the pieces of context into a `Prompt` and says how a fill ends. Knows no tensors and no sampling; a
remote engine that takes prompts but no canvases could be a third kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .context import Context
from .contract import FillError, FillRequest
from .prompt import InfillMarkers, InstructMarkers, infill_prompt, instruct_prompt
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

    def prompt(self, pieces: Context, request: FillRequest, old: bytes, *, overlap: bytes) -> Prompt: ...


class Infiller:
    """The starter's kind: context, suffix and prefix between markers; learnt `<end>` and `<del>`."""

    instructions = False

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
    """DiffusionGemma-it's kind: the task in the user's turn, the code before the hole in the model's own."""

    instructions = True
    delete: int | None = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encode = tokenizer.encode
        names = ("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<eos>")
        self.markers = InstructMarkers(*_ids(tokenizer, names, "a DiffusionGemma instruction model"))
        self.fence = tokenizer.encode(b"\n```")

    def prompt(self, pieces: Context, request: FillRequest, old: bytes, *, overlap: bytes) -> Prompt:
        prefix = pieces.prefix[: len(pieces.prefix) - len(overlap)]
        ids = instruct_prompt(
            lambda text: self.encode(text.encode()),
            self.markers,
            language=request.language,
            path=request.path,
            context=pieces.snippets.decode(errors="replace"),
            prefix=prefix.decode(errors="replace"),
            old=old.decode(),
            suffix=pieces.suffix.decode(errors="replace"),
            instruction=request.instruction,
        )
        suffix = self.encode(pieces.suffix)
        closing = [*self.fence, self.markers.end_turn]
        ends = frozenset({self.markers.end_turn, self.markers.eos, self.fence[-1]})
        return Prompt(ids, overlap, [*suffix, *closing], ends, (suffix or closing)[:8])


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
