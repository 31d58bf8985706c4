"""Corpus text to training shards: the tokenizer, the holes, and flat id arrays the loop can slice.

Knows text, Python's `ast` and the `tokenizers` library; nothing of tensors, noise or models. Prefix, hole
and suffix of every hole are tokenised separately, exactly as they are at inference, so that the model meets
the same seams: inside a word, inside an indentation, after a newline.
"""

from __future__ import annotations

import ast
import json
import math
import random
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import SourceFile
from .prompt import open_end

SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<suf>", "<pre>", "<end>", "<del>")
"""Fixed ids 0..7; `RESERVED` more follow, so that later additions do not move the text's ids."""
RESERVED = 8
FIRST_TEXT_ID = len(SPECIALS) + RESERVED

_PRETOKEN = r"\r?\n[ \t]*| ?[\p{L}\p{M}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}_]{1,4}|[ \t]+|\s"
"""A newline keeps the indentation after it; everything else is a word, up to three digits, up to four signs."""

Ids = npt.NDArray[np.uint16]
Span = tuple[int, int, str]
"""Start and end byte of a hole, and its kind."""


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE with lossless round trip on any text; `vocabulary` counts the specials."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRETOKEN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = [*SPECIALS, *(f"<reserved{i}>" for i in range(RESERVED))]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in names],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of plain text; the names of special tokens inside it are text like any other."""
    tokenizer.encode_special_tokens = True
    return [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


# -- holes ------------------------------------------------------------------------------------------


def holes(source: bytes, count: int, weights: dict[str, float], longest: int, rng: random.Random) -> list[Span]:
    """`count` random holes of a parsable Python file, of the kinds in `weights`, at most `longest` bytes each.

    line      a statement's text on its line, from behind the indentation to the line's end
    rows      one to eight whole lines, indentation and last newline included (HumanEval-Infilling's cut)
    tail      from a place between two tokens to the end of the line
    inside    the same from inside a word
    node      an expression, argument list or other syntax node
    block     one to eight lines from behind the first one's indentation to the last one's end
    span      any stretch of text, its length log-uniform
    """
    lines = source.split(b"\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    nodes, prose = _nodes(source, starts, longest)
    prose |= {i for i, line in enumerate(lines) if line.lstrip().startswith(b"#")}
    code = [i for i, line in enumerate(lines) if line.strip() and (i not in prose or rng.random() < 0.1)]
    if not code:
        return []
    kinds, shares = list(weights), list(weights.values())
    found: list[Span] = []
    for _ in range(count * 4):
        if len(found) == count:
            break
        kind = rng.choices(kinds, shares)[0]
        row = rng.choice(code)
        indent = len(lines[row]) - len(lines[row].lstrip())
        start, end = starts[row] + indent, starts[row] + len(lines[row].rstrip())
        if kind == "rows":
            last = min(len(lines) - 1, row + _log_uniform(1, 8, rng) - 1)
            start, end = starts[row], min(starts[last + 1], len(source))
        elif kind == "block":
            last = code[min(len(code) - 1, code.index(row) + _log_uniform(1, 8, rng) - 1)]
            end = starts[last] + len(lines[last].rstrip())
        elif kind in {"tail", "inside"}:
            cuts = _cuts(source, start, end, inside=kind == "inside")
            if not cuts:
                continue
            start = rng.choice(cuts)
        elif kind == "node":
            if not nodes:
                continue
            start, end = rng.choice(nodes)
        elif kind == "span":
            start = rng.randrange(len(source))
            end = min(len(source), start + _log_uniform(2, longest, rng))
        if 0 < end - start <= longest and _whole(source, start) and _whole(source, end):
            found.append((start, end, kind))
    return found


def _log_uniform(low: int, high: int, rng: random.Random) -> int:
    return int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))


def _whole(source: bytes, at: int) -> bool:
    """True where a cut does not split a UTF-8 character."""
    return at >= len(source) or source[at] & 0xC0 != 0x80


def _cuts(source: bytes, start: int, end: int, inside: bool) -> list[int]:
    """Offsets in `start..end` inside words, or else between words and signs."""

    def word(at: int) -> bool:
        return source[at : at + 1].isalnum() or source[at] == 95 or source[at] >= 128

    return [at for at in range(start + 1, end) if (word(at - 1) and word(at)) == inside]


