"""Validation of a run and of a finished bundle: the same measurements, put together as one report."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.base import Backend, Census, Runner
from backends.cpu import INTEGER_INSTRUCTIONS, cpu_flags, host_cpu
from calibration.errors import UserError
from calibration.plan import Plan
from pipeline import __version__
from pipeline.artifacts import Network, QuantisedStudent, UnlabelledImages
from pipeline.batches import images_at_once
from pipeline.bundle import Bundle, Golden
from pipeline.config import RunConfig, ValidationConfig
from pipeline.data import EvaluationSet, open_evaluation, ordered_batches
from pipeline.device_files import device_files
from pipeline.doctor import EXTRAS, REQUIRED
from pipeline.learning import objective_config
from pipeline.outputs import Output, primary
from pipeline.preprocessing import Preprocessing, normalise
from pipeline.progress import Progress
from pipeline.report.schema import (
    Bits,
    Data,
    Distillation,
    FloatLayer,
    Gate,
    Kernels,
    Latency,
    Layer,
    Report,
    Size,
    verdict,
)
from pipeline.running import filled_up, latency_batch, runner_outputs
from pipeline.stages.sensitivity import layer_sqnr
from pipeline.stages.targets import joint_targets
from pipeline.stages.validate import (
    Outputs,
    ScoredImages,
    Scores,
    count_kernels,
    measure_latency,
    no_latency,
    oracle_outputs,
    score,
)

_BATCH = 64
_GOLDEN_IMAGES = 16
# Dense outputs at full resolution are large: fewer images are kept then, at least one.
_GOLDEN_BYTES = 32_000_000
_SQNR_IMAGES = 32
# Float operations inside a network may round a last bit differently on two runtimes, so argmax ties can fall apart.
_PARITY_WITH_FLOAT = 0.99


@dataclass(frozen=True, kw_only=True)
class Validated:
    """A report without its times, and what belongs into the bundle: golden inputs and outputs, the device's files."""

    report: Report
    golden: Golden
    device_files: Mapping[str, bytes]


def validate_network(
    config: RunConfig,
    teacher: Network,
    quantised: QuantisedStudent,
    images: UnlabelledImages,
    progress: Progress,
    *,
    mirror: bool,
    notes: Sequence[str],
    co_teachers: Sequence[Network] = (),
) -> Validated:
    """Score teacher, simulation, oracle and runtime on the same images and measure the artifact on its runtime."""
    backend, compiled, plan = quantised.backend, quantised.compiled, quantised.plan
    preprocessing, absent = teacher.preprocessing, backend.unavailable()
    oracle = _oracle(compiled.model, backend)
    most = images_at_once(preprocessing, _BATCH)
    columns: dict[str, Outputs] = {
        "target": joint_targets(
            [teacher.folded, *(network.folded for network in co_teachers)],
            teacher.outputs,
            mirror=mirror,
            temperature=objective_config(config).softening,
        ),
        "teacher": _module_outputs(teacher.folded),
        "oracle": oracle,
    }
    if quantised.prepared is not None and quantised.trained is not None:
        columns["calibrated"] = _module_outputs(quantised.prepared.network().eval())
        columns["simulated"] = _module_outputs(quantised.trained.network)
    evaluation, indices, remarks = _evaluation(config, images, teacher)
    sample = next(ordered_batches(evaluation.images, indices[:_SQNR_IMAGES], preprocessing, batch_size=_SQNR_IMAGES))
    inputs = normalise(sample.images, preprocessing)
    with _maybe_runner(backend, compiled.model, absent) as runner:
        if runner is not None:
            columns["runtime"] = runner_outputs(runner, config.quantisation.static_batch)
        batches = _scored(evaluation, indices, preprocessing, most, images.workers)
        scores = score(columns, batches, teacher.outputs, step=lambda done: progress.step(done, len(indices)))
    layers = [placement.layer for placement in plan.weights]
    census, remark = count_kernels(backend, compiled.model, layers)
    batch, batch_remark = latency_batch(config.validation.batch, config.quantisation.static_batch)
    latency = no_latency(batch, config.validation.threads)
    if absent is None:
        wanted = filled_up(inputs, batch).numpy()
        latency = measure_latency(
            backend, compiled.model, compiled.float_model, wanted, threads=config.validation.threads
        )
    gates = _gates(config.validation, scores, census, latency, plan, backend)
    noise = _noise(quantised, torch.split(inputs, images_at_once(preprocessing, _SQNR_IMAGES)))
    said = [*notes, *evaluation.images.notes, *remarks, *batch_remark]
    said += [line for line in (absent, remark, backend.profile.inexact, _option_note(backend)) if line]
    unreadable = images.source.unreadable
    report = Report(
        status=verdict(gates, on_target=scores.accuracy.runtime is not None),
        backend=backend.name,
        bits=Bits(weights=config.quantisation.bits, activations=config.quantisation.activation_bits),
        teacher=teacher.source,
        student=config.student.source or teacher.source,
        seed=config.execution.seed,
        versions=versions(),
        host=host(),
        accuracy=scores.accuracy,
        parity=scores.parity,
        kernels=_kernels(plan, census),
        latency=latency,
        size=Size(float_bytes=len(compiled.float_model), quantised_bytes=len(compiled.model)),
        seconds={},
        gates=gates,
        distillation=_distillation(quantised, scores.calibrated),
        data=Data(
            images=len(images.source),
            unreadable=unreadable.count,
            unreadable_names=unreadable.names[:5],
            generated=images.preview,
        ),
        preprocessing=preprocessing.to_json(),
        notes=tuple(dict.fromkeys(said)),
        layers=_layers(plan, census, noise),
        outputs=scores.outputs,
        quantiser=config.quantisation.quantiser,
        target=backend.profile.cpu,
    )
    golden = _golden(inputs, teacher.outputs, oracle, columns["teacher"])
    files = device_files(backend, compiled.model, plan, torch.from_numpy(golden.inputs))
    return Validated(report=report, golden=golden, device_files=files)


