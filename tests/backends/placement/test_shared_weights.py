"""Layers that share a stored weight share its grid, whatever each would be given alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.fold import fold
from calibration.simulation.insert import insert


class Repeated(nn.Module):
    """One convolution applied three times: the first, a middle and the last layer in one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.middle = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        x = torch.relu(self.conv(x))
        x = torch.relu(self.middle(x))
        result: Tensor = self.conv(torch.relu(self.conv(x)))
        return result


def test_the_widest_need_decides_for_all() -> None:
    images = torch.randn((4, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    folded = fold(capture(Repeated(), images, source="repeated"))
    plan = place(folded, X64, Widths(weights=4))
    bits = {placement.layer: placement.grid.bits for placement in plan.weights}

    assert sorted(bits.values()) == [4, 8, 8, 8]
    assert bits["middle"] == 4
    prepared = insert(folded, plan, choose_ranges(observe(folded, plan, [images]), plan, "auto")).eval()
    assert prepared(images)[0].shape == (4, 4, 8, 8)
