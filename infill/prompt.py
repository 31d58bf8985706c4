"""How context, prefix and suffix become the encoder's ids, one function per model family.

Knows token ids and the wording of the templates: no tokenizer, no torch, no model. Training and inference both
call these functions, so that the model never meets an order it was not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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


_OPEN = re.compile(r"(\w{1,32}|\n)\Z")


def open_end(prefix: bytes, encode: Callable[[bytes], list[int]], token_bytes: Sequence[bytes]) -> bytes:
    """The end of `prefix` that a fill's first token should repeat, so that nothing is cut where BPE would not cut.

    An open word, or a line break whose indentation is left to the fill: all of it where that is a token, else its
    last token; b"" where nothing is open. Being a token itself, it can always be repeated as it is.
    """
    match = _OPEN.search(prefix[-128:].decode(errors="ignore"))
    if not match:
        return b""
    last = token_bytes[encode(match[0].encode())[-1]]
    try:
        last.decode()
    except UnicodeDecodeError:
        return b""
    return last


TURNS = "<bos><|turn>user\n{asked}<turn|>\n<|turn>model\n<|channel>thought\n<channel|>{begun}"
"""The whole prompt of an instruction follower, its special tokens by their names in DiffusionGemma's tokenizer.

The user's turn says what to write and shows what follows the hole; the model's turn is already begun with the code
before the hole, so that the canvas *continues code*. Asked for "only the missing part" instead, such a model
answered with an empty canvas in 7 of 8 published trials; and its chat template would trim the indentation. The
thinking channel is opened and closed empty, which is how that template turns thinking off.
"""

TASKS = {
    "fill": "Write the code that comes next in the {file}. ",
    "fill as told": "Write the code that comes next in the {file}, as follows:\n\n{instruction}\n\n",
    "rewrite": "Write the part of the {file} that is shown below once more, complete and correct. ",
    "rewrite as told": "Write the part of the {file} that is shown below once more, changed as follows:\n\n"
    "{instruction}\n\n",
}
"""The first sentence of the user's turn: new code or a part to be written again, freely or by an instruction."""
JOIN = "Your code must join the end of the file, which is shown below, without a gap, and repeat nothing of it. "
GO_ON = "Continue exactly where the code block that you have begun stops."

MARKERS = ("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<eos>")
"""Special tokens that an instruction follower's tokenizer must have."""

_MARKER = re.compile("({})".format("|".join(map(re.escape, MARKERS))))
_TICKS = re.compile("`+")


@dataclass(frozen=True, slots=True)
class Ask:
    """What an instruction follower is asked. Texts are shown exactly as they are, blanks at either end included.

    context  imports, signatures and pieces of other files; may be empty
    prefix   up to the hole, less what the fill repeats
    old      what stood in the hole, if it is to be rewritten; empty asks for new code
    suffix   from the hole's end on
    """

    language: str
    path: str
    context: str
    prefix: str
    old: str
    suffix: str
    instruction: str = ""

    @property
    def fence(self) -> str:
        """Backticks that no text here can close, as Markdown does it: one more than the longest run in any of them.

        A Markdown file gets four at least, since what is *written* there may have code blocks of three.
        """
        texts = (self.context, self.prefix, self.old, self.suffix)
        longest = max((len(run) for text in texts for run in _TICKS.findall(text)), default=0)
        return "`" * max(longest + 1, 4 if self.language == "markdown" else 3)


def instruct_prompt(encode: Callable[[str], list[int]], special: Mapping[str, int], ask: Ask) -> list[int]:
    """Encoder ids of an instruction follower, built by hand along `TURNS`.

    `encode` must leave the names of special tokens text. Only the template is searched for them, before anything of
    the user's is put into it.
    """
    filled = {"asked": _asked(ask), "begun": f"{ask.fence}{ask.language}\n{ask.prefix}"}
    ids: list[int] = []
    for part in _MARKER.split(TURNS):
        if part in special:
            ids.append(special[part])
        elif part:
            ids += encode(part.format_map(filled))
    return ids


def _asked(ask: Ask) -> str:
    """The user's turn: the task in whole sentences, then what it speaks of in blocks."""
    kind = ("rewrite" if ask.old else "fill") + (" as told" if ask.instruction.strip() else "")
    file = " ".join(f"{ask.language} file {ask.path}".split())
    task = TASKS[kind].format(file=file, instruction=ask.instruction.strip())
    end = ask.suffix if ask.suffix.strip() else ""
    blocks = (("Elsewhere in the project", ask.context), ("The part", ask.old), ("The end of the file", end))
    shown = "".join(_block(title, text, ask) for title, text in blocks if text)
    return f"{task}{JOIN if end else ''}{GO_ON}{shown}"


def _block(title: str, text: str, ask: Ask) -> str:
    end = "" if text.endswith("\n") else "\n"
    return f"\n\n{title}:\n{ask.fence}{ask.language}\n{text}{end}{ask.fence}"
