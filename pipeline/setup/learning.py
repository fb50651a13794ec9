"""What a run's settings mean for its students: their widths, their losses, and the stages in which they learn."""

from __future__ import annotations

from backends.facts.widths import Widths
from pipeline.artifacts import Network, PreparedStudent, TrainedStudent, load_tensors, save_tensors
from pipeline.config import RunConfig
from pipeline.distillation.objective import ObjectiveConfig
from pipeline.distillation.training.task import Schedule, Task
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.networks.outputs.meaning import Output, primary
from pipeline.report.schema import Distillation
from pipeline.setup.defaults import (
    resolve_device,
    resolve_learning_rate,
    resolve_normalised,
    resolve_steps,
)
from pipeline.setup.machine.memory import freed_memory_kept
from pipeline.setup.state import RunFolder
from pipeline.stages.distill import distil
from pipeline.stages.float_student import FloatTask, teach_float, with_weights
from pipeline.tools.atomic import remove
from pipeline.tools.progress import Progress
from pipeline.tools.records import from_json, to_json


def taught_in_float(
    config: RunConfig,
    folder: RunFolder,
    student: Network,
    teacher: Network,
    images: UnlabelledImages,
    progress: Progress,
    mirror: bool,
    steps: int,
) -> tuple[Network, str]:
    """The student after float distillation, or what an interrupted run had finished of it, and what came out."""
    if config.output.resume and folder.float_student.exists():
        weights, record = load_tensors(folder.float_student)
        agreement = float(record["agreement"])
    else:
        settings = config.distillation
        task = FloatTask(
            student=student,
            teacher=teacher.folded,
            teacher_outputs=teacher.outputs,
            images=images,
            preprocessing=teacher.preprocessing,
            objective=objective_config(config),
            taps=settings.taps,
            mirror=mirror,
            steps=steps,
            batch_size=min(settings.batch_size, len(images.training)),
            learning_rate=settings.float_learning_rate,
            device=resolve_device(config.execution.device),
            seed=config.execution.seed,
        )
        with freed_memory_kept():
            weights, agreement = teach_float(
                task,
                checkpoint=folder.float_checkpoint,
                step=lambda done, total, figures: progress.step(done, total, **figures),
            )
        save_tensors(folder.float_student, weights, {"agreement": agreement})
        remove(folder.float_checkpoint)
    main = teacher.outputs[primary(teacher.outputs)]
    share, what = f"{100 * agreement:.1f} %", "held-out images the class that it was asked for"
    if main.holds == "values":
        said = f"it explains {share} of the variance of {main.name} on held-out images"
    else:
        said = f"it gives {share} of " + (what if main.is_classifier else f"the decisions of {main.name} as asked for")
    remark = f"{student.source} learned in float for {steps} steps: {said}"
    progress.say(remark)
    return with_weights(student, weights), remark


def widths(config: RunConfig) -> Widths:
    """Bits of weights and activations."""
    bits = config.quantisation
    return Widths(
        weights=bits.bits,
        first=bits.first_bits,
        depthwise=bits.depthwise_bits,
        last=bits.last_bits,
        activations=bits.activation_bits,
    )


def objective_config(config: RunConfig) -> ObjectiveConfig:
    """The terms of the loss and their weights."""
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


def distilled(
    config: RunConfig,
    folder: RunFolder,
    prepared: PreparedStudent,
    teacher: Network,
    co_teachers: tuple[Network, ...],
    images: UnlabelledImages,
    progress: Progress,
    *,
    mirror: bool,
    student_outputs: tuple[Output, ...],
) -> TrainedStudent:
    """Distil, generation after generation, or take what an interrupted run had finished."""
    trained: TrainedStudent | None = None
    generations = config.distillation.generations
    for generation in range(generations):
        kept = folder.trained if generation == generations - 1 else folder.generation(generation)
        if config.output.resume and kept.exists():
            tensors, record = load_tensors(kept)
            network = prepared.network(trainable=True)
            network.load_state_dict(tensors)
            trained = TrainedStudent(
                network=network.eval(), distillation=from_json(Distillation, record, where=str(kept))
            )
            continue
        if generations > 1:
            progress.say(f"student {generation + 1} of {generations}")
        trained = _one_generation(
            config, folder, prepared, teacher, co_teachers, trained, images, progress, mirror, student_outputs
        )
        save_tensors(kept, trained.network.state_dict(), to_json(trained.distillation))
        remove(folder.checkpoint)
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
    student_outputs: tuple[Output, ...],
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
        objective=objective_config(config),
        schedule=Schedule(
            steps=resolve_steps(settings.steps, config.quantisation.bits, config.quantisation.activation_bits),
            batch_size=min(settings.batch_size, len(images.training)),
            learning_rate=resolve_learning_rate(
                settings.learning_rate, bits, normalised=normalised, optimiser=settings.optimiser
            ),
            scale_learning_rate=settings.scale_learning_rate,
            learned_scales=config.quantisation.learned_scales,
            normalised=normalised,
            optimiser=settings.optimiser,
            weight_decay=settings.weight_decay,
            weight_grids=config.quantisation.weight_grids,
            activation_grids=config.quantisation.activation_grids,
            tries_first_step=settings.learning_rate is None,
        ),
        taps=settings.taps,
        mirror=mirror,
        device=device,
        fast=config.execution.precision == "bfloat16"
        or (config.execution.precision == "auto" and device.type == "cuda"),
        seed=config.execution.seed,
        co_teachers=tuple(network.folded for network in co_teachers),
        student_outputs=student_outputs,
        co_outputs=tuple(network.outputs for network in co_teachers),
        predecessor=None if predecessor is None else predecessor.network,
    )
    with freed_memory_kept():
        return distil(
            task,
            checkpoint=folder.checkpoint,
            step=lambda done, total, figures: progress.step(done, total, **figures),
            say=progress.say,
        )
