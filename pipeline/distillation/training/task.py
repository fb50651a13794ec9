"""What a student is to learn, from whom and how: the whole input of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule

from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import PreparedStudent
from pipeline.distillation.objective import ObjectiveConfig
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.networks.outputs.meaning import Output

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, how fast and on which grids: steps, images per step, peak rates for weights and for log-scales.

    `weight_decay`: of the weights, per unit of the learning rate. `weight_grids` faqd: integers by the formulas of
    `calibration.simulation.closed_forms`; `activation_grids` pact: scales learn by `calibration.simulation.clipping`.
    `normalised`: convolutions learn with a normalisation over the batch, which is folded away at the end (see
    `calibration.simulation.normalised_training`). `tries_first_step`: the rates are an offer, lowered where the first
    step would do harm (see `pipeline.distillation.training.first_step`).
    """

    steps: int
    batch_size: int
    learning_rate: float
    scale_learning_rate: float
    learned_scales: Literal["all", "weights", "none"]
    normalised: bool = False
    optimiser: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.0
    weight_grids: Literal["lsq", "faqd"] = "lsq"
    activation_grids: Literal["lsq", "pact"] = "lsq"
    tries_first_step: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    """Who learns from whom, on what, how and where: all that decides the trained weights.

    `outputs`: what all networks' outputs hold, with the activations of the teacher's; `student_outputs` and
    `co_outputs` those of the student and of each co-teacher, as `outputs` where they are left out. `taps` None: found
    by themselves. `mirror` averages the teacher's logits over each image and its mirror image, which is in the same
    batch (see `pipeline.distillation.training.mirror`). `fast` allows TF32, which is exact on the student's integers,
    and bfloat16 for the teacher. `seed` >= 0. `co_teachers` teach beside the teacher. `predecessor` is a trained
    student of the same graph that teaches instead of the teacher.
    """

    student: PreparedStudent
    teacher: GraphModule
    images: UnlabelledImages
    preprocessing: Preprocessing
    outputs: tuple[Output, ...]
    objective: ObjectiveConfig
    schedule: Schedule
    taps: tuple[str, ...] | None
    mirror: bool
    device: torch.device
    fast: bool
    seed: int
    co_teachers: tuple[GraphModule, ...] = ()
    predecessor: PreparedNetwork | None = None
    student_outputs: tuple[Output, ...] | None = None
    co_outputs: tuple[tuple[Output, ...], ...] | None = None

    @property
    def outputs_of_student(self) -> tuple[Output, ...]:
        """What the student's outputs hold, with their activations."""
        return self.outputs if self.student_outputs is None else self.student_outputs

    @property
    def outputs_of_teachers(self) -> list[tuple[Output, ...]]:
        """The same of each teacher, in the order of `graphs_of`; a predecessor's are the student's."""
        first = self.outputs if self.predecessor is None else self.outputs_of_student
        others = self.co_outputs if self.co_outputs is not None else (self.outputs,) * len(self.co_teachers)
        return [first, *others]


def graphs_of(task: Task) -> list[GraphModule]:
    """The float graphs of the teachers, the first one first; a predecessor is of the student's own graph."""
    return [task.teacher if task.predecessor is None else task.student.folded, *task.co_teachers]


def channels_last(module: _Module, device: torch.device) -> _Module:
    """The module itself, on the device and in the memory layout in which its convolutions are fastest."""
    moved: _Module = module.to(device)
    for tensor in (*moved.parameters(), *moved.buffers()):
        # Maps and their weights alone: Module.to refuses tensors of rank 5, such as Swin's masks of attention.
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return moved
