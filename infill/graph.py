"""A whole denoising step at fixed addresses: on CUDA one captured graph per size of canvas, elsewhere the same code.

Knows no text and no request. A fill's rows are put on the device once; from then on the host only says "again" and
reads a report of the step before, while the next one already runs. `Loop.denoise` is `sampler.denoise` for a caller.

What is dynamic elsewhere has a fixed size here: a prefix lies in a buffer of its bucket's capacity and its length is a
number on the device, rows are filled up with padding. Padding costs little: its embedding is zero and it sees only
other padding, so it stays zero through all layers, and of equal scores (all zero) the router takes the same few
experts. Sliding layers keep the tokens of their window only; with 8,192 tokens before it, a canvas of the 26B needs
380 MB of keys and values here, where all tokens would be 1.8 GB.

The prefix is copied in when it changed: of the 26B 250 MB for 2,048 tokens, once per fill and not per step.
Nothing of this has run on a GPU yet.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from stopgap.kernels.head import Held, Philox

from . import device_loop
from .buckets import Size, mask_kinds, mask_size, seen_capacity
from .canvas import Row
from .device_loop import Reading
from .layers import Tables, rope_tables
from .model import Model
from .model_config import ModelError
from .prefix import PrefixCache, Span, Window
from .sampler import Schedule

How = Literal["host", "device"]
SWITCH = "STOPGAP_LOOP"
DEFAULT: How = "host"
"""Until the captured step has been measured on a GPU; `STOPGAP_LOOP=device` turns it on."""
UNSEEN = -1e30
"""Score of a key that may not be seen. Finite: a block of keys with nothing but such ones is no NaN to any kernel."""


class GraphError(ModelError):
    """The step cannot run as a graph; `str()` says why and what to do."""


def chosen() -> How:
    """Where the loop's bookkeeping runs: what the switch says. Raises `GraphError`."""
    wanted = os.environ.get(SWITCH, "") or DEFAULT
    if wanted not in ("host", "device"):
        raise GraphError(f"{SWITCH} is {wanted!r}: set it to host or device, or leave it unset")
    return "device" if wanted == "device" else "host"


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step on its way: its report and conditioning, and when they can be read."""

    report: Tensor
    conditioning: Tensor
    landed: torch.cuda.Event | None


class Loop:
    """The denoising loop of one model, on its device. Not for two threads at once.

    `ran` counts steps by how they ran, "graph" or "eager".
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.ran: Counter[str] = Counter()
        self._room: _Room | None = None
        self._buckets: dict[tuple[Size, int | None], Bucket] = {}
        self._pool: Any = None  # of memory, shared by all graphs
        self._holder: object = None  # whose rows are on the device

    @property
    def how(self) -> str:
        """For people: how steps run, and how many have."""
        kind = "CUDA graphs" if self.model.device.type == "cuda" else "eager"
        return f"device ({kind}, {sum(self.ran.values())} steps)"

    @property
    def nbytes(self) -> int:
        """Of the keys, values and masks held beside the prefix caches."""
        return self._room.nbytes if self._room else 0

    def drop(self) -> None:
        """Give the memory back; it is taken again, and graphs are captured again, when a fill wants them."""
        self._buckets.clear()
        self._room = self._pool = self._holder = None

    def prepare(self, sizes: Sequence[Size], delete: int | None = None) -> None:
        """Capture graphs before they are needed, the largest first: smaller ones then fit into its memory."""
        self._make_room(
            max((size.capacity for size in sizes), default=0), max(size.rows * size.slots for size in sizes)
        )
        for size in sorted(sizes, key=lambda size: (size.rows * size.slots, size.capacity), reverse=True):
            self._bucket(size, delete)

    @torch.inference_mode()
    def denoise(
        self,
        cache: PrefixCache,
        rows: Sequence[Row],
        schedule: Schedule,
        *,
        noise: Callable[[], int],
        banned: Tensor | None = None,
        delete: int | None = None,
    ) -> Iterator[int]:
        """Denoise `rows` in place, as `sampler.denoise`: yields the number of every step taken in.

        `noise` seeds the device's own. On CUDA the step after the one that is reported is under way already, so that
        the device never waits for the host; one step is wasted at the end, and one when the caller stops. Between two
        steps other rows may be denoised, of a keystroke while a rewrite waits: these are then put on the device again.
        """
        for row in rows:
            row.done = row.done or not any(row.free)
        if all(row.done for row in rows):
            return
        slots = max(len(row.hole) + len(row.tail) for row in rows)
        size, me, seed = Size.of(len(rows), slots, len(cache)), object(), noise()
        seed = seed << 20 ^ noise()
        under_way: deque[_Flight] = deque()
        launched, bucket = 0, self._bucket(size, delete)
        for number in range(1, schedule.max_steps + 1):
            if self._holder is not me:
                bucket = self._bucket(size, delete)
                bucket.start(cache, rows, schedule, seed, banned, step=number)
                self._holder = me
                under_way.clear()
                launched = number - 1
            ahead = 1 if bucket.graph is not None else 0
            while launched < min(number + ahead, schedule.max_steps):
                under_way.append(bucket.launch())
                self.ran["graph" if bucket.graph is not None else "eager"] += 1
                launched += 1
            flight = under_way.popleft()
            if flight.landed is not None:
                flight.landed.synchronize()
            device_loop.store(flight.report, flight.conditioning, rows)
            yield number
            for row in rows:
                row.done = row.done or not any(row.free)
            if all(row.done for row in rows):
                return

    def bucket(self, size: Size, cache: PrefixCache, rows: Sequence[Row], schedule: Schedule) -> Bucket:
        """The bucket of that size with `rows` in it, for measuring."""
        found, self._holder = self._bucket(size, None), None
        with torch.inference_mode():
            found.start(cache, rows, schedule, 1, None)
        return found

    def _bucket(self, size: Size, delete: int | None) -> Bucket:
        room = self._make_room(size.capacity, size.rows * size.slots)
        if (known := self._buckets.get((size, delete))) is None:
            with torch.inference_mode():
                known = Bucket(self.model, size, room, delete)
                if self.model.device.type == "cuda":
                    self._pool = self._pool or torch.cuda.graph_pool_handle()
                    known.capture(self._pool)
            self._buckets[size, delete] = known
        return known

    def _make_room(self, capacity: int, tokens: int) -> _Room:
        """Graphs hold addresses: a larger room means that all of them are captured again."""
        if self._room is None or self._room.capacity < capacity or self._room.tokens < tokens:
            known = self._room
            self._buckets.clear()
            self._room = None
            most = (0, 0) if known is None else (known.capacity, known.tokens)
            with torch.inference_mode():
                self._room = _Room(self.model, max(capacity, most[0]), max(tokens, most[1]))
                self._holder = None
        return self._room


