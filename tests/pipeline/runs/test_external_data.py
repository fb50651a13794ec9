"""Weights in a file beside the model, from the command line to the device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from pipeline.cli import main
from pipeline.report.schema import read_report
from tests.refused import refused

RUN = ("run", "--quiet", "--steps", "0", "--calibration-images", "64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose models may hold no weights of any size."""
    folder = tmp_path_factory.mktemp("external") / "digits"
    assert main([*RUN, "--external-data-above", "0", "--output", str(folder)]) == 0
    return folder


def test_both_models_have_their_weights_beside_them_and_the_report_counts_them(folder: Path) -> None:
    report, bundle = read_report(folder / "report.json"), folder / "bundle"
    assert report.status == "validated" and report.parity.exact_fraction == 1.0
    sizes = []
    for path in (folder / "float.onnx", bundle / "model.onnx"):
        beside = path.with_name(f"{path.name}.data")
        assert any(tensor.external_data for tensor in onnx.load(path, load_external_data=False).graph.initializer)
        onnx.checker.check_model(str(path))
        sizes.append(path.stat().st_size + beside.stat().st_size)
        assert beside.stat().st_size > 0.8 * sizes[-1]
    assert [report.size.float_bytes, report.size.quantised_bytes] == sizes
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    assert {"model.onnx", "model.onnx.data"} < set(files)


def test_the_bundle_runs_on_its_own_and_is_validated_and_compared(folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", bundle)
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "argmax 16 of 16, equal to the bit 100.00 %" in done.stdout
    assert main(["validate", str(bundle), "--quiet"]) == 0
    assert main(["compare", str(bundle), "--quiet"]) == 0


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_bundle_without_its_weights_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", bundle)
    data = bundle / "model.onnx.data"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(data.read_bytes()[:-1] + b"x")
    line = refused(capsys, "validate", str(bundle))
    said = {"missing": "model.onnx.data is missing", "changed": "model.onnx.data is not what the manifest says"}
    assert said[damage] in line


def test_a_run_in_one_file_leaves_none_beside_it(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "digits"
    shutil.copytree(folder, again)
    assert main([*RUN, "--overwrite", "--output", str(again)]) == 0
    assert not list(again.rglob("*.data"))


def test_what_cannot_be_is_refused_before_training(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "run", "--external-data-above", str(2**31), "--output", str(tmp_path / "none"))
    assert line == "error: --external-data-above 2147483648: must be at most 2130706432, which one file can hold"
    flags = ("--backend", "tensorrt", "--external-data-above", "0", "--output", str(tmp_path / "none"))
    assert "--backend tensorrt reads no weights beside it" in refused(capsys, "run", *flags)
    assert not (tmp_path / "none" / "bundle").exists()
