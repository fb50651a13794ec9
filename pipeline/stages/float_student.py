"""Teach a float student of another architecture before it is quantised: with its BatchNorms, from images alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from calibration.capture.eager import own_copy
from calibration.errors import UserError
from calibration.graph.training_mode import in_training
from calibration.rewrites.fold import fold
from pipeline.artifacts import FloatWeights, Lesson, Network, TrainingFiles
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.distillation.build import build_objective
from pipeline.distillation.taps import tap_float
from pipeline.distillation.training.batch import batch_size_for
from pipeline.distillation.training.layout import channels_last
from pipeline.distillation.training.learner import Learner, Pupil, load_checkpoint, of_this_network, train
from pipeline.distillation.training.lesson_images import LessonImages
from pipeline.distillation.training.optimiser import optimiser_of_float
from pipeline.distillation.training.schedule import resolve_device
from pipeline.distillation.training.teachers import Teachers
from pipeline.networks.outputs.agreement import OutputTally
from pipeline.networks.outputs.meaning import primary
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.progress import SILENT, Progress


@freed_memory_kept()
def teach_float(
    student: Network,
    lesson: Lesson,
    settings: DistillationConfig,
    execution: ExecutionConfig,
    *,
    steps: int,
    files: TrainingFiles | None = None,
    progress: Progress = SILENT,
) -> FloatWeights:
    """The student's weights and statistics after distillation, and how it then decides held-out images.

    Of the first teacher alone, by Adam; the last step's weights. With `files` a student that is kept there is not
    taught again; the checkpoint is written every few seconds and when interrupted, and gone on from, and stays where no
    student is kept. Raises UserError when the loss stops being finite.
    """
    checkpoint, place = (None, None) if files is None else (files.checkpoint, next(iter(files.students), None))
    if place is not None and place.exists():
        return FloatWeights.load(place)
    lesson = replace(lesson, teachers=(lesson.teacher,))
    learner = _learner(student, lesson, settings, execution, steps)
    if (kept := load_checkpoint(checkpoint)) is not None:
        with of_this_network(checkpoint):
            learner.restore(*kept)
    if (reason := train(learner, checkpoint=checkpoint, progress=progress)) is not None:
        raise UserError(
            f"the float student {reason}: use a lower --float-learning-rate than {settings.float_learning_rate:g}"
        )
    weights = {name: tensor.detach().cpu() for name, tensor in learner.pupil.network.state_dict().items()}
    device = resolve_device(execution.device)
    agreement = _agreement(with_weights(student, weights), lesson, learner, device)
    taught = FloatWeights(tensors=weights, agreement=agreement)
    if files is not None and place is not None:
        taught.save(place)
        files.checkpoint.remove()
    return taught


def with_weights(student: Network, weights: Mapping[str, Tensor]) -> Network:
    """The student with trained weights and statistics, folded anew, and a copy of its own module that has them too."""
    captured = in_training(student.captured, training=False)
    captured.load_state_dict(weights)
    return replace(student, module=_module_with(student.module, weights), captured=captured, folded=fold(captured))


def what_was_learned(student: Network, teacher: Network, agreement: float, *, steps: int) -> str:
    """What to say of a float student that decides a share of the held-out images, 0 to 1, as it was asked to."""
    main, share = teacher.outputs[primary(teacher.outputs)], f"{100 * agreement:.1f} %"
    if main.holds == "values":
        outcome = f"it explains {share} of the variance of {main.name} on held-out images"
    elif main.is_classifier:
        outcome = f"it gives {share} of held-out images the class that it was asked for"
    else:
        outcome = f"it gives {share} of the decisions of {main.name} as asked for"
    return f"{student.source} learned in float for {steps} steps: {outcome}"


def _module_with(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module in evaluation mode whose parameters and buffers have the values of these names.

    A graph keeps the module's names; what it has beside them are constants, which do not learn.
    """
    taught = copy.deepcopy(own_copy(module))
    parameters = taught.named_parameters(remove_duplicate=False)
    places = dict[str, Tensor]([*parameters, *taught.named_buffers(remove_duplicate=False)])
    with torch.no_grad():
        for name, values in weights.items():
            if name in places:
                places[name].copy_(values)
    return taught


def _learner(
    student: Network, lesson: Lesson, settings: DistillationConfig, execution: ExecutionConfig, steps: int
) -> Learner:
    # The second pass of SPEQ is one at other precisions: a float network has none.
    settings, device, seed = replace(settings, speq_weight=None), resolve_device(execution.device), execution.seed
    graph, teachers = in_training(student.captured), [teacher.folded for teacher in lesson.teachers]
    objective = build_objective(settings, graph, teachers, student.outputs, seed=seed).to(device)
    network = channels_last(graph, device)
    tapped = tap_float(network, objective.student_taps, outputs=student.outputs)
    batch_size = batch_size_for(settings, student.folded, device, images=len(lesson.images.training))
    trained = [*network.parameters(), *objective.parameters()]
    return Learner(
        Pupil(network=network, tapped=tapped, draws="float projections"),
        objective,
        Teachers(lesson, objective, device=device),
        LessonImages(lesson, batch_size=batch_size, device=device, seed=seed),
        optimiser_of_float(trained, rate=settings.float_learning_rate, steps=steps),
    )


def _agreement(student: Network, lesson: Lesson, learner: Learner, device: torch.device) -> float:
    """Share of held-out images (positions, labels) that a student decides as asked; of values, R2."""
    outputs, images = lesson.teacher.outputs, learner.images
    index = primary(outputs)
    # Of logits, whose decisions are those of what activations make of them.
    tally = OutputTally(replace(outputs[index], activation=None))
    tapped = tap_float(student.folded.to(device), [], outputs=student.outputs)
    with torch.no_grad():
        for batch in images.held_out():
            (seen,) = learner.teachers.seen(images.with_mirrors(batch)[0])
            target = seen.outputs[index][: len(batch)]
            tally.add({"target": target.cpu(), "simulated": tapped(batch)[0][index].cpu()})
    return tally.fractions()["simulated"]
