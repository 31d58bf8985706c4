"""The engine from request to outcome, on models that know the answer: seeds, gate, repair, deadlines, warm starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import ScriptedModel, byte_tokenizer

from stopgap.infill.contract import Draft, FillError, FillRequest, Outcome
from stopgap.infill.engine import InfillEngine, told_length
from stopgap.infill.ranking import FEATURES
from stopgap.infill.sampler import Schedule
from stopgap.infill.strategy import Strategy

FIND = """\
def find(items, name):
    for item in items:
        if item.name == name:
            return ‸
    return None
"""


class StepClock:
    """A clock on which only denoising takes time: `step` seconds each."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += self.step


WEIGHTS = dict.fromkeys(FEATURES, 0.0) | {"likely": 0.1, "alike": 2.0}


class Bench:
    """An engine over a scripted model, and the one way the tests call it."""

    def __init__(
        self, folder: Path, truth: str, *, strategy: Strategy | None = None, canvas: int | None = None, **script: object
    ) -> None:
        tokenizer = byte_tokenizer(folder)
        if isinstance(drafted := script.get("drafts"), str):
            script["drafts"] = tokenizer.encode(drafted.encode())
        self.model = ScriptedModel(tokenizer.encode(truth.encode()), **script)  # type: ignore[arg-type]
        clock = StepClock(0.010)
        self.model.on_step = clock.tick
        card = {"name": "scripted", "family": "infill", "canvas_length": canvas, "ranking": WEIGHTS}
        self.engine = InfillEngine(
            self.model,  # type: ignore[arg-type]
            tokenizer,
            card,
            clock=clock,
            strategy=strategy or Strategy(context=4000),
        )
        self.drafts: list[Draft] = []

    def fill(
        self, marked: str, *, stop: Callable[[], bool] = lambda: False, language: str = "python", **request: object
    ) -> Outcome:
        """Fill at the `‸` of `marked`, or between two of them; the model's first `head` answer starts its draft."""
        before, *rest = marked.encode().split("‸".encode())
        source, start = before + b"".join(rest), len(before)
        end = start + (len(rest[0]) if len(rest) == 2 else 0)
        target = "selection" if len(rest) == 2 else "cursor"
        asked = FillRequest(source, language, start, end, target)  # type: ignore[arg-type]
        self.model.prompt = 0
        self.drafts = []
        *drafts, outcome = self.engine.fill(replace(asked, **request), stop)  # type: ignore[arg-type]
        assert isinstance(outcome, Outcome)
        self.drafts = drafts  # type: ignore[assignment]
        return outcome


def test_a_hole_is_filled_with_what_the_model_knows(tmp_path: Path) -> None:
    outcome = Bench(tmp_path, "item").fill(FIND)
    assert [fill.text for fill in outcome.fills] == ["item"]
    assert outcome.fills[0].checked
    assert (outcome.start, outcome.end) == (FIND.index("‸"), FIND.index("‸"))
    assert outcome.model == "scripted"
    assert outcome.steps > 0


def test_noise_alone_finds_the_answer_without_a_draft(tmp_path: Path) -> None:
    alone = Strategy(context=4000, drafts=0, retrieved=0, lengths=("p50",))
    outcome = Bench(tmp_path, "item", noise=0.3, strategy=alone).fill(FIND)
    assert outcome.fills[0].text == "item"


def test_a_wrong_draft_is_put_right_by_denoising(tmp_path: Path) -> None:
    outcome = Bench(tmp_path, "item", drafts="name").fill(FIND)
    assert outcome.fills[0].text == "item"


def test_what_does_not_parse_is_never_offered_and_the_reason_is_said(tmp_path: Path) -> None:
    alone = Strategy(context=4000, retrieved=0)
    outcome = Bench(tmp_path, "item) or (", strategy=alone).fill(FIND)
    assert outcome.fills == ()
    assert "gate" in outcome.reason


def test_a_draft_that_repeats_itself_is_never_offered(tmp_path: Path) -> None:
    drafts_only = Strategy(context=4000, retrieved=0, lengths=())
    outcome = Bench(tmp_path, "self" + ".name" * 8, strategy=drafts_only).fill(FIND)
    assert outcome.fills == ()
    assert "repeats itself" in outcome.reason


