"""The functions of the chain on top of the stages of a run: every call into the rooms of `pipeline` stands here.

Each does what `pipeline.run` does at that point, with the same checks: a chain of calls ends in the bytes of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from calibration.errors import UserError
from calibration.graph.interface import interface_of
from faqd.checks import check_bundle_place, check_images, check_kind, run_with, section
from faqd.images_at_hand import AT_HAND
from faqd.results import Artifact, Images, Simulation, Student, snapshot
from pipeline.artifacts import FLOAT_MODEL, Lesson, Network, QuantisedStudent, TrainingFiles
from pipeline.bundle.bundle import Bundle, read_bundle, write_model
from pipeline.config import (
    DistillationConfig,
    EngineConfig,
    ExecutionConfig,
    QuantisationConfig,
    StudentConfig,
    ValidationConfig,
)
from pipeline.distillation.training.schedule import resolve_device, resolve_float_steps
from pipeline.images.data import EvaluationSet, open_evaluation, open_held
from pipeline.networks.outputs.class_order import named_outputs, read_class_names
from pipeline.report.schema import Report
from pipeline.setup.calibration import calibrated
from pipeline.setup.chosen_backend import chosen_backends, prepared_for
from pipeline.setup.networks import Networks
from pipeline.stages.convert import convert
from pipeline.stages.distill import distil
from pipeline.stages.first_link import check_float_file
from pipeline.stages.float_student import teach_float, what_was_learned, with_weights
from pipeline.stages.observe import suited
from pipeline.stages.reconstruct import reconstruct
from pipeline.stages.targets import lesson_for
from pipeline.stages.teacher import check_same_outputs
from pipeline.tools.atomic import remove
from pipeline.tools.kept import Kept
from pipeline.tools.progress import Progress
from pipeline.validation.bundle_of_result import write_result
from pipeline.validation.evaluation import Scored, usable_labels
from pipeline.validation.network_check import check_networks, check_taught, checked_on_images
from pipeline.validation.preflight import check_scored
from pipeline.validation.subject import Asked
from pipeline.validation.teacher_check import check_teacher
from pipeline.validation.validate import Validated, validate_network


def prepared_student(
    network: Network,
    images: Images,
    *,
    teacher: Network | None,
    progress: Progress,
    settings: Mapping[str, Any],
) -> Student:
    """See `faqd.prepare`."""
    check_kind(network, Network, "prepare", "a network, as faqd.capture or faqd.load_network makes one")
    check_images(images, network, "prepare")
    asked = section(QuantisationConfig, settings, "prepare", dynamic_size=network.other is not None)
    if interface_of(network.captured).one_image:
        if asked.static_batch not in (None, 1):
            raise UserError(f"prepare(static_batch={asked.static_batch}): {network.source} takes one image at a time")
        asked = replace(asked, static_batch=1)
    config = run_with(quantisation=asked, execution=ExecutionConfig(seed=images.seed))
    networks = Networks(teachers=(teacher or network,), student=network)
    candidates = chosen_backends(asked, config.engine, batch=config.validation.batch, progress=progress)
    with progress.stage("observe"):
        if teacher is not None:
            check_kind(teacher, Network, "prepare(teacher=...)", "a network")
            check_same_outputs(network, teacher)
        check_networks(networks, candidates[0], asked)
        shown = checked_on_images(networks, images.split, asked, seed=images.seed)
        name = images.split.source.name
        warnings = check_teacher(networks.teacher, images.split, None, data=name, eval_data=None)
        notes = (*warnings, *networks.notes, *images.split.source.notes)
        for note in notes:
            progress.say(note)
        student = suited(network, candidates[0].profile, asked.widths, check=shown)
        prepared = calibrated(student, candidates, networks.teacher, images.split, asked, progress=progress)
        backend = prepared_for(candidates, prepared.plan)
    if asked.resolved_rounding != "nearest":
        with progress.stage("reconstruct"):
            prepared = reconstruct(prepared, images.split, seed=images.seed, progress=progress)
    names, p = tuple(output.name for output in network.outputs), network.preprocessing
    sizes = (p.channels, p.height, p.width) if network.other is None else (p.channels, None, None)
    return Student(
        module=Simulation(prepared.network(trainable=True).eval(), names, sizes),
        prepared=prepared,
        network=network,
        lesson=Lesson(teachers=networks.teachers, images=images.split),
        backend=backend,
        seed=images.seed,
        shown=shown,
        notes=notes,
    )


def distilled_student(
    student: Student,
    teachers: Sequence[Network],
    images: Images,
    execution: ExecutionConfig,
    *,
    checkpoint: Path | None,
    progress: Progress,
    settings: Mapping[str, Any],
) -> Student:
    """See `faqd.distil`."""
    asked = section(DistillationConfig, settings, "distil")
    _check_lesson(teachers, images, "distil")
    run_with(quantisation=student.prepared.quantisation, distillation=asked, execution=execution)
    resolve_device(execution.device)
    if student.network is not teachers[0]:
        check_same_outputs(student.network, teachers[0])
    if asked.label_weight is not None and images.split.labels is None:
        raise UserError(
            f"--label-weight needs labels, and {images.split.source.name} was opened without: open the images with"
            " faqd.open_images(..., labels=True), or leave it out (--class-weight needs none)"
        )
    if _has_learned(student):
        raise UserError(
            "distil begins with what was calibrated, and this student has been trained already, by distil or by a loop"
            " of your own: convert it, or make another with faqd.prepare"
        )
    if checkpoint is not None and asked.generations > 1:
        raise UserError(
            f"distil(checkpoint={str(checkpoint)!r}) keeps one student, not {asked.generations} generations"
        )
    with progress.stage("distil"):
        lesson, said = lesson_for(tuple(teachers), images.split, asked)
        for line in said:
            progress.say(line)
        files = None if checkpoint is None else TrainingFiles(checkpoint=Kept(checkpoint))
        trained = distil(student.prepared, lesson, asked, execution, files=files, progress=progress)
    return replace(
        student,
        module=Simulation(trained.network, student.module.names, student.module.sizes),
        lesson=lesson,
        seed=execution.seed,
        notes=(*student.notes, *said),
        settings=asked,
        distillation=trained.distillation,
    )


def taught_network(
    student: Network,
    teachers: Sequence[Network],
    images: Images,
    execution: ExecutionConfig,
    *,
    checkpoint: Path | None,
    progress: Progress,
    settings: Mapping[str, Any],
) -> Network:
    """See `faqd.distil`, of a float network."""
    asked = section(DistillationConfig, settings, "distil")
    check_kind(student, Network, "distil", "a student that faqd.prepare makes, or a float network")
    _check_lesson(teachers, images, "distil")
    config = run_with(student=StudentConfig(source=student.source), distillation=asked, execution=execution)
    resolve_device(execution.device)
    check_same_outputs(student, teachers[0])
    steps = resolve_float_steps(asked.float_steps, named=True, has_weights=False)
    if not steps:
        raise UserError("distil(float_steps=0) of a float network would do nothing")
    with progress.stage("float"):
        lesson, said = lesson_for(tuple(teachers), images.split, asked)
        for line in said:
            progress.say(line)
        networks = Networks(teachers=tuple(teachers), student=student)
        shown = checked_on_images(networks, images.split, config.quantisation, seed=execution.seed)
        files = None if checkpoint is None else TrainingFiles(checkpoint=Kept(checkpoint))
        weights = teach_float(student, lesson, asked, execution, steps=steps, files=files, progress=progress)
        taught = with_weights(student, weights.tensors)
        check_taught(taught, shown, config.quantisation)
    if checkpoint is not None:
        remove(checkpoint)
    remark = what_was_learned(student, teachers[0], weights.agreement, steps=steps)
    return replace(taught, notes=(*taught.notes, remark))


def converted(student: Student, progress: Progress) -> Artifact:
    """See `faqd.convert`."""
    check_kind(student, Student, "convert", "a student, as faqd.prepare and faqd.distil make one")
    teacher = student.lesson.teacher
    with progress.stage("convert"):
        network = snapshot(student.module)
        quantised = convert(student.prepared, network, teacher, student.backend, distillation=student.distillation)
        batch = student.prepared.quantisation.static_batch
        check_float_file(quantised.compiled.float_model, teacher, student.shown, batch=batch)
    return Artifact(student=student, quantised=quantised)


def validated(
    artifact: Artifact, images: Any, limits: ValidationConfig, engine: EngineConfig, progress: Progress
) -> Report:
    """See `faqd.validate`, of an artifact."""
    return _judged(artifact, images, limits, engine, progress, bundle=None).validated.report


def bundled(
    artifact: Artifact,
    folder: Path,
    images: Any,
    limits: ValidationConfig,
    engine: EngineConfig,
    progress: Progress,
    *,
    overwrite: bool,
) -> Bundle:
    """See `faqd.write_bundle`."""
    check_kind(artifact, Artifact, "write_bundle", "an artifact of faqd.convert, first")
    float_file = folder.with_name(FLOAT_MODEL)
    check_bundle_place(folder, float_file, artifact.float_model, overwrite=overwrite)
    judged = _judged(artifact, images, limits, engine, progress, bundle=folder)
    write_model(float_file, artifact.float_model)
    write_result(
        folder,
        judged.quantised,
        judged.validated,
        artifact.student.lesson.teacher,
        artifact.student.prepared.student,
        judged.scored,
        overwrite=overwrite or (folder.is_dir() and not any(folder.iterdir())),
    )
    return read_bundle(folder)


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """An artifact with the backend that ran it, what was measured, and on which images."""

    quantised: QuantisedStudent
    validated: Validated
    scored: Scored


def _judged(
    artifact: Artifact,
    images: Any,
    limits: ValidationConfig,
    engine: EngineConfig,
    progress: Progress,
    *,
    bundle: Path | None,
) -> _Judged:
    """An artifact judged by images; `bundle`: where it will lie, for advice."""
    student = artifact.student
    lesson, asked = student.lesson, student.prepared.quantisation
    learning = student.settings or DistillationConfig()
    execution = ExecutionConfig(seed=student.seed)
    run_with(quantisation=asked, distillation=learning, validation=limits, engine=engine, execution=execution)
    candidates = chosen_backends(asked, engine, batch=limits.batch, progress=progress)
    backend = prepared_for(candidates, artifact.quantised.plan)
    quantised, scored = replace(artifact.quantised, backend=backend), _scored(images, lesson, limits)
    judged_by = Asked(
        quantisation=asked,
        learning=learning,
        limits=limits,
        seed=student.seed,
        student=student.network.source,
        bundle=bundle,
    )
    with progress.stage("validate"):
        network, notes = student.prepared.student, artifact.notes
        validated = validate_network(network, lesson, quantised, scored, judged_by, progress, notes=notes)
    return _Judged(quantised=quantised, validated=validated, scored=scored)


def _scored(images: Any, lesson: Lesson, limits: ValidationConfig) -> Scored:
    """The images to judge by, and what to say about that."""
    teacher, source = lesson.teacher, lesson.images.source
    outputs = teacher.outputs
    if (classes := limits.classes) is not None:
        outputs = named_outputs(outputs, read_class_names(classes), said_by=f"--classes {classes}")
    if limits.eval_data is not None:
        if images is not None:
            raise UserError(f"validate(images=...) and eval_data={limits.eval_data!r} say the same: give one of them")
        images = limits.eval_data
    if isinstance(images, Images) and images.split.source is not source:
        check_images(images, teacher, "validate")
        return Scored.whole(EvaluationSet(images=images.split.source, labels=None))
    if images is None or isinstance(images, Images):
        return Scored.held_out(lesson.images)
    named = str(images) if isinstance(images, str) or hasattr(images, "__fspath__") else None
    if named is None:
        opened = open_held(images, teacher.preprocessing, where=AT_HAND, labelled=True)
    else:
        opened = open_evaluation(named, teacher.preprocessing)
    evaluation, remarks = usable_labels(opened, outputs, named or AT_HAND)
    check_scored(evaluation, teacher.outputs, teacher.preprocessing)
    # Also for its errors: labels of another network would give a score that says nothing.
    warnings = check_teacher(teacher, None, evaluation, data="", eval_data=named or AT_HAND)
    return Scored.whole(evaluation, (*warnings, *remarks))


def _check_lesson(teachers: Sequence[Network], images: Images, function: str) -> None:
    if not teachers:
        raise UserError(f"{function} needs at least one network to learn from")
    for teacher in teachers:
        check_kind(teacher, Network, function, "the float network to learn from, or several of them")
        check_images(images, teacher, function)
    for teacher in teachers[1:]:
        check_same_outputs(teacher, teachers[0], flag="teacher")


def _has_learned(student: Student) -> bool:
    """Whether a student's weights or scales are others than those that it was calibrated with."""
    if student.distillation is not None:
        return True
    begun = student.prepared.network(trainable=True).state_dict()
    now = student.module.network.state_dict()
    return any(not torch.equal(value.cpu(), begun[name]) for name, value in now.items())
