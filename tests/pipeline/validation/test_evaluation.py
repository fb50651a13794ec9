"""Which images a result is scored on, and what their labels are taken for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.errors import UserError
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.image_source import EvaluationSet
from pipeline.images.split_images import SplitImages
from pipeline.networks.outputs.meaning import Output
from pipeline.validation.evaluation import Scored, drawn_for_parity, scored_images, usable_labels

SCORES = Output(name="scores", holds="classes", axis=1, shape=(3,), names=("ant", "bee", "cat"))
MAP = Output(name="mask", holds="classes", axis=1, shape=(3, 4, 5))
BOXES = Output(name="boxes", holds="values", axis=1, shape=(4, 6))
IMAGES = ArraySource("npz:x", np.arange(5 * 3 * 2 * 2, dtype=np.uint8).reshape(5, 3, 2, 2))


def labelled(labels: Any, **settings: Any) -> EvaluationSet:
    return EvaluationSet(images=IMAGES, labels=np.array(labels), **settings)


def test_class_folders_become_the_networks_classes_and_are_told_of() -> None:
    evaluation = labelled([0, 1, 1, 0, 0], folders=("bee", "cat"))
    usable, remarks = usable_labels(evaluation, (SCORES,), "images:x")
    assert usable.labels is not None and usable.labels.tolist() == [1, 2, 2, 1, 1] and usable.images is IMAGES
    assert usable.folders == ("ant", "bee", "cat") and usable.order
    assert remarks == (f"--eval-data images:x: {usable.order}",), "their names say their order"
    other = labelled([0, 1, 2, 0, 0], folders=("x", "y", "z"))
    assumed, remarks = usable_labels(other, (SCORES,), "images:x")
    assert assumed.folders == ("x", "y", "z")
    assert remarks == (f"--eval-data images:x: {assumed.order}; --classes FILE says another order",)


def test_indices_are_taken_without_a_word() -> None:
    usable, remarks = usable_labels(labelled([0, 2, 1, 0, 0]), (BOXES, SCORES), "npz:x")
    assert usable.labels is not None and usable.labels.tolist() == [0, 2, 1, 0, 0] and remarks == ()
    bare = EvaluationSet(images=IMAGES, labels=None)
    assert usable_labels(bare, (SCORES,), "npz:x") == (bare, ())


def test_one_label_per_image_says_nothing_of_maps_and_values() -> None:
    for output in (MAP, BOXES):
        usable, remarks = usable_labels(labelled([0, 2, 1, 0, 0]), (output,), "npz:x")
        assert usable.labels is None and usable.images is IMAGES
        assert remarks == (
            f"the labels of --eval-data npz:x are one per image and output {output.name} is none such: agreement with"
            " the teacher is scored",
        )


def test_maps_of_labels_must_be_of_the_size_that_is_decided() -> None:
    maps = labelled(np.zeros((5, 4, 5), np.int64))
    assert usable_labels(maps, (MAP,), "npz:x") == (maps, ())
    for output, size in ((MAP, (5, 4)), (SCORES, (4, 5)), (BOXES, (4, 6))):
        with pytest.raises(UserError, match=f"its labels are maps .*and {output.name} decides"):
            usable_labels(labelled(np.zeros((5, *size), np.int64)), (output,), "npz:x")


def of_size(side: int) -> Preprocessing:
    """Images as they are, that many pixels wide and high."""
    return Preprocessing(
        channels=3,
        height=side,
        width=side,
        resize=None,
        interpolation="bilinear",
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        channel_order="RGB",
    )


def test_labels_follow_their_images_into_batches() -> None:
    preprocessing = of_size(2)
    scored = Scored(evaluation=labelled([5, 6, 7, 8, 9]), indices=np.array([4, 0, 2]))
    made = scored_images(scored, preprocessing)
    batches = list(made.batches)
    assert made.count == 3 and made.source is IMAGES
    labels = [batch.labels.tolist() for batch in batches if batch.labels is not None]
    assert labels == [[9, 5, 7]] and [len(batch.images) for batch in batches] == [3]
    assert batches[0].sampled is None, "all of so few are compared"
    # Channels and pixels of image 4, 48 to 59, as fractions of 255.
    assert (batches[0].images[0].flatten() * 255).round().tolist() == list(range(48, 60))
    whole = Scored.whole(labelled([5, 6, 7, 8, 9]), ("said",))
    assert whole.indices.tolist() == [0, 1, 2, 3, 4] and whole.remarks == ("said",) and not whole.trained_on
    split = SplitImages(source=IMAGES, training=np.array([0, 1]), held_out=np.array([3, 2]))
    held = Scored.held_out(split)
    assert held.indices.tolist() == [3, 2] and held.trained_on and held.evaluation.labels is None
    assert scored_images(held, preprocessing).source is None, "what of them is unreadable is told elsewhere"


def test_a_sample_follows_its_images_into_batches() -> None:
    preprocessing = of_size(448)
    scored = Scored.whole(labelled([5, 6, 7, 8, 9]))
    drawn = drawn_for_parity(scored.indices, count=2, seed=3)
    assert drawn is not None
    batches = list(scored_images(scored, preprocessing, parity=2, seed=3).batches)
    assert [len(batch.images) for batch in batches] == [4, 1], "large images go through networks a few at a time"
    assert np.concatenate([batch.sampled for batch in batches if batch.sampled is not None]).nonzero()[0].tolist() == (
        drawn.tolist()
    )


def test_a_sample_lies_all_over_the_source_and_is_the_seeds() -> None:
    images = np.arange(1000, 1997)
    drawn = [drawn_for_parity(images, count=100, seed=seed) for seed in (0, 0, 1)]
    one, again, other = (np.asarray(sample) for sample in drawn)
    assert (one == again).all() and (one != other).any()
    assert len(set(one.tolist())) == 100 and np.isin(one, images).all()
    assert (np.diff(one) > 0).all() and np.diff(one).max() < 20, "one of each ten in a row"
    means = [np.asarray(drawn_for_parity(images, count=10, seed=seed)).mean() for seed in range(200)]
    # Of a uniform draw from each stretch of 99.7: a standard deviation of 28.8 / sqrt(10) for one, 0.64 for the mean.
    assert abs(float(np.mean(means)) - 1498) < 3
    assert drawn_for_parity(images, count="all", seed=0) is None and drawn_for_parity(images, count=997, seed=0) is None
