"""Signal to noise of layers, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from backends import backend_of
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.ranges.observation import Range
from calibration.rewrites.fold import fold
from calibration.simulation.insert import insert
from pipeline.validation.sensitivity import layer_sqnr


class TwoLayers(nn.Module):
    """1.27 times the sum of two pixels, never below 0; 1.27 times that and 1.27 more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 1, bias=False), nn.Linear(1, 1)
        for values in (self.first.weight, self.second.weight, self.second.bias):
            nn.init.constant_(values, 1.27)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x.flatten(1)).relu())
        return result


def decibels(*batches: list[list[float]]) -> dict[str, float]:
    """Each layer's ratio for images of two pixels, where all activations are rounded to whole numbers.

    The weights and the bias are the largest integers of their grids, and so exact: activations alone are rounded.
    """
    shown = [torch.tensor(batch).reshape(-1, 1, 1, 2) for batch in batches]
    folded = fold(capture(TwoLayers(), torch.zeros(2, 1, 1, 2), source="two layers"))
    plan = place(folded, backend_of("reference", "").profile, Widths(weights=8))
    ranges = {placement.group: Range(scale=1.0, zero_point=0) for placement in plan.activations}
    return layer_sqnr(folded, insert(folded, plan, ranges), shown)


def test_two_layers_on_paper() -> None:
    """Sums 1 and 2: the first layer gives 1.27 and 2.54, rounded to 1 and 3; the second 2.8829 and 4.4958 of those,
    2.54 and 5.08 of these.
    """
    first = 10 * math.log10((1.27**2 + 2.54**2) / (0.27**2 + 0.46**2))  # 8.0645 / 0.2845
    second = 10 * math.log10((2.8829**2 + 4.4958**2) / (0.3429**2 + 0.5842**2))  # 28.5233 / 0.4589
    assert (round(first, 3), round(second, 3)) == (14.525, 17.935)
    expected = {"first": pytest.approx(first, abs=1e-4), "second": pytest.approx(second, abs=1e-4)}
    assert decibels([[1.0, 0.0], [1.0, 1.0]]) == expected
    assert decibels([[1.0, 0.0]], [[1.0, 1.0]]) == expected, "sums over all batches, not a mean of their ratios"


def test_no_noise_is_120_decibels_and_no_signal_none() -> None:
    assert decibels([[100.0, 0.0]]) == {"first": 120.0, "second": 120.0}, "127 is a whole number"
    assert decibels([[0.0, 0.0]]) == {"second": 120.0}, "the first layer says nothing"
