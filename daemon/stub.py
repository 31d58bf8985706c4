"""An engine that answers "pass" at once, to measure everything that is not the model.

STOPGAP_ENGINE_FACTORY=stopgap.daemon.stub:load runs the daemon with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from stopgap.infill import contract


class StubEngine:
    """Takes `max_steps` steps, by default one; each but the last sleeps a millisecond."""

    def fill(
        self, request: contract.FillRequest, stop: Callable[[], bool]
    ) -> Iterator[contract.Draft | contract.Outcome]:
        steps = request.max_steps or 1
        for step in range(1, steps):
            if stop():
                break
            time.sleep(0.001)
            yield contract.Draft(step, steps, request.start, request.end, "pa")
        yield contract.Outcome(request.start, request.end, "block", (contract.Fill("pass", 0.0),), steps=steps)

    def fill_many(
        self, requests: Sequence[contract.FillRequest], stops: Sequence[Callable[[], bool]]
    ) -> Iterator[tuple[int, contract.Draft | contract.Outcome] | None]:
        """A step of each in turn."""
        fills = {number: self.fill(*pair) for number, pair in enumerate(zip(requests, stops, strict=True))}
        while fills:
            for number, fill in list(fills.items()):
                item = next(fill)
                if isinstance(item, contract.Outcome):
                    del fills[number]
                yield number, item

    def info(self) -> contract.EngineInfo:
        return contract.EngineInfo("stub", "cpu", "", "", 0, 0, 0, False)

    def drop_caches(self) -> None:
        """There are none."""


def load(model: str, **_: object) -> StubEngine:
    """Called like `infill.engine.load_engine`."""
    return StubEngine()
