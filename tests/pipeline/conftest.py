"""A whole report to change at will."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.report.gate import Gate
from pipeline.report.schema import (
    Accuracy,
    Bits,
    Data,
    Distillation,
    FloatLayer,
    Kernels,
    Latency,
    Layer,
    Parity,
    Percentiles,
    Report,
    Size,
)


def report_with(**changes: Any) -> Report:
    """Return a valid report with some of its blocks replaced."""
    blocks: dict[str, Any] = {
        "status": "validated",
        "backend": "onnxruntime",
        "bits": Bits(weights=4, activations=8),
        "teacher": "cifar:resnet20",
        "student": "cifar:resnet20",
        "seed": 7,
        "versions": {"faqd": "0.1.0", "torch": "2.15.0"},
        "host": {"machine": "x86_64", "cores": 2, "avx512_vnni": True, "gpu": None},
        "accuracy": Accuracy(
            metric="top1", images=1017, teacher=0.9164, simulated=0.9223, oracle=0.9223, runtime=0.9213
        ),
        "parity": Parity(argmax_agreement=0.99999, exact_fraction=1.0, max_difference=0.0625),
        "kernels": Kernels(integer=19, float=1, float_layers=(FloatLayer(name="head", reason="<Gemm> [no] Q"),)),
        "latency": Latency(
            batch=1,
            threads=1,
            float_ms=Percentiles(median=1.21, p90=1.3),
            quantised_ms=Percentiles(median=0.57, p90=0.61),
            speedup=2.12,
        ),
        "size": Size(float_bytes=1_092_000, quantised_bytes=186_000),
        "seconds": {"teacher": 0.8, "distil": 140.25},
        "gates": (
            Gate(name="max-drop", limit=1.0, value=-0.49, passed=True),
            Gate(name="parity", limit=0.99, value=0.99999, passed=True),
        ),
        "distillation": Distillation(
            steps=1200,
            learning_rate=1e-4,
            loss_calibrated=0.21,
            loss_final=0.04,
            chosen="trained",
            backoffs=1,
            diverged=False,
            accuracy_calibrated=0.905,
            curve=tuple((step, 0.2 * math.exp(-step / 300)) for step in range(0, 1201, 20)),
        ),
        "data": Data(images=5085, unreadable=2, unreadable_names=("a.jpg", "b[/].jpg")),
        "preprocessing": {
            "channels": 3,
            "height": 32,
            "width": 32,
            "resize": None,
            "interpolation": "bilinear",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "channel_order": "RGB",
        },
        "notes": ("no preprocessing in the source: <32 px> assumed",),
        "layers": (
            Layer(name="conv1", kind="conv", weight_bits=8, sqnr_db=31.5, integer=True, reason=""),
            Layer(name="head", kind="linear", weight_bits=None, sqnr_db=None, integer=False, reason="asked for"),
        ),
    }
    return Report(**(blocks | changes))


def report_elsewhere() -> Report:
    """Return a report of a run whose target runtime was not on its machine."""
    return report_with(
        status="not-validated-on-target",
        backend="tensorrt",
        accuracy=Accuracy(metric="agreement", images=512, teacher=1.0, simulated=0.998, oracle=None, runtime=None),
        parity=Parity(argmax_agreement=None, exact_fraction=None, max_difference=None),
        kernels=Kernels(integer=None, float=None, float_layers=()),
        latency=Latency(batch=1, threads=1, float_ms=None, quantised_ms=None, speedup=None),
        gates=(Gate(name="max-drop", limit=1.0, value=None, passed=None),),
        distillation=None,
        data=None,
        preprocessing=None,
        notes=(),
        layers=(),
    )


@pytest.fixture
def make_report() -> Callable[..., Report]:
    """Builder of valid reports with some of their blocks replaced."""
    return report_with


@pytest.fixture
def elsewhere() -> Report:
    """Report of a run whose target runtime was not on its machine."""
    return report_elsewhere()


@pytest.fixture(scope="session", autouse=True)
def quick_runs(little_time_for_latency: None, digits_captured_once: None, flags_assembled_once: None) -> None:
    """No test here is about times, nor about how the embedded network is captured or a tree of flags is made."""


@pytest.fixture
def branches_learn_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAKD's branches learn for 20 steps instead of 200, where the test is not about what they have learned."""
    monkeypatch.setattr("pipeline.distillation.training.trainer._BRANCH_STEPS", 20)
