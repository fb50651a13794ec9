"""Images by name: `kind:rest` in one table. Labels are read for scores, and for `--label-weight` alone."""

from __future__ import annotations

from typing import Any, Protocol

from calibration.errors import UserError
from pipeline.images.batches import Batch, ordered_batches, split_held_out, suggested_workers, training_batches
from pipeline.images.data_names import with_kind
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.sources.arrays import ArraySource, checked_labels, open_npz
from pipeline.images.sources.folder import open_folder
from pipeline.images.sources.image_source import EvaluationSet, ImageSource
from pipeline.images.sources.python_dataset import open_python, open_value
from pipeline.images.sources.torchvision_datasets import open_torchvision
from pipeline.tools.source_text import split_kind

__all__ = [
    "DATA_SOURCES",
    "Batch",
    "EvaluationSet",
    "ImageSource",
    "open_evaluation",
    "open_held",
    "open_images",
    "open_labelled",
    "ordered_batches",
    "split_held_out",
    "suggested_workers",
    "training_batches",
]


class Opener(Protocol):
    """Opens the rest of `kind:rest`; unless `labelled`, labels are not even read."""

    def __call__(self, rest: str, *, labelled: bool) -> EvaluationSet: ...


def open_images(source: str, preprocessing: Preprocessing) -> ImageSource:
    """Open unlabelled images for a network with this preprocessing; labels beside them are ignored.

    A folder or an .npz file may be named without its kind.

    Raises:
        UserError: the source is unknown, empty or wrong, in one line.
    """
    kind, rest = split_kind(with_kind(source, DATA_SOURCES), DATA_SOURCES, "data")
    return _noted(DATA_SOURCES[kind](rest, labelled=False).images, preprocessing)


def open_evaluation(source: str, preprocessing: Preprocessing) -> EvaluationSet:
    """Open images to score on, with labels where the source has them.

    Raises:
        UserError: the source is unknown, empty or wrong, in one line.
    """
    kind, rest = split_kind(with_kind(source, DATA_SOURCES), DATA_SOURCES, "data")
    evaluation = DATA_SOURCES[kind](rest, labelled=True)
    _noted(evaluation.images, preprocessing)
    return evaluation


def open_held(value: Any, preprocessing: Preprocessing, *, where: str, labelled: bool = False) -> EvaluationSet:
    """Open images that somebody has at hand: an array or tensor, (images, labels), a sequence or map-style data set.

    `where` names them in errors. Unless `labelled`, labels are not even read.

    Raises:
        UserError: they are of another form, or empty, in one line.
    """
    evaluation = open_value(value, where, labelled=labelled, verb="is")
    _noted(evaluation.images, preprocessing)
    return evaluation


def open_labelled(source: str, preprocessing: Preprocessing) -> EvaluationSet:
    """Open images to train on with their labels, for a loss that was asked to look at them.

    Raises:
        UserError: as of `open_images`, or the source holds no labels for them.
    """
    kind, _ = split_kind(with_kind(source, DATA_SOURCES), DATA_SOURCES, "data")
    scored = None if kind == "digits" else open_evaluation(source, preprocessing)  # its labels are for scoring alone
    if scored is None or scored.labels is None:
        raise UserError(
            f"--label-weight needs labels, and --data {source} has none for training: name some "
            "(npz:FILE#images,labels, images:FOLDER with class folders), or leave it out (--class-weight needs none)"
        )
    return scored


def _open_digits(rest: str, *, labelled: bool) -> EvaluationSet:
    # Imported here: only the default run needs it.
    from pipeline.images.embedded import digits_images

    if rest:
        raise UserError(f"digits:{rest}: the embedded digits have no variants; write digits")
    unlabelled, held_out, labels = digits_images()
    if not labelled:
        return EvaluationSet(images=ArraySource("digits", unlabelled), labels=None)
    return EvaluationSet(images=ArraySource("digits", held_out), labels=checked_labels(labels, len(held_out), "digits"))


DATA_SOURCES: dict[str, Opener] = {
    "images": open_folder,
    "npz": open_npz,
    "torchvision": open_torchvision,
    "python": open_python,
    "digits": _open_digits,
}
"""Kind of source -> function from (rest, labelled) to images and labels."""


def _noted(source: ImageSource, preprocessing: Preprocessing) -> ImageSource:
    """Add what the user should know about images of one stored size that the network takes in another way."""
    if not isinstance(source, ArraySource):
        return source
    channels, height, width = source.pixels.shape[1:]
    if source.is_prepared(preprocessing):
        if preprocessing.resize not in (None, min(height, width)):
            source.notes += (f"{source.name}: stored at {width}x{height} px, taken as already resized and cropped",)
    else:
        source.notes += (
            f"{source.name}: stored at {width}x{height} px, resized for the network's "
            f"{preprocessing.width}x{preprocessing.height} px",
        )
    if channels != preprocessing.channels:
        kinds = {1: "greyscale", 3: "colour"}
        source.notes += (f"{source.name}: {kinds[channels]} images for a {kinds[preprocessing.channels]} network",)
    return source