def _nodes(source: bytes, starts: list[int], longest: int) -> tuple[list[tuple[int, int]], set[int]]:
    """Byte ranges of expressions, argument lists and bodies of 2..`longest` bytes; rows of long strings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    found = []
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and (node.end_lineno or 0) > node.lineno:
            prose.update(range(node.lineno - 1, node.end_lineno or 0))  # docstrings: few want them filled
            continue
        if isinstance(node, (ast.expr, ast.arg, ast.keyword)) and node.end_lineno and node.end_col_offset:
            start = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            if isinstance(node, ast.Call):  # the argument list: what stands between the brackets
                open_at = starts[(node.func.end_lineno or 1) - 1] + (node.func.end_col_offset or 0) + 1
                if 2 <= end - 1 - open_at <= longest:
                    found.append((open_at, end - 1))
            if 2 <= end - start <= longest:
                found.append((start, end))
        elif isinstance(node, (ast.FunctionDef, ast.If, ast.For, ast.While, ast.With)):
            first, last = node.body[0], node.body[-1]
            start = starts[first.lineno - 1] + first.col_offset
            end = starts[(last.end_lineno or 1) - 1] + (last.end_col_offset or 0)
            if 2 <= end - start <= longest:
                found += [(start, end)] * 3  # rare among expressions, wanted often in an editor
    return found, prose


# -- shards -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shard:
    """Token ids of files and holes, flat. Hole `i` of file `f = hole_file[i]` reads:

    prefix  tokens[file_start[f] : hole_before[i]] + pieces[a:b]
    hole    pieces[b:c]
    suffix  pieces[c:d] + tokens[hole_after[i] : file_start[f + 1]]      with a, b, c, d = cuts[i]

    All offsets are int64 into `tokens` (uint16) or `pieces` (uint16). `hole_kind` indexes `KINDS`.
    """

    tokens: Ids
    file_start: npt.NDArray[np.int64]
    pieces: Ids
    cuts: npt.NDArray[np.int64]
    hole_file: npt.NDArray[np.int64]
    hole_before: npt.NDArray[np.int64]
    hole_after: npt.NDArray[np.int64]
    hole_kind: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.hole_file)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial.npz")
        with partial.open("wb") as out:
            np.savez(out, **{f.name: getattr(self, f.name) for f in fields(self)})
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> Shard:
        with np.load(path) as stored:
            return Shard(**{f.name: stored[f.name] for f in fields(Shard)})


KINDS = ("line", "rows", "tail", "inside", "node", "block", "span")


def build(
    files: Sequence[SourceFile],
    tokenizer: Tokenizer,
    weights: dict[str, float],
    tokens_per_hole: int,
    longest: int,
    longest_tokens: int,
    seed: int,
    healed: float = 0.0,
) -> Shard:
    """One shard of `files`; a hole for every `tokens_per_hole` tokens of text.

    `healed` is the share of holes that are cut as the engine asks for them: they begin with the word or line break
    before them (`prompt.open_end`), before which the prefix ends, and whole lines end before their last line break.
    """
    rng = random.Random(seed)
    draw = random.Random(seed)  # its own, so that the share moves no hole
    pieces_of = _token_bytes(tokenizer) if healed else []
    tokenizer.encode_special_tokens = True
    tokens: list[Ids] = []
    file_start = [0]
    pieces: list[Ids] = []
    cuts: list[list[int]] = []
    rows: list[tuple[int, int, int, int]] = []
    used = 0
    for number, file in enumerate(files):
        source = file.text.encode()
        encoded = tokenizer.encode(file.text, add_special_tokens=False)
        # where each line begins: (byte of the newline, index of its token)
        newline_bytes, newline_tokens = [0], [0]
        byte, char = 0, 0
        for index, (offset, piece) in enumerate(zip(encoded.offsets, encoded.tokens, strict=True)):
            if piece.startswith(("Ċ", "čĊ")):
                byte += len(file.text[char : offset[0]].encode())
                char = offset[0]
                newline_bytes.append(byte)
                newline_tokens.append(index)
        newline_bytes.append(len(source))
        newline_tokens.append(len(encoded.ids))
        texts: list[str] = []
        places: list[tuple[int, int, int]] = []
        wanted = max(1, len(encoded.ids) // tokens_per_hole)
        for begin, finish, kind in holes(source, wanted, weights, longest, rng):
            start, end = begin, finish
            before = max(0, bisect_right(newline_bytes, start - 1) - 1) if start else 0
            after = bisect_right(newline_bytes, end - 1)
            if healed and draw.random() < healed:
                line = source[newline_bytes[before] : begin]
                start = begin - len(open_end(line, lambda text: encode(tokenizer, [text.decode()])[0], pieces_of))
                if kind == "rows" and source[begin:end].endswith(b"\n") and end < len(source):
                    end -= 1  # the engine puts the last line break behind whole lines itself
                    after = bisect_right(newline_bytes, end - 1)
            texts += [
                source[newline_bytes[before] : start].decode(),
                source[start:end].decode(),
                source[end : newline_bytes[after]].decode(),
            ]
            places.append((newline_tokens[before], newline_tokens[after], KINDS.index(kind)))
        parts = encode(tokenizer, texts)
        base = file_start[-1]
        for i, (before_token, after_token, kind_index) in enumerate(places):
            three = parts[3 * i : 3 * i + 3]
            if not 1 <= len(three[1]) <= longest_tokens:
                continue
            bounds = [used]
            for part in three:
                pieces.append(np.array(part, dtype=np.uint16))
                used += len(part)
                bounds.append(used)
            cuts.append(bounds)
            rows.append((number, base + before_token, base + after_token, kind_index))
        tokens.append(np.array(encoded.ids, dtype=np.uint16))
        file_start.append(base + len(encoded.ids))
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return Shard(
        tokens=np.concatenate(tokens),
        file_start=np.array(file_start, dtype=np.int64),
        pieces=np.concatenate(pieces),
        cuts=np.array(cuts, dtype=np.int64).reshape(-1, 4),
        hole_file=table[:, 0],
        hole_before=table[:, 1],
        hole_after=table[:, 2],
        hole_kind=table[:, 3],
    )


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """What each token of a byte-level tokenizer stands for; b"" for what is no text by itself."""
    texts = (tokenizer.decode([id_]) for id_ in range(tokenizer.get_vocab_size()))
    return [text.encode() if "\ufffd" not in text else b"\xff" for text in texts]


def describe(shard: Shard) -> str:
    sizes = shard.cuts[:, 2] - shard.cuts[:, 1]
    kinds = {kind: int((shard.hole_kind == i).sum()) for i, kind in enumerate(KINDS)}
    return json.dumps(
        {"tokens": len(shard.tokens), "holes": len(shard), "kinds": kinds, "hole tokens": float(sizes.mean())}
    )
