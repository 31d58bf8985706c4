"""`stopgap bench keystroke`: how long an answer takes through a real daemon when one types.

Knows nothing of models. The daemon is a process of its own in folders of its own, so that one in use is not disturbed.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from . import wire
from .client import Client
from .oneshot import InputError
from .soak import own_folders
from .timeline import percentile

FACTORY = "stopgap.infill.random_weights:load"
SOURCE = """def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def variance(values):
    centre = mean(values)
    squares = 0.0
    for value in values:
        """
TYPED = "squares += (value - centre) ** 2"
AFTER = "\n    return squares / len(values)\n"
WARM_UP = 3


def measure(
    fills: int, *, random_weights: bool = False, small: bool = False, device: str = "", loop: str = ""
) -> tuple[str, dict[str, Any]]:
    """Lines for people, and every time as data. Every request has one character more before the cursor than the last,
    as typing gives."""
    with own_folders(real_model=True):
        if random_weights:
            os.environ["STOPGAP_ENGINE_FACTORY"] = FACTORY
            os.environ["STOPGAP_BENCH_SMALL"] = "1" if small else "0"
        if device:
            os.environ["STOPGAP_DEVICE"] = device
        if loop:
            os.environ["STOPGAP_LOOP"] = loop
        return asyncio.run(_measure(fills))


async def _measure(fills: int) -> tuple[str, dict[str, Any]]:
    client = await Client.connect("bench")
    times: list[float] = []
    answers: list[wire.Done] = []
    for number in range(WARM_UP + fills):
        typed = TYPED[: number % len(TYPED)]
        source = (SOURCE + typed + AFTER).encode()
        at = len((SOURCE + typed).encode())
        request = wire.Fill(source, "python", at, at, document="keystroke", path="statistics.py", seed=number)
        begin = time.monotonic()
        *_, last = [frame async for frame in client.fill(request)]
        if isinstance(last, wire.Error):
            raise InputError(f"the daemon answered: {last.message}")
        if number >= WARM_UP:  # the first ones load the model, compile, capture graphs
            assert isinstance(last, wire.Done)
            times.append(1000 * (time.monotonic() - begin))
            answers.append(last)
    status = await client.status()
    await client.close()
    record = {
        "model": status.model,
        "device": status.device,
        "dtype": status.dtype,
        "kernels": status.kernels,
        "ms": times.copy(),
        "steps": [one.steps for one in answers],
        "slots_of_the_fill": [one.slots for one in answers],
    }
    times.sort()
    steps, slots = (sum(getattr(one, name) for one in answers) / len(answers) for name in ("steps", "slots"))
    found = sum(bool(one.fills) for one in answers)
    said = (
        f"{status.model} on {status.device}, {status.dtype}, kernels {status.kernels}\n"
        f"{fills} requests, one character typed between two: request to answer p50 {percentile(times, 0.5):.1f} ms, "
        f"p95 {percentile(times, 0.95):.1f} ms, least {times[0]:.1f} ms\n"
        f"{steps:.1f} steps a request, {found} of {fills} with a fill, of {slots:.0f} slots on average, "
        f"{sum(one.prefix_reused for one in answers) / max(1, sum(one.prefix_tokens for one in answers)):.0%} of the "
        "prefix known from before"
    )
    return said, record
