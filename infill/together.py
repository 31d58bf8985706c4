"""Several fills side by side: what they want of the model at the same time is run in one pass.

Every fill keeps its own window, prefix cache, noise and deadline, so it comes out as it would alone, up to rounding.
What is shared is the reading of the weights, which is nearly all that a step costs on a GPU and most of what a single
token costs anywhere. Knows no text, no clock, no request.

The other way to batch the holes of one file is to encode the prompt once, for the last hole, and to let the canvases
of earlier ones see it up to their own place. It was measured with the starter and left: encoding is 16 ms of the 400 a
fill takes, an earlier hole loses the part of its context that follows it, and a draft that cannot see what it leads to
does not know where to end. On 122 single-line holes, own window against one cut from the last hole's: 5 against 2
right to the letter, fills of 18 against 25 characters, 402 against 479 ms of CPU each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .canvas import Batch
from .contract import Draft, FillError, Outcome
from .model import Denoised, Model
from .prefix import Joined
from .work import Encode, Logits, Score, Step, Work, denoise, run, tokens

ORDER = (Encode, Logits, Step, Score)
"""What comes first in a fill is run first: those ahead wait for those behind, and then go on in step."""
MOST_CPU = 256
"""Tokens in one pass. On a CPU more rows take more time in proportion, and nothing can happen meanwhile."""
MOST = 4096


def drive(
    model: Model, fills: Sequence[Iterator[Draft | Work | Outcome]]
) -> Iterator[tuple[int, Draft | Outcome | FillError] | None]:
    """What the fills yield, with their numbers; None between two passes and between two fills.

    A fill that raises FillError has ended with it; any other exception ends all of them.
    """
    wanted: dict[int, Work] = {}
    most = 0 if not model.joins else MOST_CPU if model.device.type == "cpu" else MOST
    ready: Sequence[int] = range(len(fills))
    try:
        while True:
            for number in ready:
                try:
                    for item in fills[number]:
                        if not isinstance(item, Draft | Outcome):
                            wanted[number] = item
                            break
                        yield number, item
                except FillError as error:
                    yield number, error
                yield None  # a file was parsed, or a draft: with several fills that adds up
            if not wanted:
                return
            ready = _choose(wanted, most)
            run_many(model, [wanted.pop(number) for number in ready])
    finally:
        for fill in fills:
            fill.close()  # type: ignore[attr-defined]


def _choose(wanted: dict[int, Work], most: int) -> list[int]:
    """The fills whose work goes into the next pass: of the earliest kind as many as it holds, at least one."""
    first = min(wanted, key=lambda number: (ORDER.index(type(wanted[number])), number))
    chosen, room = [first], most - tokens(wanted[first])
    for number, work in sorted(wanted.items()):
        if number != first and _fits(wanted[first], work) and (size := tokens(work)) <= room:
            chosen.append(number)
            room -= size
    return chosen


def _fits(one: Work, other: Work) -> bool:
    """Whether the two can be one pass."""
    if isinstance(one, Step) and isinstance(other, Step):
        return one.temperature == other.temperature and _same(one.banned, other.banned)
    return type(one) is type(other) and not isinstance(one, Score)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def run_many(model: Model, works: Sequence[Work]) -> None:
    """One pass for several fills, whose works are of one kind (`_fits`)."""
    if len(works) == 1:
        run(model, works[0])
    elif encodes := [work for work in works if isinstance(work, Encode)]:
        outs = model.encode_many([(work.cache, work.ids) for work in encodes])
        for encode, out in zip(encodes, outs, strict=True):
            encode.out = out
    elif logits := [work for work in works if isinstance(work, Logits)]:
        rows = model.head(torch.cat([work.hidden for work in logits]))
        for number, one in enumerate(logits):
            one.out = rows[number : number + 1]
    else:
        _step(model, [work for work in works if isinstance(work, Step)])


def _step(model: Model, steps: Sequence[Step]) -> None:
    """Canvases one below the other, each before its own prefix; samples are drawn with the first one's generator."""
    rows = [len(step.canvas.ids) for step in steps]
    joined = _stack([step.canvas for step in steps])
    slots = [int(step.canvas.free.sum()) for step in steps]
    allowed = {sum(slots[:i]) + at: ids for i, step in enumerate(steps) for at, ids in (step.allowed or {}).items()}
    like = Step(steps[0].cache, joined, steps[0].temperature, steps[0].banned, allowed or None, steps[0].gumbel)
    out = denoise(model, Joined([step.cache for step in steps], rows), joined, like)
    first_row = first_slot = 0
    for step, height, count in zip(steps, rows, slots, strict=True):
        own = slice(first_slot, first_slot + count)
        conditioning = out.conditioning[first_row : first_row + height]
        step.out = Denoised(out.argmax[own], out.sample[own], out.entropy[own], out.logprob[own], conditioning)
        first_row, first_slot = first_row + height, first_slot + count


def _stack(canvases: Sequence[Batch]) -> Batch:
    width = max(canvas.ids.shape[1] for canvas in canvases)

    def padded(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (*[0, 0] * (tensor.dim() - 2), 0, width - tensor.shape[1]))

    conditioning = None
    known = [canvas.conditioning for canvas in canvases if canvas.conditioning is not None]
    if known:
        conditioning = torch.cat(
            [
                padded(known[0].new_zeros(*canvas.ids.shape, known[0].shape[-1]) if own is None else own)
                for canvas in canvases
                for own in (canvas.conditioning,)
            ]
        )
    return Batch(
        torch.cat([padded(canvas.ids) for canvas in canvases]),
        torch.cat([padded(canvas.free) for canvas in canvases]),
        [length for canvas in canvases for length in canvas.lengths],
        conditioning,
    )
