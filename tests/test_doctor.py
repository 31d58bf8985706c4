"""What `stopgap doctor` says of machines we have and of machines we have not: devices are plain records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stopgap.daemon import cli, config, doctor, shelf
from stopgap.daemon.doctor import Advice, Diagnosis
from stopgap.daemon.paths import Place
from stopgap.infill import devices
from stopgap.infill.devices import Device
from stopgap.infill.planner import Speed, known_speed

GB = 10**9
CPU = Device("cpu", "Some CPU", None, 30 * GB)


def gpu(title: str, free: float, kind: str = "cuda:0") -> Device:
    return Device(kind, title, int(free * GB), int(free * GB))


def advice(device: Device, *models: shelf.Shelved) -> Advice:
    speed = known_speed(device.title)
    assert speed is not None
    return doctor.advise(doctor.fits(device, speed, 0), models)


def model(name: str, bits: int | None, *, used: bool = False, command: str = "", size: int = 14 * GB) -> shelf.Shelved:
    return shelf.Shelved(name, Path("/m") / name, size, bits, "somewhere", 1.0, used, command)


@pytest.mark.parametrize(
    ("device", "bits"),
    [
        (gpu("NVIDIA H200", 140), 8),
        (gpu("NVIDIA H100 80GB HBM3", 79), 8),
        (gpu("NVIDIA GeForce RTX 5090", 31), 4),
        (gpu("NVIDIA GeForce RTX 4090", 23.5), 4),
        (gpu("NVIDIA L40S", 45), 4),
        (gpu("Apple M2 Ultra", 140, "mps"), 4),
        (gpu("NVIDIA GeForce RTX 4080", 15.5), None),
        (gpu("NVIDIA GeForce RTX 4090", 10), None),
    ],
    ids=lambda value: value.title if isinstance(value, Device) else "",
)
def test_the_bits_are_the_most_that_fit_with_a_quick_step(device: Device, bits: int | None) -> None:
    found = advice(device)
    assert found.bits == bits
    if bits:
        assert found.command == f"stopgap model import google/diffusiongemma-26B-A4B-it --bits {bits}"
        assert f"{bits} bits fit {device.name} and a step takes at least " in found.why
    else:
        assert (found.model, found.command) == ("starter", "stopgap model use starter")
        assert "GB of GPU memory at 4 bits, more than is free on cuda:0" in found.why


def test_why_not_more_bits_is_said() -> None:
    assert "; 16 bits fit too, but are only slower" in advice(gpu("NVIDIA H200", 140)).why
    assert "; 8 bits fit too, but take 2" in advice(gpu("NVIDIA L40S", 45)).why


def test_without_a_gpu_the_starter_is_advised_and_the_cpus_time_is_said() -> None:
    found = doctor.advise(doctor.fits(CPU, Speed(40e9), 0), [])
    assert found.model == "starter" and "at least 3" in found.why and "ms on this CPU" in found.why


def test_a_model_that_is_here_already_is_not_imported_again() -> None:
    here = advice(gpu("NVIDIA GeForce RTX 4090", 23.5), model("starter", None), model("real", 4))
    assert (here.model, here.command) == ("real", "stopgap model use real") and "it is here as real" in here.why
    small = advice(gpu("NVIDIA GeForce RTX 4090", 23.5), model("my-starter", 4, size=GB))
    assert "import" in small.command
    other_bits = advice(gpu("NVIDIA GeForce RTX 4090", 23.5), model("real", 8))
    assert "import" in other_bits.command
    unfinished = advice(gpu("NVIDIA GeForce RTX 4090", 23.5), model("real", 4, command="stopgap model import x"))
    assert "import google" in unfinished.command


def test_what_is_in_use_already_needs_no_command() -> None:
    real = advice(gpu("NVIDIA GeForce RTX 4090", 23.5), model("real", 4, used=True))
    starter = doctor.advise(doctor.fits(CPU, Speed(40e9), 0), [model("starter", None, used=True)])
    assert [(own.command, own.why.endswith("; it is in use")) for own in (real, starter)] == [("", True)] * 2


def test_memory_that_our_own_daemon_holds_counts_as_free() -> None:
    device, speed = gpu("NVIDIA GeForce RTX 4090", 24), Speed(1e12, 1e14)
    busy = replace(device, free=4 * GB)
    assert [fit.fits for fit in doctor.fits(busy, speed, 0)] == [False, False, False]
    assert [fit.fits for fit in doctor.fits(busy, speed, 20 * GB)] == [False, False, True]


Machine = Callable[..., Diagnosis]


@pytest.fixture
def machine(stub_daemon: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Examines a machine of the given devices; everything else is this one."""
    monkeypatch.setenv("STOPGAP_DATA_DIR", str(tmp_path))
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "stopgap").write_text("#!/bin/sh\n")
    (scripts / "stopgap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")

    def examine(*there: Device, driver: str = "") -> Diagnosis:
        monkeypatch.setattr(devices, "found", lambda: [*there, CPU])
        monkeypatch.setattr(devices, "resolve", lambda name: name)
        monkeypatch.setattr(devices, "copy_bandwidth", lambda *_: 20e9)
        monkeypatch.setattr("stopgap.kernels.path.chosen", lambda _: "torch")
        monkeypatch.setattr(doctor, "_driver", lambda: driver)
        return doctor.examine()

    return examine


def fixes(found: Diagnosis) -> dict[str, str]:
    return {problem.what: problem.fix for problem in found.problems}


def test_a_sound_machine_has_no_problem(machine: Machine) -> None:
    found = machine(gpu("NVIDIA GeForce RTX 4090", 23.5))
    assert not found.problems
    said = doctor.lines(found)
    assert said[-1].strip() == "no problem found"
    assert any(
        "RTX 4090, 23.5 GB in all, 23.5 GB free, 1008 GB/s (NVIDIA Ada architecture paper)" in line for line in said
    )
    assert any(line.startswith("advice") and "26B" in line for line in said)
    assert json.loads(json.dumps(doctor.asdict(found)))["fits"][2]["bits"] == 4