class _Room:
    """Keys and values of one prefix and of the canvas before it: [K, tokens + capacity, hd] for every layer.

    The canvas ends where the prefix begins, at slot `tokens`, so that a bucket of any size sees one run of slots. Where
    a key lies says nothing: its position is in it already. Room for masks is here too: every bucket writes its own when
    rows are put on the device, and there are dozens of buckets.
    """

    def __init__(self, model: Model, capacity: int, tokens: int) -> None:
        self.capacity, self.tokens = capacity, tokens
        self.config = model.config
        self._cache: weakref.ref[PrefixCache] | None = None
        self._ids: list[int] = []
        self.layers: list[tuple[Tensor, Tensor]] = []
        for shape in model.config.layers:
            slots = tokens + seen_capacity(model.config, shape.sliding, capacity)
            keys, values = torch.zeros(
                (2, shape.kv_heads, slots, shape.head_dim), dtype=model.dtype, device=model.device
            )
            self.layers.append((keys, values))
        self._masks = {
            kind: torch.zeros(mask_size(model.config, *kind, capacity, tokens), dtype=model.dtype, device=model.device)
            for kind in mask_kinds(model.config)
        }

    @property
    def nbytes(self) -> int:
        masks = sum(mask.nbytes for mask in self._masks.values())
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers) + masks

    def masks(self, size: Size) -> dict[tuple[bool, int], Tensor]:
        """Of a bucket, per kind of layer (sliding, groups): [tokens * groups, tokens + capacity], views."""
        count = size.rows * size.slots
        sizes = {kind: mask_size(self.config, *kind, size.capacity, count) for kind in self._masks}
        return {kind: mask[: sizes[kind]].view(count * kind[1], -1) for kind, mask in self._masks.items()}

    def hold(self, cache: PrefixCache) -> None:
        """Copy the prefix in, unless it is there."""
        if self._cache is not None and self._cache() is cache and self._ids == cache.ids:
            return
        for own, theirs in zip(self.layers, cache.visible(), strict=True):
            for place, stored in zip(own, theirs, strict=True):
                place[:, self.tokens : self.tokens + stored.shape[1]].copy_(stored)
        self._cache, self._ids = weakref.ref(cache), list(cache.ids)


