"""Text to ids and back, in bytes, for byte-level BPE (the starter) and byte-fallback BPE (Gemma).

Knows the tokenizer.json of one model; nothing of prompts, holes or torch. Ids always decode to the exact
bytes they stand for, one token at a time, so that a slot of the canvas maps to a byte range of the fill.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as Library

from .contract import FillError

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The printable stand-ins byte-level BPE uses for the 256 bytes (GPT-2's table)."""
    keep = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in keep}
    others = (byte for byte in range(256) if byte not in set(keep))
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """One model's tokenizer. `token_bytes[id]` is what a token adds to the text; b"" for special ids."""

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            self._library = Library.from_str(text)
            layout = json.loads(text)
        except FileNotFoundError:
            raise FillError(f"{path} is missing: the model folder needs a tokenizer.json") from None
        except Exception as error:  # the Rust side raises plain Exception for anything it cannot read
            raise FillError(f"{path} is not a readable tokenizer.json: {error}") from None
        # With special tokens left as text a user's file that contains "<suf>" would become a marker.
        self._library.encode_special_tokens = True
        self.special: dict[str, int] = {
            token["content"]: token["id"] for token in layout["added_tokens"] if token["special"]
        }
        byte_level = (layout.get("decoder") or {}).get("type") == "ByteLevel"
        alphabet = _byte_level_alphabet()
        special_ids = set(self.special.values())
        self.token_bytes: list[bytes] = [b""] * self._library.get_vocab_size()
        for token, id_ in self._library.get_vocab().items():
            if id_ in special_ids:
                continue
            if byte_level:
                self.token_bytes[id_] = bytes(alphabet[char] for char in token)
            elif match := _BYTE_FALLBACK.fullmatch(token):
                self.token_bytes[id_] = bytes([int(match[1], 16)])
            else:
                self.token_bytes[id_] = token.replace("▁", " ").encode()

        # Asked for at every request: scanning the 262,144 tokens of the real model there would cost tens of ms.
        self.newlines = frozenset(i for i, piece in enumerate(self.token_bytes) if b"\n" in piece)
        self.blanks = frozenset(i for i, piece in enumerate(self.token_bytes) if not piece.strip())
        self._sorted = sorted((piece, i) for i, piece in enumerate(self.token_bytes) if piece)

    def __len__(self) -> int:
        return len(self.token_bytes)

    def encode(self, text: bytes) -> list[int]:
        """Ids of `text` (valid UTF-8) without any special id; decodes to exactly `text`."""
        ids: list[int] = self._library.encode(text.decode("utf-8"), add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; special ids add nothing; may end inside a UTF-8 character."""
        return b"".join(self.token_bytes[id_] for id_ in ids)

    def spans(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Byte range of each id within `decode(ids)`."""
        out: list[tuple[int, int]] = []
        position = 0
        for id_ in ids:
            out.append((position, position + len(self.token_bytes[id_])))
            position = out[-1][1]
        return out

    def bytes_per_token(self, text: bytes) -> float:
        """How many bytes of text like that near the end of `text` one token stands for.

        Measured on the 600 bytes before a multiple of 512, so that typing seldom moves what is cut by it.
        """
        end = len(text) // 512 * 512 or len(text)
        sample = text[max(0, end - 600) : end].decode(errors="ignore").encode()
        return max(1.0, len(sample) / len(self.encode(sample))) if sample.strip() else 3.0

    def starting_with(self, text: bytes) -> list[int]:
        """Ids whose bytes begin with `text` (itself included): what a healed first slot may hold."""
        first = bisect_left(self._sorted, text, key=lambda entry: entry[0])
        behind = bisect_right(self._sorted, text, lo=first, key=lambda entry: entry[0][: len(text)])
        return sorted(id_ for _, id_ in self._sorted[first:behind])
