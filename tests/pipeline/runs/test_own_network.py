"""A user's own network and photographs from the command line, and the mistakes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.report.schema import read_report
from tests.command_line import SHORT, command

BUILDER = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5),
    )

def nothing():
    return nn.Sequential(nn.ReLU(), nn.Flatten())

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        if x.sum() > 0:
            return x.mean((2, 3))
        return -x.mean((2, 3))

def branch():
    return Branch()

class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.cumsum(self.conv(x), 3).mean((2, 3))

def summed():
    return Summed()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a module with builders, photographs of many sizes, a broken one among them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(BUILDER)
    generator = np.random.default_rng(0)
    (folder / "photos" / "deep").mkdir(parents=True)
    for index in range(12):
        pixels = generator.integers(0, 255, (40 + index, 52, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.jpg")
    Image.fromarray(pixels[:, :, 0]).save(folder / "photos" / "deep" / "grey.png")
    (folder / "photos" / "broken.jpg").write_bytes((folder / "photos" / "1.jpg").read_bytes()[:200])
    return folder


def test_own_builder_and_photographs(own: Path) -> None:
    arguments = ("--teacher", "python:mine:build", "--image-size", "32", "--data", "images:photos", "--max-drop", "100")
    done = command("run", *arguments, *SHORT, "--batch-size", "4", "--output", "out", cwd=own)
    report = read_report(own / "out" / "report.json")

    assert done.status == 0, done.err
    again = command("run", *arguments[:-2], *SHORT, "--batch-size", "4", "--output", "few", cwd=own)
    assert again.status == 4 and "1 image cannot decide a limit of 1 point, 299 can" in " ".join(again.out.split())
    assert report.accuracy.metric == "agreement" and report.accuracy.teacher is not None
    assert report.data is not None and report.data.unreadable == 1
    assert "broken.jpg" in report.data.unreadable_names[0]
    assert any("mean" in note and "assumed" in note for note in report.notes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--teacher", "python:mine:nothing"), "no layer"),
        (("--teacher", "python:mine:branch"), "mine.py:"),
        (("--teacher", "python:mine:absent"), "absent"),
        (("--teacher", "python:mine:summed"), "no translation to ONNX"),
        (("--teacher", "python:mine:build", "--data", "images:nowhere"), "nowhere"),
        (("--teacher", "python:mine:build", "--taps", "9"), "--taps 9"),
        (("--teacher", "python:mine:build", "--device", "cuda:7"), "--device cuda:7"),
    ],
)
def test_own_mistakes_are_one_line_and_leave_no_bundle(
    own: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    data: tuple[Any, ...] = () if "--data" in arguments else ("--data", "images:photos")
    done = command("run", *arguments, *data, "--image-size", "32", *SHORT, "--output", str(tmp_path / "o"), cwd=own)

    assert said in done.refusal
    assert not (tmp_path / "o" / "bundle").exists()
