"""What a GPU session stands on, in a few lines: packages, the card, its driver's Triton, its memory's speed.

`python tests/gpu_check.py cuda`. Ends with 1 and the names of all that is missing, before anything else is tried.
"""

from __future__ import annotations

import re
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MORE = ("triton", "pytest", "pytest-timeout", "hypothesis")
"""What the session wants beside the product's own dependencies."""


def packages() -> tuple[list[str], list[str]]:
    """All that there are with their versions, and the names of those that are missing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w-]", wanted)[0] for wanted in project["dependencies"]]
    there, missing = [], []
    for name in (*names, *MORE):
        try:
            there.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return there, missing


def main(wanted: str) -> int:
    there, missing = packages()
    print(f"Python {sys.version.partition(' ')[0]}; {', '.join(there)}")
    if missing:
        print(f"missing: {' '.join(missing)}")
    from stopgap.infill import devices
    from stopgap.kernels import tuned
    from stopgap.kernels.matmul import matmul, reference
    from stopgap.kernels.quantised import Int8Rows

    device = devices.resolve(wanted)
    found = next(found for found in devices.found() if found.kind == device.type)
    print(f"{devices.build()}, {found.title} {found.capability}, {(found.free or 0) / 1e9:.1f} GB free")
    print(
        f"kernels {tuned.described(device)}; copies {devices.copy_bandwidth(device, time.perf_counter) / 1e9:.0f} GB/s"
    )
    import torch

    x, weight = torch.randn((4, 128), device=device), Int8Rows.of(torch.randn((64, 128), device=device))
    off = (matmul(x, weight) - reference(x, weight)).abs().max()
    print(f"one product: off by {float(off):.1e}")
    return int(bool(missing) or not off < 0.1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
