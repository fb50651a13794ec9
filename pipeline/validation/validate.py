"""Validation of a run and of a finished bundle: the same measurements, put together as one report."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backends.base import Backend, Runner
from backends.facts.cpu import elsewhere, host_cpu
from backends.onnx_file.serialised import Serialised, read_model, size_of
from calibration.errors import UserError
from calibration.plan import Plan
from pipeline.artifacts import FLOAT_MODEL, Network, QuantisedStudent
from pipeline.bundle.bundle import Bundle, Golden
from pipeline.bundle.device_files import device_files
from pipeline.config import RunConfig, ValidationConfig
from pipeline.images.batches import images_at_once
from pipeline.images.data import EvaluationSet, open_evaluation, ordered_batches
from pipeline.images.preprocessing import normalise
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.networks.outputs.class_order import named_outputs, read_class_names
from pipeline.networks.outputs.joined import reasons
from pipeline.networks.outputs.meaning import Output
from pipeline.report.gate import Gate, verdict
from pipeline.report.schema import Bits, Data, Distillation, Report, Size
from pipeline.setup.learning import objective_config
from pipeline.setup.machine.circumstances import host, versions
from pipeline.stages.targets import joint_targets
from pipeline.stages.teacher import other_size
from pipeline.tools.progress import Progress
from pipeline.validation.evaluation import Scored, evaluation_of, scored_images, usable_labels
from pipeline.validation.gates import check_output_names, gates_of, least_parity, repetitions, ungated, with_limits_of
from pipeline.validation.layer_report import kernels_of, layers_of
from pipeline.validation.other_size import gate_of_other_size
from pipeline.validation.preflight import check_scored
from pipeline.validation.running import filled_up, latency_batch, runner_outputs
from pipeline.validation.score import (
    Outputs,
    ScoredImages,
    count_kernels,
    measure_latency,
    no_latency,
    oracle_outputs,
    score,
)
from pipeline.validation.sensitivity import layer_sqnr

_BATCH = 64
_GOLDEN_IMAGES = 16
# Dense outputs at full resolution are large: fewer images are kept then, at least one.
_GOLDEN_BYTES = 32_000_000
_SQNR_IMAGES = 32
_HALF = "all that is not integer is float16: so computes the oracle, while the simulation computes it in float32"
_OTHER_SIZE_IMAGES = 8


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
    scored: Scored | None = None,
) -> Validated:
    """Score teacher, simulation, oracle and runtime on the same images and measure the artifact on its runtime.

    `scored`: these images where they are open already.
    """
    backend, compiled, plan = quantised.backend, quantised.compiled, quantised.plan
    preprocessing, absent = teacher.preprocessing, backend.unavailable()
    oracle = _oracle(compiled.model, backend)
    most = images_at_once(preprocessing, _BATCH)
    columns: dict[str, Outputs] = {
        "target": joint_targets(
            [network.folded for network in (teacher, *co_teachers)],
            [network.outputs for network in (teacher, *co_teachers)],
            mirror=mirror,
            temperature=objective_config(config).softening,
        ),
        "teacher": _module_outputs(teacher.folded),
        "oracle": oracle,
    }
    if quantised.prepared is not None and quantised.trained is not None:
        columns["calibrated"] = _module_outputs(quantised.prepared.network().eval())
        columns["simulated"] = _module_outputs(quantised.trained.network)
    evaluation, indices, remarks = scored or evaluation_of(config, images, teacher)
    sample = next(ordered_batches(evaluation.images, indices[:_SQNR_IMAGES], preprocessing, batch_size=_SQNR_IMAGES))
    inputs = normalise(sample.images, preprocessing)
    with _maybe_runner(backend, compiled.model, absent) as runner:
        if runner is not None:
            columns["runtime"] = runner_outputs(runner, config.quantisation.static_batch)
        batches = scored_images(evaluation, indices, preprocessing, most, images.workers)
        scores = score(columns, batches, teacher.outputs, step=lambda done: progress.step(done, len(indices)))
        another = _another_size(config, evaluation, indices, teacher, quantised, runner)
    census, remark = count_kernels(backend, compiled.model, plan.integer_layers())
    batch, batch_remark = latency_batch(config.validation.batch, config.quantisation.static_batch)
    latency = no_latency(batch, config.validation.threads)
    if absent is None:
        wanted = filled_up(inputs, batch).numpy()
        latency = measure_latency(
            backend, compiled.model, compiled.float_model, wanted, threads=config.validation.threads
        )
    gates = (*gates_of(config.validation, scores, census, latency, plan, backend), *(gate for gate, _ in another))
    noise = _noise(quantised, torch.split(inputs, images_at_once(preprocessing, _SQNR_IMAGES)))
    said = [
        *notes,
        *ungated(config.validation),
        *repetitions(scores),
        *evaluation.images.notes,
        *remarks,
        *batch_remark,
    ]
    said += [line for _, line in another if line]
    if evaluation.images is not images.source:
        said += _unscored(evaluation, scores.accuracy.images)
    said += reasons(gates, scores.outputs, scores.main, teacher.folded)
    said += [line for line in (absent, remark) if line] + _notes(backend, plan)
    if config.quantisation.rest == "fp16":
        said.append(_HALF)
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
        kernels=kernels_of(plan, census),
        latency=latency,
        size=Size(float_bytes=size_of(compiled.float_model), quantised_bytes=size_of(compiled.model)),
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
        layers=layers_of(plan, census, noise),
        outputs=scores.outputs,
        quantiser=config.quantisation.quantiser,
        target=backend.profile.cpu,
    )
    golden = _golden(inputs, teacher.outputs, oracle, columns["teacher"])
    files = device_files(backend, compiled.model, plan, torch.from_numpy(golden.inputs))
    return Validated(report=report, golden=golden, device_files=files)


def validate_stored(bundle: Bundle, config: ValidationConfig, backend: Backend, progress: Progress) -> Report:
    """Validate a bundle here: golden inputs without --eval-data, else those images; against oracle and runtime.

    Golden inputs show that the runtime here is the oracle; what the network has lost is then what its run measured.
    """
    earlier = bundle.report
    config = with_limits_of(config, earlier)
    check_output_names(config, [output.name for output in bundle.outputs], source=str(bundle.folder))
    absent, here = backend.unavailable(), host_cpu()
    if absent is not None and here is not None and elsewhere(bundle.target):
        absent = bundle.made_for(here)
    float_file = bundle.folder.parent / FLOAT_MODEL
    float_model = read_model(float_file) if float_file.is_file() else None
    if float_model is not None:
        bundle.check_counterpart(float_model, FLOAT_MODEL)
    columns: dict[str, Outputs] = {"oracle": _oracle(bundle.model, backend)}
    batch, batch_remark = latency_batch(config.batch, bundle.fixed_batch)
    remarks: tuple[str, ...] = ()
    evaluation: EvaluationSet | None = None
    # Images first: an engine takes minutes to build.
    if config.eval_data is None:
        golden = [torch.from_numpy(values) for values in bundle.golden.teacher.values()]
        columns["target"] = columns["teacher"] = lambda images: golden
        count = len(bundle.golden.inputs)
        batches = iter([ScoredImages(images=torch.from_numpy(bundle.golden.inputs), labels=None)])
    else:
        named = bundle.outputs
        if config.classes is not None:
            named = named_outputs(named, read_class_names(config.classes), said_by=f"--classes {config.classes}")
        evaluation, remarks = usable_labels(
            open_evaluation(config.eval_data, bundle.preprocessing), named, config.eval_data
        )
        check_scored(evaluation, bundle.outputs, bundle.preprocessing)
        remarks = (*evaluation.images.notes, *remarks)
        teacher = _stored_teacher(float_model, float_file, config.eval_data, needed=evaluation.labels is None)
        if teacher is None:
            remarks += (f"no accuracy is judged: {float_file}, the float network that a run leaves, is absent",)
        else:
            columns["target"] = columns["teacher"] = teacher
        earlier = None
        count, most = len(evaluation.images), images_at_once(bundle.preprocessing, _BATCH)
        batches = scored_images(evaluation, np.arange(count), bundle.preprocessing, most, 0)
    with _maybe_runner(backend, bundle.model, absent) as runner:
        if runner is not None:
            columns["runtime"] = runner_outputs(runner, bundle.fixed_batch)
        scores = score(columns, batches, bundle.outputs, step=lambda done: progress.step(done, count))
        another = _another_size_of(bundle, backend, runner)
    if evaluation is not None:
        remarks = (*remarks, *_unscored(evaluation, scores.accuracy.images))
    census, remark = count_kernels(backend, bundle.model, bundle.plan.integer_layers())
    latency = no_latency(batch, config.threads)
    if absent is None and backend.has_times:
        inputs = filled_up(torch.from_numpy(bundle.golden.inputs), batch).numpy()
        latency = measure_latency(backend, bundle.model, float_model, inputs, threads=config.threads)
    judged = gates_of(config, scores, census, latency, bundle.plan, backend, earlier=earlier)
    gates = (*judged, *(gate for gate, _ in another))
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
        kernels=kernels_of(bundle.plan, census),
        latency=latency,
        size=Size(float_bytes=size_of(float_model) if float_model else None, quantised_bytes=size_of(bundle.model)),
        seconds={},
        gates=gates,
        preprocessing=bundle.preprocessing.to_json(),
        notes=(
            *bundle.remarks,
            *ungated(config),
            *repetitions(scores),
            *remarks,
            *batch_remark,
            *(line for _, line in another if line),
            *reasons(gates, scores.outputs, scores.main, None),
            *(line for line in (absent, remark) if line),
            *_notes(backend, bundle.plan),
        ),
        layers=layers_of(bundle.plan, census, {}),
        outputs=scores.outputs,
        target=bundle.target,
    )


# Columns and batches.


@contextmanager
def _maybe_runner(backend: Backend, model: Serialised, absent: str | None) -> Iterator[Runner | None]:
    """The backend's runner, or None where the runtime is absent."""
    if absent is not None:
        yield None
        return
    # As many threads as the machine has: scoring is no timing.
    with backend.runner(model, threads=os.cpu_count() or 1) as runner:
        yield runner


