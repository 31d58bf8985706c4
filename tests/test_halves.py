"""What the text around a hole asks of it, without a parser."""

import pytest

from stopgap.infill.halves import missing


@pytest.mark.parametrize(
    ("language", "before", "after", "wanted"),
    [
        ("html", b"<div>\n<p a='>'>x</p>\n", b"\n<b>y</b>\n", [b"</div>"]),
        ("html", b"<br>\n", b"\n<b>y</b>\n</BODY>\n", [b"<BODY>"]),
        ("html", b"<div><img src=x>", b"</div>", [b"</div>", b"<div>"]),
        ("bash", b"cat <<EOF\na\n", b"\necho\n", [b"EOF"]),
        ("bash", b"cat <<EOF\na\nEOF\n", b"\necho\n", []),
        ("ruby", b"raise ", b"\n  text\nWARN\n", [b"<<-WARN"]),
        ("ruby", b"x = 1\n", b"\ny = <<~WARN\n  text\nWARN\n", []),
        ("python", b"<div>", b"\nWARN\n", []),
    ],
)
def test_the_half_that_is_missing(language: str, before: bytes, after: bytes, wanted: list[bytes]) -> None:
    assert missing(language, before, after) == wanted


def test_a_hundred_thousand_unclosed_brackets_and_quotes_take_no_time() -> None:
    assert missing("javascript", b"a <b '" * 20_000, b'a <b "' * 20_000) == []
