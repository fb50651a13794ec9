"""Whether the float teacher can be trusted: asked of some images before anything is trained on its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.errors import UserError
from pipeline.artifacts import Network
from pipeline.images.batches import images_at_once
from pipeline.images.data import EvaluationSet, ImageSource, ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.split_images import SplitImages
from pipeline.networks.outputs.meaning import Output, primary
from pipeline.tools.memory import freed_memory_kept
from pipeline.validation.teacher_judgement import Judgement, judge

# A few hundred labelled images tell a teacher from chance; as many as a batch show what an output holds [ours].
_JUDGED, _SEEN = 256, 64
_BATCH, _CUSTOMARY_BATCH = 64, 16  # at the most, and of 224 px
_SUM_ERROR = 1e-2


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A float network, or what a bundle has in its place, that can be asked of images: `run` takes normalised ones."""

    called: str
    outputs: tuple[Output, ...]
    preprocessing: Preprocessing
    run: Callable[[Tensor], Sequence[Tensor]]

    @classmethod
    def teacher(cls, network: Network) -> Answering:
        """A float teacher."""
        return cls(
            called="the float teacher",
            outputs=network.outputs,
            preprocessing=network.preprocessing,
            run=network.folded,
        )


def check_labelled(
    asked: Answering,
    source: ImageSource,
    labels: NDArray[np.int64],
    indices: NDArray[np.int64],
    *,
    flag: str,
    order: str,
    workers: int,
) -> tuple[str, ...]:
    """Ask a classifier about some labelled images; what to warn of.

    `labels` int64, one per image of the source, of which `indices` are looked at; `flag` names the source, `order` says
    how its classes were matched with the network's.

    Raises:
        UserError: the answers are all but guesses, or right in another order of the classes.
    """
    main = primary(asked.outputs)
    output = asked.outputs[main]
    assert output.classes is not None
    chosen = indices[np.unique(np.linspace(0, len(indices) - 1, min(_JUDGED, len(indices))).astype(np.int64))]
    answers, truth = list[Tensor](), list[NDArray[np.int64]]()
    for values, seen in _answers(asked, source, chosen, workers):
        answers.append(output.decided(values[main]).reshape(-1))
        truth.append(labels[seen])
    judgement = judge(np.concatenate(truth), torch.cat(answers).numpy(), output.classes)
    told = (
        f"{asked.called} is right on {100 * judgement.accuracy:.1f} % of {judgement.images} images of {flag}, and"
        f" guessing is on {100 * judgement.chance:.1f} %"
    )
    if judgement.reordered is not None or judgement.at_chance:
        raise UserError(f"{told}{_why(judgement)}: {order}; {_WAY}")
    return (f"WARNING: {told}: {order}; where that is not what the network is worth, {_WAY}",) if judgement.poor else ()


_WAY = (
    "give the order of the network's outputs with --classes FILE, check --weights, --mean and --std, or give images"
    " without labels to be scored by agreement with the teacher"
)


def _why(judgement: Judgement) -> str:
    if judgement.reordered is None:
        return ""
    better = f"{100 * judgement.reordered:.0f} %"
    return f"; with the same classes in another order it would be on {better}, so the order is wrong"


def check_answers(teacher: Network, images: SplitImages) -> tuple[str, ...]:
    """Look at a few answers for what they were said to hold; what to warn of.

    Raises:
        UserError: what was said to be logits are probabilities, or the other way round.
    """
    parts = [
        values
        for values, _ in _answers(Answering.teacher(teacher), images.source, images.held_out[:_SEEN], images.workers)
    ]
    lines = []
    for index, output in enumerate(teacher.outputs):
        values = torch.cat([part[index] for part in parts])
        _check_range(output, values, teacher.source)
        if index == primary(teacher.outputs) and output.holds != "values":
            decided = output.decided(values)
            if len(values) > 1 and bool((decided == decided.reshape(-1)[0]).all()):
                lines.append(
                    f"WARNING: the float teacher decides {output.name} alike everywhere on {len(values)} held-out"
                    f" images ({_decision(output, int(decided.reshape(-1)[0]))}): agreement with it says nothing"
                )
    return tuple(lines)


