"""`stopgap doctor`: what this machine can run, what it should run, and what is wrong, each with the command that helps.

Knows no torch of its own (`infill.devices` asks it) and loads no model. Nothing here may raise for something that
is missing: that is what it is there to say.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stopgap.infill.devices import Device
    from stopgap.infill.planner import Bits

    from . import wire
    from .shelf import Shelved

REAL = "google/diffusiongemma-26B-A4B-it"
QUICK_MS = 10.0
"""A step that takes longer is worth fewer bits: a fill has about twelve, and half a second is where typing waits."""
CONTEXT, SLOTS = 2048, 32
"""For which milliseconds are told: a usual prompt and canvas."""
_EDITORS = {"code": "VS Code", "codium": "VSCodium", "cursor": "Cursor", "nvim": "Neovim", "vim": "Vim", "hx": "Helix"}
_EDITORS |= {"emacs": "Emacs", "zed": "Zed", "kate": "Kate", "subl": "Sublime Text"}
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong, and the one command that helps."""

    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Fit:
    """The 26B on one device. Bytes; `step_ms` is a floor, from `bandwidth` in bytes a second."""

    device: str
    bits: Bits
    needs: int
    fits: bool
    context: int
    step_ms: float


@dataclass(frozen=True, slots=True)
class Advice:
    """Which model to run and why. `command` makes it so; empty if it is so already."""

    model: str
    bits: int | None
    device: str
    why: str
    command: str


@dataclass(slots=True)
class Diagnosis:
    """Everything `--json` prints. Sizes in bytes."""

    stopgap: str = ""
    system: str = ""
    torch: str = ""
    driver: str = ""
    devices: list[dict[str, Any]] = field(default_factory=list)
    kernels: str = ""
    cpu: dict[str, Any] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    advice: Advice | None = None
    editors: list[str] = field(default_factory=list)
    daemon: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    seconds: float = 0.0


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Say what this machine can run, what it should run, and what is wrong."""
    found = examine()
    print(json.dumps(asdict(found)) if as_json else "\n".join(lines(found)))


def examine() -> Diagnosis:
    """Looks at everything; takes about as long as importing torch."""
    from .server import installed_version

    began = time.monotonic()
    found = Diagnosis(stopgap=installed_version(), driver=_driver())
    found.system = f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    held = _look_at_daemon(found)
    models = _look_at_models(found)
    _look_at_editors(found)
    _look_at_devices(found, held, models)
    found.seconds = round(time.monotonic() - began, 2)
    return found


# -- the parts --------------------------------------------------------------------------------------------------


def _look_at_daemon(found: Diagnosis) -> int:
    """The daemon's state; returns the device memory it holds, which a model may have as well."""
    from . import config, transport
    from .client import DaemonError
    from .paths import PathsError, place

    found.problems += [Problem(line, f"unset {name}") for name, line in config.unread().items()]
    try:
        files = place(config.load().key)
    except config.ConfigError as error:
        found.problems.append(Problem(str(error), f"edit {config.config_path()}"))
        return 0
    except PathsError as error:
        found.problems.append(Problem(str(error), f"export {error.variable}=FOLDER"))
        return 0
    pid = transport.holder(files.lock)
    if pid is None:
        found.daemon = {"state": "not running", "note": "any editor or `stopgap fill` starts it"}
        return 0
    found.daemon = {"state": "running", "pid": pid}
    try:
        status = asyncio.run(_status())
    except (DaemonError, OSError, TimeoutError) as error:
        found.problems.append(Problem(f"the daemon, process {pid}, does not answer ({error})", "stopgap daemon stop"))
        return 0
    found.daemon |= {"state": status.state, "model": status.model, "device": status.device, "note": status.note}
    if status.note:
        found.problems.append(Problem(f"the daemon says: {status.note}", "stopgap status"))
    if status.state == "paused":
        found.problems.append(Problem("the daemon is paused and refuses fills", "stopgap daemon resume"))
    return status.device_bytes


async def _status() -> wire.Status:
    from .client import Client

    async with asyncio.timeout(_PATIENCE_S):
        client = await Client.connect("doctor", spawn=False, patience=_PATIENCE_S)
        try:
            return await client.status()
        finally:
            await client.close()


def _look_at_models(found: Diagnosis) -> list[Shelved]:
    from . import config, shelf

    with suppress(config.ConfigError):  # it is among the problems already
        models = shelf.shelf()
        found.models = [
            {"name": one.name, "bits": one.bits, "size": one.size, "used": one.used, "unfinished": one.command or None}
            for one in models
        ]
        for one in models:
            if one.command:
                found.problems.append(Problem(f"the import of {one.name} is not finished", one.command))
        used = config.load().model
        if used != shelf.STARTER and not (Path(used) / "config.json").is_file():
            found.problems.append(Problem(f"the configured model {used} is not there", "stopgap model use starter"))
        return models
    return []


