"""Reading /sys/class/power_supply of machines that are not this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from stopgap.daemon.power import on_battery

MAINS_ON = {"type": "Mains", "online": "1"}
MAINS_OFF = {"type": "Mains", "online": "0"}
DRAINING = {"type": "Battery", "status": "Discharging"}
FULL = {"type": "Battery", "status": "Full"}
MOUSE = {"type": "Battery", "status": "Discharging", "scope": "Device"}


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ([], False),
        ([MAINS_OFF, DRAINING], True),
        ([MAINS_ON, DRAINING], False),
        ([DRAINING, MAINS_ON], False),
        ([MAINS_OFF, FULL], False),
        ([MOUSE], False),
        ([DRAINING], True),
    ],
)
def test_only_a_draining_battery_without_mains_counts(
    tmp_path: Path, supplies: list[dict[str, str]], expected: bool
) -> None:
    for number, files in enumerate(supplies):
        folder = tmp_path / f"S{number}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(f"{text}\n")
    assert on_battery(tmp_path) is expected
