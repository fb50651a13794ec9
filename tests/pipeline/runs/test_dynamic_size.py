"""Height and width that stay free in the file, from the command line to the runtime; networks that do not allow it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.cli import main
from pipeline.networks.models import load_model
from pipeline.report.schema import read_report
from tests.refused import refused

BUILDERS = """
import torch
from torch import nn
from torch.nn import functional

IMAGES = {"height": 32}


class Segmenter(nn.Module):
    '''A pyramid of two steps: coarse features and an image-wide branch follow the finer ones, logits the image.'''

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.whole, self.side = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.classifier = nn.Conv2d(32, 5, 1)

    def forward(self, x):
        fine = self.fine(x)
        coarse = self.coarse(fine)
        top = functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest") + self.side(fine)
        mean = functional.interpolate(self.whole(coarse.mean((2, 3), keepdim=True)).relu(), size=fine.shape[-2:])
        logits = self.classifier(torch.cat([top, mean], 1))
        return {"out": functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)}


def segmenter():
    return Segmenter(), IMAGES


class Heads(nn.Module):
    '''What detectors do at the end: every position a row; and a class of the whole image.'''

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.boxes, self.up, self.fc = nn.Conv2d(16, 4, 3, 1, 1), nn.ConvTranspose2d(16, 6, 2, 2), nn.Linear(16, 7)

    def forward(self, x):
        y = self.body(x)
        rows = self.boxes(y).flatten(2).transpose(1, 2)
        return {"boxes": rows, "mask": self.up(y), "classes": self.fc(functional.adaptive_avg_pool2d(y, 1).flatten(1))}


def heads():
    return Heads(), IMAGES


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(512, 10)

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


def flat():
    return Flat(), IMAGES


class Windows(nn.Module):
    '''Attention within windows of 4 positions, rolled by half of one.'''

    def __init__(self):
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(16, 16)

    def forward(self, x):
        y = torch.roll(self.stem(x), (2, 2), (2, 3))
        b, c, h, w = y.shape
        parts = y.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(b, c, h // 4, w // 4, 16)
        return self.mix(parts).mean((2, 3, 4))


def windows():
    return Windows(), IMAGES


class Grid(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, 4, 1), nn.Linear(128, 10)

    def forward(self, x):
        return self.fc(functional.adaptive_avg_pool2d(self.conv(x).relu(), 4).flatten(1))


def grid():
    return Grid(), IMAGES
"""
KINDS = {"segmenter": "out=classes", "heads": "boxes=values,mask=classes,classes=classes"}
QUICK = ("--steps", "2", "--batch-size", "4", "--calibration-images", "16", "--max-drop", "100")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: builders, and images."""
    folder = tmp_path_factory.mktemp("sizes")
    (folder / "sized_nets.py").write_text(BUILDERS)
    images = np.random.default_rng(0).integers(0, 255, (24, 6, 6, 3), np.uint8)
    np.savez(folder / "photos.npz", images=images.repeat(8, 1).repeat(8, 2))
    return folder


@pytest.fixture(autouse=True)
def at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(desk)
    before = list(sys.path)
    yield
    sys.path[:] = before


def arguments(builder: str, folder: str) -> tuple[str, ...]:
    source = ("--teacher", f"python:sized_nets:{builder}", "--data", "npz:photos.npz#images")
    kinds = ("--output-kinds", KINDS[builder]) if builder in KINDS else ()
    return ("run", *source, *kinds, *QUICK, "--dynamic-size", "--output", folder)


@pytest.mark.parametrize(
    ("builder", "status", "shapes"),
    [
        ("segmenter", 0, {"out": ["batch", 5, "height", "width"]}),
        (
            "heads",
            4,  # its random weights give one class for all images
            {"boxes": ["batch", "boxes_1", 4], "mask": ["batch", 6, "height", "width"], "classes": ["batch", 7]},
        ),
    ],
)
def test_one_file_takes_images_of_any_size(
    builder: str, status: int, shapes: dict[str, list[object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(builder, builder), "--quiet"]) == status
    folder = Path(builder)
    report = read_report(folder / "report.json")
    (gate,) = [gate for gate in report.gates if gate.name == "dynamic-size"]
    assert gate.passed and gate.value is not None and gate.value >= 0.99
    assert any(note.startswith("any height and width: at 96x64 px") for note in report.notes)
    for path in (folder / "float.onnx", folder / "bundle" / "model.onnx"):
        graph = onnx.load(path).graph
        assert [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [
            "batch", 3, "height", "width",
        ]  # fmt: skip
        for output in graph.output:
            sizes = [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim]
            assert [size for size in sizes if isinstance(size, int)] == [
                size for size in shapes[output.name] if isinstance(size, int)
            ]
            if builder == "segmenter":
                assert sizes == shapes[output.name]

    network = load_model(f"python:sized_nets:{builder}").module
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (folder / "float.onnx", folder / "bundle" / "model.onnx")
    ]
    names = [output.name for output in sessions[0].get_outputs()]
    for height, width in ((32, 32), (48, 80), (40, 24), (56, 32)):
        images = torch.nn.functional.interpolate(torch.randn(3, 3, 6, 6), size=(height, width))
        with torch.no_grad():
            expected = network(images)
        plain, quantised = (session.run(names, {"x": images.numpy()}) for session in sessions)
        for name, mine, ours in zip(names, plain, quantised, strict=True):
            np.testing.assert_allclose(mine, expected[name].numpy(), atol=1e-4)
            assert np.abs(ours - mine).mean() < 0.1 * mine.std()
    done = subprocess.run([sys.executable, str(folder / "bundle" / "check.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    capsys.readouterr()
    assert main(["validate", str(folder / "bundle"), "--quiet"]) == status
    said = " ".join(capsys.readouterr().out.split())
    assert "at 96x64 px, 2 images" in said and "the same at another size of images" in said
    assert main(["compare", str(folder / "bundle"), "--quiet", "--tolerance", "1"]) == 0


@pytest.mark.parametrize(
    ("builder", "said"),
    [
        ("flat", "--dynamic-size: at another size python:sized_nets:flat: the network does not take images"),
        ("windows", "--dynamic-size: roll_slice (in the top module) depends on the size of images"),
        ("grid", "--dynamic-size: adaptive_avg_pool2d (in the top module) depends on the size of images"),
    ],
)
def test_a_network_for_one_size_is_refused_by_its_layer(
    builder: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *arguments(builder, f"refused-{builder}"))
    assert said in line and ("(in module fc" in line) == (builder == "flat")
    assert not (Path(f"refused-{builder}") / "bundle").exists()


def test_what_does_not_go_with_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "run", "--dynamic-size", "--backend", "tensorrt")
    assert line == "error: --dynamic-size is for --backend onnxruntime and reference, not for tensorrt"
    line = refused(capsys, "run", "--dynamic-size", "--student", "cifar:resnet20")
    assert line == "error: --dynamic-size takes the teacher as the student: leave --student out"
