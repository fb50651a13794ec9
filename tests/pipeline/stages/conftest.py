"""A narrow one of the embedded network and its images, ready for any stage; small enough to train in a test."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from backends.onnxruntime.backend import OnnxRuntime
from pipeline.config import QuantisationConfig
from pipeline.images.calibration_images import drawn_to_calibrate
from pipeline.images.data import open_images, split_held_out
from pipeline.images.split_images import SplitImages
from pipeline.stages.observe import prepare
from pipeline.stages.teacher import load_network
from tests.narrow_digits import narrow_digits


@pytest.fixture(scope="session")
def example(narrow_weights: bytes) -> SimpleNamespace:
    """Narrow digits network and digits, W4A8 for ONNX Runtime, calibrated: backend, teacher, images, prepared."""
    with narrow_digits(narrow_weights):
        teacher, backend = load_network("digits"), OnnxRuntime()
    source = open_images("digits", teacher.preprocessing)
    training, held_out = split_held_out(len(source), 0)
    images = SplitImages(
        source=source,
        training=training,
        held_out=held_out[:64],
        calibration=drawn_to_calibrate(training, count=256, seed=0),
    )
    prepared = prepare(teacher, backend, images, QuantisationConfig(bits=4))
    return SimpleNamespace(backend=backend, teacher=teacher, images=images, prepared=prepared)
