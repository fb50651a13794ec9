"""Which operators hand integers on as they are, one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import X64
from backends.facts.profile import Profile
from backends.placement.handed_on import moves
from calibration.capture.graph_from_module import capture
from calibration.rewrites.fold import fold

ONE_GRID = replace(X64, non_negative=X64.signed)
SCALED = replace(X64, numbers_in_scales=True)
UNSCALED = replace(X64, numbers_in_scales=False)


class Compute(nn.Module):
    """A convolution, so that something is learned, and one expression of it."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.compute = nn.Conv2d(3, 4, 1), compute

    def forward(self, x: Tensor) -> Tensor:
        """Apply both."""
        return self.compute(self.conv(x))


def moved(compute: Callable[[Tensor], Tensor], profile: Profile) -> bool:
    """Whether the last operator is movement."""
    graph = fold(capture(Compute(compute).eval(), torch.randn(2, 3, 6, 6), source="test")).graph
    (output,) = graph.output_node().all_input_nodes
    return moves(output, profile)


@pytest.mark.parametrize(
    ("compute", "profile", "expected"),
    [
        (lambda y: y.flatten(1), X64, True),
        (lambda y: F.max_pool2d(y, 2), X64, True),
        (lambda y: torch.tanh(y), X64, False),
        # Behind a tanh, where no weight can take the number.
        (lambda y: torch.tanh(y) * 0.5, SCALED, True),
        (lambda y: torch.tanh(y) * 0.5, UNSCALED, False),
        (lambda y: y * torch.tanh(y), SCALED, False),
        (lambda y: F.adaptive_avg_pool2d(y, (3, 3)), X64, False),
        (lambda y: F.adaptive_avg_pool2d(y, 1), X64, False),
        # Borders: zeros are on every grid, also unsaid; what repeats the input is too.
        (lambda y: F.pad(y, (1, 1, 0, 0)), X64, True),
        (lambda y: F.pad(y, (1, 1, 0, 0), value=0.0), X64, True),
        (lambda y: F.pad(y, (1, 1, 0, 0), value=0.5), X64, False),
        (lambda y: F.pad(y, (1, 1, 0, 0), value=-1.0), X64, False),
        (lambda y: F.pad(y, (1, 1, 1, 1), mode="replicate"), X64, True),
        (lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"), X64, True),
        # A concatenation needs one grid for all of its parts.
        (lambda y: torch.cat([y, y.flip(1)], 1), X64, True),
        (lambda y: torch.cat([torch.relu(y), torch.sigmoid(y)], 1), X64, True),
        (lambda y: torch.cat([y, torch.relu(y)], 1), X64, False),
        (lambda y: torch.cat([y, torch.relu(y)], 1), ONE_GRID, True),
        # Parts of which a number has changed the scale, also behind what moves, hold unlike reals.
        (lambda y: torch.cat([y, y * 0.5], 1), SCALED, False),
        (lambda y: torch.cat([y * 0.5, y], 1), SCALED, False),
        (lambda y: torch.cat([y, (y * 0.5).transpose(2, 3).contiguous()], 1), SCALED, False),
        (lambda y: torch.cat([y, torch.cat([y, y * 0.5], 1)], 1), SCALED, True),
        (lambda y: torch.cat([y, torch.tanh(y * 0.5)], 1), SCALED, True),
        (lambda y: torch.cat([y, y * 0.5], 1), UNSCALED, True),
    ],
)
def test_what_moves(compute: Callable[[Tensor], Tensor], profile: Profile, expected: bool) -> None:
    assert moved(compute, profile) is expected
