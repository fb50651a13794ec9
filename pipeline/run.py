"""The chain, read from top to bottom: teacher, quantisers, distillation, artifact, validation, bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from backends.placement import Widths
from calibration.errors import UserError
from pipeline.artifacts import (
    Network,
    PreparedStudent,
    TrainedStudent,
    UnlabelledImages,
    load_tensors,
    save_tensors,
)
from pipeline.atomic import write_bytes
from pipeline.batches import suggested_workers
from pipeline.bundle import read_bundle, write_bundle
from pipeline.chosen_backend import chosen_backend, stored_backend
from pipeline.compare_config import CompareConfig
from pipeline.comparison import compare_bundle
from pipeline.config import EngineConfig, RunConfig, ValidationConfig
from pipeline.data import open_images, open_labelled, split_held_out
from pipeline.defaults import resolve_device, resolve_learning_rate, resolve_normalised, resolve_steps
from pipeline.distillation.build import build_objective
from pipeline.distillation.objective import ObjectiveConfig
from pipeline.progress import Progress
from pipeline.records import from_json, to_json
from pipeline.report.comparison import ComparisonReport
from pipeline.report.files import write_report
from pipeline.report.schema import Distillation, Report, read_report
from pipeline.stages.convert import check_convertible, compile_model
from pipeline.stages.distill import Schedule, Task, distil
from pipeline.stages.observe import prepare
from pipeline.stages.targets import LEAST_AGREEMENT, can_mirror, flips_in_training, mirror_agreement
from pipeline.stages.teacher import check_same_outputs, load_network
from pipeline.state import RunFolder, open_folder
from pipeline.validation import validate_network, validate_stored


def run(config: RunConfig, progress: Progress) -> Report:
    """Do the whole job of a configuration; the report, whose files and bundle are in `config.folder` then.

    Raises UserError for the user's mistakes; nothing half-written is left behind by one.
    """
    backend = chosen_backend(config, progress)
    folder = open_folder(config)
    if config.output.resume and folder.bundle.exists():
        progress.say(f"{folder.bundle} is finished already")
        return read_report(folder.root / "report.json")
    seconds: dict[str, float] = {}

    with _stage("teacher", progress, seconds):
        teacher, student = _networks(config)
        co_teachers = _co_teachers(config, teacher)
        for network in {id(network): network for network in (teacher, student)}.values():
            check_convertible(network.folded, opset=config.quantisation.opset)
        # Built for its errors: what a method lacks is said before anything takes time.
        build_objective(
            _objective(config),
            student.folded,
            [teacher.folded, *(network.folded for network in co_teachers)],
            teacher.outputs,
            taps=config.distillation.taps,
            seed=config.execution.seed,
        )
        images = _images(config, teacher)
        mirror, reason = _mirrored_targets(config, teacher, images)
        student_notes = student.notes if student is not teacher else ()
        notes = (*teacher.notes, *student_notes, *images.source.notes, *reason)
        for note in notes:
            progress.say(note)
    with _stage("observe", progress, seconds):
        if config.output.resume and folder.prepared.exists():
            prepared = PreparedStudent.load(folder.prepared, student.folded)
        else:
            prepared = prepare(
                student.folded,
                backend,
                images,
                teacher.preprocessing,
                widths=_widths(config),
                method=config.quantisation.range_method,
                count=config.data.calibration_images,
                seed=config.execution.seed,
                step=lambda done, total: progress.step(done, total),
            )
            prepared.save(folder.prepared)
    with _stage("distil", progress, seconds):
        trained = _distilled(config, folder, prepared, teacher, co_teachers, images, progress, mirror=mirror)
    with _stage("convert", progress, seconds):
        compiled = compile_model(
            trained.network, student.folded, teacher.folded, backend, opset=config.quantisation.opset
        )
        write_bytes(folder.float_model, compiled.float_model)
    with _stage("validate", progress, seconds):
        validated = validate_network(
            config,
            backend,
            teacher,
            prepared,
            trained,
            compiled,
            images,
            progress,
            mirror=mirror,
            notes=notes,
        )
    report = replace(validated.report, seconds={name: round(value, 3) for name, value in seconds.items()})
    write_bundle(
        folder.bundle,
        model=compiled.model,
        golden=validated.golden,
        plan=prepared.plan,
        preprocessing=teacher.preprocessing,
        outputs=teacher.outputs,
        report=report,
        device_files=validated.device_files,
        overwrite=config.output.overwrite or config.output.resume,
    )
    write_report(report, folder.root)
    return report


def validate_bundle(path: Path, config: ValidationConfig, engine: EngineConfig, progress: Progress) -> Report:
    """Validate a finished bundle on this machine's runtime; nothing is written but the kernel timings of an engine."""
    with progress.stage("validate"):
        bundle = read_bundle(path)
        backend = stored_backend(bundle.backend, engine, batch=config.batch, progress=progress)
        return validate_stored(bundle, config, backend, progress)


