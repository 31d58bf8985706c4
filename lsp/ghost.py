"""From a fill to ghost text: what is shown at the cursor, and what never is.

Knows nothing of LSP types, versions or the daemon. Nothing here may change text the user has typed: a fill
that would is not shown. Text is bytes (UTF-8) because all offsets are.
"""

from __future__ import annotations

from dataclasses import dataclass

from .document import END_OF_LINE

BLANKS = b" \t"
CLOSERS = frozenset(b")]}>\"'`")
LOOK_AHEAD = 8192
"""Bytes behind the cursor that are looked at; the rest of a large file is not worth copying."""
INERT_TAIL = frozenset(b":{;,")
BRACKETS = {0x29: 0x28, 0x5D: 0x5B, 0x7D: 0x7B}


@dataclass(frozen=True, slots=True)
class Ghost:
    """`insert` replaces `back` bytes before the cursor and `over` bytes behind it, all on the cursor's line.

    `back` is 0 but for indentation that differs from the fill's; what `over` covers, blanks aside, reappears
    in `insert`.
    """

    insert: bytes
    over: int = 0
    back: int = 0
    score: float = 0.0
    checked: bool = True
    fill: int = 0
    """The daemon's id of the request this came from, for feedback; 0 when unknown."""


def ghost(
    data: bytes, cursor: int, hole: tuple[int, int], text: str, *, score: float = 0.0, checked: bool = True
) -> Ghost | None:
    """The fill `text` of `hole` as ghost text at `cursor`, or None if it cannot be shown as such.

    It cannot when it changes what stands between the hole's start and the cursor, when it drops something
    behind the cursor, when it spans lines although the line goes on, or when nothing is left of it.
    """
    start, end = hole
    if not start <= cursor <= end:
        return None
    new = with_line_ending(text, line_ending(data)).encode()
    typed, back = data[start:cursor], 0
    if not new.startswith(typed):
        # A blank line gets the fill's own indentation in place of what an editor or the user put there.
        if typed.strip(BLANKS) or data[_line_start(data, start) : start].strip(BLANKS):
            return None
        typed, back = b"", len(typed)
    insert, over = without_common_tail(new[len(typed) :], data[cursor:end])
    after = data[cursor + len(over) : cursor + len(over) + LOOK_AHEAD]
    rest_of_line = END_OF_LINE.split(after, maxsplit=1)[0]
    if not checked:  # the gate has done this, and more, to a fill that it could check
        insert = _without_repeated_closers(_without_repeated_lines(insert, after), after)
    if not rest_of_line.strip():
        insert = insert.rstrip()
    if not insert.strip() or insert == over:
        return None
    if over and (b"\n" in over or b"\r" in over or not is_subsequence(over, insert)):
        return None
    if b"\n" in insert and not is_inert(rest_of_line):
        return None
    return Ghost(insert, len(over), back, score, checked)


def is_inert(rest_of_line: bytes) -> bool:
    """Whether text behind the cursor only closes what is open, so that ghost text before it makes sense."""
    rest = rest_of_line.strip()
    if rest and rest[-1] in INERT_TAIL:
        rest = rest[:-1].rstrip()
    return all(byte in CLOSERS for byte in rest)


def is_subsequence(few: bytes, many: bytes) -> bool:
    """Whether `many` has all of `few`, blanks aside, in the same order."""
    left = iter(many)
    return all(byte in left for byte in few if byte not in BLANKS)


def _line_start(data: bytes, offset: int) -> int:
    return max(data.rfind(b"\n", 0, offset), data.rfind(b"\r", 0, offset)) + 1


def line_ending(data: bytes) -> str:
    """The document's line ending, taken from its first line."""
    first = data.find(b"\n")
    return "\r\n" if first > 0 and data[first - 1] == 0x0D else "\n"


def with_line_ending(text: str, ending: str) -> str:
    text = text.replace("\r\n", "\n")
    return text if ending == "\n" else text.replace("\n", ending)


def without_common_tail(insert: bytes, over: bytes) -> tuple[bytes, bytes]:
    """Both without what they end in alike: it need not be replaced by itself."""
    same = 0
    while same < min(len(insert), len(over)) and insert[-1 - same] == over[-1 - same]:
        same += 1
    while same and insert[len(insert) - same] & 0xC0 == 0x80:  # never cut inside a character
        same -= 1
    return insert[: len(insert) - same], over[: len(over) - same]


def _without_repeated_lines(insert: bytes, after: bytes) -> bytes:
    """Drop whole lines at the end of the fill that stand right below it already, indentation included.

    Only lines with a word in them: two closing brackets in a row are ordinary code.
    """
    mine = insert.rstrip().split(b"\n")
    below = after.split(b"\n", 12)[1:12] if after.strip() else []
    while below and not below[0].strip():
        below.pop(0)
    for count in range(min(len(mine) - 1, len(below)), 0, -1):
        repeated = [line.rstrip() for line in mine[-count:]]
        if repeated == [line.rstrip() for line in below[:count]] and any(
            byte.isalnum() for line in repeated for byte in line.decode("utf-8", "ignore")
        ):
            return b"\n".join(mine[:-count]).rstrip()
    return insert


def _without_repeated_closers(insert: bytes, after: bytes) -> bytes:
    """Drop closing brackets at the end that the fill did not open and that follow the cursor already."""
    following = after.lstrip(b" \t")
    while insert and following and insert[-1] == following[0] and insert[-1] in BRACKETS:
        closer, opener = insert[-1], BRACKETS[insert[-1]]
        if insert.count(closer) <= insert.count(opener):
            break
        insert, following = insert[:-1], following[1:]
    return insert
