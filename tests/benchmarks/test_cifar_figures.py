"""Accuracy, kernels, parity, size and time of the whole command on the shared CIFAR sample.

    python3 -m pytest -m benchmark tests/benchmarks/test_cifar_figures.py -s [-k "resnet20 and 4bits"]

FAQD_BENCHMARK_FLAGS adds flags to the command (`--steps 20 --seed 1`); accuracy has no target then. Without
FAQD_BENCHMARK_THREADS the command uses the machine's default number of threads. Structure and accuracy have targets,
time has none here: other work on the machine would decide it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import faqd
from backends import backend_named
from pipeline.networks.architectures.cifar_resnet import BLOCKS

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Cifar, Columns, Results, Row

pytestmark = pytest.mark.benchmark

LEAST_TOP1 = {"resnet20": 0.918, "resnet56": 0.9272}
MOST_SIZE_RATIO = {8: 0.30, 4: 0.18}
MOST_SECONDS = {("resnet20", 8): 120, ("resnet20", 4): 240}


def _percent(name: str) -> Columns:
    def show(row: Row) -> str | None:
        return None if row[name] is None else f"{100 * row[name]:.2f}"

    return {name: show}


COLUMNS: Columns = {
    "network": lambda row: row["key"]["network"],
    "W/A": lambda row: f"{row['key']['bits']}/8",
    **_percent("teacher"),
    **_percent("calibrated"),
    **_percent("simulated"),
    **_percent("oracle"),
    **_percent("runtime"),
    "goal": lambda row: f"{100 * LEAST_TOP1[row['key']['network']]:.2f}",
    "same argmax": lambda row: f"{round(row['agreement'] * row['images'])}/{row['images']}",
    "equal outputs": lambda row: f"{100 * row['exact']:.2f} %",
    "largest difference": lambda row: f"{row['largest_difference']:.3g}",
    "integer/float layers": lambda row: f"{row['integer']}/{row['float']}",
    "integer adds": lambda row: f"{row['adds']}/{row['blocks']}",
    "size ratio": lambda row: f"{row['size_ratio']:.3f}",
    "goal size": lambda row: MOST_SIZE_RATIO[row["key"]["bits"]],
    "speed-up": lambda row: f"{row['speedup']:.2f}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
    "goal s": lambda row: MOST_SECONDS.get((row["key"]["network"], row["key"]["bits"])),
    "weights": lambda row: row["chosen"],
    "flags": lambda row: row["key"]["flags"] or None,
}


@pytest.mark.parametrize("bits", [8, 4], ids=["8bits", "4bits"])
@pytest.mark.parametrize("network", ["resnet20", "resnet56"])
def test_command_reaches_its_figures(
    network: str, bits: int, cifar: Cifar, results: Results, repository: Path, tmp_path: Path
) -> None:
    flags = os.environ.get("FAQD_BENCHMARK_FLAGS", "")
    output = tmp_path / "run"
    command = [
        *(sys.executable, "-m", "pipeline", "run", "--backend", "onnxruntime", "--bits", str(bits)),
        *("--teacher", f"cifar:{network}", "--weights", str(cifar.weights(network))),
        *("--data", cifar.unlabelled, "--eval-data", cifar.test, "--parity-images", "all"),
        *("--output", str(output), *shlex.split(flags)),
    ]
    start = time.monotonic()
    finished = subprocess.run(
        command, cwd=repository, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    seconds = time.monotonic() - start
    assert finished.returncode in (0, 1), finished.stderr
    print(finished.stdout)
    report = faqd.read_bundle(output / "bundle").report
    assert report is not None
    model = (output / "bundle" / "model.onnx").read_bytes()
    kernels = backend_named("onnxruntime").census(model, [layer.name for layer in report.layers]).histogram
    assert report.size.float_bytes and report.size.quantised_bytes and report.distillation
    row: Row = {
        "teacher": report.accuracy.teacher,
        "calibrated": report.distillation.accuracy_calibrated,
        "simulated": report.accuracy.simulated,
        "oracle": report.accuracy.oracle,
        "runtime": report.accuracy.runtime,
        "images": report.accuracy.images,
        "agreement": report.parity.argmax_agreement,
        "exact": report.parity.exact_fraction,
        "largest_difference": report.parity.max_difference,
        "integer": report.kernels.integer,
        "float": report.kernels.float,
        "adds": kernels.get("QLinearAdd", 0),
        "blocks": 3 * BLOCKS[network],
        "size_ratio": report.size.quantised_bytes / report.size.float_bytes,
        "speedup": report.latency.speedup,
        "seconds": seconds,
        "stages": report.seconds,
        "chosen": report.distillation.chosen,
    }
    results.add({"network": network, "bits": bits, "flags": flags}, **row)
    results.publish(
        "The whole command on the shared CIFAR sample",
        COLUMNS,
        results.newest(),
        notes=[
            "top-1 in % of the labelled test images, which nothing but the score reads",
            "same argmax: simulated, oracle and runtime; equal outputs: oracle and runtime, to the bit",
            "speed-up: float over quantised median latency, batch 1, 1 thread; seconds: the command from start to end",
        ],
    )
    assert (row["integer"], row["float"]) == (6 * BLOCKS[network] + 2, 0)
    assert row["adds"] == row["blocks"]
    assert row["agreement"] == 1.0
    assert row["exact"] == 1.0, f"largest difference of oracle and runtime: {row['largest_difference']}"
    assert row["size_ratio"] <= MOST_SIZE_RATIO[bits]
    if not flags:
        assert report.accuracy.runtime is not None and report.accuracy.runtime >= LEAST_TOP1[network]


def _environment() -> dict[str, str]:
    """A user's environment: the one thread that the tests ask for is taken back."""
    environment = dict(os.environ)
    environment.pop("OMP_NUM_THREADS", None)
    if threads := os.environ.get("FAQD_BENCHMARK_THREADS"):
        environment["OMP_NUM_THREADS"] = threads
    return environment
