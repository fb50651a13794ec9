"""The check that a deployment image runs on a bundle."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose network doubles its input."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "double", shapes[:1], shapes[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    save(tmp_path, inputs, 2 * inputs)
    return tmp_path


def save(bundle: Path, inputs: np.ndarray, outputs: np.ndarray) -> None:
    np.savez(bundle / "golden.npz", inputs=inputs, outputs=outputs)
    files = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in ("model.onnx", "golden.npz")}
    (bundle / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")


def check(bundle: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    script = repository / "pipeline" / "device_check.py"
    return subprocess.run([sys.executable, str(script), str(bundle)], capture_output=True, text=True, check=False)


def test_a_good_bundle_passes(bundle: Path, repository: Path) -> None:
    done = check(bundle, repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "argmax 5 of 5, equal outputs 1.000000, largest difference 0\n"


def test_other_outputs_fail(bundle: Path, repository: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        inputs = golden["inputs"]
    save(bundle, inputs, -inputs)
    assert check(bundle, repository).returncode == 1


def test_a_damaged_bundle_is_not_run(bundle: Path, repository: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    done = check(bundle, repository)
    assert done.returncode == 2
    assert "is damaged: model.onnx" in done.stderr
    (bundle / "manifest.json").unlink()
    assert "it has no manifest.json" in check(bundle, repository).stderr
