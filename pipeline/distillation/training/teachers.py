"""The teachers of a lesson: what they make of a batch, without gradients, on the chosen device and arithmetic."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from calibration.graph.sharing import sharing_copy
from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import Lesson, Network
from pipeline.distillation.objective import Objective
from pipeline.distillation.taps import Tapped, tap_float, tap_prepared, write_in_place
from pipeline.distillation.terms import Seen
from pipeline.distillation.training.layout import channels_last
from pipeline.distillation.training.mirror import mean_of_mirrored


@final
class Teachers:
    """Copies of all teachers of a lesson, the first one first, tapped where the objective compares their maps.

    `predecessor`: a trained student of the graph of `student`, which teaches instead of the first. `fast`: they compute
    in bfloat16.
    """

    def __init__(
        self,
        lesson: Lesson,
        objective: Objective,
        *,
        device: torch.device,
        fast: bool = False,
        predecessor: tuple[Network, PreparedNetwork] | None = None,
    ) -> None:
        self._device, self._fast, self._mirror = device, fast, lesson.mirror
        pairs = list(zip(lesson.teachers, objective.taps, strict=True))[0 if predecessor is None else 1 :]
        # Copies: what is tapped and moved to the device is not the caller's graph.
        tapped = [
            write_in_place(
                tap_float(sharing_copy(teacher.folded), list(taps.values()), list(taps), outputs=teacher.outputs)
            )
            for teacher, taps in pairs
        ]
        if predecessor is not None:
            student, network = predecessor
            first = tap_prepared(
                sharing_copy(network),
                list(objective.taps[0]),
                reals=objective.reals,
                folded=student.folded,
                outputs=student.outputs,
            )
            tapped.insert(0, first)
        self._networks: list[Tapped] = [channels_last(teacher, device).eval() for teacher in tapped]

    @torch.no_grad()
    def seen(self, images: Tensor) -> tuple[Seen, ...]:
        """What each makes of images [B, C, H, W], logits; of a batch with mirror images, the mean of each pair."""
        views = []
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._fast):
            for teacher in self._networks:
                outputs, features = teacher(images)
                outputs = tuple(output.float() for output in outputs)
                if self._mirror:
                    outputs = tuple(mean_of_mirrored(output) for output in outputs)
                views.append(Seen(outputs=outputs, features=features))
        return tuple(views)
