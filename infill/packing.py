"""The weights file of a packed model while it is being written, piece by piece, and the journal of what is finished.

Knows no checkpoint and no layer: names, shapes and kinds come from `packed.plan`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stopgap.kernels.quantised import Int4Groups, Int8Rows

from .files import write_whole
from .model_config import ModelError
from .packed import Entry, Kind, Part, Record, layout, record_from, size

JOURNAL = "journal.jsonl"
ROUNDED_AT_ONCE = 1 << 20
"""Weights rounded at a time, few enough to stay in the processor's cache."""
SAFE_AFTER = 1 << 28
"""Bytes written until the disk is waited for: what a kill loses at most, besides the weight that was being written."""


class Packing:
    """Writes `entries` into the file at `path`, beside a journal in the folder `beside`; a context manager.

    `identity` names what is being packed. A journal of the same says what the file holds already, whatever became of
    the process that wrote it: a line is written when its weight is safe on the disk, and only whole lines count.
    """

    def __init__(self, beside: Path, path: Path, entries: Mapping[str, Entry], identity: str) -> None:
        self.entries = entries
        self.records: dict[str, Record] = {}
        self.total = sum(math.prod(entry.shape) for entry in entries.values())
        self.done = 0
        self._unsafe: list[str] = []
        first, self._parts = layout(entries)
        self._whole = size(entries)
        journal, head = beside / JOURNAL, {"packing": identity}
        known = _whole_lines(journal)
        # A journal of another source, other bits or another version is worth nothing, and so is its file.
        if known and known[0] == head and path.is_file() and path.stat().st_size == self._whole:
            self.records = {line["name"]: record_from(line) for line in known[1:]}
            self.done = sum(math.prod(entries[name].shape) for name in self.records)
        else:
            journal.unlink(missing_ok=True)
            with path.open("wb") as file:
                file.write(first)
                file.truncate(self._whole)
                os.fsync(file.fileno())
        lines = [head, *({"name": name} | asdict(record) for name, record in self.records.items())]
        write_whole(journal, "".join(json.dumps(line) + "\n" for line in lines))
        self._journal = journal.open("a", encoding="utf-8")
        self._file: BinaryIO = path.open("r+b")

    def __enter__(self) -> Packing:
        return self

    def __exit__(self, *_: object) -> None:
        with self._journal, self._file:
            self._secure()

    @property
    def missing_bytes(self) -> int:
        """Still to be written."""
        return self._whole - sum(record.nbytes for record in self.records.values())

    def lacks(self, names: Iterable[str]) -> bool:
        return any(name not in self.records for name in names)

    def put(self, wanted: Container[str], weights: Iterable[tuple[str, Tensor]]) -> Iterator[str]:
        """Write the `wanted` ones of `weights`, fp32, which may come piece by piece along their first axis.

        Yields the name after each piece; none of them counts as written before all are.
        """
        begun: dict[str, _Rounding] = {}
        for name, piece in weights:
            if name in wanted and name not in self.records:
                rounding = begun.setdefault(name, _Rounding(name, self.entries[name], self._parts[name]))
                rounding.write(self._file, piece)
                self.done += piece.numel()
                yield name
        self.records |= {name: rounding.record() for name, rounding in begun.items()}
        self._unsafe += begun
        if sum(self.records[name].nbytes for name in self._unsafe) >= SAFE_AFTER:
            self._secure()

    def _secure(self) -> None:
        """Wait for the disk, then tell the journal."""
        self._file.flush()
        os.fsync(self._file.fileno())
        lines = ({"name": name} | asdict(self.records[name]) for name in self._unsafe)
        self._journal.write("".join(json.dumps(line) + "\n" for line in lines))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._unsafe.clear()


class _Rounding:
    """One weight on its way into the file."""

    def __init__(self, name: str, entry: Entry, parts: tuple[Part, ...]) -> None:
        self.name, self.entry, self.parts = name, entry, parts
        self.places = [part.start for part in parts]
        self.digests = [hashlib.sha256() for _ in parts]
        self.missed, self.square = 0.0, 0.0

    def write(self, file: BinaryIO, piece: Tensor) -> None:
        width = piece.shape[-1]
        for rows in torch.split(piece.reshape(-1, width), max(1, ROUNDED_AT_ONCE // width)):
            stored, back = _round(self.entry.kind, rows)
            self.missed += float((back - rows).square_().sum())
            self.square += float(rows.square().sum())
            for index, tensor in enumerate(stored):
                data = as_bytes(tensor)
                file.seek(self.places[index])
                file.write(data)
                self.digests[index].update(data)
                self.places[index] += len(data)

    def record(self) -> Record:
        if self.places != [part.end for part in self.parts]:
            raise ModelError(f"{self.name} came in another size than config.json asks for")
        error = math.sqrt(self.missed / self.square) if self.square else 0.0
        nbytes = sum(part.end - part.start for part in self.parts)
        return Record(self.entry.kind, nbytes, error, tuple(digest.hexdigest() for digest in self.digests))


def _round(kind: Kind, rows: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """What is stored of fp32 rows, and the fp32 rows it stands for."""
    if kind == "bf16":
        rounded = rows.to(torch.bfloat16)
        return (rounded,), rounded.float()
    of = Int4Groups.of(rows) if kind == "int4" else Int8Rows.of(rows)
    return (of.codes, of.scale), of.dense(torch.float32)


def as_bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The journal up to where the power went."""
    lines: list[dict[str, Any]] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            lines.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return lines
