"""What the text around a hole says it must hold: the other half of a pair that only the pair itself repairs.

A heredoc without its opener or its end, an element without its other tag, a long string, comment or fence with one end
only: a parser misses them as far away as the
root, so that every fill looks as bad as no fill. Knows no tree and no hole.
"""

from __future__ import annotations

import re

_HEREDOCS = {"bash": b"<<", "php": b"<<<", "ruby": b"<<-"}
_HEREDOC = re.compile(rb"<<[-~<]?[ \t]*([\"']?)(\w+)\1")
_HEREDOC_END = re.compile(rb"\n[ \t]*([A-Z][A-Z\d_]+)\b[);,]*[ \t]*\r?$", re.MULTILINE)
_FENCES = {"python": b'"""', "markdown": b"```"}
_TAGGED = frozenset({"html", "javascript", "tsx"})
_TAG = re.compile(rb"<(/?)([A-Za-z][\w.:-]*)(?:[^<>\"']|\"[^\"]{0,200}\"|'[^']{0,200}'){0,200}?(/?)>")
VOID = frozenset(b"area base br col embed hr img input link meta source track wbr".split())


def missing(language: str, before: bytes, after: bytes) -> list[bytes]:
    """Texts between `before` and `after` that would complete such a pair, likeliest first; mostly none."""
    found: list[bytes] = []
    if language in _TAGGED:
        found += [b"</" + name + b">" for name in _lone_tags(before[-65536:])[0][-1:]]
        found += [b"<" + name + b">" for name in _lone_tags(after[:65536])[1][:1]]
    if language in _HEREDOCS:
        found += filter(None, (_heredoc_opener(language, after[:4096]), _open_heredoc(before)))
    if (mark := _FENCES.get(language)) and (before.count(mark) + after.count(mark)) % 2:
        found += [mark, b"x" + mark]
    return found


def _open_heredoc(before: bytes) -> bytes:
    """The word that ends the heredoc in which a text stops, b"" where it stops in none.

    Cut out, that word takes the rest of the file into the heredoc, and nothing but itself repairs that.
    """
    found = list(_HEREDOC.finditer(before, max(0, len(before) - 16384)))
    if not found:
        return b""
    word = found[-1][2]
    body = before[found[-1].end() :].split(b"\n")[1:-1]
    return word if not any(line.strip().rstrip(b";),") == word for line in body) else b""


def _heredoc_opener(language: str, after: bytes) -> bytes:
    """The opener of a heredoc whose end stands in what follows, b"" where a line of one capital word does not."""
    found = _HEREDOC_END.search(after)
    if found is None or any(one[2] == found[1] for one in _HEREDOC.finditer(after, 0, found.start())):
        return b""
    return _HEREDOCS[language] + found[1]


def _lone_tags(text: bytes) -> tuple[list[bytes], list[bytes]]:
    """Names of the elements that a text begins and does not end, and of those it ends and did not begin.

    Cut out, the other tag of the pair is missed as far away as the root.
    """
    begun: list[bytes] = []
    ended: list[bytes] = []
    for found in _TAG.finditer(text):
        closing, name, empty = found.groups()
        if not closing:
            begun += [] if empty or name.lower() in VOID else [name]
        elif (at := next((i for i, one in reversed([*enumerate(begun)]) if one.lower() == name.lower()), -1)) >= 0:
            del begun[at:]
        else:
            ended.append(name)
    return begun, ended
