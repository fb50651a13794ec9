"""Runs with NNCF's quantiser in place of ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from backends.facts.onnxruntime_rules import host_profile
from pipeline.bundle.bundle import read_bundle
from pipeline.cli import main
from pipeline.report.schema import read_report
from tests.command_line import command


def test_nncf_ends_in_the_same_report_and_bundle(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed: pip install 'faqd[nncf]'")
    folder = tmp_path / "nncf"
    arguments = ("--quantiser", "nncf", "--calibration-images", "64", "--output", str(folder))
    done = command("run", *arguments)
    report = read_report(folder / "report.json")

    assert done.status == 0, done.err
    assert "quantised by NNCF" in done.out and "simulated" not in done.out
    # Lines of paths, which are to be copied, are as long as these.
    assert [line for line in done.out.splitlines() if len(line) > 100 and str(folder) not in line] == []
    assert report.quantiser == "nncf" and report.distillation is None and report.accuracy.simulated is None
    assert report.parity.argmax_agreement == report.parity.exact_fraction == 1.0
    assert (report.kernels.integer, report.kernels.float) == (10, 0)
    assert report.accuracy.runtime is not None and report.accuracy.runtime >= 0.98
    assert {layer.sqnr_db for layer in report.layers} == {None} and len(report.layers) == 10
    assert set(report.seconds) == {"teacher", "quantise", "validate"}
    assert read_bundle(folder / "bundle").plan.variant == host_profile().variant
    again = tmp_path / "again.json"
    assert command("validate", str(folder / "bundle"), "--report", str(again)).status == 0
    assert read_report(again).quantiser == "nncf"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bits", "4"), "--bits 4: NNCF has 8-bit convolutions only"),
        (("--last-bits", "4"), "--last-bits 4: NNCF has 8-bit convolutions only"),
        (("--steps", "3"), "--steps 3 has no meaning with --quantiser nncf"),
        (("--range", "mse"), "--range mse has no meaning"),
        (("--backend", "tensorrt"), "--quantiser nncf has no files for --backend tensorrt"),
    ],
)
def test_what_nncf_cannot_do_is_refused(arguments: tuple[str, ...], said: str, capsys: Any) -> None:
    assert main(["run", "--quantiser", "nncf", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_quantiser_without_its_package_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    original = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "nncf" else original(name, *more)
    )
    assert main(["run", "--quantiser", "nncf", "--output", str(tmp_path / "o")]) == 2
    line = "--quantiser nncf needs the package nncf, which is not installed: pip install 'faqd[nncf]'"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "o").exists()


def test_an_unknown_quantiser_is_told_the_known_ones(capsys: Any) -> None:
    assert main(["run", "--quantiser", "ncnf"]) == 2
    assert 'Choose from: "faqd", "nncf"' in capsys.readouterr().err
