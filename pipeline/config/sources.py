"""What a run is made from: teacher, student, images. A source is KIND:REST, or a kind alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from calibration.errors import UserError
from pipeline.config import flags

EMBEDDED = "digits"
"""Name of the teacher and of the data that ship with the package."""

NO_DATA = "none"
"""Name of no data: images are generated."""

OWN_WEIGHTS = "own"
"""What stands for the checkpoint of a network that comes with weights, where several are named."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The float network to be quantised, and who else teaches."""

    sources: Annotated[
        tuple[str, ...],
        Parameter(
            name="--teacher",
            converter=flags.each_word,
            negative=(),
            metavar="KIND:REST",
            show_default=lambda sources: " ".join(sources),
            help="torchvision:resnet18, timm:NAME, cifar:resnet20, python:package.module:function, digits. Given "
            "several times: the first is quantised and learns the mean of all.",
        ),
    ] = (EMBEDDED,)
    files: Annotated[
        tuple[str, ...] | None,
        Parameter(
            name="--weights",
            converter=flags.each_word,
            negative=(),
            metavar="FILE",
            help="Checkpoint of the teacher, .safetensors or .pth; FILE#part names one of several networks in it. Of "
            "several teachers: one each, in the same order, 'own' for a network that has them.",
        ),
    ] = None
    submodule: Annotated[
        str | None,
        Parameter(metavar="NAME", help="Part of the teacher to quantise, such as backbone. Default: all of it."),
    ] = None
    output_kinds: Annotated[
        tuple[str, ...],
        Parameter(
            converter=flags.split_text,
            consume_multiple=True,
            negative=(),
            metavar="NAME=KIND,...",
            help="What outputs hold: classes (logits, on axis 1), classes-last, labels (yes or no each), "
            "probabilities, probabilities-last, label-probabilities, embedding or values. Default: the source's own, "
            "what a final softmax or sigmoid shows, classes for a single vector; maps and boxes must be said.",
        ),
    ] = ()

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if not self.sources:
            raise UserError("--teacher is empty: name the network to quantise, KIND:REST")
        for source in self.sources:
            check_source("teacher", source)
        if self.files is not None and len(self.files) != len(self.sources):
            raise UserError(
                f"--weights is given {len(self.files)} times and --teacher {len(self.sources)} times: give as many of "
                "each, 'own' where a network has them"
            )

    @property
    def source(self) -> str:
        """The first teacher, which is quantised."""
        return self.sources[0]

    @property
    def weights(self) -> tuple[Path | None, ...]:
        """A checkpoint for each teacher; None: the network has its own weights."""
        files = self.files or (OWN_WEIGHTS,) * len(self.sources)
        return tuple(None if file == OWN_WEIGHTS else Path(file) for file in files)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The network that is quantised: the teacher's own architecture unless another is named."""

    source: Annotated[
        str | None,
        Parameter(
            name="--student",
            metavar="KIND:REST",
            help="Another architecture than the teacher's, named as --teacher. Default: the teacher's own.",
        ),
    ] = None
    weights: Annotated[
        Path | None,
        Parameter(name="--student-weights", metavar="FILE", help="Checkpoint of the student, .safetensors or .pth."),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.source is not None:
            check_source("student", self.source)
        elif self.weights is not None:
            raise UserError(f"--student-weights {self.weights} needs --student KIND:REST, the network they belong to")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The unlabelled images that calibrate and train."""

    source: Annotated[
        str,
        Parameter(
            name="--data",
            metavar="KIND:REST",
            help="Unlabelled images: images:FOLDER, npz:FILE#key, torchvision:CIFAR10?root=DIR&split=train, "
            "python:package.module:function, digits, or none: generated from the teacher (DAFL).",
        ),
    ] = EMBEDDED
    workers: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Processes that decode images. Default: chosen from the source and the host.",
        ),
    ] = None
    augmentation: Annotated[
        Literal["auto", "crop", "crop-flip", "none"],
        Parameter(help="Random crops and flips of training images; auto: what suits the source."),
    ] = "auto"
    calibration_images: Annotated[
        int, Parameter(metavar="COUNT", help="Images that the ranges of the activations are read from.")
    ] = 512
    held_out_images: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Unlabelled images kept out of training, to choose the final weights and, without --eval-data, to "
            "score them. Default: a tenth, at most 512.",
        ),
    ] = None
    generator_steps: Annotated[
        int, Parameter(metavar="COUNT", help="Steps in which the generator of --data none learns, also with --steps 0.")
    ] = 1000
    generated_images: Annotated[int, Parameter(metavar="COUNT", help="Images that it then draws.")] = 4096

    def __post_init__(self) -> None:
        flags.check_fields(self)
        check_source("data", self.source)
        flags.check_at_least(self, workers=0, calibration_images=1, held_out_images=1)
        flags.check_at_least(self, generator_steps=1, generated_images=2)


def check_source(flag: str, source: str) -> None:
    """Raise UserError unless a source is KIND:REST or a kind alone."""
    kind, colon, rest = source.partition(":")
    if not kind or (colon and not rest):
        raise UserError(f"--{flag} {source!r}: must be KIND:REST, such as images:FOLDER, or {EMBEDDED}")
