"""A checkpoint of any kind into a packed model, a few experts at a time, so that 52 GB pass through a small host.

Everything is written beside the target, into `<name>.partial`: the weights file, whose size is known from config.json
alone, and a journal with a line for every finished weight. A killed import goes on behind the journal's last whole
line; what was being written then is written again. The model appears under its name when it is complete, by renaming.
Knows no foreign format (`checkpoints`) and no clock of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .checkpoints import Source
from .files import write_whole
from .layers import (
    BEFORE_EXPERTS,
    DOWN,
    EXPERT_SCALE,
    GATE_UP,
    Dense,
    Layer,
    Mixture,
    pack_layer,
    pack_mixture,
    pack_self_conditioning,
)
from .model_config import DECODER, ENCODER, ModelConfig, ModelError, expected_shapes
from .packed import MANIFEST, WEIGHTS, Bits, Manifest, plan, sha256
from .packing import Packing, as_bytes

READ_AT_ONCE = 1 << 24
"""Weights read, folded and held in fp32 at a time where a tensor can be cut: two experts' worth of the 26B and more."""
SPARE = 64 << 20
"""Bytes left free on the disk."""


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` weights; `left` is the expected time in seconds, None at first. `name` was written last."""

    done: int
    total: int
    left: float | None
    name: str


@dataclass(frozen=True, slots=True)
class Report:
    """An import that succeeded. `resumed` weights of `total` were there from an earlier, interrupted one."""

    folder: Path
    manifest: Manifest
    seconds: float
    total: int
    resumed: int
    skipped: tuple[str, ...]


def import_model(
    source: Source,
    out: Path,
    bits: Bits,
    *,
    clock: Callable[[], float],
    progress: Callable[[Progress], None] = lambda _: None,
    origin: str = "",
) -> Report:
    """Pack `source` into the folder `out`, which must not exist, and go on where an interrupted call stopped.

    clock: seconds. origin: what the user calls the source, for the manifest. Raises `ModelError` in one line; what is
    finished by then is kept for the next call.
    """
    start = clock()
    if out.exists():
        raise ModelError(f"{out} exists already: remove that model or choose another name")
    config = ModelConfig.from_dict(source.config)
    _check(source, config)
    entries = plan(config, bits)
    partial = _partial(out)
    folder = partial / "model"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(partial / "lock", timeout=0):
            with Packing(partial, folder / WEIGHTS, entries, _identity(source, bits)) as packing:
                resumed = packing.done
                _check_disk(out, packing.missing_bytes)
                for name in _pack(source, config, packing):
                    new, missing = packing.done - resumed, packing.total - packing.done
                    progress(Progress(packing.done, packing.total, (clock() - start) * missing / new, name))
            manifest = Manifest(
                bits=bits,
                source=f"{origin or 'unnamed'} ({source.kind})",
                scalars=tuple(_scalars(source, index) for index in range(len(config.layers))),
                files=_carry(source, config, folder, out.name),
                tensors=packing.records,
            )
            write_whole(folder / MANIFEST, manifest.to_json())
        folder.rename(out)
        shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise ModelError(f"another import is writing {partial}: wait for it or choose another name") from None
    except OSError as error:
        raise ModelError(
            f"{out.name} is not imported yet ({error}): mend that and run the same command, it goes on from here"
        ) from None
    return Report(out, manifest, clock() - start, packing.total, resumed, tuple(source.skipped))


def discard(out: Path) -> bool:
    """Remove what an interrupted import of `out` left; whether there was anything."""
    found = _partial(out).exists()
    shutil.rmtree(_partial(out), ignore_errors=True)
    return found


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _check(source: Source, config: ModelConfig) -> None:
    expected, found = expected_shapes(config), source.tensors
    if missing := [name for name in expected if name not in found]:
        raise ModelError(f"the weights lack {missing[0]}: they do not belong to this config.json")
    if unknown := [name for name in found if name not in expected]:
        raise ModelError(f"the weights hold {unknown[0]}, which config.json has no place for")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise ModelError(f"{name} has the shape {list(found[name])}, but config.json asks for {list(shape)}")


def _check_disk(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if needed + SPARE > free:
        raise ModelError(
            f"the disk of {out.parent} has {free / 1e9:.1f} GB free and {(needed + SPARE) / 1e9:.1f} GB are needed: "
            "free some, or choose fewer bits"
        )


def _identity(source: Source, bits: Bits) -> str:
    """Tells this import from others: by size and time of every file that is read, an adapter's too, and by a little
    of every tensor but the experts, should a fine-tune have come with the old times."""
    facts = [own.stat() for own in source.origins]
    stamps = [(own.st_size, own.st_mtime_ns) for own in facts]
    digest = hashlib.sha256(json.dumps([bits, source.kind, dict(source.config), stamps], sort_keys=True).encode())
    for name, shape in source.tensors.items():
        if len(shape) < 3:
            digest.update(as_bytes(_read(source, name, slice(0, 1) if len(shape) == 2 else slice(None))))
    return digest.hexdigest()


def _read(source: Source, name: str, rows: slice = slice(None)) -> Tensor:
    """Rows in fp32; raises `ModelError` naming the tensor that cannot be read or holds no numbers."""
    try:
        tensor = source.read(name, rows).float()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{name} cannot be read: {error}") from None
    if not tensor.sum().isfinite():
        raise ModelError(f"{name} holds numbers that are not finite: the file is damaged, or the model is")
    return tensor


def _below(source: Source, prefix: str, leave: tuple[str, ...] = ()) -> dict[str, Tensor]:
    names = [name.removeprefix(prefix) for name in source.tensors if name.startswith(prefix)]
    return {name: _read(source, prefix + name) for name in names if name not in leave}


def _pack(source: Source, config: ModelConfig, packing: Packing) -> Iterator[str]:
    """Write all that is missing; yields names as it goes."""
    for index in range(len(config.layers)):
        at = f"layers.{index}"
        own = {name for name in packing.entries if name.startswith(f"{at}.")}
        streamed = own & {f"{at}.mixture.gate_up", f"{at}.mixture.down"}
        if packing.lacks(own - streamed):
            yield from packing.put(own - streamed, _named(_layer(source, config, index), at))
        if packing.lacks(streamed):
            yield from packing.put(streamed, _experts(source, config, index))
    conditioning = {name for name in packing.entries if name.startswith("self_conditioning.")}
    if packing.lacks(conditioning):
        packed = pack_self_conditioning(_below(source, f"{DECODER}self_conditioning."))
        yield from packing.put(conditioning, _named(packed, "self_conditioning"))
    for name, stored in (("norm", f"{DECODER}norm.weight"), ("embedding", f"{DECODER}embed_tokens.weight")):
        if packing.lacks({name}):
            rows, width = source.tensors[stored][0], math.prod(source.tensors[stored][1:])
            yield from packing.put({name}, ((name, _read(source, stored, some)) for some in _slices(rows, width)))


def _layer(source: Source, config: ModelConfig, index: int) -> Layer:
    """The layer; without experts if they are many."""
    prefix = f"{DECODER}layers.{index}."
    leave = (GATE_UP, DOWN) if config.num_experts > 1 else ()
    raw = _below(source, prefix, leave)
    raw["encoder.layer_scalar"] = _read(source, f"{ENCODER}layers.{index}.layer_scalar")
    if leave:
        raw |= {name: torch.empty(0, *source.tensors[prefix + name][1:]) for name in leave}
        raw[EXPERT_SCALE] = raw[EXPERT_SCALE][:0]
    return pack_layer(raw, config, index)


def _experts(source: Source, config: ModelConfig, index: int) -> Iterator[tuple[str, Tensor]]:
    """The layer's mixture, a few experts at a time."""
    prefix = f"{DECODER}layers.{index}."
    names = (BEFORE_EXPERTS, EXPERT_SCALE, "router.proj.weight", "router.scale")
    raw = {name: _read(source, prefix + name) for name in names}
    each = sum(math.prod(source.tensors[prefix + name][1:]) for name in (GATE_UP, DOWN))
    for some in _slices(config.num_experts, each):
        cut = {name: _read(source, prefix + name, some) for name in (GATE_UP, DOWN)}
        cut[EXPERT_SCALE] = raw[EXPERT_SCALE][some]
        yield from _named(pack_mixture(raw | cut, config), f"layers.{index}.mixture")


def _slices(rows: int, width: int) -> Iterator[slice]:
    """`rows` of `width` weights each in runs of `READ_AT_ONCE` weights."""
    step = max(1, READ_AT_ONCE // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _scalars(source: Source, index: int) -> tuple[float, float]:
    encoder, decoder = (float(_read(source, f"{side}layers.{index}.layer_scalar")) for side in (ENCODER, DECODER))
    return encoder, decoder


def _named(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every weight below `value` by the path that `packed.plan` gives it, matrices by output row."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Dense):
        yield name, value.weight.mT
    elif isinstance(value, Mixture):
        for field in ("router", "gate_up", "down"):
            yield f"{name}.{field}", getattr(value, field).mT
    elif is_dataclass(value):
        for own in fields(value):
            yield from _named(getattr(value, own.name), f"{name}.{own.name}")


def _carry(source: Source, config: ModelConfig, folder: Path, name: str) -> Mapping[str, str]:
    """Write every file but weights and manifest; returns their checksums."""
    card: dict[str, object] = {"family": "instruct", "canvas_length": config.canvas_length}
    written = ["config.json", "stopgap.json"]
    for path in source.files:
        if path.name == "stopgap.json":
            card = json.loads(path.read_text(encoding="utf-8"))
        elif path.name not in (WEIGHTS, MANIFEST, "config.json"):
            shutil.copyfile(path, folder / path.name)
            written.append(path.name)
    write_whole(folder / "config.json", json.dumps(dict(source.config), indent=1) + "\n")
    write_whole(folder / "stopgap.json", json.dumps(card | {"name": name}, indent=1) + "\n")
    return {name: sha256(folder / name) for name in sorted(written)}
