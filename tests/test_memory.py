"""Memory of the process and of accelerators this machine has not: torch is a small object that answers like it."""

from __future__ import annotations

import gc
import sys
import weakref
from types import SimpleNamespace

import pytest

from stopgap.daemon import memory
from stopgap.infill import devices


class FakeTorch:
    """As much of torch as is asked for `memory`."""

    class OutOfMemoryError(RuntimeError):
        pass

    def __init__(self, *, cuda: bool = False, mps: bool = False) -> None:
        self.emptied: list[str] = []
        self.device = lambda kind, index=None: SimpleNamespace(type=kind)
        self.cuda = SimpleNamespace(
            is_initialized=lambda: cuda,
            current_device=lambda: 0,
            memory_reserved=lambda device: 700,
            mem_get_info=lambda device: (300, 1000),
            empty_cache=lambda: self.emptied.append("cuda"),
        )
        self.mps = SimpleNamespace(
            driver_allocated_memory=lambda: 200,
            recommended_max_memory=lambda: 900,
            empty_cache=lambda: self.emptied.append("mps"),
        )
        self.backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps))


@pytest.mark.parametrize(
    ("torch", "held", "free", "emptied"),
    [
        (FakeTorch(), 0, None, []),
        (FakeTorch(cuda=True), 700, 300, ["cuda"]),
        (FakeTorch(mps=True), 200, 700, ["mps"]),
    ],
    ids=["cpu", "cuda", "mps"],
)
def test_each_kind_of_device_is_asked_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, torch: FakeTorch, held: int, free: int | None, emptied: list[str]
) -> None:
    monkeypatch.setattr(devices, "torch", torch)
    assert memory.memory().device == held
    assert memory.memory().rss > 1 << 20
    assert memory.free_device_bytes() == free
    memory.trim()
    assert torch.emptied == emptied


def test_without_an_engine_nothing_is_asked_and_nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stopgap.infill.devices")
    memory.trim()
    assert (memory.memory().device, memory.free_device_bytes()) == (0, None)
    assert "stopgap.infill.devices" not in sys.modules


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (FakeTorch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_failures(
    monkeypatch: pytest.MonkeyPatch, error: Exception, expected: bool
) -> None:
    monkeypatch.setitem(sys.modules, "torch", FakeTorch())
    assert memory.is_out_of_memory(error) is expected


def test_garbage_in_a_cycle_goes_at_rest_and_what_was_set_aside_with_the_model() -> None:
    class Broken(list["Broken"]):
        """A connection that holds itself."""

    def broken() -> weakref.ref[Broken]:
        connection = Broken()
        connection.append(connection)
        return weakref.ref(connection)

    old = broken()
    memory.set_aside()
    try:
        new = broken()
        memory.tidy()
        assert (old() is not None, new()) == (True, None)
        memory.trim()
        assert old() is None
    finally:
        gc.unfreeze()