@pytest.mark.parametrize(
    ("marked", "answer", "target", "why"),
    [
        ("def f(a):\n    ‸...\n", "...", "placeholder", "stands there already"),
        ("def f(a):\n    ‸pass\n", "pass", "body", "stands there already"),
        ("def f(a):\n    ‸...\n", "pass", "placeholder", "placeholder itself"),
        ("def f(a):\n    ‸...\n", "raise NotImplementedError", "body", "placeholder itself"),
        ("def f(a):\n    # TODO add one‸\n    return a\n", "# TODO add one", "placeholder", "placeholder itself"),
        ("x = ‸first‸\n", "first", "selection", "stands there already"),
        ("def f(a):\n    ‸pass\n", '"""Add one."""', "placeholder", "nothing but a docstring"),
        ("def f(a):‸\n", '"""Add one."""', "body", "nothing but a docstring"),
        ('def f(a):\n    """Add one."""‸\n', '"""Add two."""', "body", "nothing but a docstring"),
        ("def f(a):\n    # TODO add one‸\n    return a\n", "# add two", "placeholder", "nothing but a comment"),
    ],
)
def test_what_stands_in_the_hole_is_never_offered(
    tmp_path: Path, marked: str, answer: str, target: str, why: str
) -> None:
    drafts_only = Strategy(context=4000, denoise=False, retrieved=0, lengths=())
    outcome = Bench(tmp_path, answer, strategy=drafts_only).fill(marked, target=target)
    assert outcome.fills == ()
    assert why in outcome.reason


def test_who_types_a_function_may_be_offered_its_docstring(tmp_path: Path) -> None:
    drafts_only = Strategy(context=4000, denoise=False, retrieved=0, lengths=())
    outcome = Bench(tmp_path, '"""Add one."""', strategy=drafts_only).fill("def f(a):\n    ‸\n")
    assert [fill.text for fill in outcome.fills] == ['"""Add one."""']


@pytest.mark.parametrize(("marked", "answer"), [("x = ‸\n", " 1"), ("x = ‸ + y\n", "1 "), ("f(a, ‸)\n", " b")])
def test_no_blank_is_doubled(tmp_path: Path, marked: str, answer: str) -> None:
    outcome = Bench(tmp_path, answer).fill(marked)
    assert [fill.text for fill in outcome.fills] == [answer.strip()]


def test_an_empty_class_may_be_told_to_pass(tmp_path: Path) -> None:
    outcome = Bench(tmp_path, "pass").fill("class Failed(Exception):\n    ‸\n")
    assert [fill.text for fill in outcome.fills] == ["pass"]


def test_a_draft_that_writes_on_is_also_judged_up_to_its_first_line_end(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path,
        "item\n    return None\n    return (",
        strategy=Strategy(context=4000, denoise=False, retrieved=0, lengths=()),
    )
    marked = "def find(items):\n    ‸pass\n"
    bench.model.drafted = bench.engine.tokenizer.encode(b"return item\n    )")
    assert [fill.text for fill in bench.fill(marked, target="body").fills] == ["return item"]


def test_a_cursor_inside_a_word_is_healed(tmp_path: Path) -> None:
    """The prefix ends before the word's last token, which the fill's first slot must repeat."""
    marked = FIND.replace("return ‸", "retu‸")
    outcome = Bench(tmp_path, "urn item").fill(marked)
    assert outcome.fills[0].text == "rn item"


def test_a_selection_is_replaced_exactly(tmp_path: Path) -> None:
    outcome = Bench(tmp_path, "item").fill(FIND.replace("‸", "‸thing‸"))
    start = FIND.index("‸")
    assert (outcome.start, outcome.end, outcome.fills[0].text) == (start, start + len("thing"), "item")


