"""Ids and bytes: exact both ways, for the byte-level kind and for the byte-fallback kind."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import SPECIALS, byte_tokenizer

from stopgap.infill.contract import FillError
from stopgap.infill.tokenizer import Tokenizer

EVERYTHING_LOCAL = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)


def fallback_tokenizer(folder: Path) -> Tokenizer:
    """Gemma's kind at tiny size: spaces become ▁, what has no token falls back to bytes."""
    pieces = ["<pad>", "<eos>", "▁", "▁▁", "x", "=", "▁x", "é", "\n"]
    vocab = {piece: i for i, piece in enumerate(pieces)} | {f"<0x{b:02X}>": len(pieces) + b for b in range(256)}
    layout = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": p, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, p in enumerate(pieces[:2])],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None, "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": [["▁", "▁"], ["▁", "x"]]},
    }  # fmt: skip
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(layout), encoding="utf-8")
    return Tokenizer(path)


@EVERYTHING_LOCAL
@given(text=st.text())
@pytest.mark.parametrize("make", [byte_tokenizer, fallback_tokenizer])
def test_any_text_comes_back_byte_for_byte(make, tmp_path: Path, text: str) -> None:  # type: ignore[no-untyped-def]
    text = text.replace("▁", "")  # Gemma's own stand-in for a space cannot be told from one
    tokenizer = make(tmp_path)
    assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()


def test_markers_in_a_users_file_stay_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    ids = tokenizer.encode(b"a<suf>b")
    assert tokenizer.decode(ids) == b"a<suf>b"
    assert tokenizer.special["<suf>"] not in ids


def test_special_ids_add_nothing_to_the_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path)
    assert tokenizer.decode(range(len(SPECIALS))) == b""


def test_spans_map_slots_to_bytes(tmp_path: Path) -> None:
    tokenizer = fallback_tokenizer(tmp_path)
    ids = tokenizer.encode("x  é".encode())
    assert [tokenizer.token_bytes[i] for i in ids] == [b"x", b"  ", "é".encode()]
    assert tokenizer.spans(ids) == [(0, 1), (1, 3), (3, 5)]


def test_healing_finds_every_token_that_continues_the_typed_word(tmp_path: Path) -> None:
    tokenizer = fallback_tokenizer(tmp_path)
    found = {tokenizer.token_bytes[i] for i in tokenizer.starting_with(b" ")}
    assert found == {b" ", b"  ", b" x"}


@pytest.mark.parametrize("start", [b"", b" ", b"x", b"\xc3", "é".encode(), b"\xff", b" y"])
def test_healing_finds_what_a_look_at_every_token_finds(tmp_path: Path, start: bytes) -> None:
    tokenizer = fallback_tokenizer(tmp_path)
    every = [i for i, piece in enumerate(tokenizer.token_bytes) if piece and piece.startswith(start)]
    assert tokenizer.starting_with(start) == every


@pytest.mark.parametrize(("content", "says"), [(None, "is missing"), ("{", "not a readable tokenizer.json")])
def test_a_bad_tokenizer_file_is_one_clear_line(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FillError, match=says) as error:
        Tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(error.value)
