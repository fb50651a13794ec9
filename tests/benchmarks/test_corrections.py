"""What corrected statistics and reconstruction bring before any training: calibrated networks with and without them.

    FAQD_BENCHMARK_OUTPUT=DIR python3 -m pytest -m benchmark -n 0 tests/benchmarks/test_corrections.py -s

Three seeds (draws of held-out and calibration images) for each network and widths, on the shared sample; the KL is the
student's outputs from the float network's, at temperature 1, over the images that score.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

import faqd
from backends import backend_named
from calibration.simulation.correction import Corrections
from pipeline.artifacts import PreparedStudent
from pipeline.stages.observe import corrected, prepare, suited
from pipeline.stages.reconstruct import reconstruct

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Cifar, Columns, Ready, Results, Row

pytestmark = pytest.mark.benchmark

SEEDS = (0, 1, 2)
WIDTHS = {"w8a8": (8, 8), "w4a8": (4, 8), "w3a8": (3, 8), "w2a8": (2, 8), "w4a4": (4, 4), "w2a2": (2, 2)}
COLUMNS: Columns = {
    "network": lambda row: row["key"]["network"],
    "widths": lambda row: row["key"]["widths"],
    "float, %": lambda row: f"{row['teacher']:.2f}",
    "ranges alone, %": lambda row: _spread([score for score, _ in row["plain"]]),
    "corrected, %": lambda row: _spread([score for score, _ in row["corrected"]]),
    "reconstructed, %": lambda row: _spread([score for score, _ in row["reconstructed"]]),
    "KL, ranges alone": lambda row: _mean(row["plain"]),
    "KL, corrected": lambda row: _mean(row["corrected"]),
    "KL, reconstructed": lambda row: _mean(row["reconstructed"]),
    "seconds": lambda row: f"{statistics.median(row['seconds']):.1f}",
    "seconds, reconstructed": lambda row: f"{statistics.median(row['reconstruction seconds']):.1f}",
}


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("network", ["resnet20", "resnet56"])
def test_corrections(
    network: str, widths: str, cifar: Cifar, ready: Callable[..., Ready], training_threads: int, results: Results
) -> None:
    figures: Row = {name: [] for name in ("plain", "corrected", "reconstructed", "seconds", "reconstruction seconds")}
    for seed in SEEDS:
        made = ready(cifar.config(network, bits=8, seed=seed))
        weights, activations = WIDTHS[widths]
        backend = backend_named("onnxruntime" if activations == 8 else "reference")
        widths_asked: dict[str, Any] = {"bits": weights, "activation_bits": activations}
        asked = faqd.QuantisationConfig(backend=backend.name, rounding="least-squares", **widths_asked)
        student = prepare(suited(made.teacher, backend.profile, asked.widths), backend, made.images, asked)
        began = time.perf_counter()
        better = corrected(student, made.images)
        figures["seconds"].append(time.perf_counter() - began)
        began = time.perf_counter()
        rounded = reconstruct(better, made.images, seed=seed)
        figures["reconstruction seconds"].append(time.perf_counter() - began)
        assert student.corrections == Corrections()
        figures["plain"].append(_judged(made, cifar, student))
        figures["corrected"].append(_judged(made, cifar, better))
        figures["reconstructed"].append(_judged(made, cifar, rounded))
        figures["teacher"] = _judged(made, cifar, None)[0]
    results.add({"network": network, "widths": widths, "seeds": len(SEEDS), "threads": training_threads}, **figures)
    results.publish(
        "Corrected statistics and reconstruction: calibrated networks without training",
        COLUMNS,
        results.newest(),
        notes=[
            "top-1 of the simulation, which equals the runtime; mean and standard deviation over three seeds",
            "first and last layer at 8 bits; no step of training",
            "seconds: of the correction, which reads 64 images, and of the reconstruction, which reads 128",
        ],
    )


def _judged(made: Ready, cifar: Cifar, student: PreparedStudent | None) -> tuple[float, float]:
    """Top-1 on the labelled images in percent, and the mean KL to the float network; None: of that network itself."""
    teacher = made.teacher.folded
    network = teacher if student is None else student.network().eval()
    right, divergence, count = 0, 0.0, 0
    with torch.no_grad():
        for inputs, labels in cifar.labelled(made.teacher):
            count += len(inputs)
            own, target = (torch.log_softmax(graph(inputs)[0].double(), 1) for graph in (network, teacher))
            right += int((own.argmax(1) == labels).sum())
            divergence += float(functional.kl_div(own, target, log_target=True, reduction="sum"))
    return 100 * right / count, divergence / count


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} +- {statistics.stdev(values):.2f}"


def _mean(rows: list[tuple[float, float]]) -> str:
    return f"{statistics.mean(divergence for _, divergence in rows):.4f}"