def test_a_cancelled_request_ends_within_one_step_and_has_no_fills(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item", noise=1.0)
    outcome = bench.fill(FIND, stop=lambda: len(bench.model.seen) >= 3)
    assert (outcome.stopped, outcome.fills) == ("cancelled", ())
    assert len(bench.model.seen) == 3


def test_nothing_runs_for_a_request_cancelled_before_it_began(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item")
    assert bench.fill(FIND, stop=lambda: True).stopped == "cancelled"
    assert (bench.model.encoded, bench.model.seen) == (0, [])


@pytest.mark.parametrize(("budget_ms", "steps"), [(5, 1), (25, 2), (55, 5)])
def test_no_step_is_begun_that_would_end_after_the_deadline_once_one_was_timed(
    tmp_path: Path, budget_ms: float, steps: int
) -> None:
    endless = replace(Strategy(context=4000), schedule=Schedule(max_steps=99, patience=99))
    outcome = Bench(tmp_path, "item", noise=0.9, strategy=endless, drafts="name").fill(FIND, budget_ms=budget_ms)
    assert (outcome.stopped, outcome.steps) == ("budget", steps)
    assert outcome.fills, "the best checked draft so far is the answer"


@pytest.mark.parametrize("cap", [1, 3, 8])
def test_a_cap_on_steps_counts_repair_too(tmp_path: Path, cap: int) -> None:
    outcome = Bench(tmp_path, "item) or (", noise=0.2).fill(FIND, max_steps=cap)
    assert 0 < outcome.steps <= cap


def test_a_similar_line_is_the_answer_when_there_was_no_time_for_the_model(tmp_path: Path) -> None:
    marked = "def a(x):\n    y = x + 1\n    return y\n\n\ndef b(x):\n    y = x + 1\n    ‸\n"
    outcome = Bench(tmp_path, "pass").fill(marked, budget_ms=0)
    assert outcome.stopped == "budget"
    assert [fill.text for fill in outcome.fills] == ["return y"]


def test_the_second_request_encodes_only_what_changed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item", strategy=Strategy(context=4000, warm=False))
    first = bench.fill(FIND, document="a.py")
    second = bench.fill(FIND.replace("‸", "(‸)"), document="a.py")
    assert first.prefix_reused == 0
    assert 0 < second.prefix_reused < second.prefix_tokens


def test_typing_along_starts_from_the_last_fill(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item")
    cold = bench.fill(FIND, document="a.py")
    warm = bench.fill(FIND.replace("‸", "i‸"), document="a.py")
    assert warm.fills[0].text == "tem"
    assert warm.steps <= cold.steps
    assert any("warm" in event.what for event in warm.events)


@pytest.mark.parametrize(("again", "warm"), [({}, True), ({"seed": 1}, False), ({"candidates": 3}, False)])
def test_with_nothing_typed_only_the_same_request_starts_from_the_last_fill(
    tmp_path: Path, again: dict[str, object], warm: bool
) -> None:
    bench = Bench(tmp_path, "item")
    bench.fill(FIND, document="a.py")
    outcome = bench.fill(FIND, document="a.py", **again)
    assert any("warm" in event.what for event in outcome.events) is warm


def test_other_text_after_the_hole_is_no_warm_start(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item")
    bench.fill(FIND, document="a.py")
    changed = bench.fill(FIND.replace("return None", "return 0"), document="a.py")
    assert not any("warm" in event.what for event in changed.events)


def test_a_hole_longer_than_a_canvas_runs_as_several(tmp_path: Path) -> None:
    body = "".join(f"    total += item_{i}\n" for i in range(12)).strip()
    narrow = Strategy(context=4000, slots=64, overlap=8, longest=400, retrieved=0, lengths=())

    class Moving(ScriptedModel):
        """Denoises whatever follows what is already in the prefix."""

        def denoise(self, cache, canvas, free, **kwargs):  # type: ignore[no-untyped-def, override]
            whole, self.truth = self.truth, self.truth[len(cache) - self.prompt_length :]
            try:
                return super().denoise(cache, canvas, free, **kwargs)
            finally:
                self.truth = whole

        def head(self, hidden):  # type: ignore[no-untyped-def, override]
            out = super().head(hidden)
            self.prompt_length = self.prompt
            return out

    bench = Bench(tmp_path, body, strategy=narrow)
    moving = Moving(bench.model.truth)
    bench.model = bench.engine.model = moving  # type: ignore[assignment]
    outcome = bench.fill("def total(items):\n    ‸pass\n", target="body")
    assert outcome.fills[0].text == body
    assert max(sum(row) for _, free, _ in moving.seen for row in free) <= 64


@pytest.mark.parametrize("truth", ["item", "item" * 8])
def test_no_canvas_is_wider_than_those_the_model_was_trained_on(tmp_path: Path, truth: str) -> None:
    bench = Bench(tmp_path, truth, canvas=24)
    assert bench.fill(FIND).fills
    widest = max(length for _, _, lengths in bench.model.seen for length in lengths)
    assert widest == 24, "all of it is used, and no more"


def test_a_fill_too_long_to_be_ranked_whole_is_ranked_by_its_beginning(tmp_path: Path) -> None:
    narrow = Strategy(context=4000, rows=1, slots=4, tail=0, longest=4, drafts=0, retrieved=0)
    assert narrow.scratch < len(b"item") + 1
    outcome = Bench(tmp_path, "item", strategy=narrow).fill(FIND)
    assert [fill.text for fill in outcome.fills] == ["item"]
    assert outcome.fills[0].score > -0.1


def test_every_finalist_is_ranked_however_little_fits_at_once(tmp_path: Path) -> None:
    narrow = Strategy(context=4000, rows=2, slots=4, tail=0, longest=8, retrieved=0)
    assert narrow.scratch < 2 * len(b"item") + 2
    outcome = Bench(tmp_path, "item", drafts="name", strategy=narrow).fill(FIND, candidates=4)
    assert [fill.text for fill in outcome.fills] == ["item", "name"]
    assert outcome.fills[1].score < -1, "ranked, not as sure as the canvas was"


def test_the_text_before_the_hole_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, "item")
    asked: list[bytes] = []
    measure = bench.engine.tokenizer.bytes_per_token
    monkeypatch.setattr(bench.engine.tokenizer, "bytes_per_token", lambda text: asked.append(text) or measure(text))
    bench.fill(FIND)
    assert len(asked) == 1


PAIRS = """\
def one(box):
    open(box)
    item(box)
    return box


def two(cup):
    open(cup)
    ‸
    return cup
"""


def test_a_line_of_a_like_place_beats_what_the_model_finds_likelier(tmp_path: Path) -> None:
    texts = {}
    for rank in ("causal", "fitted"):
        bench = Bench(tmp_path, "zeal", strategy=Strategy(context=4000, rank=rank))
        texts[rank] = bench.fill(PAIRS, candidates=5).fills
    assert texts["causal"][0].text == "zeal"
    assert texts["fitted"][0].text == "item(cup)", "as it stands in the other function, renamed"
    assert {fill.text for fill in texts["fitted"]} >= {"zeal", "item(cup)", "item(box)"}


def test_where_a_body_is_missing_a_line_of_the_file_is_no_rival_to_the_model_s(tmp_path: Path) -> None:
    marked = PAIRS.replace("    open(cup)\n    ‸\n    return cup\n", "    ‸pass\n")
    outcome = Bench(tmp_path, "zeal\n    zest").fill(marked, target="body")
    assert outcome.fills[0].text == "zeal\n    zest"


def test_line_endings_follow_the_file(tmp_path: Path) -> None:
    marked = "def find(items):\r\n    ‸pass\r\n"
    outcome = Bench(tmp_path, "print(items)\n    return items").fill(marked, target="body")
    assert outcome.fills[0].text == "print(items)\r\n    return items"


def test_drafts_show_the_hole_settling(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item", noise=0.4, strategy=Strategy(context=4000, drafts=0, retrieved=0))
    bench.fill(FIND)
    assert [draft.step for draft in bench.drafts] == list(range(1, len(bench.drafts) + 1))
    assert all(draft.step <= draft.max_steps for draft in bench.drafts)
    last = bench.drafts[-1]
    assert sum(b - a for a, b in last.settled) == len(last.text) > 0


def test_the_same_seed_gives_the_same_answer(tmp_path: Path) -> None:
    runs = [Bench(tmp_path, "item", noise=0.6).fill(FIND, seed=5) for _ in range(2)]
    assert runs[0].fills == runs[1].fills


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"language": "klingon"}, "klingon"),
        ({"start": 10_000, "end": 10_000}, "outside the file"),
        ({"instruction": "make it faster"}, "does not follow instructions"),
    ],
)
def test_a_request_that_cannot_be_served_says_why_in_one_line(
    tmp_path: Path, request_: dict[str, object], says: str
) -> None:
    with pytest.raises(FillError, match=says) as error:
        Bench(tmp_path, "item").fill(FIND, **request_)
    assert "\n" not in str(error.value)


