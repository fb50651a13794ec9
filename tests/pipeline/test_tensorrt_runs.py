"""Large linear layers of 4 bits for TensorRT, from the command line to the report."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

from calibration.errors import UserError
from pipeline.bundle import read_bundle
from pipeline.chosen_backend import chosen_backends
from pipeline.cli import main
from pipeline.config import QuantisationConfig, RunConfig
from pipeline.progress import LineProgress
from pipeline.report.schema import read_report
from pipeline.stages.convert import check_opset

BUILDER = '''
import torch
from torch import nn

IMAGES = {"height": 8, "channels": 1, "resize": None, "mean": [0.5], "std": [0.5]}


def build():
    """A convolution and the three linear layers of a VGG's head; the middle one has a million weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    ), IMAGES
'''


def test_a_head_of_int4_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heads.py").write_text(BUILDER)
    monkeypatch.chdir(tmp_path)
    run = ["run", "--quiet", "--backend", "tensorrt", "--teacher", "python:heads:build", "--data", "digits"]
    run += ["--bits", "4", "--steps", "1", "--batch-size", "4", "--calibration-images", "8", "--max-drop", "100"]
    assert main([*run, "--output", "out"]) == 3
    report, bundle = read_report(Path("out/report.json")), read_bundle(Path("out/bundle"))
    layers = {layer.name: layer for layer in report.layers}
    (middle,) = [layer for layer in report.layers if layer.weight_bits == 4]
    assert len(layers) == len(report.layers) == 3 and middle.integer is False and middle.sqnr_db is not None
    assert "4-bit integers" in middle.reason and 5 < middle.sqnr_db < 40
    assert report.parity.argmax_agreement is None or report.accuracy.oracle == report.accuracy.simulated
    assert middle.name not in bundle.plan.integer_layers() and len(bundle.plan.integer_layers()) == 2
    model = onnx.load_model_from_string(bundle.model)
    assert TensorProto.INT4 in {tensor.data_type for tensor in model.graph.initializer}
    # Half a byte a weight, and a float32 scale for every 128 of them.
    assert len(bundle.model) < 1024 * 1024 * (0.5 + 4 / 128) + 50_000
    with pytest.raises(UserError, match=rf"--opset 20 has no 4-bit tensors.* of {middle.name} .* --weight-only none"):
        check_opset(bundle.plan, 20)
    check_opset(bundle.plan, None)


def test_the_flag_chooses_the_profile() -> None:
    for word in ("auto", "none"):
        quantisation = QuantisationConfig(backend="tensorrt", bits=4, weight_only=word)
        (backend,) = chosen_backends(RunConfig(quantisation=quantisation), LineProgress(lambda line: None))
        assert (backend.profile.weight_only is None) is (word == "none")