class Bucket:
    """One size: its state, its window on the room, and the graph of a step."""

    def __init__(self, model: Model, size: Size, room: _Room, delete: int | None) -> None:
        self.model, self.size, self.room, self.delete = model, size, room, delete
        config, device = model.config, model.device
        count = size.rows * size.slots
        self.graph: torch.cuda.CUDAGraph | None = None
        self.state = device_loop.new_state(size.rows, size.slots, config.hidden_size, device, model.dtype)
        self.prefix = torch.zeros((), dtype=torch.int64, device=device)
        self.banned = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
        self.slots = torch.arange(count, device=device)
        which = torch.full((count,), -1, dtype=torch.int32, device=device)
        masks = torch.zeros((size.rows, config.vocab_size), dtype=torch.uint8, device=device)
        self.held = Held(which, masks)
        self.tables: dict[tuple[bool, int], Tables] = {}
        self.masks = room.masks(size)
        spans = []
        for shape, (keys, values) in zip(config.layers, room.layers, strict=True):
            kind, sharing = (shape.sliding, shape.head_dim), (shape.sliding, shape.groups)
            length = count + seen_capacity(config, shape.sliding, size.capacity)
            if kind not in self.tables:
                cos, sin = torch.zeros((2, count, 1, 1, shape.head_dim), dtype=model.dtype, device=device)
                self.tables[kind] = cos, sin
            first = room.tokens - count
            new_keys, new_values = (
                stored[None, :, first : room.tokens].permute(2, 0, 1, 3) for stored in (keys, values)
            )
            seen_keys, seen_values = (stored[None, :, first : first + length] for stored in (keys, values))
            spans.append(Span(new_keys, new_values, seen_keys, seen_values, self.masks[sharing], self.tables[kind]))
        self.window = Window(tuple(spans), None)
        # Of the last steps, on the host: one is read while the next is written.
        pinned = device.type == "cuda"
        self.reports = [torch.zeros_like(self.state.report, device="cpu", pin_memory=pinned) for _ in range(2)]

    def start(
        self,
        cache: PrefixCache,
        rows: Sequence[Row],
        schedule: Schedule,
        seed: int,
        banned: Tensor | None,
        step: int = 1,
    ) -> None:
        """Put a fill on the device, before its first step or after those it has had."""
        self.room.hold(cache)
        self.prefix.fill_(len(cache))
        device_loop.load(self.state, rows, schedule, seed, step)
        if banned is None:
            self.banned.zero_()
        else:
            self.banned.copy_(banned)
        which = [-1] * (self.size.rows * self.size.slots)
        for at, row in enumerate(rows):
            if row.first is not None:
                which[at * self.size.slots] = at
                self.held.masks[at].zero_()
                self.held.masks[at].index_fill_(0, torch.tensor(row.first, device=self.model.device), 1)
        self.held.which.copy_(torch.tensor(which, dtype=torch.int32))
        self._turn()
        self._mask()

    def launch(self) -> _Flight:
        """One step, and what is to be known of it on its way to the host."""
        self.again()
        conditioning = self.state.conditioning.clone()
        if self.graph is None:
            return _Flight(self.state.report.clone(), conditioning, None)
        self.reports.reverse()
        report = self.reports[0]
        report.copy_(self.state.report, non_blocking=True)
        landed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        landed.record()
        return _Flight(report, conditioning, landed)

    def again(self) -> None:
        """One step, without a report."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self.step()

    @torch.inference_mode()
    def step(self) -> None:
        """What is captured: no size, address or branch in here depends on what a tensor holds."""
        state, model = self.state, self.model
        rows, slots = state.ids.shape
        used = device_loop.used_slots(state)
        embedded = model.embed(state.ids.view(-1)) * used.view(-1, 1)
        read = model.read(
            self.window,
            embedded,
            self.slots,
            state.conditioning.view(rows * slots, -1),
            temperature=state.temperature,
            banned=self.banned,
            allowed=self.held,
            gumbel=Philox(state.seed, state.step),
        )
        free = device_loop.free_slots(state)
        following = torch.where(free.view(-1, 1), read.conditioning, embedded).view(rows, slots, -1)
        argmax, sample, entropy, logprob = (
            tensor.view(rows, slots) for tensor in (read.argmax, read.sample, read.entropy, read.logprob)
        )
        drawn = device_loop.noise(state, model.config.vocab_size)
        device_loop.advance(state, Reading(argmax, sample, entropy, logprob, following), drawn, self.delete)
        if self.delete is not None:
            self._mask()

    def capture(self, pool: Any) -> None:
        """Record `step`. Kernels are compiled and libraries set up before, by running it: the rows are all done."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads of the daemon may ask for free memory meanwhile.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self.step()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise GraphError(
                f"the step of {self.size.rows} x {self.size.slots} slots cannot be captured as a CUDA graph "
                f"({reason}); set {SWITCH}=host to run it step by step"
            ) from None
        self.graph = graph

    def _turn(self) -> None:
        """Rotary positions behind the prefix."""
        rows, slots = self.state.ids.shape
        positions = (torch.arange(slots, device=self.model.device) + self.prefix).repeat(rows)
        config = self.model.config
        for (sliding, width), (cos, sin) in self.tables.items():
            rope = config.sliding_rope if sliding else config.full_rope
            assert rope is not None
            for place, found in zip((cos, sin), rope_tables(rope, width, positions, self.model.dtype), strict=True):
                place.copy_(found)

    def _mask(self) -> None:
        """Who sees whom: used slots the prefix and all of their row, padding the padding of its row."""
        rows, slots = self.state.ids.shape
        count, device = rows * slots, self.model.device
        used = device_loop.used_slots(self.state).view(-1)
        row = torch.arange(rows, device=device).repeat_interleave(slots, output_size=count)
        canvas = (row[:, None] == row) & (used[:, None] == used)
        for (sliding, groups), mask in self.masks.items():
            shown = self.prefix.clamp_max(self.model.config.sliding_window - 1) if sliding else self.prefix
            before = torch.arange(mask.shape[1] - count, device=device) < shown
            visible = torch.cat((canvas, used[:, None] & before), dim=1)
            added = torch.where(visible, 0.0, UNSEEN)[:, None]
            mask.view(count, groups, -1).copy_(added.expand(-1, groups, -1))


def captured(run: Callable[[], object], count: int) -> Callable[[], object]:
    """`count` calls as one CUDA graph, to be replayed: what a call costs inside a step, without its launch."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            run()
    return graph.replay
