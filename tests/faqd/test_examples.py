"""The examples run as they stand, and end in a model that computes what was simulated."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest


def executed(name: str, repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an example's `main` in an empty folder."""
    monkeypatch.chdir(folder)
    return runpy.run_path(str(repository / "examples" / name))["main"](epochs=1)


def test_a_loop_of_ones_own(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = executed("own_loop.py", repository, tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "what was simulated is what runs: True" in said and "same as teacher" in said
    assert (tmp_path / "model.onnx").read_bytes() == artifact.model
    _check_learned(artifact)


# Lightning warns of few workers and of what it imports; none of it is ours.
@pytest.mark.filterwarnings("ignore")
def test_a_loop_of_lightnings(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("pytorch_lightning") is None:
        pytest.skip("the package pytorch-lightning is not installed: pip install '.[test]'")
    artifact = executed("lightning_loop.py", repository, tmp_path, monkeypatch)
    assert "what was simulated is what runs: True" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").read_bytes() == artifact.model
    _check_learned(artifact)


def _check_learned(artifact: Any) -> None:
    """Training has reached the file: its integers are others than those of calibration alone."""
    calibrated = artifact.student.backend.emit(
        _frozen(artifact.student.prepared.network(), artifact.student.prepared.folded), opset=None, batch=None
    )
    trained = onnx.load_model_from_string(artifact.model)
    assert len(trained.graph.initializer) == len(calibrated.graph.initializer)
    assert any(
        not np.array_equal(onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(before))
        for ours, before in zip(trained.graph.initializer, calibrated.graph.initializer, strict=True)
    )


def _frozen(network: Any, folded: Any) -> Any:
    from calibration.simulation.freeze import freeze

    return freeze(network, folded)