def validate_stored(bundle: Bundle, config: ValidationConfig, backend: Backend, progress: Progress) -> Report:
    """Validate a bundle here: golden inputs without --eval-data, else those images; against oracle and runtime."""
    absent = backend.unavailable()
    float_file = bundle.folder.parent / "float.onnx"
    float_model = float_file.read_bytes() if float_file.is_file() else None
    columns: dict[str, Outputs] = {"oracle": _oracle(bundle.model, backend)}
    batch, batch_remark = latency_batch(config.batch, bundle.fixed_batch)
    remarks: tuple[str, ...] = ()
    with _maybe_runner(backend, bundle.model, absent) as runner:
        if runner is not None:
            columns["runtime"] = runner_outputs(runner, bundle.fixed_batch)
        if config.eval_data is None:
            golden = [torch.from_numpy(values) for values in bundle.golden.teacher.values()]
            columns["target"] = columns["teacher"] = lambda images: golden
            count = len(bundle.golden.inputs)
            batches = iter([ScoredImages(images=torch.from_numpy(bundle.golden.inputs), labels=None)])
        else:
            evaluation, remarks = _usable_labels(
                open_evaluation(config.eval_data, bundle.preprocessing), bundle.outputs, config.eval_data
            )
            remarks = (*evaluation.images.notes, *remarks)
            if evaluation.labels is None:
                columns["target"] = columns["teacher"] = _stored_teacher(float_model, float_file, config.eval_data)
            count, most = len(evaluation.images), images_at_once(bundle.preprocessing, _BATCH)
            batches = _scored(evaluation, np.arange(count), bundle.preprocessing, most, 0)
        scores = score(columns, batches, bundle.outputs, step=lambda done: progress.step(done, count))
    census, remark = count_kernels(backend, bundle.model, [placement.layer for placement in bundle.plan.weights])
    latency = no_latency(batch, config.threads)
    if absent is None and backend.has_times:
        inputs = filled_up(torch.from_numpy(bundle.golden.inputs), batch).numpy()
        latency = measure_latency(backend, bundle.model, float_model, inputs, threads=config.threads)
    gates = _gates(config, scores, census, latency, bundle.plan, backend)
    return Report(
        status=verdict(gates, on_target=scores.accuracy.runtime is not None),
        backend=backend.name,
        bits=Bits(**bundle.manifest["bits"]),
        teacher=str(bundle.manifest["teacher"]),
        student=str(bundle.manifest["student"]),
        seed=int(bundle.manifest["seed"]),
        quantiser=bundle.manifest.get("quantiser"),
        versions=versions(),
        host=host(),
        accuracy=scores.accuracy,
        parity=scores.parity,
        kernels=_kernels(bundle.plan, census),
        latency=latency,
        size=Size(float_bytes=len(float_model) if float_model else None, quantised_bytes=len(bundle.model)),
        seconds={},
        gates=gates,
        preprocessing=bundle.preprocessing.to_json(),
        notes=(
            *remarks,
            *batch_remark,
            *(line for line in (absent, remark, backend.profile.inexact, _option_note(backend)) if line),
        ),
        layers=_layers(bundle.plan, census, {}),
        outputs=scores.outputs,
        target=bundle.target,
    )