def test_old_prefix_caches_go_when_the_budget_is_exceeded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item")
    bench.engine.cache_budget = 0
    for name in ("a.py", "b.py", "c.py"):
        bench.fill(FIND, document=name)
    one = bench.engine.info().cache_bytes
    bench.fill(FIND, document="c.py")
    assert bench.engine.info().cache_bytes == one
    bench.engine.drop_caches()
    assert bench.engine.info().cache_bytes == 0


def test_a_hole_whose_length_is_told_has_one_noise_row_of_so_many_slots(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "item", strategy=Strategy(context=4000, drafts=0, retrieved=0))
    source, start = FIND.replace("‸", "").encode(), FIND.encode().index("‸".encode())
    bench.engine = told_length(bench.engine, source, start, "item")
    assert bench.fill(FIND).fills[0].text == "item"
    assert {tuple(map(sum, free)) for _, free, _ in bench.model.seen} == {(4,)}


def test_a_told_length_counts_the_healed_word(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "urn item", strategy=Strategy(context=4000, drafts=0, retrieved=0))
    marked = FIND.replace("return ‸", "retu‸")
    bench.engine = told_length(bench.engine, marked.encode(), marked.encode().index("‸".encode()), "rn item")
    assert bench.fill(marked).fills[0].text == "rn item"


def test_a_request_is_cancelled_even_while_the_gate_finds_out_what_the_file_was_like(tmp_path: Path) -> None:
    """Where a block's opener was cut out, that takes a dozen parses: a tenth of a second in a large file."""
    broken = (
        "def a():\n    y = 1\n    return y\n\n\ndef b():\n    ‸\n        y = 1\n    except ValueError:\n        pass\n"
    )
    asked: list[bool] = []
    bench = Bench(tmp_path, "try:")
    outcome = bench.fill(broken, stop=lambda: asked.append(True) or len(asked) > 3)
    assert (outcome.stopped, len(asked), bench.model.encoded) == ("cancelled", 4, 0)