def _another_size(
    config: RunConfig,
    evaluation: EvaluationSet,
    indices: NDArray[np.int64],
    teacher: Network,
    quantised: QuantisedStudent,
    runner: Runner | None,
) -> list[tuple[Gate, str | None]]:
    """Where height and width are free: runtime and oracle on a few images of another size."""
    if not config.quantisation.dynamic_size:
        return []
    size = other_size(teacher.preprocessing)
    few = images_at_once(size, _OTHER_SIZE_IMAGES)
    batch = next(ordered_batches(evaluation.images, indices[:few], size, batch_size=few))
    least = least_parity(quantised.plan, quantised.backend)
    images = normalise(batch.images, size)
    if config.quantisation.static_batch is not None:
        images = filled_up(images, config.quantisation.static_batch)
    return [gate_of_other_size(quantised.compiled.model, quantised.backend, runner, teacher.outputs, images, least)]


def _another_size_of(bundle: Bundle, backend: Backend, runner: Runner | None) -> list[tuple[Gate, str | None]]:
    """The same for a bundle, whose golden inputs are stretched to the other size."""
    if not bundle.any_size:
        return []
    size = other_size(bundle.preprocessing)
    few = torch.from_numpy(bundle.golden.inputs[: images_at_once(size, _OTHER_SIZE_IMAGES)])
    images = functional.interpolate(few, size=(size.height, size.width), mode="nearest")
    if bundle.fixed_batch is not None:
        images = filled_up(images, bundle.fixed_batch)
    least = least_parity(bundle.plan, backend)
    return [gate_of_other_size(bundle.model, backend, runner, bundle.outputs, images, least)]


