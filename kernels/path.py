"""Which implementation of a kernel runs: plain torch or Triton. One switch, and a record of what ran.

Knows the environment variable STOPGAP_KERNELS and torch; no kernel.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from importlib.util import find_spec
from typing import Literal

from torch import device

Path = Literal["torch", "triton"]
SWITCH = "STOPGAP_KERNELS"

ran: Counter[tuple[str, Path]] = Counter()
"""Calls by (kernel, path) since the process began, for `stopgap status` and the tests: nothing falls back unseen."""


class PathError(Exception):
    """The switch asks for something this machine cannot do; `str()` is one line with the remedy."""


def chosen(where: device) -> Path:
    """The path for tensors on `where`: what the switch says, else Triton on CUDA where it is installed.

    Triton on a CPU runs in its interpreter, for tests only, and needs TRITON_INTERPRET=1 before it is imported.
    Raises `PathError`.
    """
    wanted = os.environ.get(SWITCH, "")
    if wanted not in {"", "torch", "triton"}:
        raise PathError(f"{SWITCH} is {wanted!r}: set it to torch or triton, or leave it unset")
    if not wanted:
        return "triton" if where.type == "cuda" and _installed() else "torch"
    if wanted == "triton":
        if not _installed():
            raise PathError(f"{SWITCH}=triton, but triton is not installed: pip install triton, or unset {SWITCH}")
        if where.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise PathError(f"{SWITCH}=triton needs a CUDA device, not {where.type}: unset {SWITCH}")
        return "triton"
    return "torch"


@cache
def _installed() -> bool:
    return find_spec("triton") is not None  # 170 us, and every kernel asks
