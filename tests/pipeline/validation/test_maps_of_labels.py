"""Labels of every pixel score a segmentation network in Python, in a bundle's validation and on its device alike."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import faqd
from pipeline.validation.label_tally import LabelTally

SIZE, CLASSES, IMAGES = 12, 3, 10
_drawn = np.random.default_rng(0)
PIXELS = _drawn.integers(0, 256, (IMAGES, 3, SIZE, SIZE), np.uint8)


@pytest.fixture(scope="module")
def artifact() -> faqd.Artifact:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)).eval()
    network = faqd.capture(body, image_size=SIZE, mean=(0.5,), std=(0.25,), output_kinds=["output=classes"])
    return faqd.convert(faqd.prepare(network, faqd.open_images(PIXELS, network)))


@pytest.fixture(scope="module")
def masks(artifact: faqd.Artifact) -> Any:
    """The float network's answers, a fifth of them another class, and a border that is none."""
    images = (torch.from_numpy(PIXELS) / 255 - 0.5) / 0.25
    with torch.no_grad():
        said = artifact.student.network.folded(images)[0].argmax(1).numpy()
    wrong = np.random.default_rng(1).random(said.shape) < 0.2
    masks = np.where(wrong, (said + 1) % CLASSES, said).astype(np.uint8)
    masks[:, 0] = 255
    return masks


def test_maps_by_hand() -> None:
    """Of four known pixels three are right: 1 of 2 of class 0, all of class 1, of class 2 none is there."""
    tally = LabelTally(3)
    tally.add(np.array([[[0, 1], [1, 1]]]), np.array([[[0, 0], [1, 255]]]))
    tally.add(np.array([[[1, -1], [0, 0]]]), np.array([[[1, -1], [7, 9]]]))
    assert (tally.right, tally.known, tally.fraction()) == (3, 4, 0.75)
    assert tally.wrong().tolist() == [1 / 3, 0.0]
    assert tally.mean_iou() == pytest.approx((1 / 2 + 2 / 3) / 2)
    undecided = LabelTally(2)
    undecided.add(np.array([[[-1, 1]]]), np.array([[[0, 1]]]))
    assert undecided.fraction() == 0.5 and undecided.mean_iou() == 0.5
    plain = LabelTally(2)
    plain.add(np.array([0, 1]), np.array([0, 0]))
    assert plain.mean_iou() is None and plain.wrong().tolist() == [0.0, 1.0]
    with pytest.raises(faqd.UserError, match="has labels 0 to 2, but the network has 2 classes"):
        plain.add(np.array([0, 1]), np.array([0, 2]))


def test_maps_score_alike_in_python_in_a_bundle_and_on_its_device(
    artifact: faqd.Artifact, masks: Any, tmp_path: Path
) -> None:
    report = faqd.validate(artifact, (PIXELS, masks))
    answers = artifact.run(PIXELS)["output"].argmax(1)
    known = masks < CLASSES
    assert report.accuracy.metric == "top1" and report.accuracy.images == IMAGES
    assert report.accuracy.runtime == pytest.approx((answers == masks)[known].mean())
    assert report.accuracy.teacher is not None and 0.75 < report.accuracy.teacher < 0.85
    assert report.gates[0].images == IMAGES and report.gates[0].passed is not None  # of so many pixels eight decide
    (overlap,) = (note for note in report.notes if note.startswith("mean IoU with the labels: teacher "))
    assert "pixels as labels" in str(report)

    np.savez(tmp_path / "held.npz", images=PIXELS, masks=masks)
    named = f"{tmp_path / 'held.npz'}#images,masks"
    bundle = faqd.write_bundle(artifact, tmp_path / "bundle", (PIXELS, masks))
    again = faqd.validate(bundle, f"npz:{named}")
    assert (again.accuracy.teacher, again.accuracy.runtime) == (report.accuracy.teacher, report.accuracy.runtime)
    command = [sys.executable, str(bundle.folder / "check.py"), "--images", named, "--report", "check.json"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    figures = json.dumps(json.loads((tmp_path / "check.json").read_text()))
    assert (
        f"accuracy           {100 * (report.accuracy.runtime or 0):.2f} % of {known.sum()} decisions" in checked.stdout
    )
    iou = checked.stdout.partition("mean IoU ")[2].partition(" %")[0]
    assert f"runtime {iou} %" in overlap and "mean_iou" in figures


def test_maps_that_do_not_lie_on_the_images_are_refused(artifact: faqd.Artifact, masks: Any, tmp_path: Path) -> None:
    larger = np.repeat(np.repeat(PIXELS, 2, 2), 2, 3)
    refused: list[tuple[Any, str]] = [
        ((PIXELS, masks[:, :6]), r"its labels are maps \[batch, 6, 12\], and output decides classes \[batch, 12, 12\]"),
        ((larger, masks), "which are not resized as images are: store the images at the network's 12x12 px"),
        ((PIXELS, np.full_like(masks, 255)), "has labels 255 to 255, and none is one of the network's 3 classes"),
        ((PIXELS, masks[:4]), r"labels must be integers \[10\], one per image, or of maps \[10, H, W\]"),
        ((PIXELS, masks / 2), "labels must be integers"),
    ]
    for pair, words in refused:
        with pytest.raises(faqd.UserError, match=words):
            faqd.validate(artifact, pair)
    with pytest.raises(faqd.UserError, match="--label-weight takes one label per image, and those of --data are maps"):
        faqd.open_images((PIXELS, masks), artifact.student.network, labels=True)


def test_two_images_are_no_pair_of_images_and_maps(artifact: faqd.Artifact) -> None:
    two = faqd.open_images(tuple(PIXELS[:2]), artifact.student.network)
    assert len(two) == 2