def _oracle(model: Serialised, backend: Backend) -> Outputs:
    """The oracle with the semantics of the backend's kernels."""
    profile = backend.profile
    return oracle_outputs(model, fused_rounding=profile.fused_rounding, arm_arithmetic=profile.arm_arithmetic)


def _module_outputs(module: torch.nn.Module) -> Outputs:
    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module(images))

    return run


def _stored_teacher(float_model: Serialised | None, file: Path, source: str, *, needed: bool) -> Outputs | None:
    """The float counterpart that a run leaves beside its bundle, as the teacher; None where it is absent.

    Raises UserError where it is `needed`: without labels there is nothing else to score by.
    """
    if float_model is not None:
        return oracle_outputs(float_model, fused_rounding=False, arm_arithmetic=False)
    if needed:
        raise UserError(
            f"--eval-data {source} has no labels to score by, and {file}, the teacher to agree with, is absent:"
            " give labelled images, or leave --eval-data out to score on the bundle's golden images"
        )
    return None


def _golden(images: Tensor, outputs: Sequence[Output], oracle: Outputs, teacher: Outputs) -> Golden:
    """A few images with all outputs of the oracle and of the teacher: as many as keep the file small."""
    size = sum(math.prod(abs(size) for size in output.shape) for output in outputs) * 2 + images[0].numel()
    images = images[: max(1, min(_GOLDEN_IMAGES, _GOLDEN_BYTES // (4 * size)))]
    names = [output.name for output in outputs]
    columns = []
    for run in (oracle, teacher):
        columns.append({name: values.detach().numpy() for name, values in zip(names, run(images), strict=True)})
    return Golden(inputs=images.numpy(), outputs=columns[0], teacher=columns[1])


# Parts of the report.


def _distillation(quantised: QuantisedStudent, calibrated: float | None) -> Distillation | None:
    """What training did; None where nothing was trained."""
    trained = quantised.trained
    return None if trained is None else replace(trained.distillation, accuracy_calibrated=calibrated)


def _unscored(evaluation: EvaluationSet, scored: int) -> tuple[str, ...]:
    """What to say of images to score on that could not be read."""
    broken = evaluation.images.unreadable.summary()
    return () if broken is None else (f"{scored} of {len(evaluation.images)} images are scored: {broken}",)


def _noise(quantised: QuantisedStudent, batches: Sequence[Tensor]) -> dict[str, float]:
    """Noise of each layer in the simulation; nothing where nothing is simulated."""
    if quantised.prepared is None or quantised.trained is None:
        return {}
    return layer_sqnr(quantised.prepared.folded, quantised.trained.network, batches)


def _notes(backend: Backend, plan: Plan) -> list[str]:
    """What the profile says of files like this one."""
    narrow = any(weight.grid.bits <= 4 and not weight.weight_only for weight in plan.weights)
    said = [backend.profile.inexact, backend.profile.wide_storage if narrow else "", _option_note(backend)]
    return [line for line in said if line]


def _option_note(backend: Backend) -> str | None:
    """What the device must set, where the artifact needs it."""
    options = ", ".join(f"{name}={value}" for name, value in backend.profile.session_options.items())
    return f"the device must set {options}, as check.py and faqd validate do" if options else None
