"""Images from a teacher alone: of the right form, from the seed, of many classes; collapse is named."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.errors import UserError
from pipeline.config import DataConfig
from pipeline.networks.outputs.meaning import Output
from pipeline.stages.imagine import _judged, check_imaginable, imagine, preview
from pipeline.tools.progress import SilentProgress


def test_images_follow_the_teacher_and_the_seed(example: SimpleNamespace) -> None:
    losses: list[float] = []
    data, progress = DataConfig(generator_steps=8, generated_images=70), SilentProgress()
    progress.step = lambda done, total, **figures: losses.append(figures["loss"])  # type: ignore[method-assign]
    generated = imagine(example.teacher, data, progress=progress)
    pixels, remarks = generated.pixels, generated.remarks
    assert pixels.shape == (70, 1, 8, 8) and pixels.dtype == np.uint8
    assert losses[-1] < losses[0]
    assert "generated from digits alone (DAFL, 8 steps)" in remarks[0]
    assert all(parameter.requires_grad for parameter in example.teacher.captured.parameters())
    np.testing.assert_array_equal(pixels, imagine(example.teacher, data).pixels)
    sheet = Image.open(io.BytesIO(base64.b64decode(preview(pixels))))
    assert sheet.size == (64, 32)
    np.testing.assert_array_equal(np.asarray(sheet)[:8, :8], pixels[0, 0])


def test_collapse_is_noticed_and_named() -> None:
    assert _judged(torch.full((10,), 0.1)) == ()
    few = torch.tensor([0.6, 0.2, 0.1, 0.1] + [0.0] * 6)
    assert "of few classes: class 0 has 60 % of them" in _judged(few)[0]
    with pytest.raises(UserError, match=r"collapsed, class 3 has 97 % of them: try more --generator-steps"):
        _judged(torch.tensor([0.01, 0.01, 0.01, 0.97]))


def test_a_teacher_that_cannot_be_asked_is_named(example: SimpleNamespace) -> None:
    maps = (Output(name="map", holds="classes", axis=1, shape=(10, 8, 8)),)
    with pytest.raises(UserError, match="--data none needs a teacher that classifies: digits gives classes"):
        check_imaginable(replace(example.teacher, outputs=maps))
