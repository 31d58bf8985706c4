"""The façade: a request in, drafts out, one outcome; and what outlives a request (weights, prefix caches).

Knows no socket, client, thread or wall clock (one is passed in), and no model family beyond what the model
folder's stopgap.json says.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from stopgap.kernels import tuned
from stopgap.kernels.path import PathError, chosen

from . import context, devices, graph, holes, languages, ranking
from .contract import Draft, EngineInfo, FillError, FillRequest, Outcome
from .families import Prompt, family
from .filling import Clockwork, Filling, Warm
from .graph import Loop
from .judge import Judge
from .model import Model
from .pace import Pace
from .planner import SPARE, Plan, Storage, plan, weight_bytes
from .prefix import PrefixCache
from .prompt import open_end
from .source import newline, unparsed
from .strategy import Strategy
from .syntax import Gate
from .together import drive
from .tokenizer import Tokenizer
from .work import Work, run

STARTER = Path(__file__).parent / "starter"
PARSE_BUDGET_MS = 100.0
"""Longest single parse: a megabyte takes about that long. What takes longer is refused, with that reason."""
GATE_MS = 5.0
"""How long after the deadline a draft may still be before the gate: what came from the last step is checked quickly."""


@dataclass(slots=True)
class _Document:
    """What is kept of one document between requests."""

    cache: PrefixCache
    warm: Warm | None = None
    source: holes.Source | None = None
    busy: bool = False


class InfillEngine:
    """The `contract.Engine` over one model, of any family."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        card: dict[str, object],
        *,
        clock: Callable[[], float],
        strategy: Strategy | None = None,
        cache_budget: int = 256 << 20,
        notice: str = "",
    ) -> None:
        """`card` is stopgap.json; `cache_budget` bounds all prefix caches, in bytes; `notice` is for `info`."""
        self.model, self.tokenizer, self.card, self.clock = model, tokenizer, card, clock
        self.family = family(card.get("family"), tokenizer)
        self.strategy = _fitted(strategy or self.family.strategy, card)
        self.cache_budget, self.notice = cache_budget, notice
        self.name = str(card["name"])
        # Beyond the length it was trained at a small model falls apart; the hole needs room too.
        trained = card.get("context_length")
        longest = trained - self.strategy.tail if isinstance(trained, int) else self.strategy.context
        self.context = min(self.strategy.context, longest)
        self._documents: OrderedDict[str, _Document] = OrderedDict()
        self.pace = Pace()
        self.ranking = ranking.on_card(card)
        self.loop: Loop | None = None
        if graph.chosen() == "device":
            if not model.joins:
                raise graph.GraphError(f"{graph.SWITCH}=device is for the engine stopgap, not transformers: unset it")
            self.loop = Loop(model)

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        """See `contract.Engine`. Problems with the request are raised before the first draft."""
        with closing(self._filling(request, stop, self.loop)) as items:
            for item in items:
                if isinstance(item, Draft | Outcome):
                    yield item
                else:
                    run(self.model, item)

    def fill_many(
        self, requests: Sequence[FillRequest], stops: Sequence[Callable[[], bool]]
    ) -> Iterator[tuple[int, Draft | Outcome | FillError] | None]:
        """See `contract.Together`. Several fills share their passes, which a loop of each on the device could not."""
        loop = self.loop if len(requests) == 1 else None
        fills = [self._filling(*pair, loop) for pair in zip(requests, stops, strict=True)]
        return drive(self.model, fills)

    def _filling(
        self, request: FillRequest, stop: Callable[[], bool], loop: Loop | None = None
    ) -> Generator[Draft | Work | Outcome]:
        """One fill from beginning to end, except for the model, whose work it yields for others to run."""
        clockwork = Clockwork(self.clock, self.clock(), stop, request.budget_ms)
        source = self._parse(request)
        hole = holes.locate(source, request)
        bytes_per_token = self.tokenizer.bytes_per_token(source.text[: hole.start])
        prompt = self._prompt(source, hole, request, bytes_per_token)
        gate = Gate(
            source,
            hole,
            clock=self.clock,
            budget_ms=PARSE_BUDGET_MS,
            allow_unchecked=request.allow_unchecked,
            look=lambda: clockwork.look(GATE_MS),
        )
        judge = Judge(self.tokenizer, gate, hole, prompt.overlap, crlf=newline(source.text) == b"\r\n")
        document = self._document(request.document, len(prompt.ids))
        document.source = source
        filling = Filling(
            self.model,
            self.tokenizer,
            self.strategy,
            request,
            hole,
            prompt,
            judge,
            clockwork,
            delete=self.family.delete,
            bytes_per_token=bytes_per_token,
            pace=self.pace,
            ranking=self.ranking,
            loop=loop,
        )
        document.busy = True
        try:
            yield from filling.frames(document.cache, document.warm)
        finally:
            document.busy = False
        document.warm = filling.warm or document.warm
        yield filling.outcome(self.name)

    def _parse(self, request: FillRequest) -> holes.Source:
        """The request's text with its tree; without one where the caller accepts unchecked fills."""
        known = self._documents.get(request.document)
        try:
            return holes.parse(
                request.source,
                languages.by_name(request.language),
                around=request.start,
                previous=known.source if known else None,
                budget_ms=PARSE_BUDGET_MS,
                clock=self.clock,
            )
        except languages.GrammarMissing as missing:
            if not request.allow_unchecked:
                raise
            return unparsed(request.source, languages.by_name(request.language), str(missing))

    def _prompt(self, source: holes.Source, hole: holes.Hole, request: FillRequest, bytes_per_token: float) -> Prompt:
        """What the model is shown; a cursor inside a word leaves the word to the fill's first token."""
        pieces = context.gather(
            source,
            hole,
            snippets=request.snippets,
            budget=self.context,
            bytes_per_token=bytes_per_token,
            count=lambda text: len(self.tokenizer.encode(text)),
        )
        # Models see LF only; `Judge` gives a CRLF file its own line ends back.
        plain = {name: getattr(pieces, name).replace(b"\r\n", b"\n") for name in ("snippets", "prefix", "suffix")}
        plain["prefix"] += hole.lead.replace(b"\r\n", b"\n")
        plain["suffix"] = hole.tail.replace(b"\r\n", b"\n") + plain["suffix"]
        pieces = context.Context(**plain)
        overlap = _overlap(pieces.prefix, self.tokenizer) if self.strategy.heal else b""
        return self.family.prompt(pieces, request, source.text[hole.start : hole.end], overlap=overlap)

    def _document(self, name: str, tokens: int) -> _Document:
        """The document's cache, most recently used last; older ones go when the budget is exceeded."""
        needed = tokens + self.strategy.longest
        known = self._documents.pop(name, None) if name else None
        if known is None or known.busy or known.cache.capacity < needed:
            known = _Document(self.model.new_cache(needed + SPARE, scratch=self.strategy.scratch))
        if name:
            self._documents[name] = known
            while len(self._documents) > 1 and self._cache_bytes() > self.cache_budget:
                self._documents.popitem(last=False)
        return known

    def _cache_bytes(self) -> int:
        return sum(document.cache.nbytes for document in self._documents.values())

    def info(self) -> EngineInfo:
        return EngineInfo(
            model=self.name,
            device=str(self.model.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
            kernels=f"{self.model.kernels}, loop {self.loop.how}" if self.loop else self.model.kernels,
            parameters=self.model.parameters,
            weight_bytes=self.model.nbytes,
            cache_bytes=self._cache_bytes() + (self.loop.nbytes if self.loop else 0),
            instructions=self.family.instructions,
            languages=tuple(self.card.get("languages", ())),  # type: ignore[arg-type]
            notice=self.notice,
        )

    def drop_caches(self) -> None:
        self._documents.clear()
        if self.loop:
            self.loop.drop()


def _overlap(prefix: bytes, tokenizer: Tokenizer) -> bytes:
    return open_end(prefix, tokenizer.encode, tokenizer.token_bytes)


def told_length(engine: InfillEngine, source: bytes, start: int, truth: str) -> InfillEngine:
    """`engine`, told how many slots `truth` takes at byte `start`: what not knowing costs is measured against it."""
    overlap = _overlap(source[:start], engine.tokenizer) if engine.strategy.heal else b""
    slots = len(engine.tokenizer.encode(overlap + truth.encode()))
    strategy = replace(engine.strategy, told=slots)
    return InfillEngine(engine.model, engine.tokenizer, engine.card, clock=engine.clock, strategy=strategy)


def load_engine(
    model: str,
    *,
    engine: Literal["stopgap", "transformers"],
    device: str,
    threads: int | None,
    clock: Callable[[], float],
    progress: Callable[[str, float], None],
    strategy: Strategy | None = None,
    cache_budget: int = 256 << 20,
) -> InfillEngine:
    """The engine for `model`: "starter" or a model folder.

    `device` is "auto" (a GPU if there is one), "cpu", "cuda", "cuda:N" or "mps". `engine="transformers"` runs the same
    fills over the reference implementation, for comparison. Raises FillError, with the remedy, before anything is half
    loaded.
    """
    folder = STARTER if model == "starter" else Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise FillError(f'no model at {folder}: name a folder with config.json, or use "starter"')
    progress("tokenizer", 0.0)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    try:
        card: dict[str, object] = json.loads((folder / "stopgap.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise FillError(f"{folder / 'stopgap.json'} cannot be read: {error}") from None
    card.setdefault("name", folder.name)
    where = devices.resolve(device)
    strategy = _fitted(strategy or family(card.get("family"), tokenizer).strategy, card)
    notice = ""
    if engine == "stopgap":
        planned = _plan(folder, where, strategy, cache_budget)
        if notice := planned.notice:
            progress(notice, 0.05)
        strategy = replace(strategy, context=planned.context)
    progress("weights", 0.1)
    if engine == "transformers":
        try:
            from .reference import load_reference
        except ModuleNotFoundError as error:
            raise FillError(f"the engine transformers needs {error.name}: pip install transformers") from None

        loaded: Model = load_reference(folder, device=where, threads=threads)
    else:
        from .weights import load_model

        loaded = load_model(folder, device=where, threads=threads)
    progress("ready", 1.0)
    return InfillEngine(
        loaded, tokenizer, card, clock=clock, strategy=strategy, cache_budget=cache_budget, notice=notice
    )


def _fitted(strategy: Strategy, card: Mapping[str, object]) -> Strategy:
    """Canvases no wider than the model's own."""
    canvas = card.get("canvas_length")
    return strategy.fitted(canvas) if isinstance(canvas, int) else strategy


def _plan(folder: Path, device: torch.device, strategy: Strategy, cache_budget: int) -> Plan:
    """What the model will need, before anything is loaded. Raises `ModelError` if there is not that much."""
    from .packed import is_packed
    from .weights import read_config

    config = read_config(folder)
    try:
        fused = chosen(device) == "triton"
        tuned.described(device)  # a table of block sizes that is none is said now
    except PathError as error:
        raise FillError(str(error)) from None
    if is_packed(folder):
        weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".json")
    elif device.type == "cpu":
        # The least that `weights` may make of a checkpoint; it knows better and checks again.
        experts = "fp32" if config.num_experts > 1 else "int8"
        weights = weight_bytes(config, Storage(experts, "int8", "int8+bf16", "fp32"))
    else:
        weights = weight_bytes(config, Storage.of(16))
    return plan(
        config,
        weights,
        strategy,
        free=devices.free_memory(device),
        device=device.type,
        itemsize=4 if device.type == "cpu" else 2,
        cache_budget=cache_budget,
        fused=fused,
        looped=graph.chosen() == "device",
    )
