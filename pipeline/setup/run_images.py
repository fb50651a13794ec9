"""The images that a run asks for: of a source or generated, and what each of them is for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import GeneratedImages, Network
from pipeline.config.sources import NO_DATA, DataConfig
from pipeline.images.batches import suggested_workers
from pipeline.images.calibration_images import drawn_to_calibrate
from pipeline.images.data import open_images, open_labelled, split_held_out
from pipeline.images.image_facts import check_single, look, readable_split
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.image_source import EvaluationSet, ImageSource
from pipeline.images.split_images import SplitImages
from pipeline.networks.outputs.class_order import in_network_order
from pipeline.networks.outputs.meaning import primary
from pipeline.stages.imagine import check_imaginable, preview


def images_named(data: DataConfig, teacher: Network, *, labelled: bool, seed: int) -> SplitImages | None:
    """The images of `--data`, with labels where a loss reads them; None where they are to be generated.

    Raises UserError for whatever is wrong with the source, or with the teacher that is to generate them.
    """
    if data.source == NO_DATA:
        check_imaginable(teacher)
        return None
    return images_of(data, teacher, labelled=labelled, seed=seed)


def images_of(data: DataConfig, teacher: Network, *, labelled: bool = False, seed: int = 0) -> SplitImages:
    """The images of a source, apart in those that train, of which some calibrate, and those that are held out.

    `labelled`: with labels, for a loss that reads them. Raises UserError for whatever is wrong with the source.
    """
    labels, label_order = None, ""
    if labelled:
        opened = open_labelled(data.source, teacher.preprocessing)
        source, labels, label_order = in_order(opened, teacher, data.source)
    else:
        source = open_images(data.source, teacher.preprocessing)
    return set_apart(source, data, teacher.preprocessing, seed=seed, labels=labels, label_order=label_order)


def in_order(opened: EvaluationSet, teacher: Network, name: str) -> tuple[ImageSource, NDArray[np.int64] | None, str]:
    """Images to train on with labels in the order of the network's classes, and how these were matched.

    Raises UserError where they are other classes.
    """
    source, main, known_by = opened.images, teacher.outputs[primary(teacher.outputs)], ""
    if main.is_classifier:  # no other has a loss that looks at labels
        opened, order = in_network_order(opened, main, source=name, flag="data")
        if opened.folders is not None:
            source.notes += (f"--data {name}: {order.known_by}",)
        known_by = order.known_by
    return source, opened.labels, known_by


def set_apart(
    source: ImageSource,
    data: DataConfig,
    preprocessing: Preprocessing,
    *,
    seed: int,
    labels: NDArray[np.int64] | None = None,
    label_order: str = "",
) -> SplitImages:
    """The images of an open source, apart in those that train, of which some calibrate, and those that are held out.

    Raises UserError where fewer than two of them can be read, or none shows anything.
    """
    check_single(source)
    training, held_out = split_held_out(len(source), seed, count_held_out=data.held_out_images)
    training, held_out = readable_split(source, training, held_out)
    source.notes += look(source, preprocessing)
    return SplitImages(
        source=source,
        training=training,
        held_out=held_out,
        calibration=drawn_to_calibrate(training, count=data.calibration_images, seed=seed),
        workers=suggested_workers(source, preprocessing) if data.workers is None else data.workers,
        augmentation=data.augmentation,
        labels=labels,
        label_order=label_order,
    )


def generated_split(generated: GeneratedImages, data: DataConfig, *, seed: int) -> SplitImages:
    """Generated images, apart in those that train, of which some calibrate, and those that are held out."""
    source = ArraySource(NO_DATA, generated.pixels)
    source.notes = generated.remarks
    training, held_out = split_held_out(len(source), seed, count_held_out=data.held_out_images)
    return SplitImages(
        source=source,
        training=training,
        held_out=held_out,
        calibration=drawn_to_calibrate(training, count=data.calibration_images, seed=seed),
        augmentation=data.augmentation,
        preview=preview(generated.pixels),
    )
