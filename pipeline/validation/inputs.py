"""All that a run is made from, read and checked before anything that was there is touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from backends.base import Backend
from pipeline.artifacts import Lesson
from pipeline.config import RunConfig
from pipeline.images.split_images import SplitImages
from pipeline.setup.networks import Networks, networks_of
from pipeline.setup.run_images import images_named
from pipeline.setup.settled import float_steps, settled_by_inputs
from pipeline.stages.targets import lesson_for
from pipeline.validation.evaluation import Scored
from pipeline.validation.network_check import check_networks, checked_on_images
from pipeline.validation.preflight import check_inputs, identities
from pipeline.validation.teacher_check import check_teacher


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run's images come to."""

    lesson: Lesson
    shown: Tensor
    """Some images, normalised, on which everything made from a network is held against the network."""
    notes: tuple[str, ...]
    """What there is to say of the images and of how they are learned."""


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


def read_inputs(config: RunConfig, root: Path, backend: Backend, *, trains: bool) -> Inputs:
    """Read networks and images, and check them, the disk and what is asked of both.

    Args:
        config: of the run.
        root: folder of its results.
        backend: the fastest that is exact on its target.
        trains: whether its quantiser does.

    Raises:
        UserError: for whatever is wrong with them.
    """
    networks = networks_of(config)
    objective = check_networks(config, networks, backend, trains=trains)
    images = images_named(config, networks.teacher)
    scored = check_inputs(config, root, networks.teacher, networks.student, images)
    shown = (
        None if images is None else checked_on_images(networks, images, config.quantisation, seed=config.execution.seed)
    )
    evaluation = None if scored is None else scored.evaluation
    data, eval_data = config.data.source, config.evaluation_source
    warnings = check_teacher(networks.teacher, images, evaluation, data=data, eval_data=eval_data)
    material, settled = None, dict[str, Any]()
    if images is not None and shown is not None:
        material = _material(config, networks, images, shown, trains=trains)
        settled = settled_by_inputs(config, material.lesson, objective)
    return Inputs(
        networks=networks,
        material=material,
        scored=scored,
        identities=identities(config, networks.teachers, networks.student, images),
        settled=settled,
        notes=(*warnings, *networks.notes),
    )


def generated_material(config: RunConfig, networks: Networks, images: SplitImages, *, trains: bool) -> Material:
    """What images come to that were generated from the teacher; all graphs are checked on them.

    Raises:
        UserError: a graph computes something else than its module, or targets cannot be mirrored as asked for.
    """
    shown = checked_on_images(networks, images, config.quantisation, seed=config.execution.seed)
    return _material(config, networks, images, shown, trains=trains)


def _material(config: RunConfig, networks: Networks, images: SplitImages, shown: Tensor, *, trains: bool) -> Material:
    lesson, said = Lesson(teachers=networks.teachers, images=images), tuple[str, ...]()
    if trains or float_steps(config) > 0:
        lesson, said = lesson_for(networks.teachers, images, config.distillation)
    return Material(lesson=lesson, shown=shown, notes=(*images.source.notes, *said))
