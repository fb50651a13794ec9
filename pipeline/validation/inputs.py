"""What a run is made from, once it is read and checked (`pipeline.run`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.artifacts import Lesson
from pipeline.config.distillation import DistillationConfig
from pipeline.images.split_images import SplitImages
from pipeline.setup.networks import Networks
from pipeline.stages.targets import lesson_for
from pipeline.validation.evaluation import Scored


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run's images come to."""

    lesson: Lesson
    shown: Tensor
    """Some images, normalised, on which everything made from a network is held against the network."""
    notes: tuple[str, ...]
    """What there is to say of the images and of how they are learned."""

    @classmethod
    def of(
        cls, images: SplitImages, shown: Tensor, networks: Networks, learning: DistillationConfig | None
    ) -> Material:
        """What images come to beside these networks; `learning` None: nothing is learned on them.

        Raises:
            UserError: targets cannot be mirrored as asked for.
        """
        lesson, said = lesson_for(networks.teachers, images, learning)
        return cls(lesson=lesson, shown=shown, notes=(*images.source.notes, *said))


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run is made from."""

    networks: Networks
    material: Material | None
    """None where images are still to be generated."""
    scored: Scored | None
    """The images to score on, where they are known already."""
    identities: dict[str, str]
    """What each flag of an input names, by what is in it."""
    settled: dict[str, Any]
    """The settings that networks and images settle (see `pipeline.setup.settled`)."""
    notes: tuple[str, ...]
    """What there is to say of the networks."""
