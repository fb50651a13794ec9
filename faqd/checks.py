"""What the functions of the chain are given, held against what they take; sections of a run out of keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from calibration.errors import UserError
from faqd.results import Images
from pipeline.artifacts import Network
from pipeline.config import (
    DataConfig,
    DistillationConfig,
    ExecutionConfig,
    QuantisationConfig,
)
from pipeline.tools import records
from pipeline.tools.printing import console
from pipeline.tools.progress import SILENT, Progress, progress_on

Section = TypeVar("Section", DataConfig, QuantisationConfig, DistillationConfig)

#: A section of images whose source is of no matter: they are open already.
OPEN = DataConfig(source="images:open")


def section(kind: type[Section], settings: Mapping[str, Any], function: str, **own: Any) -> Section:
    """A section of a run from keywords. Raises UserError for one that it has not."""
    known = [name for name in records.hints(kind) if name not in {*own, "quantiser", "source"}]
    for name, value in settings.items():
        if name not in known:
            close = records.nearest(name, known) or f"; known: {', '.join(known)}"
            raise UserError(f"{function}({name}={value!r}): there is no such setting{close}")
    return kind(**settings, **own)


def check_kind(value: object, kind: type, function: str, expected: str) -> None:
    """Raise UserError unless a value is of a kind; `expected` says in words what the function takes."""
    if not isinstance(value, kind):
        raise UserError(f"{function} takes {expected}, not a {type(value).__name__}")


def check_images(images: Any, network: Network, function: str) -> None:
    """Raise UserError unless these are images that were opened for a network's preprocessing."""
    check_kind(images, Images, function, "images as faqd.open_images(images, network) opens them")
    if images.preprocessing != network.preprocessing:
        raise UserError(
            f"{function}: the images were opened for another preprocessing than that of {network.source}: open them"
            " with faqd.open_images(images, network)"
        )


def progress_of(progress: Progress | bool | None) -> Progress:
    """Who hears of the progress: nobody, somebody, or with True a bar or lines on standard error."""
    if isinstance(progress, bool) or progress is None:
        return progress_on(console(stderr=True)) if progress else SILENT
    return progress


def execution_of(images: Images, *, seed: int | None, device: str, precision: str) -> ExecutionConfig:
    """Where and by which seed a student learns; that of the images where none is said."""
    check_kind(images, Images, "distil", "images as faqd.open_images(images, network) opens them")
    settings: dict[str, Any] = {"device": device, "precision": precision}
    return ExecutionConfig(seed=images.seed if seed is None else seed, **settings)
