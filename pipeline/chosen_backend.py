"""From the configuration to the backend that it asks for."""

from __future__ import annotations

import os
from pathlib import Path

from backends import backend_named
from backends.base import Backend
from backends.tensorrt_device.build import EngineOptions
from pipeline.config import EngineConfig, RunConfig, check_engine
from pipeline.progress import Progress


def chosen_backend(config: RunConfig, progress: Progress) -> Backend:
    """The backend of a run."""
    quantisation = config.quantisation
    if quantisation.backend != "tensorrt":
        return backend_named(quantisation.backend)
    return _tensorrt(config.engine, config.validation.batch, progress, rest=quantisation.rest)


def stored_backend(name: str, engine: EngineConfig, *, batch: int, progress: Progress) -> Backend:
    """The backend of a finished bundle. Raises UserError when flags of an engine come with one that builds none."""
    check_engine(engine, backend=name, batch=batch)
    return _tensorrt(engine, batch, progress) if name == "tensorrt" else backend_named(name)


def _tensorrt(engine: EngineConfig, batch: int, progress: Progress, *, rest: str = "fp32") -> Backend:
    from backends.tensorrt import TensorRT

    smallest, preferred, largest = engine.batches or (batch, batch, batch)
    options = EngineOptions(
        batches=(smallest, preferred, largest),
        workspace_mib=engine.workspace,
        level=engine.optimisation_level,
        hardware=engine.hardware_compatibility,
        version_compatible=engine.version_compatible,
        timing_cache=engine.timing_cache or _timing_cache(),
    )
    return TensorRT(
        rest="fp16" if rest == "fp16" else "fp32",
        runner=engine.runner,
        options=options,
        step=lambda phase, done, total: progress.step(done, total),
    )


def _timing_cache() -> Path:
    """Where kernel timings are kept, the same file that a bundle's own check uses."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faqd" / "tensorrt-timing.cache"
