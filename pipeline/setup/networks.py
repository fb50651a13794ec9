"""The networks that a run asks for: teacher, student and further teachers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from pipeline.artifacts import Network
from pipeline.config.preprocessing import PreprocessingConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.config.sources import StudentConfig, TeacherConfig
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.preprocessing_overrides import Overrides
from pipeline.networks.declared import Declared
from pipeline.networks.outputs.class_order import read_class_names
from pipeline.stages.teacher import check_same_outputs, load_network


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The float networks of a run."""

    teachers: tuple[Network, ...]
    """The first is quantised unless another student is named."""
    student: Network
    """The first teacher itself unless another is named."""

    @property
    def teacher(self) -> Network:
        """The first teacher."""
        return self.teachers[0]

    @property
    def compared(self) -> tuple[Network, ...]:
        """Teacher and student, once where they are one."""
        return (self.teacher,) if self.student is self.teacher else (self.teacher, self.student)

    @property
    def distinct(self) -> tuple[Network, ...]:
        """All of them, each once."""
        return (*self.compared, *self.teachers[1:])

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of teacher and student."""
        return tuple(note for network in self.compared for note in network.notes)


def networks_of(
    asked: TeacherConfig, another: StudentConfig, preprocessing: PreprocessingConfig, declared: Declared
) -> Networks:
    """Load what is named; each further network takes the images of the first and answers like it.

    Args:
        asked: the teachers.
        another: the student, unless it is the first teacher.
        preprocessing: what is said of images.
        declared: what is said of the first teacher (see `declared_by`).

    Raises:
        UserError: for whatever is wrong with one of them.
    """
    said = cast(Overrides, preprocessing.overrides())
    teacher = load_network(asked.source, declared, weights=asked.weights[0], **said)
    p = teacher.preprocessing
    alike: Overrides = {**said, **like_teacher(p)}
    whole = replace(declared, submodule=None, dynamic_size=False)
    student = teacher
    if another.source is not None:
        source = untrained(another.source) if another.weights is None else another.source
        student = load_network(source, whole, weights=another.weights, otherwise=p, like=teacher.outputs, **alike)
        check_same_outputs(student, teacher)
    others, unnamed = list[Network](), replace(whole, class_names=(), classes_said_by="")
    for source, weights in zip(asked.sources[1:], asked.weights[1:], strict=True):
        others.append(load_network(source, unnamed, weights=weights, otherwise=p, like=teacher.outputs, **alike))
        check_same_outputs(others[-1], teacher, flag="teacher")
    return Networks(teachers=(teacher, *others), student=student)


def declared_by(teacher: TeacherConfig, quantisation: QuantisationConfig, classes: Path | None) -> Declared:
    """What a run says of its teacher; `classes`: file of their names.

    Raises UserError for one that is none.
    """
    return Declared(
        output_kinds=teacher.output_kinds,
        submodule=teacher.submodule,
        class_names=() if classes is None else read_class_names(classes),
        classes_said_by="" if classes is None else f"--classes {classes}",
        dynamic_size=quantisation.dynamic_size,
        static_batch=quantisation.static_batch,
    )


def like_teacher(p: Preprocessing) -> Overrides:
    """What a network beside a teacher is told of images, which are the teacher's."""
    return {
        "image_size": (p.width, p.height),
        "mean": p.mean,
        "std": p.std,
        "channel_order": p.channel_order,
        "divisor": p.divisor,
        "stored_bits": p.stored_bits,
    }


def untrained(source: str) -> str:
    """The source of a student without weights: it learns from random numbers on."""
    if not source.startswith("cifar:") or "weights=" in source:
        return source
    return source + ("&weights=none" if "?" in source else "?weights=none")
