"""The embedded example from the command to its report and bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from pipeline.report.schema import read_report
from tests.command_line import QUICK, command


def test_the_default_run_is_validated_on_the_runtime(finished: Path) -> None:
    report = read_report(finished / "report.json")

    assert report.status == "validated" and report.accuracy.metric == "top1"
    assert report.accuracy.images == 450
    sample = report.sample
    assert sample is not None and sample.images == 256 and report.accuracy.oracle is report.accuracy.simulated is None
    for score in (sample.simulated, sample.oracle, sample.runtime, report.accuracy.runtime):
        assert score is not None and score >= 0.98
    assert report.parity.argmax_agreement == report.parity.exact_fraction == 1.0
    assert (report.kernels.integer, report.kernels.float) == (10, 0)
    assert report.size.quantised_bytes is not None and report.size.float_bytes is not None
    assert report.size.quantised_bytes < 0.35 * report.size.float_bytes
    assert set(report.seconds) == {"teacher", "observe", "reconstruct", "distil", "convert", "validate"}


def test_the_report_has_the_keys_of_schema_1_in_order(finished: Path) -> None:
    tree = json.loads((finished / "report.json").read_text())

    assert list(tree)[:16] == [
        "schema", "status", "backend", "bits", "teacher", "student", "seed", "versions", "host", "accuracy",
        "parity", "kernels", "latency", "size", "seconds", "gates",
    ]  # fmt: skip
    assert list(tree["accuracy"]) == ["metric", "images", "teacher", "simulated", "oracle", "runtime"]
    assert list(tree["parity"]) == ["argmax_agreement", "exact_fraction", "max_difference"]
    assert list(tree["latency"]) == ["batch", "threads", "float_ms", "quantised_ms", "speedup"]


def test_the_bundle_runs_without_torch(finished: Path) -> None:
    """Read through the manifest alone, with numpy and the runtime, as a device would."""
    folder = finished / "bundle"
    manifest = json.loads((folder / "manifest.json").read_text())
    golden = np.load(folder / "golden.npz", allow_pickle=False)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {manifest["inputs"][0]["name"]: golden["inputs"]})

    assert np.array_equal(outputs, golden["outputs.output"])
    assert manifest["preprocessing"]["height"] == 8
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['check.py', {str(folder)!r}]; "
    code += f"import runpy; runpy.run_path({str(folder / 'check.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and "argmax 16 of 16" in done.stdout


def test_a_second_run_in_the_folder_is_refused_and_overwrite_gives_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(finished, folder)
    arguments = ("run", "--backend", "onnxruntime", "--bits", "8", *QUICK, "--output", str(folder))
    assert "--overwrite" in command(*arguments).refusal
    before = (folder / "bundle" / "model.onnx").stat()

    assert command(*arguments, "--overwrite").status == 0
    assert (folder / "bundle" / "model.onnx").stat().st_mtime_ns > before.st_mtime_ns
    assert (folder / "bundle" / "model.onnx").read_bytes() == (finished / "bundle" / "model.onnx").read_bytes()


def test_four_bits_are_stored_as_four_and_multiplied_as_eight(tmp_path: Path) -> None:
    done = command("run", "--bits", "4", *QUICK, "--output", str(tmp_path / "w4"))
    report = read_report(tmp_path / "w4" / "report.json")

    assert done.status == 0, done.err
    assert report.bits.weights == 4 and report.kernels.float == 0
    kinds = [t.data_type for t in onnx.load(tmp_path / "w4" / "bundle" / "model.onnx").graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 8, "all but the first convolution and the last layer"
    assert {layer.weight_bits for layer in report.layers} == {4, 8}


@pytest.mark.usefixtures("narrow_digits")
@pytest.mark.parametrize(
    ("bits", "levels", "flags"),
    [
        ("3", {-3, -2, -1, 0, 1, 2, 3}, ()),
        ("1", {-1, 1}, ()),
        ("2", {-1, 0, 1}, ("--activation-bits", "2", "--backend", "reference")),
        ("1", {-1, 1}, ("--activation-bits", "2", "--backend", "reference")),
    ],
)
def test_fewer_than_four_bits_run_end_to_end(
    bits: str, levels: set[int], flags: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    command_line = ("run", "--bits", bits, *flags, *QUICK, "--max-drop", "100", "--output", str(folder))
    done = command(*command_line)

    assert done.status == 0, done.err
    report = read_report(folder / "report.json")
    assert report.parity.exact_fraction == 1.0 and report.kernels.float == 0
    stored = [t for t in onnx.load(folder / "bundle" / "model.onnx").graph.initializer if t.data_type == t.INT4]
    held = [set(onnx.numpy_helper.to_array(tensor).astype(int).flatten().tolist()) for tensor in stored]
    assert len(held) == 8 and set[int]().union(*held) == levels


@pytest.mark.usefixtures("narrow_digits")
def test_a_failed_gate_keeps_the_bundle_and_says_so(tmp_path: Path) -> None:
    done = command("run", *QUICK, "--min-speedup", "1000", "--output", str(tmp_path / "gate"))

    assert done.status == 1
    assert read_report(tmp_path / "gate" / "report.json").status == "gate-failed"
    assert (tmp_path / "gate" / "bundle" / "manifest.json").exists()
