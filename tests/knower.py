"""An engine that knows what was cut out, and says it with a chosen number of mistakes and steps."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from stopgap.infill.contract import Draft, EngineInfo, Fill, FillRequest, Outcome
from stopgap.infill.suites import Sample


class Ticks:
    """A clock that moves only when told to; seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Knower:
    """Takes `steps` denoising steps of 10 ms; `wrong` maps a sample's truth to what is said instead.

    Cut short by a budget or a step cap it has only that share of the text right, and says so in its score.
    """

    def __init__(
        self,
        samples: Iterable[Sample],
        clock: Ticks,
        wrong: Mapping[str, str] | None = None,
        steps: int = 4,
        first_line: bool = False,
        name: str = "knower",
    ) -> None:
        self.truths = {(sample.source, sample.start): sample.truth for sample in samples}
        self.clock, self.wrong, self.steps, self.first_line, self.name = clock, wrong or {}, steps, first_line, name
        self.asked: list[FillRequest] = []

    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        self.asked.append(request)
        truth = self.truths[request.source, request.start]
        text = self.wrong.get(truth, truth)
        if self.first_line:
            text = text.split("\n")[0]
        begun, taken = self.clock.now, 0
        for step in range(1, min(self.steps, request.max_steps or self.steps) + 1):
            if request.budget_ms is not None and (self.clock.now - begun) * 1000 >= request.budget_ms:
                break
            self.clock.now += 0.010
            taken = step
            yield Draft(step, self.steps, request.start, request.end, text)
        known = text[: len(text) * taken // self.steps]
        yield Outcome(
            request.start,
            request.end,
            "",
            (Fill(known, -float(len(text) - len(known)) - (truth in self.wrong)),) if known else (),
            reason="" if known else "no time",
            steps=taken,
        )

    def info(self) -> EngineInfo:
        return EngineInfo(self.name, "cpu", "none", "none", 0, 0, 0, False)

    def drop_caches(self) -> None:
        pass