def _look_at_editors(found: Diagnosis) -> None:
    found.editors = [f"{title} ({path})" for name, title in _EDITORS.items() if (path := shutil.which(name))]
    if not shutil.which("stopgap"):
        what = "no `stopgap` is on the PATH, so editors cannot start it"
        found.problems.append(Problem(what, f'export PATH="{Path(sys.executable).parent}:$PATH"'))


def _look_at_devices(found: Diagnosis, held: int, models: Sequence[Shelved]) -> None:
    try:
        from stopgap.infill import cpu, devices
        from stopgap.infill.planner import Speed, known_speed
        from stopgap.kernels.path import PathError, chosen
    except (ImportError, OSError) as error:
        what = f"torch cannot be used ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        found.problems.append(Problem(what, f"{sys.executable} -m pip install --force-reinstall torch"))
        return
    found.torch = devices.build()
    here = devices.found()
    if found.driver and all(one.kind == "cpu" for one in here):
        what = f"there is an NVIDIA GPU ({found.driver}), but {found.torch} cannot use it"
        again = "; where pip's index gives the same build again, see GPU in README.md"
        found.problems.append(Problem(what + again, f"{sys.executable} -m pip install --force-reinstall torch"))
    speeds: dict[str, Speed] = {}
    for one in here:
        speed = known_speed(one.title) if one.kind != "cpu" else None
        if speed is None:
            measured = devices.copy_bandwidth(devices.resolve(one.name), time.perf_counter)
            speed = Speed(measured, source="measured by copying")
        speeds[one.name] = speed
        facts = asdict(one) | {"gb_s": round(speed.bandwidth / 1e9, 1), "gb_s_from": speed.source}
        found.devices.append(facts | ({"note": "never tried on such a machine"} if one.kind == "mps" else {}))
        if one.kind != "cpu" or len(here) == 1:
            found.fits += fits(one, speed, held if one.kind != "cpu" else 0)
    try:
        found.kernels = f"{chosen(devices.resolve(here[0].name))} on {here[0].name}"
    except PathError as error:
        found.problems.append(Problem(str(error), "unset STOPGAP_KERNELS"))
    found.cpu = {
        "int8_exact": cpu.int8_is_exact(),
        "int8_fast": cpu.int8_is_fast(time.perf_counter),
        "bf16_fast": cpu.bf16_is_fast(time.perf_counter),
        "cores": os.cpu_count(),
    }
    found.advice = advise(found.fits, models)
    _look_at_used(found, next((one for one in models if one.used), None), here, held)


def _look_at_used(found: Diagnosis, used: Shelved | None, here: Sequence[Device], held: int) -> None:
    """Whether the configured model fits the device that it would be loaded on."""
    from stopgap.infill.contract import FillError
    from stopgap.infill.planner import plan
    from stopgap.infill.strategy import Strategy
    from stopgap.infill.weights import read_config

    if used is None or used.command or not here:
        return
    device = here[0]
    free = None if device.free is None else device.free + (held if device.kind != "cpu" else 0)
    try:
        plan(read_config(used.folder), used.size, Strategy(), free=free, device=device.kind)
    except FillError as error:
        found.problems.append(Problem(f"{used.name} is in use, but {error}", "stopgap model use starter"))


def fits(device: Device, speed: Any, held: int) -> list[Fit]:
    """Whether the 26B fits `device` at 16, 8 and 4 bits, and how fast it can be at best.

    held: bytes of its memory that our own daemon has and would give back.
    """
    from stopgap.infill import devices
    from stopgap.infill.families import Instructed
    from stopgap.infill.model_config import ModelError
    from stopgap.infill.planner import Storage, plan, real_model, step_ms, weight_bytes
    from stopgap.kernels.path import PathError, chosen

    config, strategy = real_model(), Instructed.strategy
    fused = False
    with suppress(PathError, ModelError):
        fused = chosen(devices.resolve(device.name)) == "triton"
    free = None if device.free is None else device.free + held
    found: list[Fit] = []
    for bits in (16, 8, 4):
        storage = Storage.of(bits)
        weights = weight_bytes(config, storage)
        whole = plan(config, weights, strategy, free=None, device=device.kind, fused=fused)
        try:
            planned, fit = plan(config, weights, strategy, free=free, device=device.kind, fused=fused), True
        except ModelError:
            planned, fit = whole, False
        ms = step_ms(config, storage, speed, slots=SLOTS, prefix=CONTEXT)
        found.append(Fit(device.name, bits, whole.total, fit, planned.context if fit else 0, round(ms, 2)))
    return found


