"""The teachers of a run: what they make of a batch, without gradients, on the device and in the arithmetic chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.graph.sharing import sharing_copy
from pipeline.distillation.objective import Objective
from pipeline.distillation.taps import Tapped, tap_float, tap_prepared, write_in_place
from pipeline.distillation.terms import Seen
from pipeline.distillation.training.mirror import mean_of_mirrored
from pipeline.distillation.training.task import Task, channels_last, graphs_of


class Teachers:
    """Copies of all teachers of a task, the first one first; a predecessor takes its place.

    `objective` says which of their maps are compared.
    """

    def __init__(self, task: Task, objective: Objective) -> None:
        self.device, self.fast, self.mirror = task.device, task.fast, task.mirror
        # Copies: what is tapped and moved to the device is not the caller's graph.
        tapped = [
            write_in_place(tap_float(sharing_copy(teacher), list(taps.values()), list(taps), outputs=outputs))
            for teacher, taps, outputs in zip(graphs_of(task), objective.taps, task.outputs_of_teachers, strict=True)
        ]
        if task.predecessor is not None:
            tapped[0] = tap_prepared(
                sharing_copy(task.predecessor),
                list(objective.taps[0]),
                reals=objective.reals,
                folded=task.student.folded,
                outputs=task.outputs_of_student,
            )
        self.networks: list[Tapped] = [channels_last(teacher, task.device).eval() for teacher in tapped]

    @torch.no_grad()
    def seen(self, images: Tensor) -> tuple[Seen, ...]:
        """What each makes of images [B, C, H, W], logits; of a batch with mirror images, the mean of each pair."""
        found = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
            for teacher in self.networks:
                outputs, features = teacher(images)
                outputs = tuple(output.float() for output in outputs)
                if self.mirror:
                    outputs = tuple(mean_of_mirrored(output) for output in outputs)
                found.append(Seen(outputs=outputs, features=features))
        return tuple(found)
