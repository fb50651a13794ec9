"""The networks that a run asks for: teacher, student and further teachers."""

from __future__ import annotations

from typing import cast

from pipeline.artifacts import Network
from pipeline.config import RunConfig
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.preprocessing_overrides import Overrides
from pipeline.stages.teacher import check_same_outputs, load_network


def networks_of(config: RunConfig) -> tuple[Network, Network]:
    """Teacher and student; the same object unless another student is named."""
    given = config.teacher
    teacher = load_network(
        given.source,
        weights=given.weights[0],
        output_kinds=given.output_kinds,
        submodule=given.submodule,
        dynamic_size=config.quantisation.dynamic_size,
        static_batch=config.quantisation.static_batch,
        classes=config.validation.classes,
        **_overrides(config),
    )
    if config.student.source is None:
        return teacher, teacher
    source = config.student.source
    if source.startswith("cifar:") and config.student.weights is None and "weights=" not in source:
        source += "&weights=none" if "?" in source else "?weights=none"  # it learns from random numbers on
    student = load_network(
        source,
        weights=config.student.weights,
        output_kinds=given.output_kinds,
        static_batch=config.quantisation.static_batch,
        otherwise=teacher.preprocessing,
        **_overrides(config, like=teacher.preprocessing),
        like=teacher.outputs,
        classes=config.validation.classes,
    )
    check_same_outputs(student, teacher)
    return teacher, student


def _overrides(config: RunConfig, like: Preprocessing | None = None) -> Overrides:
    """What the user says of the network's images; `like`: of those of a network beside one that has this."""
    said = cast(Overrides, config.preprocessing.overrides())
    if like is not None:
        said |= {"image_size": (like.width, like.height), "mean": like.mean, "std": like.std}
        said |= {"channel_order": like.channel_order, "divisor": like.divisor, "stored_bits": like.stored_bits}
    return said


def co_teachers_of(config: RunConfig, teacher: Network) -> tuple[Network, ...]:
    """The further teachers, for the first one's images and outputs."""
    given = config.teacher
    found = []
    for source, weights in zip(given.sources[1:], given.weights[1:], strict=True):
        network = load_network(
            source,
            weights=weights,
            output_kinds=given.output_kinds,
            static_batch=config.quantisation.static_batch,
            otherwise=teacher.preprocessing,
            **_overrides(config, like=teacher.preprocessing),
            like=teacher.outputs,
        )
        check_same_outputs(network, teacher, flag="teacher")
        found.append(network)
    return tuple(found)
