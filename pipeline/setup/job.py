"""What a run's networks, images and target come to: what its stages are given."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import Backend
from pipeline.artifacts import Lesson, Network
from pipeline.config import RunConfig
from pipeline.setup.run_folder import RunFolder
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
