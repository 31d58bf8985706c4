"""What this machine's processor is good at, found by trying; all of it together takes well under 100 ms.

Knows no models. Asking the operating system is not enough: two threads on a busy two-core machine were 25 times
slower than one, and a processor may run a format that it is slow at.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .quant import LEVELS, Int8

Clock = Callable[[], float]
"""Seconds from any fixed moment, such as `time.perf_counter`."""


def choose_threads(clock: Clock) -> int:
    """Set and return how many threads torch should use: more only while each doubling pays by a fifth.

    What is timed is what a denoising step does most, small products with small operations in between. The
    mean counts, not the best case: a thread that waits for a busy core shows in it.
    """
    x, weight = torch.randn(32, 256), torch.randn(256, 1024)

    def piece() -> None:
        F.gelu(x.mm(weight)).mul_(2.0)

    count, limit = 1, min(8, _cores())
    torch.set_num_threads(1)
    best = _mean(piece, clock)
    while count * 2 <= limit:
        torch.set_num_threads(count * 2)
        if (time := _mean(piece, clock, enough=12 * best)) > best / 1.2:
            break
        count, best = count * 2, time
    torch.set_num_threads(count)
    return count


def int8_is_exact() -> bool:
    """Whether int8 products are added without saturating; some processors without VNNI clip pairs to 16 bits."""
    full = torch.full((32, 64), LEVELS, dtype=torch.int8)
    product = torch._int_mm(full, full.T)  # pyright: ignore[reportPrivateImportUsage]
    return bool((product == 64 * LEVELS * LEVELS).all())


def int8_is_fast(clock: Clock) -> bool:
    """Whether an int8 product, quantising its input included, beats the same in fp32."""
    x, weight = torch.randn(32, 256), torch.randn(256, 1024)
    rounded = Int8.of(weight)
    return _best(lambda: rounded(x), clock) < _best(lambda: x.mm(weight), clock)


def bf16_is_fast(clock: Clock) -> bool:
    """Whether products in bf16 beat fp32, the conversion of one side included."""
    x, weight = torch.randn(32, 1024), torch.randn(1024, 256)
    rounded = weight.bfloat16()
    return _best(lambda: x.bfloat16().mm(rounded), clock) < _best(lambda: x.mm(weight), clock)


def available_memory() -> int | None:
    """Bytes that can be used without swapping, as Linux tells it; None elsewhere."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _mean(work: Callable[[], object], clock: Clock, enough: float = float("inf")) -> float:
    """Seconds per call over twelve calls, or over fewer once they took `enough`."""
    work()
    start = clock()
    elapsed, done = 0.0, 0
    while done < 12 and elapsed <= enough:
        work()
        elapsed, done = clock() - start, done + 1
    return elapsed / done


def _best(work: Callable[[], object], clock: Clock) -> float:
    """The fewest seconds of twelve calls: what the processor can do when nobody else wants it."""
    return min(_mean(work, clock, enough=0.0) for _ in range(12))
