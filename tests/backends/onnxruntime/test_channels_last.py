"""Rows taken from maps with channels last: what ONNX Runtime has left to move, and that it computes the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import host_profile
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.backend import IntegerOracle
from calibration.rewrites.channels_last import ROWS_OF_CHANNELS_LAST


class Attention(nn.Module):
    """Attention over the positions of a map, resized behind it, as in EfficientFormerV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.query, self.key, self.value = (nn.Conv2d(64, 64, 1) for _ in range(3))
        self.last = nn.Conv2d(64, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        query, key, value = (layer(x).reshape(-1, 2, 32, 64) for layer in (self.query, self.key, self.value))
        mixed = (query.transpose(2, 3) @ key).softmax(-1) @ value.transpose(2, 3)
        image = mixed.transpose(2, 3).reshape(-1, 64, 8, 8)
        result: Tensor = self.last(nn.functional.interpolate(image, scale_factor=2.0, mode="bilinear"))
        return result.mean((2, 3))


def test_fewer_transpositions_remain_and_the_oracle_agrees(build: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    images, network = torch.randn(2, 3, 16, 16), Attention()
    left = {}
    for moves in (True, False):
        rows = [row for row in host_profile().rewrites if moves or row is not ROWS_OF_CHANNELS_LAST]
        built = build(network, replace(host_profile(), rewrites=tuple(rows)), inputs=images)
        model = built.model()
        left[moves] = OnnxRuntime().census(model.SerializeToString(), []).histogram["Transpose"]
        with OnnxRuntime().runner(model.SerializeToString(), threads=1) as runner:
            (theirs,) = runner.run(images.numpy())
        (expected, *_), _ = IntegerOracle(model).run(images)
        np.testing.assert_array_equal(theirs, expected.numpy())
    assert left[False] - left[True] >= 3, left
