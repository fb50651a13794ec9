"""Score the same images on every stage of the way, and measure the artifact on its runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.base import Array, Backend, Census
from backends.device.bundle_check.same_answer import WITH_FLOAT
from backends.onnx_file.serialised import Serialised, parsed
from backends.oracle.backend import IntegerOracle
from backends.timing import interleaved_latency
from calibration.errors import MissingExtra, UserError
from pipeline.networks.outputs.agreement import OutputTally, parity_of
from pipeline.networks.outputs.meaning import Output, primary
from pipeline.report.schema import Accuracy, Latency, OutputScore, Parity, Percentiles, Sample
from pipeline.tools.confidence import PointsLost, loss_of
from pipeline.validation.label_tally import LabelTally

#: Stages whose outputs are scored, in the order of the way; "runtime" is absent where it does not run.
#: "target", scored only against itself, is what the student was asked for: without labels it stands in for them.
COLUMNS = ("target", "teacher", "calibrated", "simulated", "oracle", "runtime")

Outputs = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """One batch to score: normalised images float32 [B, C, H, W] and their labels int64 [B], where there are any.

    Of maps int64 [B, H, W]; labels of theirs that are no class are left out.
    """

    images: Tensor
    labels: NDArray[np.int64] | None
    sampled: NDArray[np.bool_] | None = None
    """Which of them, [B], are of the sample on which some columns run; None: all."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What `score` measured; `calibrated` is the score of the calibrated network before training."""

    accuracy: Accuracy
    parity: Parity
    calibrated: float | None
    outputs: tuple[OutputScore, ...]
    main: int = 0
    """Index of the output that the accuracy is about."""
    agreements: tuple[float | None, ...] = ()
    """Of each output the share of decisions in which simulation, oracle and runtime are all alike."""
    limits_with_float: tuple[float, ...] = ()
    """Of each output the share that must be, where floats are a part of the arithmetic."""
    lost: PointsLost | None = None
    """What the accuracy of the runtime, of the oracle where it is not here, has lost; None without a teacher."""
    outputs_lost: tuple[PointsLost | None, ...] = ()
    """The same of each output's agreement, R2 or centred cosine."""
    alike: tuple[bool, ...] = ()
    """Of each output whether its target is the same on all images, so that agreement with it says nothing."""
    repeated: int = 0
    """Images that are the same as one before: they do not count as further ones."""
    sample: Sample | None = None
    """Scores of the images on which some columns ran alone; None where all ran on all."""
    mean_ious: Mapping[str, float] = field(default_factory=dict)
    """Of columns, where labels are maps: the mean over classes of intersection over union with them."""


