"""`faqd compare` through the command line: equal, different, wrongly asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from pipeline.cli import main
from pipeline.report.comparison import ComparedOutput, ComparisonReport
from tests.refused import refused

pytestmark = pytest.mark.usefixtures("all_digits_narrow")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the embedded network, calibrated only."""
    folder = tmp_path_factory.mktemp("compare") / "digits"
    assert main(["run", "--quiet", "--steps", "0", "--calibration-images", "64", "--output", str(folder)]) == 0
    return folder / "bundle"


def test_the_runtime_equals_the_oracle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(bundle), "--report", str(tmp_path / "found.json")]) == 0
    shown = capsys.readouterr().out
    comparison = json.loads((tmp_path / "found.json").read_text())
    assert "equal (exit status 0)" in shown and "16 images" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert comparison["first"] is None and len(comparison["tensors"]) > 8
    assert all(tensor["differing"] == tensor["own"] == 0 < tensor["elements"] for tensor in comparison["tensors"])


def test_another_model_differs_first_where_it_was_changed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(bundle / "model.onnx")
    quantises = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    changed = quantises[4]
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == changed.input[1])
    value = numpy_helper.to_array(scale)
    scale.CopyFrom(numpy_helper.from_array(np.array(value * 1.25, np.float32), scale.name))
    other, file = tmp_path / "other.onnx", tmp_path / "found.json"
    onnx.save(model, other)
    arguments = ["compare", str(bundle), "--against", str(other), "--data", "digits", "--count", "20", "--quiet"]
    assert main([*arguments, "--report", str(file)]) == 1
    comparison: dict[str, Any] = json.loads(file.read_text())
    entry = next(tensor for tensor in comparison["tensors"] if tensor["name"] == comparison["first"])
    shown = capsys.readouterr().out
    assert comparison["first"] == changed.output[0] and comparison["images"] == 20
    assert entry["own"] == entry["differing"] > 0
    assert f"{scale.name} is {float(value):.6g} here and" in entry["why"]
    assert "differs (exit status 1)" in shown and changed.output[0] in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert main([*arguments, "--tolerance", "255"]) == 0
    assert "equal within 255 steps" in capsys.readouterr().out


def test_images_that_are_not_compared_are_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for index in range(5):
        Image.new("L", (8, 8), 40 * index).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no picture")
    arguments = ["compare", str(bundle), "--data", f"images:{folder}", "--quiet"]
    assert main([*arguments, "--count", "9", "--report", str(tmp_path / "found.json")]) == 0
    comparison = json.loads((tmp_path / "found.json").read_text())
    assert comparison["images"] == 4
    assert comparison["notes"][-2].startswith(
        "4 of 5 images are compared: 1 unreadable image left out: 2.png (cannot identify"
    )
    assert comparison["notes"][-1] == f"--data images:{folder} has 5 images, fewer than --count 9"
    assert "4 of 5 images are compared" in capsys.readouterr().out
    assert main([*arguments, "--count", "2", "--report", str(tmp_path / "found.json")]) == 0
    assert not any(
        "--count" in note or "left out" in note for note in json.loads((tmp_path / "found.json").read_text())["notes"]
    )


def test_wrong_questions_are_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for arguments, message in (
        (("--against", str(tmp_path / "absent.onnx")), "cannot read it: No such file"),
        (("--against", str(tmp_path / "text.onnx")), "is no ONNX file"),
        (("--against", str(bundle.parent / "float.onnx")), "shares no rounded tensor with the model"),
        (("--tolerance", "-1"), "--tolerance -1: must be 0 or more"),
        (("--data", "images:nowhere"), "nowhere"),
    ):
        assert message in refused(capsys, "compare", str(bundle), *arguments)
    assert "is no bundle" in refused(capsys, "compare", str(tmp_path))


def test_a_model_that_does_not_fit_is_refused_in_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.onnx"

    def sized(channels: int, side: int, batch: int | None = None) -> onnx.ModelProto:
        model = onnx.load(bundle / "model.onnx")
        sizes = model.graph.input[0].type.tensor_type.shape.dim
        sizes[1].dim_value, sizes[2].dim_value, sizes[3].dim_value = channels, side, side
        if batch is not None:
            sizes[0].dim_value = batch
        return model

    fewer, double, wider = onnx.load(bundle / "model.onnx"), sized(1, 8), onnx.load(bundle / "model.onnx")
    fewer.graph.output.append(fewer.graph.output[0])
    double.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    # Declared free, and yet of the other network's size: only running it shows that.
    for size in wider.graph.input[0].type.tensor_type.shape.dim:
        size.dim_param = "any"
    name = next(node.output[0] for node in wider.graph.node if node.op_type == "QuantizeLinear")
    doubled = onnx.helper.make_node("Concat", ["whole", "whole"], [name], axis=0)
    place = next(index for index, node in enumerate(wider.graph.node) if node.output[0] == name)
    wider.graph.node[place].output[0] = "whole"
    wider.graph.node.insert(place + 1, doubled)
    takes = "it takes FLOAT [free, {}], the model of {} FLOAT [free, 1, 8, 8]"
    for model, message in (
        (sized(3, 8), takes.format("3, 8, 8", bundle)),
        (sized(1, 16), takes.format("1, 16, 16", bundle)),
        (sized(1, 8, 4), "it takes FLOAT [4, 1, 8, 8]"),
        (double, "it takes DOUBLE [free, 1, 8, 8]"),
        (fewer, f"it has 2 outputs, the model of {bundle} 1"),
        (wider, "compare models of the same network"),
    ):
        onnx.save(model, other)
        assert message in refused(capsys, "compare", str(bundle), "--against", str(other))


def test_an_output_is_asked_no_more_than_by_its_run() -> None:
    def output(share: float, least: float | None) -> ComparedOutput:
        return ComparedOutput(name="a", elements=192, differing=61, largest=6e-8, share=share, least=least)

    def status(output: ComparedOutput) -> int:
        return ComparisonReport(
            here="a", there="b", images=1, tolerance=0, first=None, tensors=(), outputs=(output,)
        ).exit_status

    assert status(output(0.999, 0.99)) == 0
    assert status(output(0.98, 0.99)) == 1
    assert status(output(1.0, None)) == 1  # another model: every bit


def test_a_count_without_images_is_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(bundle), "--count", "3"]) == 2
    assert "--count 3 has no meaning without --data" in capsys.readouterr().err