def compare(path: Path, config: CompareConfig, progress: Progress) -> ComparisonReport:
    """Compare a finished bundle's oracle with its runtime, or with another model, tensor by tensor."""
    with progress.stage("compare"):
        return compare_bundle(read_bundle(path), config, progress)


@contextmanager
def _stage(name: str, progress: Progress, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    with progress.stage(name):
        yield
    seconds[name] = time.monotonic() - start


def _networks(config: RunConfig) -> tuple[Network, Network]:
    """Teacher and student; the same object unless another student is named."""
    given = config.teacher
    teacher = load_network(
        given.source,
        weights=given.weights,
        image_size=given.image_size,
        mean=given.mean,
        std=given.std,
        output_kinds=given.output_kinds,
        submodule=given.submodule,
    )
    if config.student.source is None:
        return teacher, teacher
    p = teacher.preprocessing
    student = load_network(
        config.student.source,
        weights=config.student.weights,
        image_size=p.height,
        mean=p.mean,
        std=p.std,
        output_kinds=given.output_kinds,
    )
    check_same_outputs(student, teacher)
    return teacher, student


def _co_teachers(config: RunConfig, teacher: Network) -> tuple[Network, ...]:
    """The further teachers, for the first one's images and outputs."""
    sources, p = config.teacher.co_sources or (), teacher.preprocessing
    found = []
    for source, file in zip(sources, config.teacher.co_weights or ("-",) * len(sources), strict=True):
        weights = None if file == "-" else Path(file)
        network = load_network(
            source,
            weights=weights,
            image_size=p.height,
            mean=p.mean,
            std=p.std,
            output_kinds=config.teacher.output_kinds,
        )
        check_same_outputs(network, teacher, flag="co-teachers")
        found.append(network)
    return tuple(found)


def _images(config: RunConfig, teacher: Network) -> UnlabelledImages:
    labels = None
    if config.distillation.label_weight is None:
        source = open_images(config.data.source, teacher.preprocessing)
    else:
        labelled = open_labelled(config.data.source, teacher.preprocessing)
        source, labels = labelled.images, labelled.labels
    training, held_out = split_held_out(len(source), config.execution.seed, most=config.data.held_out_images)
    workers = config.data.workers
    if workers is None:
        workers = suggested_workers(source, teacher.preprocessing)
    return UnlabelledImages(
        source=source,
        training=training,
        held_out=held_out,
        workers=workers,
        augmentation=config.data.augmentation,
        labels=labels,
    )


def _mirrored_targets(config: RunConfig, teacher: Network, images: UnlabelledImages) -> tuple[bool, tuple[str, ...]]:
    """Whether targets are averaged over mirror images, and what to say about it."""
    wanted, possible = config.distillation.targets, can_mirror(teacher.folded)
    if wanted == "mirror" and not possible:
        raise UserError("--targets mirror needs a classifier: the outputs of this network are maps")
    if wanted != "auto":
        return wanted == "mirror", ()
    if not possible or not flips_in_training(images, teacher.preprocessing):
        return False, ()
    agreement = mirror_agreement(teacher.folded, images, teacher.preprocessing)
    found = f"the teacher gives {100 * agreement:.1f} % of held-out images the class of their mirror image"
    if agreement < LEAST_AGREEMENT:
        return False, (f"{found}: too few to average its logits over both (--targets mirror does it all the same)",)
    return True, (f"{found}: the student learns its mean over both (--targets image learns the image's alone)",)


def _widths(config: RunConfig) -> Widths:
    bits = config.quantisation
    return Widths(
        weights=bits.bits,
        first=bits.first_bits,
        depthwise=bits.depthwise_bits,
        last=bits.last_bits,
        activations=bits.activation_bits,
    )


def _objective(config: RunConfig) -> ObjectiveConfig:
    settings = config.distillation
    return ObjectiveConfig(
        logit_loss=settings.logit_loss,
        temperature=settings.temperature,
        logit_weight=settings.logit_weight,
        label_weight=settings.label_weight,
        class_weight=settings.class_weight,
        affinity=settings.affinity,
        affinity_order=settings.affinity_order,
        affinity_weight=settings.affinity_weight,
        projections=settings.projections,
        normalise=settings.normalise,
        distance=settings.distance,
        over=settings.over,
        adapters=settings.adapters,
        feed_weight=settings.feed_weight,
        branch_weight=settings.sakd_weight,
        ensemble_weight=settings.speq_weight,
        ensemble_bits=settings.speq_bits,
        ensemble_probability=settings.speq_probability,
    )


def _distilled(
    config: RunConfig,
    folder: RunFolder,
    prepared: PreparedStudent,
    teacher: Network,
    co_teachers: tuple[Network, ...],
    images: UnlabelledImages,
    progress: Progress,
    *,
    mirror: bool,
) -> TrainedStudent:
    """Distil, generation after generation, or take what an interrupted run had finished."""
    trained: TrainedStudent | None = None
    generations = config.distillation.generations
    for generation in range(generations):
        kept = folder.trained if generation == generations - 1 else folder.generation(generation)
        if config.output.resume and kept.exists():
            tensors, record = load_tensors(kept)
            network = prepared.network()
            network.load_state_dict(tensors)
            trained = TrainedStudent(
                network=network.eval(), distillation=from_json(Distillation, record, where=str(kept))
            )
            continue
        if generations > 1:
            progress.say(f"student {generation + 1} of {generations}")
        trained = _one_generation(config, folder, prepared, teacher, co_teachers, trained, images, progress, mirror)
        save_tensors(kept, trained.network.state_dict(), to_json(trained.distillation))
        folder.checkpoint.unlink(missing_ok=True)
    assert trained is not None
    return trained


def _one_generation(
    config: RunConfig,
    folder: RunFolder,
    prepared: PreparedStudent,
    teacher: Network,
    co_teachers: tuple[Network, ...],
    predecessor: TrainedStudent | None,
    images: UnlabelledImages,
    progress: Progress,
    mirror: bool,
) -> TrainedStudent:
    settings = config.distillation
    device = resolve_device(config.execution.device)
    bits = min(config.quantisation.bits, config.quantisation.activation_bits)
    normalised = resolve_normalised(settings.batch_norm, bits)
    task = Task(
        student=prepared,
        teacher=teacher.folded,
        images=images,
        preprocessing=teacher.preprocessing,
        outputs=teacher.outputs,
        objective=_objective(config),
        schedule=Schedule(
            steps=resolve_steps(settings.steps, bits),
            batch_size=min(settings.batch_size, len(images.training)),
            learning_rate=resolve_learning_rate(settings.learning_rate, bits, normalised=normalised),
            scale_learning_rate=settings.scale_learning_rate,
            learned_scales=config.quantisation.learned_scales,
            normalised=normalised,
        ),
        taps=settings.taps,
        mirror=mirror,
        device=device,
        fast=config.execution.precision == "bfloat16"
        or (config.execution.precision == "auto" and device.type == "cuda"),
        seed=config.execution.seed,
        co_teachers=tuple(network.folded for network in co_teachers),
        predecessor=None if predecessor is None else predecessor.network,
    )
    return distil(
        task,
        checkpoint=folder.checkpoint,
        step=lambda done, total, figures: progress.step(done, total, **figures),
        say=progress.say,
    )
