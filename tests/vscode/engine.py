"""What the model says in tests/test_vscode.py: known texts for known places, settling slowly enough to be watched.

`STOPGAP_ENGINE_FACTORY=…/engine.py:load` runs the real daemon with it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stopgap.infill import holes, languages
from stopgap.infill.contract import Draft, EngineInfo, Fill, FillError, FillRequest, Outcome

GHOSTS = ("left + right", "right + left", "sum((left, right))")
"""Wherever a line ends in `return ` and the cursor."""
BODY = "total = sum(values)\n    count = len(values)\n    assert count\n    return total / count"
"""Any function's body, at the first try."""
LINES = "left:\n        return right"
"""Wherever a line ends in `if ` and the cursor."""
FLAGS = Path(os.environ.get("STOPGAP_TEST_FLAGS", "/nonexistent"))
"""It goes on loading while `loading` is in this folder, and thinking while `thinking` is; it cannot be loaded while
`broken` is. It leaves `stopped` there when a rewrite has been cancelled."""
SECOND_BODY = "return sum(values) / len(values)"
STEPS, STEP_S = 30, 0.12
NOISE = "aeinorst(){}=.,+:_0123"


class ScriptedEngine:
    def fill(self, request: FillRequest, stop: Callable[[], bool]) -> Iterator[Draft | Outcome]:
        if request.target == "cursor":
            before = request.source[: request.start]
            texts = GHOSTS if before.endswith(b"return ") else (LINES,) if before.endswith(b" if ") else ()
            while (FLAGS / "thinking").exists():
                time.sleep(0.02)
            texts = texts[: request.candidates]
            yield self._outcome(request.start, request.start, texts)
            return
        source = holes.parse(request.source, languages.by_name(request.language), around=request.start)
        hole = holes.locate(source, request)
        text = SECOND_BODY if request.seed else BODY
        if request.instruction:
            text = f"# {request.instruction}\n    {text}"
        order = [i for i, character in enumerate(text) if not character.isspace()]
        shuffled = random.Random(1)
        shuffled.shuffle(order)
        for step in range(1, STEPS):
            time.sleep(STEP_S)
            if stop():
                (FLAGS / "stopped").touch()
                yield Outcome(hole.start, hole.end, hole.node_type, (), stopped="cancelled")
                return
            noisy = set(order[: len(order) * (STEPS - step) // STEPS])
            drawn = [shuffled.choice(NOISE) if i in noisy else character for i, character in enumerate(text)]
            settled = tuple((i, i + 1) for i in range(len(text)) if i not in noisy)
            try:
                yield Draft(step, STEPS, hole.start, hole.end, "".join(drawn), settled)
            except GeneratorExit:  # the other way in which a request ends that nobody wants
                (FLAGS / "stopped").touch()
                raise
        yield self._outcome(hole.start, hole.end, (text,))

    def _outcome(self, start: int, end: int, texts: tuple[str, ...]) -> Outcome:
        fills = tuple(Fill(text, -0.01 * n) for n, text in enumerate(texts))
        reason = "" if fills else "the script has nothing for this place"
        return Outcome(start, end, "block", fills, reason, model="scripted", stopped="stable")

    def info(self) -> EngineInfo:
        return EngineInfo("scripted", "cpu", "none", "none", 0, 0, 0, True)

    def drop_caches(self) -> None:
        pass


def load(model: str, *, progress: Callable[[str, float], None], **_: object) -> ScriptedEngine:
    progress("weights", 0.5)
    while (FLAGS / "loading").exists():
        time.sleep(0.02)
    if (FLAGS / "broken").exists():
        raise FillError("the weights are not what they were")
    return ScriptedEngine()
