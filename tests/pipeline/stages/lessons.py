"""What tests of training share: a short training of the example, watched, and how to compare what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts import Lesson, Network, PreparedStudent, TrainedStudent
from pipeline.config import DistillationConfig, ExecutionConfig, QuantisationConfig
from pipeline.distillation.training.schedule import Schedule, schedule_of
from pipeline.distillation.training.trainer import Trainer
from pipeline.stages.distill import teach
from pipeline.tools.kept import Kept
from pipeline.tools.progress import SILENT, Progress, SilentProgress

#: Settings that are of the grids.
OF_GRIDS = ("learned_scales", "weight_grids", "activation_grids")
STEPS, BATCH = 40, 32


def made(
    example: SimpleNamespace,
    *,
    student: PreparedStudent | None = None,
    teacher: Network | None = None,
    mirror: bool = False,
    offered: bool = False,
    seed: int = 0,
    **changes: Any,
) -> tuple[tuple[PreparedStudent, Lesson, DistillationConfig, ExecutionConfig], Schedule]:
    """What training takes, with changed settings of learning or of the grids; `offered`: rates may be lowered."""
    grids = QuantisationConfig(bits=4, **{name: changes.pop(name) for name in OF_GRIDS if name in changes})
    student = replace(student or example.prepared, quantisation=grids)
    lesson = Lesson(teachers=(teacher or example.teacher,), images=example.images, mirror=mirror)
    asked = {"steps": STEPS, "batch_size": BATCH, "learning_rate": 3e-4, "scale_learning_rate": 1e-3} | changes
    settings = DistillationConfig(**asked)
    count, cpu = len(example.images.training), torch.device("cpu")
    schedule = replace(schedule_of(settings, grids, student.folded, cpu, images=count), tries_rates=offered)
    return (student, lesson, settings, ExecutionConfig(device="cpu", seed=seed)), schedule


def trainer_of(example: SimpleNamespace, **changes: Any) -> Trainer:
    arguments, schedule = made(example, **changes)
    return Trainer(*arguments, schedule=schedule)


class Watched(SilentProgress):
    """Keeps what is said and the steps, and interrupts a run behind one of them."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.said, self.steps, self.interrupt_at = list[str](), list[int](), interrupt_at

    def step(self, done: int, total: int, **figures: float) -> None:
        self.steps.append(done)
        if done == self.interrupt_at:
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        self.said.append(line)


def train(example: SimpleNamespace, folder: Path, *, progress: Progress = SILENT, **changes: Any) -> TrainedStudent:
    arguments, schedule = made(example, **changes)
    checkpoint = Kept(folder / "checkpoint.safetensors")
    return teach(Trainer(*arguments, schedule=schedule), checkpoint=checkpoint, progress=progress)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
