"""From the configuration to the backend that it asks for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from backends import backend_of, backends_for
from backends.base import Backend
from backends.device.bundle_check.errors import DeviceError
from backends.device.bundle_check.runtimes import refuse_old
from backends.device.tensorrt_device.build import EngineOptions
from backends.facts.profile import Profile
from calibration.errors import UserError
from calibration.plan import Plan
from pipeline.bundle.bundle import Bundle
from pipeline.config.quantisation import QuantisationConfig
from pipeline.config.validation import EngineConfig, check_engine
from pipeline.tools.atomic import check_place
from pipeline.tools.progress import Progress


def chosen_backends(
    quantisation: QuantisationConfig, engine: EngineConfig, *, batch: int, progress: Progress
) -> tuple[Backend, ...]:
    """The backend of a run, with each profile that is exact on its processor, the fastest first.

    `batch`: images per inference, where `engine` names no others.
    """
    backends = backends_for(quantisation.backend, quantisation.target)
    if quantisation.backend != "tensorrt":
        return backends
    weight_only = quantisation.weight_only == "auto"
    return (_tensorrt(engine, batch, progress, rest=quantisation.rest, weight_only=weight_only),)


def prepared_for(backends: Sequence[Backend], plan: Plan) -> Backend:
    """The one whose profile a plan was made by. Raises UserError when a resumed run was prepared for another."""
    for backend in backends:
        if backend.profile.variant == plan.variant:
            return backend
    raise UserError(f"--resume: the run was prepared for {plan.variant}: give the --target that it was started for")


def stored_backend(bundle: Bundle, engine: EngineConfig, *, batch: int, progress: Progress) -> Backend:
    """The backend of a finished bundle.

    Raises UserError when flags of an engine come with one that builds none, for an SDK too old to build any, and for a
    runtime too old for the model.
    """
    check_engine(engine, backend=bundle.backend, batch=batch)
    if bundle.backend == "onnxruntime" and importlib.util.find_spec("onnxruntime") is not None:
        try:
            refuse_old("onnxruntime", importlib.metadata.version("onnxruntime"), bundle.manifest.runtime)
        except DeviceError as error:
            raise UserError(str(error)) from None
        except importlib.metadata.PackageNotFoundError:
            pass  # a build under another name (onnxruntime-gpu): what it cannot load is said when it loads
    if bundle.backend == "tensorrt":
        from backends.tensorrt.backend import refuse_old_sdk

        if engine.runner == "tensorrt":
            refuse_old_sdk()
        return _tensorrt(engine, batch, progress)
    return backend_of(bundle.backend, bundle.plan.variant, bundle.session_options)


def emulated_backend(bundle: Bundle, cpu: str) -> Backend:
    """ONNX Runtime on an emulated processor, for a bundle that was made for it.

    Raises UserError for another bundle, with the command that makes one, and where emulator or environment are missing.
    """
    from backends.onnxruntime.emulation import EMULATED, EmulatedOnnxRuntime, emulated_command

    if bundle.backend != "onnxruntime":
        raise UserError(f"--emulate {cpu} runs ONNX Runtime, but {bundle.folder} is for {bundle.backend}")
    if cpu in EMULATED and bundle.target != cpu:
        raise UserError(f"--emulate {cpu}: {bundle.made_for(cpu)}")
    emulated_command(cpu)
    return EmulatedOnnxRuntime(stored_profile(bundle))


def stored_profile(bundle: Bundle) -> Profile:
    """The profile of a finished bundle, with the session options that it records."""
    return backend_of(bundle.backend, bundle.plan.variant, bundle.session_options).profile


def _tensorrt(
    engine: EngineConfig, batch: int, progress: Progress, *, rest: str = "fp32", weight_only: bool = True
) -> Backend:
    from backends.tensorrt.backend import TensorRT

    smallest, preferred, largest = engine.batches or (batch, batch, batch)
    options = EngineOptions(
        batches=(smallest, preferred, largest),
        workspace_mib=engine.workspace,
        level=engine.optimisation_level,
        hardware=engine.hardware_compatibility,
        version_compatible=engine.version_compatible,
        timing_cache=engine.timing_cache or _timing_cache(progress),
    )
    return TensorRT(
        rest="fp16" if rest == "fp16" else "fp32",
        weight_only=weight_only,
        runner=engine.runner,
        options=options,
        step=lambda phase, done, total: progress.step(done, total),
    )


def _timing_cache(progress: Progress) -> Path | None:
    """Where kernel timings are kept, the same file that a bundle's own check uses; None where it cannot be written."""
    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faqd" / "tensorrt-timing.cache"
    try:
        check_place(file, flag="--timing-cache")
    except UserError as error:
        progress.say(f"kernel timings are not kept between builds: {error}")
        return None
    return file
