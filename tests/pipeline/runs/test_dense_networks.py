"""Segmentation and detection from the command line to the runtime: every output by name, post-processing outside."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from calibration.errors import UserError
from pipeline.cli import main
from pipeline.networks.models import load_model
from pipeline.networks.sources.torchvision_detection import dense_part, is_detector, without_epsilon
from pipeline.report.schema import read_report

BUILDERS = '''
import torch
from torch import nn
from torch.nn import functional
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from pipeline.networks.sources.torchvision_detection import DenseHeads

IMAGES = {"height": 32, "resize": None}


class Segmenter(nn.Module):
    """What torchvision's segmentation networks do at the end, on a small scale."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier, self.aux = nn.Conv2d(16, 5, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        early = self.stem(x)
        size, late = x.shape[-2:], self.body(early)
        return {
            name: functional.interpolate(head(y), size=size, mode="bilinear", align_corners=False)
            for name, head, y in (("out", self.classifier, late), ("aux", self.aux, early))
        }


class Decoder(nn.Module):
    """A U-Net of one step: a transposed convolution, and what it upsamples beside what was before."""

    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 3, 3, 1, 1)

    def forward(self, x):
        skip = self.down(x).relu()
        return self.out(torch.cat([self.up(self.deep(skip).relu()), skip], 1))


def decoder():
    return Decoder(), IMAGES


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.out_channels = 16
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        first = self.first(x)
        return {"0": first, "1": self.second(first)}


def segmenter():
    return Segmenter(), IMAGES


def whole_detector():
    boxes = DefaultBoxGenerator([[2], [2]], scales=[0.3, 0.6, 0.9])
    return detection.ssd.SSD(Backbone(), boxes, (32, 32), 4, head=detection.ssd.SSDHead([16, 16], [4, 4], 4))


def detector():
    return DenseHeads(whole_detector()), IMAGES


class Task(nn.Module):
    """Takes a task beside the image, and words instead of one."""

    def __init__(self):
        super().__init__()
        self.conv, self.words = nn.Conv2d(3, 8, 3), nn.Embedding(10, 8)

    def forward(self, image, task):
        return self.conv(image).mean((2, 3)) + self.words(task)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Task()
        self.register_buffer("task", torch.tensor([3]))

    def forward(self, image):
        return self.network(image, self.task)


def task():
    return Task(), IMAGES


def fixed_task():
    return Fixed(), IMAGES


