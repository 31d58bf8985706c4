"""The processors torch can use here: which there are, what they have free, how fast they copy.

The one place that asks a device about itself, for every kind of device; knows no models. What is said of Apple's
`mps` follows torch's documentation and has not been run on such a machine.
"""

from __future__ import annotations

import itertools
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cpu import available_memory
from .model_config import ModelError


@dataclass(frozen=True, slots=True)
class Device:
    """One processor. Memory in bytes; None where the system does not tell."""

    name: str
    """As torch calls it: "cuda:0", "mps", "cpu"."""
    title: str
    """As its maker calls it."""
    total: int | None
    free: int | None
    capability: str = ""

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


def resolve(wanted: str) -> torch.device:
    """The device that the setting names, "auto" being the fastest kind there is. Raises `ModelError`."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ModelError(f'device = "{wanted}" is unknown; choose auto, cpu, cuda, cuda:N or mps') from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ModelError("no CUDA device can be used here; choose the device cpu")
        if device.index is not None and device.index >= count:
            raise ModelError(f"there is no {device}; the last CUDA device here is cuda:{count - 1}")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("no Apple GPU can be used here (torch has no mps); choose the device cpu")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise ModelError(f'device = "{wanted}" is not supported; choose auto, cpu, cuda, cuda:N or mps')
    return device


def free_memory(device: torch.device) -> int | None:
    """Bytes that a model could take on `device` now; None where nobody knows."""
    if device.type == "cuda":
        return unclaimed_memory(device) + held_memory(device) - int(torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return unclaimed_memory(device)
    return available_memory()


def in_use() -> torch.device | None:
    """The accelerator that this process has in hand; None if it has touched none. Touches none itself."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps") if torch.backends.mps.is_available() else None


def held_memory(device: torch.device) -> int:
    """Bytes of an accelerator that this process has taken, what torch keeps for later included."""
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return int(torch.cuda.memory_reserved(device))


def unclaimed_memory(device: torch.device) -> int:
    """Bytes of an accelerator that any process could take; `free_memory` is what is left for this one."""
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(torch.cuda.mem_get_info(device)[0])


def give_back(device: torch.device) -> None:
    """Let other processes have what torch keeps of an accelerator without using it."""
    (torch.mps if device.type == "mps" else torch.cuda).empty_cache()


def synchronise(device: torch.device) -> None:
    """Wait until everything given to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def found() -> list[Device]:
    """Every device there is, accelerators first, the CPU last."""
    devices: list[Device] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            name = f"cuda:{index}"
            free = free_memory(torch.device(name))
            capability = f"{facts.major}.{facts.minor}"
            devices.append(Device(name, facts.name, facts.total_memory, free, capability))
    if torch.backends.mps.is_available():
        device = torch.device("mps")
        total = int(torch.mps.recommended_max_memory())
        devices.append(Device("mps", processor(), total, free_memory(device)))
    return [*devices, Device("cpu", processor(), None, available_memory())]


def processor() -> str:
    """The CPU's name as its maker calls it, as far as the system tells."""
    with suppress(OSError, IndexError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=2).stdout.strip()
    return platform.processor() or platform.machine()


def copy_bandwidth(device: torch.device, clock: Callable[[], float]) -> float:
    """Bytes per second that `device` reads and writes while it copies, the best of five copies of 64 MiB."""
    size = 1 << 26
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        synchronise(device)
        start = clock()
        target.copy_(source)
        synchronise(device)
        best = min(best, clock() - start)
    return 2 * size / max(best, 1e-9)


def times(device: torch.device, run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Milliseconds of every run after three that do not count: between CUDA's own events, else by `clock`, seconds."""
    for _ in range(3):
        run()
    if device.type != "cuda":
        taken = []
        for _ in range(repeats):
            synchronise(device)
            start = clock()
            run()
            synchronise(device)
            taken.append(1000 * (clock() - start))
        return taken
    make: Any = torch.cuda.Event
    events = [make(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    synchronise(device)
    return [float(one.elapsed_time(other)) for one, other in itertools.pairwise(events)]


def peak_bytes(device: torch.device) -> int:
    """Bytes that torch took at most since `forget_peak`, what graphs hold included but not the CUDA context; 0 where it
    does not count."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0


def forget_peak(device: torch.device) -> None:
    """Give back what is not in use and begin to look for a new `peak_bytes`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def build() -> str:
    """Which torch this is and what it was built for."""
    made_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    made_for = f"ROCm {torch.version.hip}" if torch.version.hip else made_for
    return f"torch {torch.__version__} ({'mps' if torch.backends.mps.is_built() else made_for})"