def _decision(output: Output, decision: int) -> str:
    if output.holds == "labels":
        return "yes" if decision else "no"
    return f"class {decision}" + (f", {output.names[decision]}" if output.names else "")


def _check_range(output: Output, values: Tensor, source: str) -> None:
    """Refuse logits that are probabilities by their values, and probabilities that are none."""
    if output.holds == "values":
        return
    flag, within = f"--output-kinds {output.name}=", bool(((values >= 0) & (values <= 1)).all())
    shown = f"on {len(values)} held-out images all values of {output.name} of {source} are within 0 and 1"
    last = "-last" if output.axis in (-1, len(output.shape)) and len(output.shape) > 1 else ""
    if output.activation is None and within:
        if output.holds == "labels":
            raise UserError(
                f"{shown}, where labels are logits whose yes is above 0, so that all would be yes: {flag}"
                f"label-probabilities where a sigmoid has made them, {flag}values where they are numbers"
            )
        if bool(((values.sum(output.axis) - 1).abs() < _SUM_ERROR).all()):
            raise UserError(f"{shown} and sum to 1, where classes are logits: {flag}probabilities{last}")
    if output.activation in ("softmax", "sigmoid") and not output.shown and not within:
        kind = "labels" if output.holds == "labels" else f"classes{last}"
        raise UserError(
            f"{output.name} of {source} was said to hold probabilities, and on {len(values)} held-out images it goes"
            f" from {float(values.min()):.3g} to {float(values.max()):.3g}: {flag}{kind} for logits"
        )


def _answers(
    asked: Answering, source: ImageSource, indices: NDArray[np.int64], workers: int
) -> Iterator[tuple[Sequence[Tensor], NDArray[np.int64]]]:
    """All outputs, batch by batch, with the indices of the images that could be read."""
    preprocessing = asked.preprocessing
    size = images_at_once(preprocessing, _BATCH, customary=_CUSTOMARY_BATCH)
    with torch.no_grad():
        for batch in ordered_batches(source, indices, preprocessing, batch_size=size, workers=workers):
            yield asked.run(normalise(batch.images, preprocessing)), batch.indices.numpy()


def check_evaluation(asked: Answering, evaluation: EvaluationSet, *, source: str, workers: int = 0) -> tuple[str, ...]:
    """Ask about the images of `--eval-data`, a `source`, where each has one label; what to warn of.

    Raises UserError as `check_labelled` does.
    """
    if evaluation.labels is None or evaluation.labels.ndim != 1:
        return ()
    everything = np.arange(len(evaluation.images), dtype=np.int64)
    flag, order = f"--eval-data {source}", evaluation.order
    return check_labelled(
        asked, evaluation.images, evaluation.labels, everything, flag=flag, order=order, workers=workers
    )


@freed_memory_kept()
def check_teacher(
    teacher: Network,
    images: SplitImages | None,
    evaluation: EvaluationSet | None,
    *,
    data: str,
    eval_data: str | None,
) -> tuple[str, ...]:
    """All that images say of the teacher before it teaches; what to warn of.

    `evaluation`: what the result will be scored on, where it is known; `data` and `eval_data` name the sources.

    Raises:
        UserError: as of `check_labelled` and `check_answers`.
    """
    lines: tuple[str, ...] = ()
    workers = 0 if images is None else images.workers
    if evaluation is not None:
        lines += check_evaluation(Answering.teacher(teacher), evaluation, source=str(eval_data), workers=workers)
    if images is not None:
        if images.labels is not None:
            lines += check_labelled(
                Answering.teacher(teacher),
                images.source,
                images.labels,
                images.training,
                flag=f"--data {data}",
                order=images.label_order,
                workers=workers,
            )
        lines += check_answers(teacher, images)
    return lines
