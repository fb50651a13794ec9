"""Runs for another runtime than ONNX Runtime, or for another processor than this one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from backends.facts.cpu import host_cpu
from pipeline.bundle.bundle import read_bundle
from pipeline.report.schema import read_report
from tests.command_line import QUICK, command

pytestmark = pytest.mark.usefixtures("all_digits_narrow")


def test_the_reference_backend_is_its_own_runtime(tmp_path: Path) -> None:
    done = command("run", "--backend", "reference", *QUICK, "--output", str(tmp_path / "r"))

    assert done.status == 0, done.err
    assert read_report(tmp_path / "r" / "report.json").parity.exact_fraction == 1.0


def test_openvino_is_validated_on_its_own_kernels(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    folder = tmp_path / "ov"
    done = command("run", "--backend", "openvino", "--bits", "4", *QUICK, "--max-drop", "100", "--output", str(folder))
    report = read_report(folder / "report.json")

    assert done.status == 0, done.err
    assert report.status == "validated" and (report.kernels.integer, report.kernels.float) == (10, 0)
    assert report.parity.argmax_agreement is not None and report.parity.argmax_agreement >= 0.99
    assert {gate.name: gate.limit for gate in report.gates}["parity"] == 0.99
    assert any("OpenVINO rounds" in note for note in report.notes)
    assert report.latency.speedup is not None
    kinds = [t.data_type for t in onnx.load(folder / "bundle" / "model.onnx").graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 8
    check = [sys.executable, str(folder / "bundle" / "check.py")]
    assert "argmax 16 of 16" in subprocess.run(check, capture_output=True, text=True, check=True, timeout=60).stdout


def test_tensorrt_ends_unvalidated_with_its_own_status(tmp_path: Path) -> None:
    done = command("run", "--backend", "tensorrt", *QUICK, "--output", str(tmp_path / "t"))
    report = read_report(tmp_path / "t" / "report.json")

    assert done.status == 3, done.err
    assert report.status == "not-validated-on-target" and report.accuracy.runtime is None
    assert "check.py" in done.out
    said = "\n".join(report.notes)
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert "no engine was built" in said and report.kernels.integer is None
    else:
        assert "ahead of time" in said and report.kernels.integer == 10
    assert read_bundle(tmp_path / "t" / "bundle").backend == "tensorrt"


def test_another_processor_ends_unvalidated_with_what_was_chosen_for_it(tmp_path: Path) -> None:
    target = "x86-avx2" if host_cpu() != "x86-avx2" else "arm64"
    done = command("run", "--target", target, *QUICK, "--output", str(tmp_path / "t"))
    report, bundle = read_report(tmp_path / "t" / "report.json"), read_bundle(tmp_path / "t" / "bundle")

    assert done.status == 3, done.err
    assert report.target == bundle.target == bundle.manifest.target == target
    assert report.host["target"] == host_cpu()
    assert report.accuracy.runtime is None and report.kernels.integer == 10
    (gate,) = [gate for gate in report.gates if gate.name == "max-drop"]
    assert (gate.passed, gate.judged_by) == (True, "oracle") and "by the oracle" in done.out
    assert f"python3 {tmp_path / 't' / 'bundle' / 'check.py'}" in done.out
    said = "\n".join(report.notes)
    assert f"the artifact is for {target}" in said
    if target == "x86-avx2":
        assert "x86-avx2-limited is taken" in said or "x86-avx2-precise is taken" in said
        limits = {placement.grid.limit for placement in bundle.plan.weights}
        assert limits == ({63} if bundle.plan.variant == "x86-avx2-limited" else {None})
    again = command("validate", str(tmp_path / "t" / "bundle"), "--report", str(tmp_path / "again.json"))
    assert again.status == 3
    assert any(f"--target {host_cpu()}" in note for note in read_report(tmp_path / "again.json").notes)
    third = "arm64" if target == "x86-avx2" else "x86-avx2"
    line = command("validate", str(tmp_path / "t" / "bundle"), "--emulate", third).refusal
    assert f"was made for {target}" in line and f"--target {third}" in line