def advise(fits: Sequence[Fit], models: Sequence[Shelved]) -> Advice:
    """The most bits that fit a GPU with a quick step, else 4, else the starter; installed ones need no import."""
    from . import shelf

    on_gpu = [fit for fit in fits if fit.fits and fit.device != "cpu"]
    on_gpu.sort(key=lambda fit: fit.step_ms)
    quick = [fit for fit in on_gpu if fit.step_ms <= QUICK_MS and fit.bits <= 8]  # 16 add no quality that anyone saw
    best = max(quick, key=lambda fit: fit.bits, default=None) or next(iter(on_gpu), None)
    if best is None:
        if any(model.used and model.name == shelf.STARTER for model in models):
            return Advice(shelf.STARTER, None, "cpu", f"{_why_not(fits)}; it is in use", "")
        return Advice(shelf.STARTER, None, "cpu", _why_not(fits), f"stopgap model use {shelf.STARTER}")
    why = f"{best.bits} bits fit {best.device} and a step takes at least {best.step_ms:.1f} ms"
    slower = [fit for fit in on_gpu if fit.bits > best.bits and fit.device == best.device]
    if slower and slower[0].step_ms > QUICK_MS:
        why += f"; {slower[0].bits} bits fit too, but take {slower[0].step_ms:.1f}"
    elif slower:
        why += "; 16 bits fit too, but are only slower"
    for model in models:
        # A packed starter has as many bits, but is no 26B.
        if model.bits == best.bits and not model.command and 2 * model.size > best.needs:
            if model.used:
                return Advice(model.name, best.bits, best.device, f"{why}; it is in use", "")
            here = f"{why}; it is here as {model.name}"
            return Advice(model.name, best.bits, best.device, here, f"stopgap model use {model.name}")
    return Advice(REAL, best.bits, best.device, why, f"stopgap model import {REAL} --bits {best.bits}")


def _why_not(fits: Sequence[Fit]) -> str:
    least = min((fit for fit in fits if fit.device != "cpu"), key=lambda fit: fit.needs, default=None)
    if least is not None:
        return f"the 26B needs {least.needs / 1e9:.1f} GB of GPU memory at 4 bits, more than is free on {least.device}"
    on_cpu = next((fit for fit in fits if fit.bits == 4), None)
    slow = f", and a step of the 26B takes at least {on_cpu.step_ms:.0f} ms on this CPU" if on_cpu else ""
    return f"there is no GPU that torch can use{slow}"


def _driver() -> str:
    """What NVIDIA's own tool says; empty without one."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return ""
    asked = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=2).stdout
        return "; ".join(line.strip() for line in said.splitlines() if line.strip())
    return ""


# -- for people -------------------------------------------------------------------------------------------------


def lines(found: Diagnosis) -> list[str]:
    """The diagnosis as it is printed."""
    torch = found.torch.removeprefix("torch ") or "cannot be used"
    out = [_line("stopgap", f"{found.stopgap}, {found.system}"), _line("torch", torch)]
    if found.driver:
        out.append(_line("driver", found.driver))
    out += [_line("device", _device(one, found.cpu)) for one in found.devices]
    if found.kernels:
        out.append(_line("kernels", found.kernels))
    for model in found.models:
        bits = f", {model['bits']} bits" if model["bits"] else ""
        state = "unfinished" if model["unfinished"] else "in use" if model["used"] else "installed"
        out.append(_line("model", f"{model['name']}{bits}, {model['size'] / 1e9:.2f} GB, {state}"))
    for fit in found.fits:
        verdict = f"fits with {fit.context} tokens of context" if fit.fits else "does not fit"
        ms = f"{fit.step_ms:.1f}" if fit.step_ms < 100 else f"{fit.step_ms:.0f}"
        said = f"at {fit.bits} bits on {fit.device}: needs {fit.needs / 1e9:.1f} GB, {verdict}"
        out.append(_line("26B", f"{said}, at least {ms} ms a denoising step"))
    if found.fits:
        out.append(_line("", "(DiffusionGemma 26B-A4B, after `stopgap model import`; a fill takes about twelve steps)"))
    if found.advice:
        out.append(_line("advice", f"{found.advice.model}: {found.advice.why}"))
        out += [_line("", found.advice.command)] if found.advice.command else []
    out.append(_line("editors", ", ".join(found.editors) or "none of those known is on the PATH"))
    daemon = ", ".join(f"{key} {value}" for key, value in found.daemon.items() if value)
    out.append(_line("daemon", daemon or "unknown"))
    out += [_line("PROBLEM", f"{one.what}\n{'':10}{one.fix}") for one in found.problems]
    return out if found.problems else [*out, _line("", "no problem found")]


def _device(one: dict[str, Any], cpu: dict[str, Any]) -> str:
    sizes = [f"{one[key] / 1e9:.1f} GB {what}" for key, what in (("total", "in all"), ("free", "free")) if one[key]]
    parts = [one["name"], one["title"], *sizes, f"{one['gb_s']:.0f} GB/s ({one['gb_s_from']})"]
    if one["name"] == "cpu" and cpu:
        names = {"int8_exact": "int8 exact", "int8_fast": "int8 faster than fp32", "bf16_fast": "bf16 faster than fp32"}
        parts += [what if cpu[key] else f"not {what}" for key, what in names.items()]
    return ", ".join([*parts, *([one["note"]] if "note" in one else [])])


def _line(title: str, text: str) -> str:
    return f"{title:10}{text}"