# Columns and batches.


@contextmanager
def _maybe_runner(backend: Backend, model: bytes, absent: str | None) -> Iterator[Runner | None]:
    """The backend's runner, or None where the runtime is absent."""
    if absent is not None:
        yield None
        return
    # As many threads as the machine has: scoring is no timing.
    with backend.runner(model, threads=os.cpu_count() or 1) as runner:
        yield runner


def _oracle(model: bytes, backend: Backend) -> Outputs:
    """The oracle with the semantics of the backend's kernels."""
    profile = backend.profile
    return oracle_outputs(model, fused_rounding=profile.fused_rounding, fixed_point_sums=profile.fixed_point_sums)


def _module_outputs(module: torch.nn.Module) -> Outputs:
    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module(images))

    return run


def _evaluation(
    config: RunConfig, images: UnlabelledImages, teacher: Network
) -> tuple[EvaluationSet, NDArray[np.int64], tuple[str, ...]]:
    """What is scored on, which of it, and what to say about that."""
    source = config.evaluation_source
    if source is None:
        return EvaluationSet(images=images.source, labels=None), images.held_out, ()
    evaluation, remarks = _usable_labels(open_evaluation(source, teacher.preprocessing), teacher.outputs, source)
    if not len(evaluation.images):
        raise UserError(f"--eval-data {source} has no images")
    return evaluation, np.arange(len(evaluation.images), dtype=np.int64), remarks


def _usable_labels(
    evaluation: EvaluationSet, outputs: Sequence[Output], source: str
) -> tuple[EvaluationSet, tuple[str, ...]]:
    """The set without labels, and a remark, where a network gives more than the one class per image that they name."""
    main = outputs[primary(outputs)]
    if evaluation.labels is None or (main.holds == "classes" and main.decisions == 1):
        return evaluation, ()
    said = f"the labels of --eval-data {source} are one per image and output {main.name} is none such"
    return replace(evaluation, labels=None), (f"{said}: agreement with the teacher is scored",)


def _stored_teacher(float_model: bytes | None, file: Path, source: str) -> Outputs:
    """The float counterpart that a run leaves beside its bundle, as the teacher to agree with."""
    if float_model is None:
        raise UserError(
            f"--eval-data {source} has no labels to score by, and {file}, the teacher to agree with, is absent:"
            " give labelled images, or leave --eval-data out to score on the bundle's golden images"
        )
    return oracle_outputs(float_model, fused_rounding=False, fixed_point_sums=False)


def _scored(
    evaluation: EvaluationSet, indices: NDArray[np.int64], preprocessing: Preprocessing, most: int, workers: int
) -> Iterator[ScoredImages]:
    for batch in ordered_batches(evaluation.images, indices, preprocessing, batch_size=most, workers=workers):
        labels = None if evaluation.labels is None else evaluation.labels[batch.indices.numpy()]
        yield ScoredImages(images=normalise(batch.images, preprocessing), labels=labels)