class Branches(nn.Module):
    """A backbone that is a graph and a head that is none."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.words = nn.Embedding(10, 8)

    def forward(self, x):
        y = self.backbone(x)
        return y if y.sum() > 0 else -y


def branches():
    return Branches(), IMAGES
'''
QUICK = (
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--calibration-images",
    "16",
    "--max-drop",
    "100",
    "--data",
    "images:photos",
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: builders, and photographs of blocks of colour."""
    folder = tmp_path_factory.mktemp("dense")
    (folder / "dense_nets.py").write_text(BUILDERS)
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for index in range(24):
        blocks = generator.integers(0, 255, (6, 6, 3), np.uint8)
        Image.fromarray(blocks).resize((40, 36), Image.Resampling.BILINEAR).save(folder / "photos" / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(desk)
    before = list(sys.path)
    yield
    sys.path[:] = before


def run(builder: str, *arguments: str, status: int = 0) -> SimpleNamespace:
    """Run a builder's network through the command line; its report, manifest, golden arrays and session."""
    command = ["run", "--quiet", "--teacher", f"python:dense_nets:{builder}", *QUICK, *arguments, "--output", builder]
    assert main(command) == status
    bundle = Path(builder) / "bundle"
    with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
        golden = dict(arrays)
    return SimpleNamespace(
        report=read_report(Path(builder) / "report.json"),
        manifest=json.loads((bundle / "manifest.json").read_text()),
        golden=golden,
        session=onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"]),
        bundle=bundle,
    )


def test_segmentation_keeps_its_outputs_and_is_scored_per_pixel(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run("segmenter", "--output-kinds", "out=classes,aux=classes")
    shown = capsys.readouterr().out
    out, aux = ended.report.outputs
    assert [(o.name, o.holds, o.shape, o.decisions) for o in (out, aux)] == [
        ("out", "classes", (5, 32, 32), 1024),
        ("aux", "classes", (5, 32, 32), 1024),
    ]
    assert ended.report.accuracy.metric == "agreement" and ended.report.accuracy.runtime == out.runtime > 0.9
    assert out.oracle_vs_simulated is not None and out.oracle_vs_simulated > 0.999
    assert out.mean_iou is not None and aux.mean_iou is not None and min(out.mean_iou, aux.mean_iou) > 0.7
    assert "pixels as teacher" in shown and "output" in shown and "aux: classes [batch, 5, 32, 32]" in shown
    assert [entry["name"] for entry in ended.manifest["outputs"]] == ["out", "aux"]
    assert ended.manifest["outputs"][0]["holds"] == "classes"
    assert {"outputs.out", "outputs.aux", "teacher.out", "teacher.aux"} < set(ended.golden)
    values = ended.session.run(["out", "aux"], {ended.manifest["inputs"][0]["name"]: ended.golden["inputs"]})
    for name, value in zip(("out", "aux"), values, strict=True):
        np.testing.assert_allclose(value, ended.golden[f"outputs.{name}"], atol=1e-5)
    page = (ended.bundle / "report.html").read_text()
    assert "Of the 1024 pixels of output out in each image" in page
    assert main(["validate", str(ended.bundle), "--quiet"]) == 0
    assert main(["compare", str(ended.bundle), "--quiet", "--tolerance", "1"]) == 0


def test_detection_heads_are_quantised_and_boxes_come_from_outside() -> None:
    """The detector's own post-processing on the runtime's outputs finds the boxes that it finds on the teacher's."""
    ended = run("detector", "--output-kinds", "cls_logits=classes-last", "--output-kinds", "bbox_regression=values")
    boxes, classes = ended.report.outputs
    assert (classes.name, classes.shape, classes.decisions) == ("cls_logits", (320, 4), 320)
    assert (boxes.holds, boxes.metric) == ("values", "r2") and boxes.rms_error is not None
    assert classes.runtime == ended.report.accuracy.runtime > 0.9 and boxes.runtime > 0.9
    assert ended.manifest["outputs"][1] | {"shape": None} == {
        "name": "cls_logits", "type": "float", "shape": None, "holds": "classes", "class_axis": -1,
    }  # fmt: skip
    images = torch.from_numpy(ended.golden["inputs"])
    names = ["bbox_regression", "cls_logits"]
    answers = ended.session.run(names, {ended.manifest["inputs"][0]["name"]: images.numpy()})
    heads = dict(zip(names, map(torch.from_numpy, answers), strict=True))
    teacher = {name: torch.from_numpy(ended.golden[f"teacher.{name}"]) for name in names}
    ours, theirs = (_detections(each, images) for each in (heads, teacher))
    assert sum(len(d["boxes"]) for d in theirs) > 20
    for mine, expected in zip(ours, theirs, strict=True):
        best = box_iou(expected["boxes"], mine["boxes"]).amax(1)
        assert float(best.median()) > 0.8


def _detections(heads: dict[str, Tensor], images: Tensor) -> list[dict[str, Tensor]]:
    whole = importlib.import_module("dense_nets").whole_detector().eval()
    sizes = [(32, 32)] * len(images)
    features = [torch.zeros(len(images), 16, size, size) for size in (8, 4)]
    anchors = whole.anchor_generator(ImageList(images, sizes), features)
    detections: list[dict[str, Tensor]] = whole.postprocess_detections(heads, anchors, sizes)
    return detections


def small_detector(kind: str) -> Any:
    """One of torchvision's detectors, as small as its builder allows."""
    backbone: Any = nn.Sequential(nn.Conv2d(3, 16, 3, 4), nn.BatchNorm2d(16))
    backbone.out_channels = 16
    if kind == "SSD":
        boxes = DefaultBoxGenerator([[2]], scales=[0.3, 0.6])
        head = detection.ssd.SSDHead([16], [4], 4)
        return detection.ssd.SSD(backbone, boxes, (48, 40), 4, head=head, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    if kind == "FasterRCNN":
        return detection.FasterRCNN(backbone, 4, rpn_anchor_generator=None, min_size=(64, 96))
    return detection.RetinaNet(backbone, 4, min_size=64)


@pytest.mark.parametrize(
    ("kind", "kinds"),
    [
        ("SSD", {"cls_logits": "classes-last", "bbox_regression": "values"}),
        ("RetinaNet", {"cls_logits": "labels", "bbox_regression": "values"}),
    ],
)
def test_one_stage_detectors_are_their_backbone_and_heads(kind: str, kinds: dict[str, str]) -> None:
    whole = small_detector(kind).eval()
    assert is_detector(whole) and not is_detector(nn.Conv2d(3, 3, 3))
    part = dense_part(whole, "net", notes=("random weights",))
    p, images = part.preprocessing, torch.randn(2, 3, 64, 64)
    assert p is not None and part.output_kinds == kinds and not part.only_parts
    if kind == "SSD":
        assert (p.height, p.width, p.mean, p.std) == (40, 48, (0.5,) * 3, (0.25,) * 3)
    assert p.resize is None and "non-maximum suppression stay outside" in part.notes[-1]
    features = whole.backbone(images)
    for name, values in whole.head([features]).items():
        torch.testing.assert_close(part.module(images)[name], values)
    assert {name.split(".")[0] for name in part.module.state_dict()} == {"backbone", "head"}


def test_two_stage_detectors_say_which_part_is_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small_detector("FasterRCNN")
    dense = dense_part(whole, "torchvision:net", notes=())
    assert "is a two-stage detector (FasterRCNN)" in dense.only_parts and "--submodule backbone" in dense.only_parts
    assert dense.preprocessing is not None and dense.preprocessing.height == 96
    without_epsilon(whole)
    assert whole.backbone[1].eps == 0.0
    monkeypatch.setattr("pipeline.networks.models.MODEL_SOURCES", {"torchvision": lambda rest, weights: dense})
    with pytest.raises(UserError, match="two-stage detector"):
        load_model("torchvision:net")
    part = load_model("torchvision:net", submodule="backbone")
    assert part.module is whole.backbone and part.features and part.output_kinds == {}
    with pytest.raises(
        UserError, match=r"--submodule 'backbon': torchvision:net has no such part; did you mean backbone"
    ):
        load_model("torchvision:net", submodule="backbon")


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line that a network gets which cannot be quantised as it is."""

    def one_line(builder: str, *arguments: str) -> str:
        teacher = ("--teacher", f"python:dense_nets:{builder}")
        assert main(["run", "--quiet", *teacher, *QUICK, *arguments, "--output", f"refused-{builder}"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ")
        assert not (Path(f"refused-{builder}") / "bundle").exists()
        return lines[0]

    return one_line


def test_a_transposed_convolution_runs_on_integers_bit_for_bit() -> None:
    report = run("decoder", "--output-kinds", "output=classes").report
    assert report.status == "validated", report.gates
    assert (report.kernels.integer, report.kernels.float, report.parity.exact_fraction) == (4, 0, 1.0)
    assert [layer.name for layer in report.layers] == ["down", "deep", "up_conv2d", "out"]


def test_inputs_that_are_no_images_are_refused_by_name_and_a_builder_fixes_them(refused: Refused) -> None:
    assert "the network also needs its input task, which is no image" in refused("task")
    ended = run("fixed_task", status=4)  # its random weights give one class for all of the few images
    assert ended.report.outputs[0].decisions == 1
    assert [entry["name"] for entry in ended.manifest["inputs"]] == ["image"]


def test_a_part_can_be_quantised_where_the_whole_is_no_graph(refused: Refused) -> None:
    line = refused("branches")
    assert "its control flow depends on the values of a tensor (in module Branches, " in line
    assert "dense_nets.py:" in line and "--submodule" in line
    words = refused("branches", "--submodule", "words", "--overwrite")
    assert "(sub-module words): the network does not take images float32 [2, 3, 32, 32] as its input input:" in words
    ended = run("branches", "--submodule", "backbone")
    (output,) = ended.report.outputs
    assert (output.holds, output.shape) == ("values", (8, 28, 28)) and output.runtime is not None
    assert ended.report.accuracy.metric == "r2" and ended.report.accuracy.runtime == output.runtime > 0.95
    assert [gate.name for gate in ended.report.gates] == ["max-drop", "parity-values", "simulation", "kernels"]
    assert ended.report.parity.argmax_agreement is None and ended.report.parity.exact_fraction == 1.0
    assert any("sub-module backbone alone is quantised" in note for note in ended.report.notes)
