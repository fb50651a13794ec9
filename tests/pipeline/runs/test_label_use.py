"""No label is read without --label-weight, and those to score on change nothing but the score."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.bundle.bundle import read_bundle
from pipeline.cli import main
from pipeline.images.preprocessing import normalise
from pipeline.images.sources.image_source import EvaluationSet
from pipeline.report.schema import read_report
from tests.refused import refused
from tests.users_desk import at_a_desk, blocks_of_four

NETWORK = """
import numpy as np
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 10)), {"height": 16}

class Touched(Exception):
    pass

class Label:
    def _touched(self, *_):
        raise Touched("a label was touched")
    __index__ = __int__ = __float__ = __array__ = __eq__ = __hash__ = __bool__ = __len__ = _touched

class Images:
    @property
    def targets(self):
        raise Touched("the labels were touched")
    labels = _labels = targets

    def __len__(self):
        return 60

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 255, (4, 4, 3), np.uint8)
        return pixels.repeat(4, 0).repeat(4, 1), Label()

def images():
    return Images()
"""
RUN = ("run", "--teacher", "python:labelled_nets:net", "--data", "python:labelled_nets:images")
TRAINED = ("--workers", "0", "--steps", "4", "--batch-size", "8", "--calibration-images", "16", "--max-drop", "100")


@pytest.fixture(scope="module", autouse=True)
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a network, images whose labels raise when they are looked at, and others to score on."""
    pixels = blocks_of_four(40, seed=5)
    with at_a_desk(tmp_path_factory.mktemp("labels"), "labelled_nets", NETWORK, pixels) as folder:
        yield folder


def test_a_whole_run_looks_at_no_label_unless_a_loss_asks_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    """Through calibration, correction, training, the choice of weights and the score."""
    assert main([*RUN, *TRAINED, "--quiet", "--output", "unlabelled"]) in (0, 4)
    report = read_report(Path("unlabelled/report.json"))
    assert report.distillation is not None and report.distillation.steps == 4
    line = refused(capsys, *RUN, *TRAINED, "--output", "asked", "--label-weight", "1")
    assert "the labels were touched" in line, "this test can fail"


def test_labels_to_score_on_are_read_by_the_score_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With labels and without the same artifact comes out, byte by byte, and no stage has asked for them."""
    own, readers = EvaluationSet.__getattribute__, set[str]()

    def noted(evaluation: EvaluationSet, name: str) -> Any:
        if name == "labels":
            readers.add(str(sys._getframe(1).f_globals["__name__"]))
        return own(evaluation, name)

    monkeypatch.setattr(EvaluationSet, "__getattribute__", noted)
    for keys, folder in (("images", "plain"), ("images,labels", "scored")):
        if folder == "scored":  # labels that the float network mostly gives, or the run would not begin
            pixels = np.load("photos.npz")["images"]
            images = normalise(
                torch.from_numpy(pixels.transpose(0, 3, 1, 2)), read_bundle(Path("plain/bundle")).preprocessing
            )
            session = onnxruntime.InferenceSession("plain/float.onnx", providers=["CPUExecutionProvider"])
            (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
            np.savez("photos.npz", images=pixels, labels=np.append(logits.argmax(1)[:-4], [0, 1, 2, 3]))
        assert main([*RUN, *TRAINED, "--quiet", "--eval-data", f"npz:photos.npz#{keys}", "--output", folder]) in (
            0,
            1,
            4,
        )
    reports = {folder: read_report(Path(folder) / "report.json") for folder in ("plain", "scored")}
    assert [report.accuracy.metric for report in reports.values()] == ["agreement", "top1"]
    models = [(Path(folder) / "bundle" / "model.onnx").read_bytes() for folder in reports]
    assert models[0] == models[1]
    # Beside the score: who opens them, matches folders with classes, checks them before the run and names its classes.
    others = {
        "pipeline.images.sources.image_source",
        "pipeline.networks.outputs.class_order",
        "pipeline.run",
        "dataclasses",
    }
    assert "pipeline.validation.evaluation" in readers
    assert {name for name in readers if not name.startswith("pipeline.validation.")} <= others
