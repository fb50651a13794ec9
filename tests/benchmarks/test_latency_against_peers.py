"""Latency of the same network in float, from faqd and from onnxruntime.quantization, interleaved in one run.

    python3 -m pytest -m benchmark tests/benchmarks/test_latency_against_peers.py -s [-k "resnet20 and batch1-thread1"]

faqd's models are only calibrated: training changes no latency. The peer is quantize_static with U8S8 Q/DQ, per channel,
after quant_pre_process, on the very float file of ours and on as many of the same images. FAQD_BENCHMARK_SECONDS
limits the timing of one case (20); FAQD_BENCHMARK_IMAGES the calibration images, for a quick look.
"""

from __future__ import annotations

import functools
import itertools
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import faqd
from backends.base import Array, Backend, Runner
from backends.onnx_file.serialised import in_one_piece
from backends.timing import interleaved_latency
from pipeline.stages.convert import compile_model

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Cifar, Columns, Ready, Results

pytestmark = pytest.mark.benchmark

PIXELS = 128
CIFAR_NETWORKS, PHOTO_NETWORKS = ("resnet20", "resnet56"), ("resnet18", "mobilenet_v2")
FLOAT, OURS, OURS_4, PEER = "float", "faqd W8A8", "faqd W4A8", "onnxruntime.quantization U8S8"
SECONDS, MOST_ROUNDS = 20.0, 500  # of one case, of one order in it
_BATCH = 32

COLUMNS: Columns = {
    "network": lambda row: row["key"]["network"],
    "batch": lambda row: row["key"]["batch"],
    "threads": lambda row: row["key"]["threads"],
    "model": lambda row: row["key"]["model"],
    "median ms": lambda row: f"{row['median_ms']:.3f}",
    "p90 ms": lambda row: f"{row['p90_ms']:.3f}",
    "speed-up": lambda row: f"{row['speedup']:.2f}",
    "to the peer": lambda row: f"{row['to_peer']:.2f}",
    "integer convs": lambda row: row["kernels"].get("QLinearConv", 0),
    "float convs": lambda row: sum(count for name, count in row["kernels"].items() if name in ("Conv", "FusedConv")),
    "kernels": lambda row: sum(row["kernels"].values()),
    "file KB": lambda row: f"{row['bytes'] / 1000:.0f}",
}


@dataclass(frozen=True, kw_only=True)
class Models:
    """The same network in all its forms, serialised, and images to run it on, float32 [n, C, H, W]."""

    backend: Backend
    files: dict[str, bytes]
    images: Array


Build = Callable[[str], Models]


@pytest.fixture(scope="module")
def models_of(
    cifar: Cifar, ready: Callable[..., Ready], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Models]:
    """Builder of a network's models by its name; made once each."""

    @functools.cache
    def build(network: str) -> Models:
        config = _config(network, cifar)
        student = ready(config)
        compiled = _compiled(student)
        four_bits = ready(replace(config, quantisation=faqd.QuantisationConfig(bits=4)))
        images = _calibration_images(student)
        files = {
            FLOAT: compiled[0],
            OURS: compiled[1],
            OURS_4: _compiled(four_bits)[1],
            PEER: quantised_by_peer(compiled[0], images, tmp_path_factory.mktemp(network)),
        }
        return Models(backend=student.backend, files=files, images=images)

    return build


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (1, 2), (8, 1), (8, 2)], ids=lambda value: str(value))
@pytest.mark.parametrize("network", [*CIFAR_NETWORKS, *PHOTO_NETWORKS])
def test_latency(network: str, batch: int, threads: int, models_of: Build, results: Results) -> None:
    models = models_of(network)
    inputs = np.resize(models.images, (batch, *models.images.shape[1:]))
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(models.backend.runner(file, threads=threads))
            for name, file in models.files.items()
        }
        times = balanced_latency(runners, inputs)
    for name, file in models.files.items():
        results.add(
            {"network": network, "batch": batch, "threads": threads, "model": name},
            median_ms=times[name][0],
            p90_ms=times[name][1],
            speedup=times[FLOAT][0] / times[name][0],
            to_peer=times[PEER][0] / times[name][0],
            kernels=dict(models.backend.census(file, []).histogram),
            bytes=len(file),
        )
    results.publish(
        "Latency beside onnxruntime.quantization",
        COLUMNS,
        results.newest(),
        notes=[
            "speed-up: the float median over this one's; to the peer: the peer's median over this one's "
            "(above 1 is faster); all run in turns, in every order: each follows each other equally often",
            f"{', '.join(PHOTO_NETWORKS)}: torchvision, random weights, {PIXELS} px",
        ],
    )


