"""What a run's networks, images and target come to: what its stages are given."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import Backend
from pipeline.artifacts import Lesson, Network
from pipeline.config import RunConfig
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.setup.networks import Networks
from pipeline.setup.state import RunFolder
from pipeline.stages.targets import lesson_for
from pipeline.tools.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """A float student, its lesson and its target, and where state is kept."""

    config: RunConfig
    folder: RunFolder
    candidates: tuple[Backend, ...]
    """The backend with each profile that is exact on the target, the fastest first."""
    student: Network
    lesson: Lesson
    progress: Progress


def lesson_of(
    networks: Networks, images: UnlabelledImages, config: RunConfig, *, learns: bool
) -> tuple[Lesson, tuple[str, ...]]:
    """What the student of a run is to learn, and what to say about that; `learns`: whether it does, at any stage."""
    if learns:
        return lesson_for(networks.teachers, images, config.distillation)
    return Lesson(teachers=networks.teachers, images=images), ()
