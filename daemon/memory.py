"""Memory of this process and of the device: how much, how to give it back, how errors about it look.

Knows nothing of requests, nor how a device is asked about itself (`infill.devices`). torch is looked at only if an
engine has loaded it, so that asking costs nothing.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    rss: int
    device: int


def memory() -> Memory:
    """What this process holds right now."""
    try:
        rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        import resource

        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    devices = _devices()
    device = devices.in_use() if devices else None
    return Memory(rss, devices.held_memory(device) if device else 0)


def describe(error: BaseException) -> str:
    """Type and places of an exception without its text, which may quote the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"


def is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # torch on a CPU and on Apple's GPUs
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "MPS backend out of memory")
    )


def is_device_lost(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def forget_frames(error: BaseException) -> None:
    """A traceback keeps every tensor of the failed step alive, which is what memory is short of."""
    traceback.clear_frames(error.__traceback__)


def free_device_bytes() -> int | None:
    """What any process could take of the accelerator in hand; None without one."""
    devices = _devices()
    device = devices.in_use() if devices else None
    return int(devices.unclaimed_memory(device)) if device else None


def set_aside() -> None:
    """Takes what there is, modules and a model just loaded, out of the sight of garbage collections until `trim`.

    They walked 174,000 objects in 77 ms. Worse, Python waits until a quarter as many are new: hundreds of broken
    connections, each of which lies in a reference cycle with the last sources it sent.
    """
    gc.freeze()


def trim() -> None:
    """Gives freed memory back to the system, so that `status` shows what another program can have."""
    gc.unfreeze()
    gc.collect()
    set_aside()
    devices = _devices()
    if devices and (device := devices.in_use()):
        devices.give_back(device)
    _trim_heap()


def tidy() -> None:
    """What `trim` does, in a few ms and without what was set aside: for after some work."""
    gc.collect()
    _trim_heap()


def _trim_heap() -> None:
    """Gives back what the C allocator keeps between the sources of thousands of requests: a few MB, in under 1 ms."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has none, and keeps little
            ctypes.CDLL(None).malloc_trim(0)


def _devices() -> Any:
    """The module if an engine has loaded it, else None: importing it would import torch."""
    return sys.modules.get("stopgap.infill.devices")
