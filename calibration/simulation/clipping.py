"""Activation scales that learn from clipped values alone, as PACT's clip level does (Choi et al., arXiv 1805.06085).

PACT rounds the values between 0 and a learned level alpha in equal steps, and dy/dalpha is 1 above alpha and 0 below.
The scale here is alpha over the number of steps, learned as its logarithm. LSQ's scale, the default, learns from the
error of every rounded value as well. Ours: what is rounded to an end of the grid counts as clipped, which is half a
step more, signed grids have two such ends, and the level does not decay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from calibration.simulation.learned_grids import ActivationGrid
from calibration.simulation.normalised_training import Normalised
from calibration.simulation.operations import rounded_to
from calibration.simulation.prepared import OPERATIONS, PreparedNetwork


class ClippedScales:
    """PACT's way of learning for all activation scales of one network, changed in place, until `settle`.

    The scales count as constants wherever they are read. Behind each rounding, what was clipped moves with the scale.
    To be put in after a `Normalisation`, whose layers round as well.
    """

    def __init__(self, network: PreparedNetwork) -> None:
        self._grids, self._hooks = [], []
        for operation in network.graph.get_submodule(OPERATIONS).children():
            grid = rounded_to(operation.operation if isinstance(operation, Normalised) else operation)
            if grid is not None:
                grid.is_constant = True
                self._grids.append(grid)
                self._hooks.append(operation.register_forward_hook(_moving_with(grid)))

    def settle(self) -> None:
        """Take it back."""
        for grid, hook in zip(self._grids, self._hooks, strict=True):
            grid.is_constant = False
            hook.remove()


def _moving_with(grid: ActivationGrid) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
    def moved(operation: nn.Module, _: Any, integers: Tensor) -> Tensor | None:
        """The same integers; those at an end of the grid have a gradient to the scale, as if multiplied by it."""
        if not operation.training:
            return None
        scale = grid.learned_scale()
        clipped = (integers >= grid.highest) | (integers <= grid.lowest)
        return torch.where(clipped, integers * (scale / scale.detach()), integers)

    return moved
