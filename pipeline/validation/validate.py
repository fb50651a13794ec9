"""Validation of what a run has made, of any quantised student, and of a finished bundle: one measurement, one report.

Each function here says what it has; `measurement` does the rest, in the same way for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from backends.base import Backend
from backends.facts.cpu import elsewhere, host_cpu
from backends.onnx_file.serialised import Serialised, read_model
from calibration.errors import UserError
from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import FLOAT_MODEL, Lesson, Network, PreparedStudent, QuantisedStudent
from pipeline.bundle.bundle import Bundle
from pipeline.bundle.device_files import device_files
from pipeline.bundle.golden import Golden, golden_of
from pipeline.config.validation import ValidationConfig
from pipeline.images.batches import images_at_once
from pipeline.images.data import open_evaluation, ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.networks.outputs.class_order import named_outputs, read_class_names
from pipeline.networks.outputs.common_form import answers_in_form, in_student_form
from pipeline.networks.outputs.meaning import Output
from pipeline.report.schema import Bits, Data, Report
from pipeline.stages.targets import joint_targets
from pipeline.stages.teacher import other_size
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.progress import Progress, SilentProgress
from pipeline.validation.advice import advice
from pipeline.validation.evaluation import Scored, scored_images, usable_labels
from pipeline.validation.gates import check_output_names, least_parity_for, least_parity_of_bundle, with_limits_of
from pipeline.validation.golden_check import check_golden
from pipeline.validation.measurement import measured, report_of
from pipeline.validation.preflight import check_scored
from pipeline.validation.score import Outputs, ScoredImages, oracle_outputs
from pipeline.validation.sensitivity import layer_sqnr
from pipeline.validation.subject import Asked, ImagesToScore, Origin, Subject, bits_of, fixed_batch_of, oracle_of
from pipeline.validation.teacher_check import Answering, check_evaluation

_SQNR_IMAGES = 32
_OTHER_SIZE_IMAGES = 8
_ORACLE_IMAGES = 4
_HALF = "all that is not integer is float16: so computes the oracle, while the simulation computes it in float32"


@dataclass(frozen=True, kw_only=True)
class Validated:
    """A report without its times, and what belongs into the bundle: golden inputs and outputs, the device's files."""

    report: Report
    golden: Golden
    device_files: Mapping[str, bytes]

    def of_run(self, run: str, *, seconds: Mapping[str, float]) -> Validated:
        """The same with the identity of its run and the seconds that its stages took."""
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        return replace(self, report=replace(self.report, run=run, seconds=rounded))


@dataclass(frozen=True, kw_only=True)
class Background:
    """What is known of a quantised student beside the student itself and its teacher."""

    outputs: Sequence[Output] | None = None
    """The student's, where nothing prepared says them; they may end in other activations than the teacher's, whose
    answers are then compared in the student's form."""
    target: Outputs | None = None
    """What the student was asked for; None: the teacher's own outputs."""
    origin: Origin | None = None
    """What the report says of networks and widths; None: of a student that is its teacher's quantised form."""
    notes: Sequence[str] = ()
    """For the report."""


def validate_student(
    quantised: QuantisedStudent,
    teacher: Network,
    scored: Scored,
    limits: ValidationConfig | None = None,
    progress: Progress | None = None,
    *,
    background: Background | None = None,
) -> Validated:
    """Score teacher, simulation, oracle and runtime on the same images and measure the artifact on its runtime.

    The first three arguments suffice.

    Raises UserError where no image can be read, a label is no class, or the artifact does not take `limits.batch`.
    """
    limits, progress = limits or ValidationConfig(), progress or SilentProgress()
    known = background or Background()
    backend, compiled, preprocessing = quantised.backend, quantised.compiled, teacher.preprocessing
    outputs = known.outputs
    if outputs is None and quantised.prepared is not None:
        outputs = quantised.prepared.student.outputs
    judged = in_student_form(teacher.outputs, outputs)
    float_outputs, oracle = _module_outputs(teacher.folded), oracle_of(compiled.model, backend)
    plain = answers_in_form(judged, teacher.outputs, float_outputs)
    asked = plain if known.target is None else answers_in_form(judged, teacher.outputs, known.target)
    columns: dict[str, Outputs] = {"target": asked, "teacher": plain, "oracle": oracle}
    calibrated = None if quantised.prepared is None else quantised.prepared.network().eval()
    simulated = calibrated if quantised.simulated is None else quantised.simulated
    if calibrated is not None and simulated is not None:
        columns["simulated"] = _module_outputs(simulated)
        if simulated is not calibrated:
            learned = quantised.distillation
            same = learned is not None and learned.chosen == "calibrated"
            columns["calibrated"] = columns["simulated"] if same else _module_outputs(calibrated)
    inputs = _first_images(scored, preprocessing, _SQNR_IMAGES)
    origin = known.origin or Origin(teacher=teacher.source, student=teacher.source, bits=bits_of(quantised.plan))
    subject = Subject(
        origin=origin,
        backend=backend,
        absent=backend.unavailable(),
        model=compiled.model,
        float_model=compiled.float_model,
        plan=quantised.plan,
        preprocessing=preprocessing,
        outputs=judged,
        fixed_batch=fixed_batch_of(compiled.model),
        least_parity=least_parity_for(quantised.plan, backend),
        columns=columns,
        images=scored_images(scored, preprocessing, parity=limits.parity_images, seed=origin.seed),
        example=inputs,
        other_size=None if teacher.other is None else _at_other_size(scored, preprocessing),
        noise=_noise(quantised.prepared, simulated, torch.split(inputs, images_at_once(preprocessing, _SQNR_IMAGES))),
        target=backend.profile.cpu,
        graph=teacher.folded,
        notes=tuple(known.notes),
        remarks=(*scored.evaluation.images.notes, *scored.remarks),
    )
    report = report_of(
        subject,
        measured(subject, limits, progress),
        limits,
        distillation=quantised.distillation,
    )
    golden = golden_of(inputs, judged, oracle, plain)
    files = device_files(backend, compiled.model, quantised.plan, torch.from_numpy(golden.inputs))
    return Validated(report=report, golden=golden, device_files=files)


