"""A small engine that obeys scripts, for daemons without a model.

`STOPGAP_ENGINE_FACTORY=…/fake_engine.py:load` runs the real daemon with it. A request's `instruction` is its
script, e.g. "steps=8 step_ms=5 fail_at=3 error=MemoryError times=1"; without one it answers `pass` in one step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

from stopgap.infill.contract import Draft, EngineInfo, Event, Fill, FillError, FillRequest, Outcome

ERRORS: dict[str, type[Exception]] = {
    "MemoryError": MemoryError,
    "ValueError": ValueError,
    "FillError": FillError,
}


class FakeEngine:
    """Sleeps instead of denoising; the time of a step, its failure and its answer come from the script."""

    def __init__(self, weight_bytes: int = 0) -> None:
        # bytes of 1, not 0: pages of zeros are never really allocated.
        self.weights = bytearray(b"\1") * weight_bytes
        self.failed: dict[str, int] = {}
        self.dropped = 0
        self.log: list[str] = []
        """"DOCUMENT:STEP" for each step, in the order in which they ran."""
        self.batches: list[list[str]] = []
        """The paths of what was filled together."""

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        script = dict(word.split("=", 1) for word in request.instruction.split())
        steps = int(script.get("steps", "1"))
        step_s = float(script.get("step_ms", "0")) / 1000
        text = script.get("text", "pass")
        if script.get("error") == "FillError":
            raise FillError("the script said so")
        begin = time.perf_counter()
        for step in range(1, steps + 1):
            if stop():
                yield Outcome(request.start, request.end, "", (), stopped="cancelled")
                return
            if step_s:
                time.sleep(step_s)
            self.log.append(f"{request.document}:{step}")
            if step == int(script.get("fail_at", "0")):
                self._fail(request, script)
            if step < steps:
                yield Draft(step, steps, request.start, request.end, text[:step], ((0, step),))
        count = min(request.candidates, int(script.get("fills", "9")))
        fills = tuple(Fill(text, -float(n)) for n in range(count)) if text != "-" else ()
        milliseconds = (time.perf_counter() - begin) * 1000
        yield Outcome(
            request.start,
            request.end,
            "block",
            fills,
            reason="" if fills else "nothing passed the syntax gate",
            steps=steps,
            slots=8,
            milliseconds=milliseconds,
            model="fake",
            stopped="stable",
            events=(Event(0.0, "prefix encoded: 0 of 12 tokens reused"),),
        )

    def fill_many(
        self, requests: Sequence[FillRequest], stops: Sequence[Callable[[], bool]]
    ) -> Iterator[tuple[int, Draft | Outcome | FillError] | None]:
        """All at once: a step of each, then None, as often as the longest needs."""
        fills = {number: self.fill(*pair) for number, pair in enumerate(zip(requests, stops, strict=True))}
        self.batches.append([request.path for request in requests])
        while fills:
            for number, fill in list(fills.items()):
                try:
                    item: Draft | Outcome | FillError = next(fill)
                except FillError as error:
                    item = error
                if not isinstance(item, Draft):
                    del fills[number]
                yield number, item
            yield None

    def info(self) -> EngineInfo:
        return EngineInfo("fake", "cpu", "none", "none", len(self.weights), len(self.weights), 0, True)

    def drop_caches(self) -> None:
        self.dropped += 1

    def _fail(self, request: FillRequest, script: dict[str, str]) -> None:
        error = script.get("error", "ValueError")
        done = self.failed.get(request.document, 0)
        if done >= int(script.get("times", "1000")):
            return
        self.failed[request.document] = done + 1
        if error == "exit":
            os._exit(9)
        raise ERRORS[error](f"failing as told near {request.source[:40]!r}")


def load(model: str, *, progress: Callable[[str, float], None], **_: object) -> FakeEngine:
    """Called like `load_engine`; STOPGAP_FAKE_LOAD_MS and STOPGAP_FAKE_WEIGHT_MB set the time and the size."""
    progress("weights", 0.5)
    time.sleep(float(os.environ.get("STOPGAP_FAKE_LOAD_MS", "0")) / 1000)
    if model == "/missing":
        raise FillError('no model at /missing; name a folder, or "starter"')
    return FakeEngine(int(os.environ.get("STOPGAP_FAKE_WEIGHT_MB", "0")) << 20)
