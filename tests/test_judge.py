"""Which of several candidates comes first."""

from stopgap.infill import holes, languages
from stopgap.infill.contract import FillRequest
from stopgap.infill.engine import STARTER
from stopgap.infill.judge import Judge
from stopgap.infill.syntax import Gate
from stopgap.infill.tokenizer import Tokenizer

SOURCE = b"def f(a):\n    pass\n"


def judge() -> Judge:
    source = holes.parse(SOURCE, languages.by_name("python"))
    at = SOURCE.index(b"pass")
    hole = holes.locate(source, FillRequest(SOURCE, "python", at, at + 4, "selection"))
    return Judge(Tokenizer(STARTER / "tokenizer.json"), Gate(source, hole), hole, b"", crlf=False)


def test_the_rank_decides_before_the_mean_that_is_shown() -> None:
    made = judge()
    for text in (b"return a", b"return a + a + a"):
        assert made.offer(made.tokenizer.encode(text), -1.0, "draft") is not None
    made.rescore({b"return a": (-0.9, -1.5), b"return a + a + a": (-0.6, -1.7)})
    assert [(one.text, one.score) for one in made.best()] == [(b"return a", -0.9), (b"return a + a + a", -0.6)]


def test_what_was_not_ranked_is_dropped_by_a_ranking() -> None:
    made = judge()
    for text in (b"return a", b"return 1"):
        made.offer(made.tokenizer.encode(text), -1.0, "draft")
    made.rescore({b"return 1": (-2.0, -2.0)})
    assert [one.text for one in made.best()] == [b"return 1"]