def validate_network(
    student: Network,
    lesson: Lesson,
    quantised: QuantisedStudent,
    scored: Scored,
    asked: Asked,
    progress: Progress,
    *,
    notes: Sequence[str],
) -> Validated:
    """Validate what was made of a float student against what its lesson asked it for; with advice where a gate fails.

    `notes`: what there is to say of it already, for the report.
    """
    bits, teacher, images = asked.quantisation, lesson.teacher, lesson.images
    asked_for: Outputs | None = None
    if lesson.mirror or len(lesson.teachers) > 1:  # else the teacher's own answers, which are scored as well
        asked_for = joint_targets(
            [network.folded for network in lesson.teachers],
            [network.outputs for network in lesson.teachers],
            mirror=lesson.mirror,
            temperature=asked.learning.softening,
        )
    background = Background(
        outputs=student.outputs,
        target=asked_for,
        origin=Origin(
            teacher=teacher.source,
            student=asked.student or teacher.source,
            bits=Bits(weights=bits.bits, activations=bits.activation_bits),
            seed=asked.seed,
            quantiser=bits.quantiser,
        ),
        notes=(*notes, *((_HALF,) if bits.rest == "fp16" else ())),
    )
    scored = replace(scored, workers=images.workers)
    validated = validate_student(quantised, teacher, scored, asked.limits, progress, background=background)
    unreadable = images.source.unreadable
    data = Data(
        images=len(images.source),
        unreadable=unreadable.count,
        unreadable_names=unreadable.names[:5],
        generated=images.preview,
    )
    report = replace(validated.report, data=data)
    hints = advice(bits, report, bundle=asked.bundle, variant=quantised.plan.variant)
    return replace(validated, report=replace(report, notes=(*report.notes, *hints)))


def validate_stored(bundle: Bundle, config: ValidationConfig, backend: Backend, progress: Progress) -> Report:
    """Validate a bundle here: golden inputs without --eval-data, else those images; against oracle and runtime.

    Golden inputs show that the runtime here gives the golden outputs, by the very limits of the bundle's own check.py;
    what the network has lost is then what its run measured.
    """
    limits = with_limits_of(config, bundle.report)
    check_output_names(limits, [output.name for output in bundle.outputs], source=str(bundle.folder))
    absent, here = backend.unavailable(), host_cpu()
    if absent is not None and here is not None and elsewhere(bundle.target):
        absent = bundle.made_for(here)
    float_file = bundle.folder.parent / FLOAT_MODEL
    float_model = read_model(float_file) if float_file.is_file() else None
    if float_model is not None:
        bundle.check_counterpart(float_model, FLOAT_MODEL)
    golden = limits.eval_data is None
    # Without other images the runtime gives all of the golden outputs as well: a few by the oracle suffice.
    check_golden(bundle, backend, most=_ORACLE_IMAGES if golden else None)
    columns, images, remarks = _golden_images(bundle)
    if limits.eval_data is not None:
        columns, images, remarks = _named_images(bundle, limits, backend, float_model)
    said = bundle.manifest
    subject = Subject(
        origin=Origin(
            teacher=said.teacher,
            student=said.student,
            bits=Bits(weights=said.bits.weights, activations=said.bits.activations),
            seed=said.seed,
            quantiser=said.quantiser,
        ),
        backend=backend,
        absent=absent,
        model=bundle.model,
        float_model=float_model,
        plan=bundle.plan,
        preprocessing=bundle.preprocessing,
        outputs=bundle.outputs,
        fixed_batch=bundle.fixed_batch,
        least_parity=least_parity_of_bundle(bundle, backend),
        exact=golden and bundle.manifest.exact,
        columns=columns,
        images=images,
        example=torch.from_numpy(bundle.golden.inputs),
        other_size=_golden_at_other_size(bundle) if bundle.any_size else None,
        target=bundle.target,
        notes=bundle.remarks,
        remarks=remarks,
    )
    earlier = bundle.report if limits.eval_data is None else None
    return report_of(subject, measured(subject, limits, progress), limits, earlier=earlier)