def _golden(images: Tensor, outputs: Sequence[Output], oracle: Outputs, teacher: Outputs) -> Golden:
    """A few images with all outputs of the oracle and of the teacher: as many as keep the file small."""
    size = sum(math.prod(abs(size) for size in output.shape) for output in outputs) * 2 + images[0].numel()
    images = images[: max(1, min(_GOLDEN_IMAGES, _GOLDEN_BYTES // (4 * size)))]
    names = [output.name for output in outputs]
    columns = []
    for run in (oracle, teacher):
        columns.append({name: values.numpy() for name, values in zip(names, run(images), strict=True)})
    return Golden(inputs=images.numpy(), outputs=columns[0], teacher=columns[1])


# Parts of the report.


def _distillation(quantised: QuantisedStudent, calibrated: float | None) -> Distillation | None:
    """What training did; None where nothing was trained."""
    trained = quantised.trained
    return None if trained is None else replace(trained.distillation, accuracy_calibrated=calibrated)


def _noise(quantised: QuantisedStudent, batches: Sequence[Tensor]) -> dict[str, float]:
    """Noise of each layer in the simulation; nothing where nothing is simulated."""
    if quantised.prepared is None or quantised.trained is None:
        return {}
    return layer_sqnr(quantised.prepared.folded, quantised.trained.network, batches)


def _option_note(backend: Backend) -> str | None:
    """What the device must set, where the artifact needs it."""
    options = ", ".join(f"{name}={value}" for name, value in backend.profile.session_options.items())
    return f"the device must set {options}, as check.py and faqd validate do" if options else None


def _kernels(plan: Plan, census: Census | None) -> Kernels:
    left = [
        FloatLayer(name=name, reason=reason)
        for name, reason in plan.float_nodes.items()
        if plan.kinds.get(name) in {"conv", "conv_transpose", "linear"}
    ]
    if census is None:
        return Kernels(integer=None, float=None, float_layers=tuple(left))
    refused = [
        FloatLayer(name=name, reason="planned as integer, but this runtime kept it in float")
        for name in census.floating
    ]
    return Kernels(integer=len(census.integer), float=len(left) + len(refused), float_layers=(*left, *refused))


def _layers(plan: Plan, census: Census | None, noise: Mapping[str, float]) -> tuple[Layer, ...]:
    integer = None if census is None else set(census.integer)
    planned = [
        Layer(
            name=placement.layer,
            kind=plan.kinds.get(placement.layer, "other"),
            weight_bits=placement.grid.bits,
            sqnr_db=round(noise[placement.layer], 2) if placement.layer in noise else None,
            integer=None if integer is None else placement.layer in integer,
            reason="" if integer is None or placement.layer in integer else "this runtime kept it in float",
        )
        for placement in plan.weights
    ]
    left = [
        Layer(
            name=f.name,
            kind=plan.kinds[f.name],
            weight_bits=None,
            sqnr_db=None,
            integer=False,
            reason=f.reason,
        )
        for f in _kernels(plan, None).float_layers
    ]
    return (*planned, *left)


def _gates(
    config: ValidationConfig,
    scores: Scores,
    census: Census | None,
    latency: Latency,
    plan: Plan,
    backend: Backend,
) -> tuple[Gate, ...]:
    accuracy, parity, gates = scores.accuracy, scores.parity, []
    if accuracy.teacher is not None:
        final = accuracy.runtime
        drop = None if final is None else round(100 * (accuracy.teacher - final), 9)
        passed = None if drop is None else drop <= config.max_drop
        gates.append(Gate(name="max-drop", limit=config.max_drop, value=drop, passed=passed))
    least = _PARITY_WITH_FLOAT if backend.profile.inexact or plan.float_nodes else 1.0
    found, name = parity.argmax_agreement, "parity"
    if all(output.holds == "values" for output in scores.outputs):
        compared = [
            value for output in scores.outputs for value in (output.oracle_vs_simulated, output.runtime_vs_oracle)
        ]
        name, found = "parity-values", min((value for value in compared if value is not None), default=None)
        found = None if accuracy.runtime is None else found
    gates.append(Gate(name=name, limit=least, value=found, passed=None if found is None else found >= least))
    refused = None if census is None else float(len(census.floating))
    # Only the target itself can pass this gate: what a compiler elsewhere says is a signal.
    passed = refused == 0 if refused is not None and accuracy.runtime is not None else None
    gates.append(Gate(name="kernels", limit=0.0, value=refused, passed=passed))
    if config.min_speedup is not None:
        speedup = latency.speedup
        passed = None if speedup is None else speedup >= config.min_speedup
        gates.append(Gate(name="min-speedup", limit=config.min_speedup, value=speedup, passed=passed))
    return tuple(gates)


def versions() -> dict[str, str]:
    """Versions of faqd, Python and every library that the result may depend on."""
    found = {"faqd": __version__, "python": platform.python_version()}
    for name in (*REQUIRED, *(package for package, _ in EXTRAS.values())):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, str | int | float | bool | None]:
    """The machine, as far as results and latencies depend on it."""
    flags = cpu_flags() or frozenset()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "target": host_cpu(),
        "cores": os.cpu_count(),
        "integer_instructions": ", ".join(name for name in INTEGER_INSTRUCTIONS if name in flags) or "none known",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _processor() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
