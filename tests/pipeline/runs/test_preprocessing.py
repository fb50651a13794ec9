"""Real runs on odd images: the bundle prepares them as the run did, and what cannot be decoded is said at once."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main

BUILDER = """
from torch import nn

def build():
    layers = nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
"""
RUN = ("run", "--teacher", "python:mine:build", "--steps", "2", "--batch-size", "4", "--max-drop", "100")
RULE = (
    *("--image-size", "96x64", "--fit", "letterbox", "--placement", "top-left", "--fill", "9,8,7"),
    *("--channel-order", "BGR", "--divisor", "1", "--mean", "0", "--std", "64"),
)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a network of its own."""
    (tmp_path / "mine.py").write_text(BUILDER)
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_the_bundle_makes_the_golden_inputs_of_the_files(desk: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(30):
        size = generator.integers(5, 120, 2)
        image = Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8))
        mode, suffix = [("RGB", "jpg"), ("CMYK", "jpg"), ("P", "gif"), ("RGBA", "png"), ("L", "tif")][number % 5]
        image.convert(mode).save(desk / "pictures" / f"{number}.{suffix}")
    (desk / "pictures" / "30.jpg").write_bytes(b"no image")
    (desk / "pictures" / "clip.mp4").write_bytes(b"")
    assert main([*RUN, *RULE, "--data", "pictures", "--output", "out", "--quiet"]) in (
        0,
        1,
        4,
    )  # 4: too few images to say
    bundle = desk / "out" / "bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert "preprocess.py" in manifest["files"]
    assert (manifest["preprocessing"]["fit"], manifest["preprocessing"]["fill"]) == ("letterbox", [9, 8, 7])
    notes = json.loads((desk / "out" / "report.json").read_text())["notes"]
    assert any("1 other file (1 .mp4: clip.mp4) left aside" in note for note in notes)
    spec = importlib.util.spec_from_file_location("preprocess", bundle / "preprocess.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.load([desk / "pictures" / name for name in module.image_files(desk / "pictures")[0][:30]])
    golden = np.load(bundle / "golden.npz")["inputs"]
    assert len(golden) >= 3
    assert all(any(np.array_equal(inputs, image) for image in made) for inputs in golden)


def test_one_broken_image_is_said_to_be_broken(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "pictures" / "only.jpg").write_bytes(b"no image")
    assert main([*RUN, "--image-size", "32", "--data", "images:pictures", "--output", "out"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "0 of 1 images can be decoded, and two are the least" in line
    assert "only.jpg (cannot identify image file" in line
    assert not (desk / "out").exists()


def test_what_lies_at_the_top_left_is_not_averaged_with_its_mirror_image(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        Image.effect_noise((20, 30), 60).convert("RGB").save(desk / "pictures" / f"{number}.png")
    assert main([*RUN, *RULE, "--data", "pictures", "--output", "out", "--targets", "mirror"]) == 2
    assert "--targets mirror: the mirror image of one at the top left of its frame" in capsys.readouterr().err
