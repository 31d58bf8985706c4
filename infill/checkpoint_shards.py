"""The safetensors files of one folder as one table of tensors, read a few rows at a time.

Knows no names of a model and no quantisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .model_config import ModelError
from .weights import CHECKPOINT, INDEX, read_json

RENEWED_AFTER = 1 << 28
"""Bytes read through mappings before they are made anew. Touched pages count as this process's memory until
then: without it, streaming 51.7 GB looks like using 51.7 GB."""

COMPARED = 1 << 24
"""Numbers compared at a time where one tensor should equal another."""

DENSE = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class SourceError(ModelError):
    """A checkpoint that cannot be imported as it stands; `str()` is one line with the remedy."""


class Stored(Protocol):
    """One tensor of a source, however it is packed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape when dense."""
        ...

    def read(self, rows: slice = slice(None)) -> Tensor:
        """The rows along axis 0, dense, bf16 or fp32, on the CPU; a copy."""
        ...


class Shards:
    """Shape, dtype (safetensors' name of it) and rows of every tensor in `paths`; raises `SourceError`."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.table: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()
        self._read = 0
        self.paths = tuple(paths)
        for path in self.paths:
            with _mapped(path) as file:
                for name in file.keys():  # noqa: SIM118
                    piece = file.get_slice(name)
                    if name in self.table:
                        raise SourceError(f"{name} is in {self.table[name][0].name} and in {path.name}; keep one")
                    self.table[name] = path, tuple(piece.get_shape()), piece.get_dtype()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.table[name][1]

    def dtype(self, name: str) -> str:
        return self.table[name][2]

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """Rows of the tensor as it is stored; a copy."""
        path, shape, _ = self.table[name]
        if self._read > RENEWED_AFTER:
            self._open, self._read = {}, 0
            self._stack.close()
        if (file := self._open.get(path)) is None:
            file = self._open[path] = self._stack.enter_context(_mapped(path))
        try:
            tensor: Tensor = (file.get_slice(name)[rows] if shape else file.get_tensor(name)).clone()
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{name} in {path} cannot be read ({error}); copy the file again") from None
        self._read += tensor.nbytes
        return tensor


def open_shards(folder: Path) -> Shards:
    """The checkpoint in `folder`: one file, or those that its index names, each with what the index says."""
    if not (folder / INDEX).is_file():
        return Shards([folder / CHECKPOINT])
    where = read_json(folder / INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(n, str) and n == Path(n).name for n in where.values()):
        raise SourceError(f"{folder / INDEX} holds no weight_map of file names; copy it again")
    shards = Shards(folder / name for name in sorted(set(where.values())))
    for name, file in where.items():
        if name not in shards.table or shards.table[name][0].name != file:
            raise SourceError(f"{folder / file} lacks {name}, which {INDEX} places there; copy both again")
    return shards


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that is stored as the numbers it means."""

    shards: Shards
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shards.shape(self.name)

    def read(self, rows: slice = slice(None)) -> Tensor:
        tensor = self.shards.read(self.name, rows)
        return tensor.float() if tensor.dtype == torch.float16 else tensor


def plain(shards: Shards, name: str) -> Plain:
    if shards.dtype(name) not in DENSE:
        raise SourceError(f"{name} is stored as {shards.dtype(name)} without scales; it cannot be read")
    return Plain(shards, name)


def split(shards: Shards, suffixes: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The stored names as {module: {suffix: name}} for those that end in one of `suffixes`, and all others."""
    modules: dict[str, dict[str, str]] = {}
    others = []
    known = sorted(suffixes, key=len, reverse=True)
    for name in shards.table:
        suffix = next((suffix for suffix in known if name.endswith(suffix)), None)
        if suffix is None:
            others.append(name)
        else:
            modules.setdefault(name.removesuffix(suffix), {})[suffix] = name
    return modules, others


def same(shape: tuple[int, ...], one: Callable[[slice], Tensor], other: Callable[[slice], Tensor]) -> bool:
    """Whether two tensors of one shape hold the same numbers, compared a few rows at a time."""
    step = max(1, COMPARED // max(1, math.prod(shape[1:])))
    spans = [slice(start, start + step) for start in range(0, shape[0], step)]
    return all(torch.equal(one(span).float(), other(span).float()) for span in spans)


def _mapped(path: Path) -> Any:
    if not path.is_file():
        raise SourceError(f"{path} is missing; copy or download the model again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is cut short or no safetensors file ({error}); copy it again") from None
