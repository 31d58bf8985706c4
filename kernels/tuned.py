"""Block sizes measured on a kind of GPU (`make gpu`): one file for each beside this one, in `data`.

Knows torch, for the GPU's name, and those files; no kernel. Where there is no file, or no entry for a size, what is
built into the kernels holds (`matmul_triton.TABLE`, `experts_triton.CUTS`); `stopgap status` says which.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from .path import PathError, chosen

FOLDER = Path(__file__).parent / "data"
TILE = 16
"""Rows of a program of the experts: 32 tokens of 8 among 128 leave two or three to an expert, 256 tokens sixteen."""
ANY = 1 << 30
"""As many rows or outputs as one likes."""


class Blocks(NamedTuple):
    """How a product is cut: rows and outputs of one program, slices of `GROUP` inputs that its warps take side by side
    (1: the warps share one), warps, and stages of the copy pipeline."""

    rows: int
    outputs: int
    slices: int
    warps: int
    stages: int


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was measured on one kind of GPU; empty where nothing was."""

    source: Path | None = None
    products: Mapping[tuple[int, int], Blocks] = field(default_factory=dict)
    """By rows up to and outputs up to, as in `matmul_triton.TABLE`"""
    experts: Mapping[tuple[int, bool], Blocks] = field(default_factory=dict)
    """By bits and fullness, as in `experts_triton.CUTS`"""

    def __str__(self) -> str:
        return f"block sizes of {self.source.name}" if self.source else "built-in block sizes"


@cache
def of(device: torch.device) -> Tuned:
    """The file of `device`'s kind, read once. Raises `PathError` with what is wrong in it."""
    path = FOLDER / file_name(*kind(device))
    return read(path) if path.exists() else Tuned()


def described(device: torch.device) -> str:
    """For people: the path that kernels take on `device`, and whose block sizes. Raises `PathError`."""
    path = chosen(device)
    return f"{path} ({of(device)})" if path == "triton" else path


def kind(device: torch.device) -> tuple[str, str]:
    """Name and compute capability; on a CPU it is Triton's interpreter that runs."""
    if device.type != "cuda":
        return "interpreter", ""
    facts = torch.cuda.get_device_properties(device)
    return facts.name, f"{facts.major}{facts.minor}"


def file_name(title: str, capability: str) -> str:
    """ "nvidia-h200-sm90.toml" """
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"{slug}-sm{capability}.toml" if capability else f"{slug}.toml"


def read(path: Path) -> Tuned:
    """What `write` wrote. Raises `PathError`, one line."""
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := whole.keys() - {"products", "experts"}:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        products, experts = {}, {}
        for entry in whole.get("products", []):
            limits = entry.pop("up_to_rows", ANY), entry.pop("up_to_outputs", ANY)
            products[limits] = _checked(entry)
        for entry in whole.get("experts", []):
            key = entry.pop("bits"), entry.pop("full")
            experts[key] = _checked(entry)
            if experts[key].rows != TILE:
                raise ValueError(f"experts have {TILE} rows, not {experts[key].rows}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise PathError(f"block sizes in {path}: {said}; delete the file, or make it again with `make gpu`") from None
    return Tuned(path, products, experts)


def write(path: Path, found: Tuned, about: str) -> None:
    """As `read` reads it; `about` is one line on where it comes from."""
    lines = [f"# {about}"]
    for (rows, outputs), cut in found.products.items():
        limits = {"up_to_rows": rows, "up_to_outputs": outputs}
        lines += _entry("products", {name: most for name, most in limits.items() if most != ANY}, cut)
    for (bits, full), cut in found.experts.items():
        lines += _entry("experts", {"bits": bits, "full": str(full).lower()}, cut)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _entry(table: str, key: Mapping[str, object], cut: Blocks) -> list[str]:
    return ["", f"[[{table}]]", *(f"{name} = {value}" for name, value in {**key, **cut._asdict()}.items())]


def _checked(entry: Mapping[str, object]) -> Blocks:
    if entry.keys() != set(Blocks._fields):
        raise ValueError(f"an entry has {', '.join(sorted(entry))}, not {', '.join(Blocks._fields)}")
    for name, value in entry.items():
        if type(value) is not int or not 1 <= value <= 256 or (value & (value - 1) and name != "stages"):
            raise ValueError(f"{name} = {value!r} is no power of two up to 256")
    found = Blocks(**{name: int(str(value)) for name, value in entry.items()})
    if found.rows < 16 or found.outputs < 16 or found.warps > 16 or found.stages > 8:
        raise ValueError(f"{found} cannot run: rows and outputs from 16 on, up to 16 warps and 8 stages")
    if found.slices not in (1, found.warps):
        raise ValueError(f"{found} cannot run: slices are one, or one for each warp")
    return found
