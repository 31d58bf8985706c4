"""Whether this machine runs on battery; read from the kernel, no daemon asked."""

from __future__ import annotations

from pathlib import Path

_SUPPLIES = Path("/sys/class/power_supply")


def on_battery(supplies: Path = _SUPPLIES) -> bool:
    """True if a battery is discharging and no mains adapter is online; False where that cannot be known."""
    discharging = False
    for supply in sorted(supplies.glob("*")):
        kind = _read(supply / "type")
        if kind in {"Mains", "USB"} and _read(supply / "online") == "1":
            return False
        # scope Device: the battery of a mouse.
        if kind == "Battery" and _read(supply / "scope") != "Device":
            discharging |= _read(supply / "status") == "Discharging"
    return discharging


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