def score(
    columns: Mapping[str, Outputs],
    batches: Iterable[ScoredImages],
    outputs: Sequence[Output],
    *,
    sampled: Collection[str] = (),
    step: Callable[[int], None],
) -> Scores:
    """Accuracy of every column, parity of simulation, oracle and runtime, and both for every output of its own.

    The metric of the accuracy is top-1 where batches have labels, else that of the network's first classes (or labels)
    against the distillation targets (column "target", needed then): the teacher's own outputs, unless they are averaged
    over mirror images. Maps count per position. Columns that are `sampled` run on the sample alone that batches name,
    if they do, and columns are compared with each other on it. Raises UserError when a label is no class of the
    network, and where no image, or none of a sample, could be read.
    """
    main, whole = primary(outputs), _Tallies(outputs)
    part: _Tallies | None = None  # of the sample, where it is not all
    seen, first = set[bytes](), list[bool]()
    for batch in batches:
        first += _unseen(batch.images, seen)
        if not sampled or batch.sampled is None:
            whole.add(_answers(columns, batch.images), batch.labels)
        else:
            part = part or _Tallies(outputs)
            everywhere = {name: run for name, run in columns.items() if name not in sampled}
            results = _answers(everywhere, batch.images)
            whole.add(results, batch.labels)
            if batch.sampled.any():
                chosen = torch.from_numpy(np.flatnonzero(batch.sampled))
                others = {name: run for name, run in columns.items() if name in sampled}
                of_sample = {name: [value[chosen] for value in values] for name, values in results.items()}
                of_sample |= _answers(others, batch.images[chosen])
                part.add(of_sample, None if batch.labels is None else batch.labels[batch.sampled])
        step(whole.images)
    if not whole.images:
        raise UserError("--eval-data: no image to score was readable")
    if part is not None and not part.images:
        raise UserError("--parity-images: none of the images that were drawn could be read: give a larger number")
    fractions, compared = whole.fractions(main), part or whole
    accuracy = Accuracy(
        metric="top1" if whole.labelled else whole.outputs[main].metric,
        images=whole.images,
        teacher=fractions.get("teacher"),
        simulated=fractions.get("simulated"),
        oracle=fractions.get("oracle"),
        runtime=fractions.get("runtime"),
    )
    last = "runtime" if "runtime" in columns else "oracle"
    own = np.array(first)
    outputs_lost = tuple(_output_loss(tally, last, own) for tally in whole.outputs)
    lost = outputs_lost[main]
    if whole.labelled:
        lost = _labelled_loss(whole.labelled, last, own, decisions=outputs[main].decisions)
    return Scores(
        accuracy=accuracy,
        parity=parity_of(compared.outputs),
        calibrated=fractions.get("calibrated"),
        outputs=tuple(_scored(*tallies) for tallies in zip(whole.outputs, compared.outputs, strict=True)),
        main=main,
        agreements=tuple(tally.joint_agreement for tally in compared.outputs),
        limits_with_float=tuple(tally.limit(WITH_FLOAT) for tally in compared.outputs),
        lost=lost,
        outputs_lost=outputs_lost,
        alike=tuple(tally.alike for tally in whole.outputs),
        repeated=whole.images - len(seen),
        sample=None if part is None else part.sample(main),
        mean_ious={name: iou for name, tally in whole.labelled.items() if (iou := tally.mean_iou()) is not None},
    )


class _Tallies:
    """What is counted of some images: every output's columns against each other, and the main one's against labels."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self.outputs = [OutputTally(output) for output in outputs]
        self.labelled = dict[str, LabelTally]()
        self.images, self._main = 0, primary(outputs)

    def add(self, results: Mapping[str, Sequence[Tensor]], labels: NDArray[np.int64] | None) -> None:
        """Count one batch: column -> its outputs [B, ...], and labels [B] where there are any."""
        main, output = self._main, self.outputs[self._main].output
        self.images += len(next(iter(results.values()))[main])
        if labels is not None:
            for name, values in results.items():
                tally_of_labels = self.labelled.setdefault(name, LabelTally(values[main].shape[output.axis]))
                tally_of_labels.add(output.answers(values[main]), labels)
        for index, tally in enumerate(self.outputs):
            tally.add({name: values[index] for name, values in results.items()})

    def fractions(self, main: int) -> dict[str, float]:
        """Each column's share of answers that are the label's, or without labels what it agrees by."""
        return {name: tally.fraction() for name, tally in self.labelled.items()} or self.outputs[main].fractions()

    def sample(self, main: int) -> Sample:
        """The scores as a block of the report."""
        kinds, fractions = ("teacher", "calibrated", "simulated", "oracle", "runtime"), self.fractions(main)
        return Sample(images=self.images, **{name: fractions.get(name) for name in kinds})


def _answers(columns: Mapping[str, Outputs], images: Tensor) -> dict[str, list[Tensor]]:
    """What each column gives; columns that are the same, as teacher and target may be, are asked once."""
    answers = {run: run(images) for run in dict.fromkeys(columns.values())}
    return {name: answers[run] for name, run in columns.items()}


def _scored(whole: OutputTally, compared: OutputTally) -> OutputScore:
    """An output's entry in the report; what compares columns with each other is of the sample."""
    if compared is whole:
        return whole.score()
    on_sample = compared.score()
    return replace(
        whole.score(),
        oracle_vs_simulated=on_sample.oracle_vs_simulated,
        runtime_vs_oracle=on_sample.runtime_vs_oracle,
        exact_fraction=on_sample.exact_fraction,
        max_difference=on_sample.max_difference,
        simulated_difference=on_sample.simulated_difference,
    )


