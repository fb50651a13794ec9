"""Settings as they come out: what networks and images make of a default, and whether a student learns in float."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from torch.fx import GraphModule

from pipeline.artifacts import Lesson
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.config.sources import DataConfig, StudentConfig
from pipeline.distillation.objective import Objective
from pipeline.distillation.training.schedule import resolve_device, resolve_float_steps, schedule_of
from pipeline.images.augmentation import choose_augmentation
from pipeline.networks.sources.loose_names import full_source

#: Settings whose value networks and images decide: what `settled_by_inputs` knows.
BY_INPUTS: Final = frozenset(
    {"held-out-images", "calibration-images", "batch-size", "steps", "augmentation", "targets", "taps"}
)  # fmt: skip


def float_steps(student: StudentConfig, learning: DistillationConfig) -> int:
    """Steps in which the student learns in float before it is quantised; 0: none."""
    kind = "" if student.source is None else full_source(student.source)[0].partition(":")[0]
    has_weights = student.weights is not None or kind in ("torchvision", "timm")
    return resolve_float_steps(learning.float_steps, named=student.source is not None, has_weights=has_weights)


def settled_by_inputs(
    data: DataConfig,
    learning: DistillationConfig,
    quantisation: QuantisationConfig,
    execution: ExecutionConfig,
    lesson: Lesson,
    student: GraphModule,
    objective: Objective | None,
) -> dict[str, Any]:
    """Flag without dashes -> its value as JSON, of those whose default hangs on networks and images.

    `student`: its folded graph; `objective` None: nothing is trained.
    """
    images, training = lesson.images, len(lesson.images.training)
    augmentation = choose_augmentation(images.augmentation, images.source, lesson.teacher.preprocessing)
    schedule = schedule_of(learning, quantisation, student, resolve_device(execution.device), images=training)
    settled: dict[str, Any] = {
        "held-out-images": len(images.held_out),
        "calibration-images": min(data.calibration_images, training),
        "batch-size": schedule.batch_size,
        "augmentation": asdict(augmentation),
        "targets": "mirror" if lesson.mirror else "image",
    }
    if learning.minutes is None:  # which a clock settles
        settled["steps"] = schedule.steps
    if objective is not None:
        settled["taps"] = [list(pairs) for pairs in objective.taps]
    return settled
