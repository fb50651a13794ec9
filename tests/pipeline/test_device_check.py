"""The check that a deployment image runs on a bundle."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


def make_model(folder: Path, batch: str | int = "batch") -> None:
    """A network with two outputs: its input doubled, and its input."""
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"]), helper.make_node("Identity", ["x"], ["same"])]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in ("x", "twice", "same")]
    model = helper.make_model(
        helper.make_graph(nodes, "double", shapes[:1], shapes[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose network answers right."""
    make_model(tmp_path)
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    save(tmp_path, inputs, {"twice": 2 * inputs, "same": inputs})
    return tmp_path


def save(
    bundle: Path,
    inputs: np.ndarray,
    outputs: dict[str, np.ndarray],
    *,
    holds: str = "values",
    backend: str = "onnxruntime",
    options: dict[str, str] | None = None,
) -> None:
    arrays: Any = {f"outputs.{name}": value for name, value in outputs.items()}
    np.savez(bundle / "golden.npz", inputs=inputs, **arrays)
    described = [{"name": "twice", "holds": "classes", "class_axis": 1}, {"name": "same", "holds": holds}]
    files = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in ("model.onnx", "golden.npz")}
    manifest: dict[str, Any] = {"format": 3, "backend": backend, "session_options": options or {}, "files": files}
    manifest["outputs"] = described
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def check(bundle: Path, repository: Path) -> subprocess.CompletedProcess[str]:
    script = repository / "pipeline" / "device_check.py"
    return subprocess.run([sys.executable, str(script), str(bundle)], capture_output=True, text=True, check=False)


def test_a_good_bundle_passes_with_a_line_per_output(bundle: Path, repository: Path) -> None:
    done = check(bundle, repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "twice: argmax 5 of 5, equal 1.000000, largest difference 0",
        "same: values 1 of 1, equal 1.000000, largest difference 0",
    ]


@pytest.mark.parametrize("batch", ["batch", 3])
def test_a_bundle_for_openvino_runs_on_openvino(bundle: Path, repository: Path, batch: str | int) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    make_model(bundle, batch=batch)
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    save(bundle, inputs, {"twice": 2 * inputs, "same": inputs}, backend="openvino")
    code = f"import sys; sys.modules['onnxruntime'] = None; sys.argv = ['check.py', {str(bundle)!r}]; import runpy; "
    code += f"runpy.run_path({str(repository / 'pipeline' / 'device_check.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.partition(",")[0] for line in done.stdout.splitlines()] == [
        "twice: argmax 5 of 5",
        "same: values 1 of 1",
    ]


def test_a_batch_size_that_the_graph_fixed_is_filled_up(bundle: Path, repository: Path) -> None:
    make_model(bundle, batch=2)
    with np.load(bundle / "golden.npz") as golden:
        inputs = golden["inputs"]
    save(bundle, inputs, {"twice": 2 * inputs, "same": inputs}, holds="labels")
    done = check(bundle, repository)
    assert done.returncode == 0, done.stderr
    assert "same: yes or no 20 of 20" in done.stdout


@pytest.mark.parametrize("wrong", ["twice", "same"])
def test_any_other_output_fails(bundle: Path, repository: Path, wrong: str) -> None:
    with np.load(bundle / "golden.npz") as golden:
        inputs = golden["inputs"]
    save(bundle, inputs, {"twice": 2 * inputs, "same": inputs} | {wrong: -inputs})
    assert check(bundle, repository).returncode == 1


def test_a_damaged_bundle_is_not_run(bundle: Path, repository: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    done = check(bundle, repository)
    assert done.returncode == 2
    assert "is damaged: model.onnx" in done.stderr
    (bundle / "manifest.json").unlink()
    assert "it has no manifest.json" in check(bundle, repository).stderr


def test_the_manifests_session_options_are_set(bundle: Path, repository: Path) -> None:
    with np.load(bundle / "golden.npz") as golden:
        inputs = golden["inputs"]
    outputs = {"twice": 2 * inputs, "same": inputs}
    save(bundle, inputs, outputs, options={"session.load_model_format": "ONNX"})
    assert check(bundle, repository).returncode == 0
    save(bundle, inputs, outputs, options={"session.load_model_format": "ORT"})
    done = check(bundle, repository)
    assert done.returncode == 1 and "ORT" in done.stderr, "an ONNX file is none of ORT's own format"
