"""Settings as they come out: a value is the same whether it was typed or is the default that the others lead to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import torch

from backends import backends_for
from pipeline.artifacts import Lesson
from pipeline.config import RunConfig
from pipeline.config.affinity_points import GRID_AXES
from pipeline.config.ramps import Ramp
from pipeline.distillation.objective import Objective
from pipeline.distillation.training.schedule import (
    resolve_device,
    resolve_float_steps,
    resolve_learning_rate,
    resolve_normalised,
    resolve_steps,
)
from pipeline.images.augmentation import choose_augmentation
from pipeline.networks.sources.loose_names import full_source

#: Settings whose value networks and images decide: what `settled_by_inputs` knows.
BY_INPUTS: Final = frozenset(
    {"held-out-images", "calibration-images", "batch-size", "augmentation", "targets", "taps"}
)  # fmt: skip
_RAMPS = ("temperature", "logit-weight", "class-weight", "label-weight", "feed-weight", "sakd-weight", "speq-weight")


def float_steps(config: RunConfig) -> int:
    """Steps in which the student learns in float before it is quantised; 0: none."""
    student = config.student
    kind = "" if student.source is None else full_source(student.source)[0].partition(":")[0]
    has_weights = student.weights is not None or kind in ("torchvision", "timm")
    return resolve_float_steps(
        config.distillation.float_steps, named=student.source is not None, has_weights=has_weights
    )


def settled_by_configuration(config: RunConfig) -> dict[str, Any]:
    """Flag without dashes -> its value as JSON, of those whose default hangs on other flags or on this machine.

    Raises UserError where this machine's processor is none that a backend knows.
    """
    quantisation, learning, validation = config.quantisation, config.distillation, config.validation
    bits = min(quantisation.bits, quantisation.activation_bits)
    normalised = resolve_normalised(learning.batch_norm, bits)
    settled: dict[str, Any] = {
        "steps": resolve_steps(learning.steps, quantisation.bits, quantisation.activation_bits),
        "float-steps": float_steps(config),
        "batch-norm": "kept" if normalised else "folded",
        "precision": config.execution.precision,
        "training-threads": config.execution.training_threads or torch.get_num_threads(),
        "target": quantisation.target,
        "eval-data": config.evaluation_source,
        "max-drop": validation.drop_limit,
        "output-max-drop": validation.output_limits,
        "batches": list(config.engine.batches or (validation.batch,) * 3),
        "output-kinds": sorted(config.teacher.output_kinds),
    }
    # A default rate is lowered where the first step would do harm, a typed one is not, where such a step is tried.
    if learning.learning_rate is not None or normalised or learning.optimiser != "adam":
        settled["learning-rate"] = resolve_learning_rate(
            learning.learning_rate, bits, normalised=normalised, optimiser=learning.optimiser
        )
    # By default grids of fewer bits keep their own, all others get 4.
    if learning.speq_bits is not None or quantisation.activation_bits in (8, 4):
        settled["speq-bits"] = learning.speq_bits or 4
    if config.execution.precision == "auto":
        device = config.execution.device
        on_gpu = resolve_device(device).type == "cuda" if device == "auto" else device.startswith("cuda")
        settled["precision"] = "bfloat16" if on_gpu else "float32"
    if quantisation.backend != "tensorrt":
        settled["weight-only"] = "none"
    if quantisation.target is None:
        settled["target"] = backends_for(quantisation.backend, None)[0].profile.cpu
    for key in _RAMPS:
        field = key.replace("-", "_")
        settled[key] = None if getattr(learning, field) is None else _plain(learning.ramp(field))
    settled["affinity-weight"] = _plain(learning.ramp("affinity_weight"))
    point = learning.point
    settled |= {axis: None if point is None else getattr(point, axis) for axis in GRID_AXES}
    return settled


def settled_by_inputs(config: RunConfig, lesson: Lesson, objective: Objective | None) -> dict[str, Any]:
    """The same of those settings whose value hangs on networks and images; `objective` None: nothing is trained."""
    images, training = lesson.images, len(lesson.images.training)
    augmentation = choose_augmentation(images.augmentation, images.source, lesson.teacher.preprocessing)
    settled: dict[str, Any] = {
        "held-out-images": len(images.held_out),
        "calibration-images": min(config.data.calibration_images, training),
        "batch-size": min(config.distillation.batch_size, training),
        "augmentation": asdict(augmentation),
        "targets": "mirror" if lesson.mirror else "image",
    }
    if objective is not None:
        settled["taps"] = [list(pairs) for pairs in objective.taps]
    return settled


def _plain(ramp: Ramp) -> Any:
    """A weight or temperature over a run: a number where it does not change."""
    return ramp.values[0] if len(set(ramp.values)) == 1 else [ramp.kind, *ramp.values]
