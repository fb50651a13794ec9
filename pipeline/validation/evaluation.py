"""The images that a result is scored on, and whether their labels can score it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.errors import UserError
from pipeline.artifacts import Network
from pipeline.images.batches import images_at_once
from pipeline.images.data import EvaluationSet, open_evaluation, ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.split_images import SplitImages
from pipeline.networks.outputs.class_order import in_network_order
from pipeline.networks.outputs.meaning import Output, primary
from pipeline.tools.randomness import generator_for
from pipeline.tools.source_text import batch_shape
from pipeline.validation.score import ScoredImages
from pipeline.validation.subject import ImagesToScore

# Images that are scored at a time: at the most, and of 224 px.
_MOST_AT_ONCE, _CUSTOMARY_AT_ONCE = 64, 16
_OTHERWISE = "; --classes FILE says another order"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The images that a result is scored on, and what to say about that."""

    evaluation: EvaluationSet
    """Labels, if any, are indices of the network's classes (`usable_labels`)."""
    indices: NDArray[np.int64]
    """Which of them are scored."""
    remarks: tuple[str, ...] = ()
    workers: int = 0
    """Processes that read them."""
    trained_on: bool = False
    """Whether they were held out of those that trained, of which it is told elsewhere what was unreadable."""

    @classmethod
    def whole(cls, evaluation: EvaluationSet, remarks: tuple[str, ...] = ()) -> Scored:
        """All images of a set."""
        return cls(evaluation=evaluation, indices=np.arange(len(evaluation.images), dtype=np.int64), remarks=remarks)

    @classmethod
    def held_out(cls, images: SplitImages) -> Scored:
        """The images that were held out of those that a student learns on."""
        evaluation = EvaluationSet(images=images.source, labels=None)
        return cls(evaluation=evaluation, indices=images.held_out, trained_on=True)


def evaluation_of(source: str, teacher: Network) -> Scored:
    """The images of `--eval-data`, which a run is scored on.

    Raises UserError where there are none, or their labels are no classes of the teacher.
    """
    evaluation, remarks = usable_labels(open_evaluation(source, teacher.preprocessing), teacher.outputs, source)
    if not len(evaluation.images):
        raise UserError(f"--eval-data {source} has no images")
    return Scored.whole(evaluation, remarks)


def usable_labels(
    evaluation: EvaluationSet, outputs: Sequence[Output], source: str
) -> tuple[EvaluationSet, tuple[str, ...]]:
    """The set with labels that are indices of the network's classes, and how folders were matched with them.

    Without labels where a network gives more than the one class per image that they name. Raises UserError where the
    classes are others than the network's.
    """
    main = outputs[primary(outputs)]
    if evaluation.labels is None:
        return evaluation, ()
    if evaluation.labels.ndim > 1:
        maps, decided = evaluation.labels.shape[1:], main.positions if main.holds == "classes" else None
        if maps != decided:
            holds = f"values {batch_shape(main.shape)}" if decided is None else f"classes {batch_shape(decided)}"
            raise UserError(
                f"--eval-data {source}: its labels are maps {batch_shape(maps)}, and {main.name} decides {holds}:"
                " give one label for each decision, or leave them out to score agreement with the teacher"
            )
        return evaluation, ()
    if main.holds == "classes" and main.decisions == 1:
        of_folders = evaluation.folders is not None
        evaluation, order = in_network_order(evaluation, main, source=source, flag="eval-data")
        told = f"--eval-data {source}: {order.known_by}" + (_OTHERWISE if order.assumed else "")
        return replace(evaluation, folders=order.names or None, order=order.known_by), (told,) if of_folders else ()
    said = f"the labels of --eval-data {source} are one per image and output {main.name} is none such"
    return replace(evaluation, labels=None), (f"{said}: agreement with the teacher is scored",)


def drawn_for_parity(indices: NDArray[np.int64], *, count: int | Literal["all"], seed: int) -> NDArray[np.int64] | None:
    """Which `count` of the images [N] to compare all stages on: one of each of as many equal stretches of them.

    None where these are all of them.
    """
    if count == "all" or count >= len(indices):
        return None
    ends = np.arange(count + 1) * len(indices) // count
    places = torch.rand(count, generator=generator_for(seed, "parity"), dtype=torch.float64).numpy()
    return indices[ends[:-1] + (places * np.diff(ends)).astype(np.int64)]


def scored_images(
    scored: Scored, preprocessing: Preprocessing, *, parity: int | Literal["all"] = "all", seed: int = 0
) -> ImagesToScore:
    """These images, normalised and in batches, with their labels; `parity` of them are drawn as the sample."""
    # Where they are large, fewer at a time: maps that leave the caches cost oracle and simulation a quarter more.
    most = images_at_once(preprocessing, _MOST_AT_ONCE, customary=_CUSTOMARY_AT_ONCE)
    sample = drawn_for_parity(scored.indices, count=parity, seed=seed)
    return ImagesToScore(
        batches=_batches(scored, preprocessing, most, sample),
        count=len(scored.indices),
        source=None if scored.trained_on else scored.evaluation.images,
    )


def _batches(
    scored: Scored, preprocessing: Preprocessing, most: int, sample: NDArray[np.int64] | None
) -> Iterator[ScoredImages]:
    images, labels = scored.evaluation.images, scored.evaluation.labels
    for batch in ordered_batches(images, scored.indices, preprocessing, batch_size=most, workers=scored.workers):
        of_batch = None if labels is None else labels[batch.indices.numpy()]
        sampled = None if sample is None else np.isin(batch.indices.numpy(), sample)
        yield ScoredImages(images=normalise(batch.images, preprocessing), labels=of_batch, sampled=sampled)
