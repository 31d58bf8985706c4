"""How context, prefix and suffix become the encoder's ids, one function per model family.

Knows token ids only: no text, no torch, no model. Training and inference both call these functions, so
that the model never meets an order it was not trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InfillMarkers:
    """Special ids of a plain infiller (the starter); all are masked in the logits except `end` and `delete`."""

    bos: int
    suffix: int
    prefix: int
    end: int
    """Ends a left-to-right draft: the fill is over, what follows is the suffix."""
    delete: int
    """Stands in the hole's spare slots; removed physically while denoising, never shown."""


def infill_prompt(
    context: Sequence[int], prefix: Sequence[int], suffix: Sequence[int], markers: InfillMarkers
) -> list[int]:
    """Encoder ids of a plain infiller: `bos context <suf> suffix <pre> prefix`.

    The suffix stands before the prefix, so that (1) a left-to-right draft through the encoder's tied head
    sees what follows the cursor, (2) the canvas comes right behind the prefix it continues, and (3) typing
    changes only the end of the sequence, which keeps the prefix cache.
    """
    return [markers.bos, *context, markers.suffix, *suffix, markers.prefix, *prefix]


@dataclass(frozen=True, slots=True)
class InstructMarkers:
    """Special ids of a model that follows instructions (DiffusionGemma-it), by their names in its tokenizer."""

    bos: int
    turn: int
    end_turn: int
    channel: int
    end_channel: int
    eos: int


FILL = (
    "Below is the end of the {language} file {path}. Write the code that comes directly before it, so that your code "
    "and the end of the file join without a gap and nothing is repeated. Continue exactly where the code block you "
    "have begun stops."
)
REWRITE = (
    "Below are a part of the {language} file {path} and the end of that file. Write the part again as follows: "
    "{instruction} Your code must join the end of the file without a gap. Continue exactly where the code block you "
    "have begun stops."
)


def instruct_prompt(
    encode: Callable[[str], list[int]],
    markers: InstructMarkers,
    *,
    language: str,
    path: str,
    context: str,
    prefix: str,
    old: str,
    suffix: str,
    instruction: str = "",
) -> list[int]:
    """Encoder ids of an instruction-following model, built by hand.

    The user's turn states the task and shows what follows the hole; the model's turn is already begun with the code
    before the hole, so that the canvas *continues code*: asking for "only the missing part" instead makes such a
    model answer with an empty canvas (7 of 8 in one published trial), and the chat template would trim the
    indentation. The thinking channel is opened and closed empty, which is how the template turns thinking off.
    """
    task = REWRITE if instruction else FILL
    asked = task.format(language=language, path=path or "given", instruction=instruction.strip())
    blocks = [
        ("Elsewhere in the project", context),
        ("The part", old if instruction else ""),
        ("The end", suffix),
    ]
    shown = "".join(f"\n\n{title}:\n```{language}\n{text}\n```" for title, text in blocks if text)
    return [
        markers.bos,
        markers.turn,
        *encode(f"user\n{asked}{shown}"),
        markers.end_turn,
        *encode("\n"),
        markers.turn,
        *encode("model\n"),
        markers.channel,
        *encode("thought\n"),
        markers.end_channel,
        *encode(f"```{language}\n{prefix}"),
    ]