def _unseen(images: Tensor, seen: set[bytes]) -> list[bool]:
    """Of each image [B, ...] whether none like it to the bit was seen before; adds them to `seen`."""
    unseen = []
    for image in images.numpy():
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        unseen.append(digest not in seen)
        seen.add(digest)
    return unseen


def _labelled_loss(
    labelled: Mapping[str, LabelTally], column: str, own: NDArray[np.bool_], *, decisions: int | None
) -> PointsLost | None:
    """What a column has lost of what the labels say against the teacher; how sure it is by its `own` images alone."""
    if column not in labelled or "teacher" not in labelled:
        return None
    mine, teacher = labelled[column], labelled["teacher"]
    points = _points(teacher.fraction(), mine.fraction())
    lost = mine.wrong() - teacher.wrong()
    return loss_of(lost[own], points=points, decisions=decisions, paired=teacher.fraction() < 1)


def _output_loss(tally: OutputTally, column: str, own: NDArray[np.bool_]) -> PointsLost | None:
    """What an output's agreement, R2 or cosine has lost in a column; how sure that is by the `own` images alone."""
    lost, fractions = tally.lost(column), tally.fractions()
    if lost is None:
        return None
    points = _points(fractions["teacher"], fractions[column])
    decisions = tally.output.decisions
    return loss_of(lost[own], points=points, decisions=decisions, paired=fractions["teacher"] < 1)


def _points(teacher: float, other: float) -> float:
    """Percentage points lost; rounded, so that one of a hundred is 1 and not a little more."""
    return round(100 * (teacher - other), 9)


def oracle_outputs(model: Serialised, *, fused_rounding: bool, arm_arithmetic: bool) -> Outputs:
    """The integer oracle of an artifact as a column, with the semantics of its runtime's kernels."""
    oracle = IntegerOracle(parsed(model), fused_rounding=fused_rounding, arm_arithmetic=arm_arithmetic)
    return lambda images: oracle.run(images)[0]


def measure_latency(
    backend: Backend, model: Serialised, float_model: Serialised | None, images: Array, *, threads: int
) -> Latency:
    """Median and p90 of both models on the backend's runtime, interleaved; `images` is one inference's input."""
    with backend.runner(model, threads=threads) as quantised:
        runners = {"quantised": quantised}
        if float_model is None:
            times = interleaved_latency(runners, images)
        else:
            with backend.runner(float_model, threads=threads) as plain:
                times = interleaved_latency({"float": plain, **runners}, images)
    measured = {name: Percentiles(median=time.median_ms, p90=time.p90_ms) for name, time in times.items()}
    plain_time = measured.get("float")
    return Latency(
        batch=len(images),
        threads=threads,
        float_ms=plain_time,
        quantised_ms=measured["quantised"],
        speedup=plain_time.median / measured["quantised"].median if plain_time else None,
    )


def no_latency(batch: int, threads: int) -> Latency:
    """The latency block where the runtime does not run."""
    return Latency(batch=batch, threads=threads, float_ms=None, quantised_ms=None, speedup=None)


def count_kernels(backend: Backend, model: Serialised, layers: list[str]) -> tuple[Census | None, str | None]:
    """What the runtime makes of each weighted layer, and what to say about how that is known.

    Where the runtime does not run, its compiler may still say (TensorRT builds ahead of time without a GPU); where
    that is missing too, nothing is known and the remark says what to install.
    """
    try:
        census = backend.census(model, layers)
    except MissingExtra as missing:
        return None, f"no engine was built: {missing}"
    on_target = backend.unavailable() is None and not census.elsewhere
    how = "" if on_target else "kernels are those that are chosen ahead of time here: they did not run"
    return census, "; ".join(part for part in (how, census.remark) if part) or None