def test_an_apple_gpu_is_said_to_be_untried(machine: Machine) -> None:
    found = machine(gpu("Apple M2 Max", 48, "mps"))
    assert any("never tried on such a machine" in line for line in doctor.lines(found))
    assert found.devices[0]["gb_s"] == 400


def test_a_device_nobody_published_is_measured(machine: Machine) -> None:
    found = machine(gpu("Frobnicator 9000", 40))
    assert (found.devices[0]["gb_s"], found.devices[0]["gb_s_from"]) == (20.0, "measured by copying")


def test_a_gpu_that_torch_cannot_use_is_a_problem_with_the_command_that_helps(machine: Machine) -> None:
    found = machine(driver="NVIDIA GeForce RTX 3090, 580.65.06")
    ((what, fix),) = fixes(found).items()
    assert "there is an NVIDIA GPU (NVIDIA GeForce RTX 3090, 580.65.06), but torch " in what
    assert "README" in what and fix == f"{sys.executable} -m pip install --force-reinstall torch"


def test_problems_of_the_shelf_have_their_commands(machine: Machine) -> None:
    shelf.begin("half", "stopgap model import x --name half")
    config.write("model", "/gone")
    assert fixes(machine()) == {
        "the import of half is not finished": "stopgap model import x --name half",
        "the configured model /gone is not there": "stopgap model use starter",
    }


def test_a_model_in_use_that_does_not_fit_is_a_problem(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    ((what, fix),) = fixes(machine(gpu("NVIDIA GeForce RTX 3060", 0.2))).items()
    assert what.startswith("starter is in use, but the model needs 0.") and fix == "stopgap model use starter"


def test_a_variable_that_nothing_reads_is_a_problem(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPGAP_TREADS", "1")
    assert fixes(machine()) == {"nothing reads STOPGAP_TREADS; did you mean 'STOPGAP_THREADS'?": "unset STOPGAP_TREADS"}


def test_a_bad_setting_does_not_hide_the_rest(machine: Machine) -> None:
    config.config_path().write_text("modle = 3\n")
    found = machine()
    ((what, fix),) = fixes(found).items()
    assert "did you mean 'model'" in what and fix == f"edit {config.config_path()}"
    assert found.torch and found.devices


def test_a_kernel_switch_that_cannot_be_followed_is_a_problem(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stopgap.kernels.path import PathError

    def refused(_: object) -> str:
        raise PathError("STOPGAP_KERNELS is 'fast': set it to torch or triton, or leave it unset")

    machine()  # for the patches that come with it
    monkeypatch.setattr("stopgap.kernels.path.chosen", refused)
    assert "unset STOPGAP_KERNELS" in fixes(doctor.examine()).values()


def test_torch_that_cannot_be_imported_is_a_problem_and_no_crash(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "stopgap.infill.devices", None)
    monkeypatch.delattr("stopgap.infill.devices")
    found = doctor.examine()
    (what,) = [what for what in fixes(found) if what.startswith("torch cannot be used")]
    assert fixes(found)[what] == f"{sys.executable} -m pip install --force-reinstall torch"
    assert "torch     cannot be used" in doctor.lines(found)


def test_no_command_on_the_path_is_a_problem(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()
    monkeypatch.setenv("PATH", "/nowhere")
    assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in fixes(doctor.examine()).values()


def test_the_daemons_state_is_told(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine().daemon["state"] == "not running"
    for words, state in ((["start"], "cold"), (["load"], "ready"), (["pause"], "paused")):
        monkeypatch.setattr(sys, "argv", ["stopgap", "daemon", *words])
        assert cli.main() == 0
        found = machine()
        assert found.daemon["state"] == state
    assert fixes(found) == {"the daemon is paused and refuses fills": "stopgap daemon resume"}


RESTRICTED = """
from stopgap.infill.contract import EngineInfo

class Engine:
    def info(self):
        notice = "context limit lowered from 9 to 5 tokens"
        return EngineInfo("m", "cuda", "bf16", "triton", 1, 1, 0, True, notice=notice)

def load(model, **options):
    return Engine()
"""


def test_a_restriction_that_the_engine_made_is_in_the_status(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "engine.py").write_text(RESTRICTED)
    monkeypatch.setenv("STOPGAP_ENGINE_FACTORY", f"{tmp_path / 'engine.py'}:load")
    for words in (["start"], ["load"]):
        monkeypatch.setattr(sys, "argv", ["stopgap", "daemon", *words])
        assert cli.main() == 0
    assert "context limit lowered from 9 to 5 tokens" in capsys.readouterr().out
    assert fixes(machine()) == {"the daemon says: context limit lowered from 9 to 5 tokens": "stopgap status"}


def test_a_daemon_that_does_not_answer_is_a_problem(
    machine: Machine, stub_daemon: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    holding = (
        "import sys, time; from pathlib import Path; from stopgap.daemon.transport import Lock\n"
        "lock = Lock(Path(sys.argv[1])); lock.take(); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", holding, str(stub_daemon.lock)], stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline()
    try:
        assert fixes(machine()) and "stopgap daemon stop" in fixes(machine()).values()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_command_runs_here_without_a_model_and_prints_what_it_knows(stub_daemon: Place) -> None:
    command = [sys.executable, "-P", "-m", "stopgap.daemon", "doctor", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["torch"].startswith("torch ") and found["devices"][-1]["name"] == "cpu"
    assert [fit["bits"] for fit in found["fits"][:3]] == [16, 8, 4]
