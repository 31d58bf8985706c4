"""Code actions without LSP: what is offered and what a chosen one comes to, with a scripted daemon."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from stopgap.daemon import wire
from stopgap.infill import holes
from stopgap.infill.languages import LANGUAGES
from stopgap.lsp.actions import Actions, Job, Kind, Result
from stopgap.lsp.document import opened
from stopgap.lsp.edits import apply
from stopgap.lsp.session import WHOLE_FILE

PYTHON = LANGUAGES["python"]
CODE = b"def f(a):\n    pass\n\n\ndef g(b):\n    x = b + 1\n    return x\n"


class Script:
    """Answers every fill with the same texts for what the request points at."""

    def __init__(self, *texts: str, error: str = "", hole: bytes = b"") -> None:
        self.texts, self.error, self.hole = texts, error, hole
        self.asked: list[wire.Fill] = []

    async def fill(
        self, request: wire.Fill, watch: Callable[[wire.FillFrame], None] | None = None
    ) -> wire.Done | wire.Error:
        self.asked.append(request)
        if self.error:
            return wire.Error(1, "busy", self.error)
        start = request.source.index(self.hole) if self.hole else request.start
        end = start + len(self.hole) if self.hole else request.end
        fills = tuple(wire.Candidate(text, -0.1) for text in self.texts)
        return wire.Done(1, start, end, "block", fills, reason="" if fills else "the gate refused them all")


def job(kind: Kind, data: bytes = CODE, start: int = 0, end: int = 0) -> Job:
    return Job(kind, opened("u", 1, "python", data), PYTHON, start, max(start, end))


def run(script: Script, wanted: Job) -> Result:
    return asyncio.run(Actions(script).run(wanted))


def after(result: Result, data: bytes = CODE) -> bytes:
    return apply(data, result.edits)


def offered(data: bytes, start: int, end: int, instructions: bool | None = True) -> list[tuple[str, str]]:
    source = holes.parse(data, PYTHON)
    found = Actions(Script()).offers(opened("u", 1, "python", data), source, start, end, instructions=instructions)
    return [(offer.kind, offer.disabled) for offer in found]


def test_a_model_that_does_not_follow_instructions_says_so() -> None:
    assert offered(CODE, 45, 45, instructions=False)[-1] == (
        "instruction", "the loaded model does not follow instructions",
    )  # fmt: skip
    assert offered(CODE, 45, 45, instructions=None)[-1] == ("instruction", "")


def test_without_a_grammar_a_selection_says_why_it_cannot_be_rewritten() -> None:
    found = Actions(Script()).offers(opened("u", 1, "cobol", CODE), None, 0, 9, instructions=True)
    assert [(offer.kind, offer.disabled) for offer in found] == [
        ("selection", "no grammar for cobol: nothing could check the result")
    ]
    assert Actions(Script()).offers(opened("u", 1, "cobol", CODE), None, 0, 0, instructions=True) == []


@pytest.mark.parametrize(
    ("kind", "target"), [("hole", "placeholder"), ("function", "body"), ("repair", "error"), ("instruction", "body")]
)
def test_each_action_points_at_its_own_kind_of_place(kind: Kind, target: str) -> None:
    script = Script("return a", hole=b"pass")
    assert after(run(script, job(kind, start=14))) == CODE.replace(b"pass", b"return a")
    assert script.asked[0].target == target
    assert script.asked[0].kind == "rewrite"


def test_a_selection_is_replaced_exactly() -> None:
    start = CODE.index(b"b + 1")
    script = Script("b - 1")
    assert after(run(script, job("selection", start=start, end=start + 5))) == CODE.replace(b"b + 1", b"b - 1")
    assert (script.asked[0].start, script.asked[0].end) == (start, start + 5)


def test_a_text_that_is_there_already_is_no_result() -> None:
    result = run(Script("pass", hole=b"pass"), job("hole", start=14))
    assert result == Result(reason="the model has no other text for this place")
    result = run(Script("pass", "return a", hole=b"pass"), job("hole", start=14))
    assert result.text == "return a"


@pytest.mark.parametrize(
    ("script", "reason"),
    [(Script(), "the gate refused them all"), (Script(error="the queue is full"), "the queue is full")],
)
def test_why_there_is_no_result_is_passed_on(script: Script, reason: str) -> None:
    assert run(script, job("hole", start=14)) == Result(reason=reason)
    assert run(script, replace(job("all"), start=14)).reason == reason


def test_what_can_be_filled_is_filled_and_the_rest_stays() -> None:
    data = b"def f(a):\n    pass\n\n\ndef g(b):\n    ...\n"

    class Some(Script):
        async def fill(
            self, request: wire.Fill, watch: Callable[[wire.FillFrame], None] | None = None
        ) -> wire.Done | wire.Error:
            self.error = "busy" if request.start < 20 else ""
            return await super().fill(request, watch)

    assert after(run(Some("return b"), job("all", data)), data) == data.replace(b"...", b"return b")


def test_a_fill_that_breaks_the_file_together_with_another_is_left_out() -> None:
    data = b"def f():\n    # TODO count\n    # TODO share\n    return 1\n\n\ndef g(b):\n    ...\n"
    texts = {
        data.index(b" count"): "\n    x = 1",
        data.index(b" share"): "\n    global x",
        data.index(b"..."): "return b",
    }

    class Each(Script):
        async def fill(
            self, request: wire.Fill, watch: Callable[[wire.FillFrame], None] | None = None
        ) -> wire.Done | wire.Error:
            self.texts = tuple(text for at, text in texts.items() if at in range(request.start - 6, request.start + 1))
            return await super().fill(request, watch)

    made = after(run(Each(), job("all", data)), data)
    compile(made, "a.py", "exec")
    expected = data.replace(b"count\n", b"count\n    x = 1\n").replace(b"...", b"return b")
    assert made == expected
    del texts[data.index(b" count")]  # alone it does fit
    assert b"share\n    global x\n" in after(run(Each(), job("all", data)), data)


def test_a_file_without_holes_has_none_to_fill() -> None:
    assert run(Script("x"), job("all", b"x = 1\n")).reason == "there is no hole in this file"


def test_trying_again_needs_the_text_it_made() -> None:
    assert "nothing to try again" in run(Script("x"), job("another")).reason


def test_only_a_part_of_a_large_file_is_sent() -> None:
    filler = b"y = 2  # filler\n"
    data = filler * (WHOLE_FILE // len(filler)) + CODE + filler * 10
    start = data.index(b"pass")
    script = Script("return a", hole=b"pass")
    assert after(run(script, job("hole", data, start)), data) == data.replace(b"pass", b"return a")
    assert len(script.asked[0].source) < WHOLE_FILE // 2


def test_a_selection_larger_than_one_fill_says_so() -> None:
    data = b"y = 2\n" * (WHOLE_FILE // 2)
    result = run(Script("x"), job("selection", data, 0, len(data)))
    assert result == Result(reason="that is too large for one fill: select less")


def test_the_line_ending_of_the_file_is_kept() -> None:
    data = CODE.replace(b"\n", b"\r\n")
    made = after(run(Script("a = 1\n    return a", hole=b"pass"), job("hole", data, 15)), data)
    assert made == data.replace(b"pass", b"a = 1\r\n    return a")
