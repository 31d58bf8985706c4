"""An engine that knows a few lines by heart, for the real daemon behind real editors.

At a cursor it answers what the line typed so far becomes, in place of what stands behind the cursor. A rewrite
of a line refines in steps, so that drafts can be seen; its answer depends on the seed. `STOPGAP_TEST_STEPS` and
`STOPGAP_TEST_STEP_MS` pace it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from stopgap.infill.contract import Draft, EngineInfo, Fill, FillRequest, Outcome

LINES = (
    "def add(a, b):\n    return a + b",
    "def add(a, b):\n    return b + a",
    "def add(a, b):\n    total = a + b\n    return total",
    'greeting = "Grüße 😀, 世界".upper()',
    'names = ["ä", "😀"]; count = len(names)',
    "print(max(values, key=len))",
    "call(\n    first,\n    second,\n)",
)
LONGER = "    total = sum(values)\n    count = len(values)\n    assert count\n    return total / count"
"""What several lines become."""
KEEP_ORDER = "keep the order"
"""The instruction that leads to the second of `REWRITES`; all others change nothing."""
REWRITES = ("return sorted(set(values))  # 😀 ok", "return list(dict.fromkeys(values))")


def line_end(source: bytes, offset: int) -> int:
    line = source[offset:].partition(b"\n")[0]
    return offset + len(line.removesuffix(b"\r"))


class Engine:
    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        if request.target != "cursor":
            yield from self.rewrite(request, stop)
            return
        line = request.source[: request.start].rpartition(b"\n")[2].decode()
        typed = line.lstrip()
        indent = line[: len(line) - len(typed)]
        rest = [known[len(typed) :] for known in LINES if typed and known.startswith(typed) and known != typed]
        fills = tuple(
            Fill(text.replace("\n", "\n" + indent), -0.01 * n) for n, text in enumerate(rest[: request.candidates])
        )
        why = "" if fills else "this engine does not know the line"
        end = line_end(request.source, request.start)
        yield Outcome(request.start, end, "line", fills, why, steps=1, model="knower", stopped="stable")

    def rewrite(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        start, end = request.start, request.end
        if start == end:  # the line around it, without its indentation
            line_start = request.source.rfind(b"\n", 0, start) + 1
            end = line_end(request.source, start)
            line = request.source[line_start:end]
            start = line_start + len(line) - len(line.lstrip())
        several = b"\n" in request.source[start:end]
        text = LONGER if several else REWRITES[(request.seed + (request.instruction == KEEP_ORDER)) % len(REWRITES)]
        steps = int(os.environ.get("STOPGAP_TEST_STEPS", "4"))
        for step in range(1, steps):
            if stop():
                yield Outcome(start, end, "", (), stopped="cancelled")
                return
            time.sleep(float(os.environ.get("STOPGAP_TEST_STEP_MS", "20")) / 1000)
            done = len(text) * step // steps
            yield Draft(step, steps, start, end, text[:done] + "?" * (len(text) - done), ((0, done),))
        yield Outcome(start, end, "body", (Fill(text, -0.1),), steps=steps, model="knower", stopped="stable")

    def info(self) -> EngineInfo:
        return EngineInfo("knower", "cpu", "none", "none", 0, 0, 0, True)

    def drop_caches(self) -> None:
        pass


def load(model: str, *, progress: Callable[[str, float], None], **_: object) -> Engine:
    return Engine()
