"""Ranges of whole lines around a place: its own with what hangs on them, then the blocks around, one by one.

By indentation, because the tree is broken where this is needed. Knows no tree and no fill.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .source import Source, blanks, line_end, line_start

_CLOSING = re.compile(rb"\s*([)\]}]|end\b|fi\b|done\b|esac\b|</)")
_HANGING = re.compile(
    rb"\s*([)\]}{]|</|(end|fi|done|esac|else|elif|elsif|elseif|except|finally|catch|rescue|ensure|then|do)\b)"
)
"""How a line begins that belongs to the lines above it though it stands no deeper."""


def surroundings(source: Source, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Growing ranges around `start..end`, up to the outermost block.

    The flag says that the range goes beyond the line that opens the block around, so that it holds more than the
    statement.
    """
    text = source.text
    low, high = line_start(text, start), line_end(text, end)
    opener = re.compile(source.language.opener)
    deep = len(blanks(text[low:high]))
    if not text[low:high].strip() or _CLOSING.match(text[low:high]):
        above = low
        while above > 0:  # a closing line, or where one is missing: its block hangs on it
            above = line_start(text, above - 1)
            line = text[above : line_end(text, above)]
            if line.strip() and len(blanks(line)) <= deep:
                low = above if len(blanks(line)) == deep else low
                break
    beyond = False
    for _ in range(12):
        while high < len(text):  # what stands deeper belongs to it, and a closing line ends it
            begin = text.find(b"\n", high) + 1 or len(text)
            stop = line_end(text, begin)
            line = text[begin:stop]
            if line.strip() and len(blanks(line)) <= deep:
                if len(blanks(line)) < deep or not _HANGING.match(line):
                    break
                high = stop
                if not opener.search(line.decode("utf-8", "replace").rstrip()):
                    break
            high = stop
        yield low, high, beyond
        head = low
        while head > 0 and deep > 0:  # up to the line it hangs on
            head = line_start(text, head - 1)
            line = text[head : line_end(text, head)]
            if line.strip() and len(blanks(line)) < deep:
                break
        else:
            return
        if opener.search(line.decode("utf-8", "replace").rstrip()):
            beyond = True
        low, deep = head, len(blanks(line))
