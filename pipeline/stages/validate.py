"""Score the same images on every stage of the way, and measure the artifact on its runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.base import Array, Backend, Census
from backends.reference import IntegerOracle
from backends.timing import interleaved_latency
from calibration.errors import MissingExtra, UserError
from pipeline.report.schema import Accuracy, Latency, Parity, Percentiles

#: Stages whose outputs are scored, in the order of the way; "runtime" is absent where it does not run.
#: "target", scored only against itself, is what the student was asked for: without labels it stands in for them.
COLUMNS = ("target", "teacher", "calibrated", "simulated", "oracle", "runtime")

Outputs = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """One batch to score: normalised images float32 [B, C, H, W] and their labels int64 [B], where there are any."""

    images: Tensor
    labels: NDArray[np.int64] | None


@dataclass
class _Tally:
    """Counts over all batches so far."""

    images: int = 0
    positions: int = 0
    right: dict[str, int] = field(default_factory=dict)
    agreeing: int = 0
    elements: int = 0
    equal: int = 0
    largest: float = 0.0


def score(
    columns: Mapping[str, Outputs],
    batches: Iterable[ScoredImages],
    *,
    step: Callable[[int], None],
) -> tuple[Accuracy, Parity, float | None]:
    """Accuracy of every column, parity of simulation, oracle and runtime, and the calibrated column's score.

    The metric is top-1 where batches have labels, else agreement with the argmax of the distillation targets (column
    "target", needed then): the teacher's own, unless its logits are averaged over mirror images. Dense outputs
    [B, K, H, W] count per position. Raises UserError when a label is no class of the network.
    """
    tally, labelled = _Tally(), False
    for batch in batches:
        outputs = {name: run(batch.images) for name, run in columns.items()}
        first = next(iter(outputs.values()))[0]
        if batch.labels is not None:
            labelled = True
            if batch.labels.size and not 0 <= batch.labels.min() <= batch.labels.max() < first.shape[1]:
                raise UserError(
                    f"--eval-data has labels {batch.labels.min()} to {batch.labels.max()}, but the network has"
                    f" {first.shape[1]} classes, 0 to {first.shape[1] - 1}"
                )
            target = torch.from_numpy(batch.labels)
        else:
            target = outputs["target"][0].argmax(1)
        tally.images += len(batch.images)
        tally.positions += target.numel()
        for name, values in outputs.items():
            tally.right[name] = tally.right.get(name, 0) + int((values[0].argmax(1) == target).sum())
        _compare(tally, outputs)
        step(tally.images)
    if not tally.images:
        raise UserError("--eval-data: no image to score was readable")
    fractions = {name: right / tally.positions for name, right in tally.right.items()}
    accuracy = Accuracy(
        metric="top1" if labelled else "agreement",
        images=tally.images,
        teacher=fractions.get("teacher"),
        simulated=fractions.get("simulated"),
        oracle=fractions.get("oracle"),
        runtime=fractions.get("runtime"),
    )
    return accuracy, _parity(tally), fractions.get("calibrated")


def _compare(tally: _Tally, outputs: Mapping[str, list[Tensor]]) -> None:
    """Add one batch to the comparison of simulation, oracle and runtime."""
    compared = [outputs[name] for name in ("simulated", "oracle", "runtime") if name in outputs]
    if len(compared) < 2:
        return
    classes = [values[0].argmax(1) for values in compared]
    tally.agreeing += int(torch.stack([c == classes[0] for c in classes]).all(0).sum())
    if "oracle" not in outputs or "runtime" not in outputs:
        return
    for mine, theirs in zip(outputs["oracle"], outputs["runtime"], strict=True):
        tally.elements += mine.numel()
        tally.equal += int((mine == theirs).sum())
        tally.largest = max(tally.largest, float((mine.double() - theirs.double()).abs().max()))


def _parity(tally: _Tally) -> Parity:
    on_target = tally.elements > 0
    return Parity(
        argmax_agreement=tally.agreeing / tally.positions if on_target else None,
        exact_fraction=tally.equal / tally.elements if on_target else None,
        max_difference=tally.largest if on_target else None,
    )


def oracle_outputs(model: bytes) -> Outputs:
    """The integer oracle of an artifact as a column."""
    oracle = IntegerOracle(onnx.load_model_from_string(model))
    return lambda images: oracle.run(images)[0]


def measure_latency(
    backend: Backend, model: bytes, float_model: bytes | None, images: Array, *, threads: int
) -> Latency:
    """Median and p90 of both models on the backend's runtime, interleaved; `images` is one inference's input."""
    with backend.runner(model, threads=threads) as quantised:
        runners = {"quantised": quantised}
        if float_model is None:
            times = interleaved_latency(runners, images)
        else:
            with backend.runner(float_model, threads=threads) as plain:
                times = interleaved_latency({"float": plain, **runners}, images)
    found = {name: Percentiles(median=time.median_ms, p90=time.p90_ms) for name, time in times.items()}
    plain_time = found.get("float")
    return Latency(
        batch=len(images),
        threads=threads,
        float_ms=plain_time,
        quantised_ms=found["quantised"],
        speedup=plain_time.median / found["quantised"].median if plain_time else None,
    )


def no_latency(batch: int, threads: int) -> Latency:
    """The latency block where the runtime does not run."""
    return Latency(batch=batch, threads=threads, float_ms=None, quantised_ms=None, speedup=None)


def count_kernels(backend: Backend, model: bytes, layers: list[str]) -> tuple[Census | None, str | None]:
    """What the runtime makes of each weighted layer, and what to say about how that is known.

    Where the runtime does not run, its compiler may still say (TensorRT builds ahead of time without a GPU); where
    that is missing too, nothing is known and the remark says what to install.
    """
    on_target = backend.unavailable() is None
    try:
        census = backend.census(model, layers)
    except MissingExtra as missing:
        return None, f"no engine was built: {missing}"
    return census, None if on_target else "kernels are those of an engine built ahead of time, which did not run"