def balanced_latency(runners: Mapping[str, Runner], images: Array) -> dict[str, tuple[float, float]]:
    """Median and 90th percentile of each runner in ms: medians over all orders in which they can take turns.

    A run is slower after a neighbour that fills the caches, so with one order alone the order would decide.
    """
    seconds = float(os.environ.get("FAQD_BENCHMARK_SECONDS") or SECONDS)
    first, *others = runners
    orders = [(first, *rest) for rest in itertools.permutations(others)]
    measured = [
        interleaved_latency(
            {name: runners[name] for name in order}, images, repeats=MOST_ROUNDS, seconds=seconds / len(orders)
        )
        for order in orders
    ]
    return {
        name: (
            statistics.median(times[name].median_ms for times in measured),
            statistics.median(times[name].p90_ms for times in measured),
        )
        for name in runners
    }


def _config(network: str, cifar: Cifar) -> faqd.RunConfig:
    if network in CIFAR_NETWORKS:
        config = cifar.config(network, bits=8)
    else:
        config = faqd.RunConfig(
            teacher=faqd.TeacherConfig(sources=(f"torchvision:{network}?weights=none",)),
            preprocessing=faqd.PreprocessingConfig(image_size=PIXELS),
            data=faqd.DataConfig(source=f"images:{cifar.folder / 'data' / 'photos'}"),
        )
    count = os.environ.get("FAQD_BENCHMARK_IMAGES")
    return replace(config, data=replace(config.data, calibration_images=int(count))) if count else config


def _compiled(student: Ready) -> tuple[bytes, bytes]:
    """The float and the quantised model of a calibrated student."""
    network = student.prepared.network().eval()
    compiled = compile_model(student.prepared, network, student.teacher, student.backend)
    return in_one_piece(compiled.float_model, "the peer"), in_one_piece(compiled.model, "the peer")


def _calibration_images(student: Ready) -> Array:
    """As many images as ours are calibrated on, normalised."""
    return np.concatenate([images.numpy() for images in student.calibrating()])


class _Reader:
    """What quantize_static asks for its calibration images."""

    def __init__(self, images: Array) -> None:
        self._batches: Iterator[Array] = iter(np.array_split(images, max(1, len(images) // _BATCH)))
        self.input_name = ""

    def get_next(self) -> dict[str, Array] | None:
        """The next batch by the name of its input, or None."""
        batch = next(self._batches, None)
        return None if batch is None else {self.input_name: batch}


def quantised_by_peer(float_model: bytes, images: Array, folder: Path, *, symbolic: bool = True) -> bytes:
    """The float model quantised by onnxruntime.quantization as its manual says it for CPUs with VNNI.

    `symbolic`: with its inference of symbolic shapes, which fails on some networks and which it then says to leave out.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    (folder / "float.onnx").write_bytes(float_model)
    reader = _Reader(images)
    reader.input_name = onnx.load_from_string(float_model).graph.input[0].name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own
        quant_pre_process(str(folder / "float.onnx"), str(folder / "inferred.onnx"), skip_symbolic_shape=not symbolic)
        settings: dict[str, Any] = {
            "quant_format": quantization.QuantFormat.QDQ,
            "activation_type": quantization.QuantType.QUInt8,
            "weight_type": quantization.QuantType.QInt8,
            "per_channel": True,
        }
        quantization.quantize_static(str(folder / "inferred.onnx"), str(folder / "quantised.onnx"), reader, **settings)
    return (folder / "quantised.onnx").read_bytes()
