"""The file that a run plans is tried on the runtime before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.config import DataConfig, OutputConfig, QuantisationConfig, RunConfig, TeacherConfig
from pipeline.run import run
from pipeline.tools.progress import LineProgress


class Bicubic(nn.Module):
    """A map made smaller by a bicubic resize, which ONNX Runtime's kernel for channels last refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] to logits [B, 10]."""
        smaller = nn.functional.interpolate(self.first(images), size=(5, 11), mode="bicubic")
        result: Tensor = self.head(self.second(smaller).mean((2, 3)))
        return result


def build() -> tuple[nn.Module, dict[str, object]]:
    """The network and how its images are prepared."""
    torch.manual_seed(0)
    return Bicubic(), {"channels": 1, "height": 8, "width": 8, "mean": (0.5,), "std": (0.5,), "channel_order": "L"}


def test_what_the_runtime_refuses_is_said_before_training(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    config = RunConfig(
        teacher=TeacherConfig(sources=("python:tests.pipeline.runs.test_planned_file:build",)),
        data=DataConfig(source=f"npz:{tmp_path / 'images.npz'}#images"),
        quantisation=QuantisationConfig(backend="onnxruntime"),
        output=OutputConfig(folder=tmp_path / "run"),
    )
    with pytest.raises(UserError, match=r"before anything is trained, is refused at upsample_bicubic2d \(Resize\)"):
        run(config, LineProgress(lambda line: None))
    assert not list(tmp_path.rglob("trained*")) and not list(tmp_path.rglob("bundle"))
