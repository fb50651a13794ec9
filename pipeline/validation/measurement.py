"""One measurement and one report for all that is validated: scores, kernels, latency and gates of a subject."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from backends.base import Backend, Census, Runner
from backends.onnx_file.serialised import Serialised, size_of
from calibration.plan import Plan
from pipeline.config.validation import ValidationConfig
from pipeline.networks.outputs.joined import reasons
from pipeline.report.gate import Gate, verdict
from pipeline.report.schema import Distillation, Latency, Report, Size
from pipeline.report.wording import percentage
from pipeline.setup.machine.circumstances import host, versions
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.progress import Progress
from pipeline.validation.gates import gates_of, repetitions, ungated
from pipeline.validation.layer_report import kernels_of, layers_of
from pipeline.validation.other_size import gate_of_other_size
from pipeline.validation.running import filled_up, latency_batch, runner_outputs
from pipeline.validation.score import Scores, count_kernels, measure_latency, no_latency, score
from pipeline.validation.subject import ImagesToScore, Subject, oracle_of

# Columns that run on the sample of --parity-images alone: of the artifact's own what runs here is scored on all.
_BESIDE_ORACLE = frozenset({"calibrated", "simulated"})
_BESIDE_RUNTIME = _BESIDE_ORACLE | {"oracle"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a subject, and what to say of how."""

    scores: Scores
    census: Census | None
    latency: Latency
    other_size: Gate | None
    remarks: tuple[str, ...]


def measured(subject: Subject, limits: ValidationConfig, progress: Progress) -> Measured:
    """Score every column on the same images, count the runtime's kernels and measure the artifact on its runtime.

    Raises UserError for a batch size that the model does not take and where no image can be read.
    """
    backend, model, columns = subject.backend, subject.model, dict(subject.columns)
    batch, batch_remark = latency_batch(limits.batch, subject.fixed_batch)
    other_size, said = None, None
    with _runner(backend, model, subject.absent) as runner:
        if runner is not None:
            columns["runtime"] = runner_outputs(runner, subject.fixed_batch)
        images = subject.images
        with freed_memory_kept():
            scores = score(
                columns,
                images.batches,
                subject.outputs,
                sampled=_BESIDE_RUNTIME if "runtime" in columns else _BESIDE_ORACLE,
                step=lambda done: progress.step(done, images.count),
            )
        if subject.other_size is not None:
            oracle, runtime = oracle_of(model, backend), columns.get("runtime")
            other_size, said = gate_of_other_size(
                oracle, runtime, subject.outputs, subject.other_size, subject.least_parity
            )
    census, remark = count_kernels(backend, model, subject.plan.integer_layers())
    latency = no_latency(batch, limits.threads)
    if subject.absent is None and backend.has_times:
        example = filled_up(subject.example, batch).numpy()
        latency = measure_latency(backend, model, subject.float_model, example, threads=limits.threads)
    lines = (*batch_remark, said, *_unscored(images, scores.accuracy.images), subject.absent, remark)
    return Measured(
        scores=scores,
        census=census,
        latency=latency,
        other_size=other_size,
        remarks=tuple(line for line in lines if line),
    )


def report_of(
    subject: Subject,
    measurement: Measured,
    limits: ValidationConfig,
    *,
    earlier: Report | None = None,
    distillation: Distillation | None = None,
) -> Report:
    """All that is known of a subject as a report, without its times, and with every gate.

    `earlier`: the report of a bundle's run where the images here are its golden ones (`gates_of`); `distillation`: what
    training did, which has not scored the calibrated network.
    """
    scores, plan, backend = measurement.scores, subject.plan, subject.backend
    census, latency, least = measurement.census, measurement.latency, subject.least_parity
    gates = gates_of(limits, scores, census, latency, least=least, earlier=earlier, exact=subject.exact)
    gates += () if measurement.other_size is None else (measurement.other_size,)
    notes = (
        *subject.notes,
        *ungated(limits),
        *repetitions(scores),
        *_overlap(scores),
        *_sampled(scores),
        *subject.remarks,
        *measurement.remarks,
        *reasons(gates, scores.outputs, scores.main, subject.graph),
        *_of_profile(backend, plan),
    )
    float_model, origin = subject.float_model, subject.origin
    return Report(
        status=verdict(gates, on_target=scores.accuracy.runtime is not None),
        backend=backend.name,
        bits=origin.bits,
        teacher=origin.teacher,
        student=origin.student,
        seed=origin.seed,
        versions=versions(),
        host=host(),
        accuracy=scores.accuracy,
        parity=scores.parity,
        kernels=kernels_of(plan, census),
        latency=latency,
        size=Size(
            float_bytes=None if float_model is None else size_of(float_model), quantised_bytes=size_of(subject.model)
        ),
        seconds={},
        gates=gates,
        distillation=None if distillation is None else replace(distillation, accuracy_calibrated=scores.calibrated),
        preprocessing=subject.preprocessing.to_json(),
        notes=tuple(dict.fromkeys(notes)),
        layers=layers_of(plan, census, subject.noise),
        outputs=scores.outputs,
        quantiser=origin.quantiser,
        target=subject.target,
        sample=scores.sample,
    )


def _overlap(scores: Scores) -> tuple[str, ...]:
    """The mean intersection over union with maps of labels, as a line; nothing where there are none."""
    kinds = ("teacher", "simulated", "oracle", "runtime")
    said = [f"{name} {percentage(scores.mean_ious[name])}" for name in kinds if name in scores.mean_ious]
    return (f"mean IoU with the labels: {', '.join(said)}",) if said else ()


def _sampled(scores: Scores) -> tuple[str, ...]:
    """What to say of stages that ran on a sample alone."""
    if scores.sample is None:
        return ()
    judged = "runtime" if scores.accuracy.runtime is not None else "oracle"
    return (
        f"{judged} and float teacher are scored on all {scores.accuracy.images} images, the other stages held to the"
        f" {judged} on {scores.sample.images} of them, drawn by the seed; --parity-images all takes all",
    )


@contextmanager
def _runner(backend: Backend, model: Serialised, absent: str | None) -> Iterator[Runner | None]:
    """The backend's runner, or None where the runtime is absent."""
    if absent is not None:
        yield None
        return
    # Scoring is no timing: as many threads as torch takes, which heeds OMP_NUM_THREADS and the processors that this
    # process may use: more make the oracle's small operators wait for each other, thirty times as long where both of
    # two processors were busy.
    with backend.runner(model, threads=torch.get_num_threads()) as runner:
        yield runner


def _unscored(images: ImagesToScore, scored: int) -> tuple[str, ...]:
    """What to say of images to score on that could not be read."""
    broken = None if images.source is None else images.source.unreadable.summary()
    return () if broken is None else (f"{scored} of {images.count} images are scored: {broken}",)


def _of_profile(backend: Backend, plan: Plan) -> tuple[str, ...]:
    """What the profile says of files like this one."""
    narrow = any(weight.grid.bits <= 4 and not weight.weight_only for weight in plan.weights)
    options = ", ".join(f"{name}={value}" for name, value in backend.profile.session_options.items())
    set_on_device = f"the device must set {options}, as check.py and faqd validate do" if options else ""
    lines = (backend.profile.inexact, backend.profile.wide_storage if narrow else "", set_on_device)
    return tuple(line for line in lines if line)