# What a run, or anybody who has quantised a network, has.


def _module_outputs(module: torch.nn.Module) -> Outputs:
    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(module(images))

    return run


def _first_images(scored: Scored, preprocessing: Preprocessing, count: int) -> Tensor:
    """The first images that are scored, `count` at the most, normalised."""
    batch = next(ordered_batches(scored.evaluation.images, scored.indices[:count], preprocessing, batch_size=count))
    return normalise(batch.images, preprocessing)


def _at_other_size(scored: Scored, preprocessing: Preprocessing) -> Tensor:
    """A few of the images at another size; two at the least, so that there is a mean to tell them apart by."""
    size = other_size(preprocessing)
    return _first_images(scored, size, max(2, images_at_once(size, _OTHER_SIZE_IMAGES)))


def _noise(
    prepared: PreparedStudent | None, simulated: PreparedNetwork | None, batches: Sequence[Tensor]
) -> dict[str, float]:
    """Noise of each layer in the simulation; nothing where nothing is simulated."""
    if prepared is None or simulated is None:
        return {}
    with freed_memory_kept():
        return layer_sqnr(prepared.folded, simulated, batches)


# What a bundle has.

_Named = tuple[dict[str, Outputs], ImagesToScore, tuple[str, ...]]


def _golden_images(bundle: Bundle) -> _Named:
    """The golden images with what came out of oracle and teacher in the run."""
    golden = bundle.golden
    oracle, teacher = (
        [torch.from_numpy(values) for values in column.values()] for column in (golden.outputs, golden.teacher)
    )
    columns: dict[str, Outputs] = {
        "target": lambda _: teacher,
        "teacher": lambda _: teacher,
        "oracle": lambda _: oracle,
    }
    batch = ScoredImages(images=torch.from_numpy(golden.inputs), labels=None)
    return columns, ImagesToScore(batches=[batch], count=len(golden.inputs)), ()


def _named_images(bundle: Bundle, limits: ValidationConfig, backend: Backend, float_model: Serialised | None) -> _Named:
    """The images of --eval-data, with the oracle and the float model as columns, and what to say of them."""
    source, named = str(limits.eval_data), bundle.outputs
    if limits.classes is not None:
        named = named_outputs(named, read_class_names(limits.classes), said_by=f"--classes {limits.classes}")
    evaluation, remarks = usable_labels(open_evaluation(source, bundle.preprocessing), named, source)
    check_scored(evaluation, bundle.outputs, bundle.preprocessing)
    columns = {"oracle": oracle_of(bundle.model, backend)}
    float_file = bundle.folder.parent / FLOAT_MODEL
    teacher = _stored_teacher(float_model, float_file, source, needed=evaluation.labels is None)
    if teacher is None:
        remarks += (f"no accuracy is judged: {float_file}, the float network that a run leaves, is absent",)
    else:
        columns["target"] = columns["teacher"] = answers_in_form(bundle.outputs, bundle.float_outputs, teacher)
    called = "the bundle's network" if teacher is None else "the float teacher"
    asked = Answering(
        called=called,
        outputs=bundle.outputs,
        preprocessing=bundle.preprocessing,
        run=columns.get("teacher", columns["oracle"]),
    )
    remarks += check_evaluation(asked, evaluation, source=source)
    seed = bundle.manifest.seed
    images = scored_images(Scored.whole(evaluation), bundle.preprocessing, parity=limits.parity_images, seed=seed)
    return columns, images, (*evaluation.images.notes, *remarks)


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


def _golden_at_other_size(bundle: Bundle) -> Tensor:
    """A few golden inputs stretched to another size; a single one and its mirror image."""
    size = other_size(bundle.preprocessing)
    few = torch.from_numpy(bundle.golden.inputs[: max(2, images_at_once(size, _OTHER_SIZE_IMAGES))])
    images = functional.interpolate(few, size=(size.height, size.width), mode="nearest")
    return torch.cat([images, images.flip(3)]) if len(images) == 1 else images
