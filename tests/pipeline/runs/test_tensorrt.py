"""TensorRT from the command line to the report: large linear layers of 4 bits, an SDK that is too old."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from backends.onnx_file.serialised import parsed, size_of
from backends.onnxruntime.backend import OnnxRuntime
from calibration.errors import UserError
from pipeline.bundle.bundle import read_bundle
from pipeline.cli import main
from pipeline.config import EngineConfig, QuantisationConfig
from pipeline.images.embedded import digits_images
from pipeline.report.schema import read_report
from pipeline.setup.chosen_backend import chosen_backends
from pipeline.stages.convert import check_opset
from pipeline.tools.progress import LineProgress
from tests.backends.device import tensorrt_stand_in as stand_in
from tests.backends.device.cuda_stand_in import FakeCuda

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at 4 bits of a network with one large linear layer."""
    folder = tmp_path_factory.mktemp("tensorrt")
    (folder / "heads.py").write_text(BUILDER)
    # Random weights are at chance on labels, which ends a run: these are scored by agreement with them.
    np.savez(folder / "digits.npz", images=digits_images()[1])
    run = ["run", "--quiet", "--backend", "tensorrt", "--teacher", "python:heads:build", "--data", "digits"]
    run += ["--eval-data", "npz:digits.npz#images"]
    run += ["--bits", "4", "--steps", "1", "--batch-size", "4", "--calibration-images", "8", "--max-drop", "100"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*run, "--output", "out"]) == 3
    return folder / "out"


def test_a_head_of_int4_weights(folder: Path) -> None:
    report, bundle = read_report(folder / "report.json"), read_bundle(folder / "bundle")
    (middle,) = [layer for layer in report.layers if layer.weight_bits == 4]
    assert len(report.layers) == 3 and middle.integer is False and middle.sqnr_db is not None
    assert "4-bit integers" in middle.reason and 5 < middle.sqnr_db < 40
    assert report.sample is not None and report.sample.oracle == report.sample.simulated
    assert middle.name not in bundle.plan.integer_layers() and len(bundle.plan.integer_layers()) == 2
    model = parsed(bundle.model)
    assert TensorProto.INT4 in {tensor.data_type for tensor in model.graph.initializer}
    # Half a byte a weight, and a float32 scale for every 128 of them.
    assert size_of(bundle.model) < 1024 * 1024 * (0.5 + 4 / 128) + 50_000
    with pytest.raises(UserError, match=rf"--opset 20 has no 4-bit tensors.* of {middle.name} .* --weight-only none"):
        check_opset(bundle.plan, 20)
    check_opset(bundle.plan, None)


def test_the_report_says_what_becomes_of_four_bits_and_of_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "stored and multiplied as int8"
    # Of its three layers the middle one is int4, and the first and last have 8 bits.
    assert not any(words in note for note in read_report(folder / "report.json").notes)
    run = ["run", "--quiet", "--backend", "tensorrt", "--bits", "4", "--weight-only", "none", "--rest", "fp16"]
    run += ["--rounding", "nearest"]  # of a million weights the other way takes seconds
    run += ["--steps", "0", "--calibration-images", "8", "--data", "digits", "--max-drop", "100"]
    run += ["--eval-data", f"npz:{folder.parent / 'digits.npz'}#images"]
    monkeypatch.chdir(folder.parent)
    assert main([*run, "--teacher", "python:heads:build", "--output", str(tmp_path / "out")]) == 3
    notes = read_report(tmp_path / "out" / "report.json").notes
    assert any(words in note for note in notes) and any("is float16" in note for note in notes)


def test_an_sdk_that_is_too_old_is_the_users_mistake(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorrt.py").write_text('__version__ = "8.6.1.6"\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    try:
        assert main(["validate", "--quiet", str(folder / "bundle")]) == 2
    finally:
        sys.modules.pop("tensorrt", None)
    error = capsys.readouterr().err
    assert error.startswith("error: TensorRT 8.6.1.6 is here, 10.0 is the oldest") and error.count("\n") == 1


def test_the_flag_chooses_the_profile() -> None:
    for word in ("auto", "none"):
        quantisation = QuantisationConfig(backend="tensorrt", bits=4, weight_only=word)
        (backend,) = chosen_backends(quantisation, EngineConfig(), batch=1, progress=LineProgress(lambda line: None))
        assert (backend.profile.weight_only is None) is (word == "none")


def test_what_another_compiler_says_passes_no_gate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As on a device that has ONNX Runtime's provider, and TensorRT's own package not: the bundle runs there, and its
    # kernels are known from TensorRT-RTX alone.
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    import backends.tensorrt.backend as backend

    monkeypatch.setattr(backend, "provider_missing", lambda: None)
    monkeypatch.setattr(backend, "provider_runner", lambda model, options: OnnxRuntime().runner(model, threads=1))
    report = folder / "provider.json"
    command = ["validate", "--quiet", str(folder / "bundle"), "--runner", "onnxruntime", "--report", str(report)]
    assert main(command) == 3
    written = read_report(report)
    kernels = next(gate for gate in written.gates if gate.name == "kernels")
    assert (kernels.value, kernels.passed) == (0.0, None)
    assert all(gate.passed for gate in written.gates if gate.name == "parity")
    assert any("chosen ahead of time here: they did not run" in note for note in written.notes)
    assert "not validated on target" in capsys.readouterr().out


def test_a_bundle_is_compared_with_another_model_where_no_engine_runs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--quiet", str(folder / "bundle")]
    assert main(command) == 2
    assert "nothing to compare the oracle with: the package tensorrt is not installed" in capsys.readouterr().err
    against = ["--against", str(folder / "bundle" / "model.onnx"), "--report", str(tmp_path / "found.json")]
    assert main([*command, *against]) == 0
    comparison = json.loads((tmp_path / "found.json").read_text())
    assert comparison["first"] is None and len(comparison["tensors"]) == 2
    assert "the other model is executed by the oracle" in " ".join(comparison["notes"])


def test_a_bundle_is_compared_with_its_engine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import backends.tensorrt.backend as backend

    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.stand_in(cuda))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: object())
    monkeypatch.setattr(backend, "Cuda", lambda: cuda)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = tmp_path / "found.json"
    status = main(["compare", "--quiet", str(folder / "bundle"), "--report", str(report), "--tolerance", "1"])
    comparison = json.loads(report.read_text())
    assert status == 0 and comparison["images"] == 16
    assert (tmp_path / "faqd" / "tensorrt-timing.cache").is_file(), "kernels are timed once for all commands"
    # Rounded tensors are read from the engine as integers: the evaluator behind it may round ties its own way.
    assert all(tensor["largest"] <= 1 and tensor["elements"] > 0 for tensor in comparison["tensors"])
    assert "oracle on bundle against TensorRT on bundle, 16 images" in capsys.readouterr().out
