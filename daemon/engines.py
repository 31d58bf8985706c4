"""Which engine the settings ask for. Importing the real one imports torch, so that it happens when one is made.

Knows nothing of threads and requests.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable

from stopgap.infill import contract

from .config import Config


def make_engine(config: Config, clock: Callable[[], float], progress: Callable[[str, float], None]) -> contract.Engine:
    """Loads the model; `progress` is told what is under way and how far it is, 0..1. Raises `contract.FillError`."""
    threads = config.threads or None
    # For developers: `FILE.py:FUNCTION` or `MODULE:FUNCTION`, called like load_engine; the daemon without a model.
    if factory := os.environ.get("STOPGAP_ENGINE_FACTORY", ""):
        make = _factory(factory)
    else:
        progress("starting torch", 0.0)
        from stopgap.infill.engine import load_engine as make
    return make(
        config.model,
        engine=config.engine,
        device=config.device,
        threads=threads,
        clock=clock,
        progress=progress,
        cache_budget=config.cache_mb << 20,
    )


def _factory(name: str) -> Callable[..., contract.Engine]:
    place, _, function = name.rpartition(":")
    if place.endswith(".py"):
        spec = importlib.util.spec_from_file_location("stopgap_engine_factory", place)
        if spec is None or spec.loader is None:
            raise contract.FillError(f"STOPGAP_ENGINE_FACTORY={name}: FILE.py:FUNCTION was expected")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    make: Callable[..., contract.Engine] = getattr(module, function)
    return make
