"""A batch size that the graph fixes, and inputs that do not fit, through the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from calibration.errors import UserError
from pipeline.cli import main
from pipeline.report.schema import read_report
from pipeline.validation.running import filled_up, latency_batch, runner_outputs
from tests.refused import refused
from tests.vouched import vouch

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

RUN = ("run", "--quiet", "--steps", "0", "--calibration-images", "64")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model takes batches of 6 alone: neither 16 golden nor 450 test images are a multiple."""
    folder = tmp_path_factory.mktemp("static") / "digits"
    assert main([*RUN, "--static-batch", "6", "--output", str(folder)]) == 0
    return folder


def test_the_model_takes_its_batch_size_alone_and_everything_else_fills_up(folder: Path) -> None:
    report, bundle = read_report(folder / "report.json"), folder / "bundle"
    for name in (bundle / "model.onnx", folder / "float.onnx"):
        shape = onnx.load(name).graph.input[0].type.tensor_type.shape
        assert [d.dim_value for d in shape.dim] == [6, 1, 8, 8]
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {session.get_inputs()[0].name: np.zeros((2, 1, 8, 8), np.float32)})
    assert report.accuracy.images == 450 and report.parity.exact_fraction == 1.0
    assert report.latency.batch == 6 and any("measured at batch 6" in note for note in report.notes)
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "argmax 16 of 16" in done.stdout
    assert main(["validate", str(bundle), "--quiet", "--batch", "6"]) == 0
    assert main(["compare", str(bundle), "--quiet"]) == 0


def test_another_batch_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "validate", str(folder / "bundle"), "--batch", "8")
    assert line == "error: --batch 8: the model takes batches of 6 alone (--static-batch)"
    line = refused(capsys, "run", "--static-batch", "4", "--batch", "8", "--output", str(folder / "none"))
    assert line == "error: --batch 8: --static-batch makes a model of batch 4 alone"
    assert "--static-batch 0: must be 1 or more" in refused(capsys, "run", "--static-batch", "0")
    assert not (folder / "none").exists()


def test_images_of_the_wrong_kind_are_refused_at_validation(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for array, message in (
        (np.zeros((3, 1, 8, 8), np.float32), "is float32 [3, 1, 8, 8]; it must be uint8"),
        (np.zeros((3, 5, 8, 8), np.uint8), "with no axis of 1 or 3 channels"),
        (np.zeros((8, 8), np.uint8), "is [8, 8]; it must be uint8"),
    ):
        np.savez(tmp_path / "images.npz", images=array)
        source = f"npz:{tmp_path / 'images.npz'}#images"
        assert message in refused(capsys, "validate", str(folder / "bundle"), "--eval-data", source)
        assert message in refused(capsys, "compare", str(folder / "bundle"), "--data", source)


@pytest.mark.parametrize(
    ("golden", "described"),
    [
        (
            np.zeros((16, 1, 9, 8), np.float32),
            "its golden inputs are float32 [16, 1, 9, 8], the model takes float [6, 1, 8, 8]",
        ),
        (np.zeros((16, 1, 8, 8), np.float64), "golden.npz: inputs is float64, and float32 is written"),
    ],
)
def test_golden_inputs_that_do_not_fit_the_model_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], golden: np.ndarray, described: str
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", bundle)
    with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
        np.savez(bundle / "golden.npz", allow_pickle=False, **(dict(arrays) | {"inputs": golden}))
    vouch(bundle)
    message = described
    assert message in refused(capsys, "validate", str(bundle))


def test_groups_of_a_fixed_size_give_what_one_batch_gives() -> None:
    seen: list[int] = []

    class Runner:
        def run(self, images: np.ndarray) -> list[np.ndarray]:
            seen.append(len(images))
            return [images.sum((1, 2, 3)), images[:, 0]]

    images: Tensor = torch.randn(7, 1, 2, 2)
    for fixed, sizes in ((None, [7]), (3, [3, 3, 3]), (7, [7])):
        seen.clear()
        total, first = runner_outputs(Runner(), fixed)(images)
        torch.testing.assert_close(total, images.sum((1, 2, 3)))
        torch.testing.assert_close(first, images[:, 0])
        assert seen == sizes
    assert filled_up(images, 9).shape == (9, 1, 2, 2) and torch.equal(filled_up(images, 9)[7:], images[:2])
    assert latency_batch(5, None) == (5, ()) and latency_batch(4, 4) == (4, ())
    with pytest.raises(UserError):
        latency_batch(2, 4)
