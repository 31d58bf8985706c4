"""Memory of this process and of the device: how much, how to give it back, how errors about it look.

Knows nothing of requests. torch is looked at only if it is already loaded, so that asking costs nothing.
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
    torch = _torch()
    device = torch.cuda.memory_reserved() if torch is not None and torch.cuda.is_initialized() else 0
    return Memory(rss, device)


def describe(error: BaseException) -> str:
    """Type and places of an exception without its text, which may quote the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"


def is_out_of_memory(error: Exception) -> bool:
    torch = _torch()
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch on a CPU


def is_device_lost(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def forget_frames(error: BaseException) -> None:
    """A traceback keeps every tensor of the failed step alive, which is what memory is short of."""
    traceback.clear_frames(error.__traceback__)


def free_device_bytes() -> int | None:
    torch = _torch()
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.mem_get_info()[0])


def trim() -> None:
    """Gives freed memory back to the system, so that `status` shows what another program can have."""
    gc.collect()
    torch = _torch()
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Gives back what the C allocator keeps between the sources of thousands of requests: a few MB, in under 1 ms."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has none, and keeps little
            ctypes.CDLL(None).malloc_trim(0)


def _torch() -> Any:
    """The module if something has loaded it, else None."""
    return sys.modules.get("torch")
