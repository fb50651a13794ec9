"""FAQD's own weight quantisers: integers and scale by a formula of the weight, anew in each training step.

From the code released with arXiv 2302.10899 (Li, Yang, Yin, Qi, Xin), for 1, 2 and 4 bits, one scale per tensor. Ours:
the formulas are applied to channels that were divided by their calibrated scales first. The paper keeps BatchNorm,
whose gains even channels out; here they are folded into the weights, where one scale would leave small channels
nothing. So the integers are those of one scale per tensor, and each channel has a scale of its own in the file, as
runtimes want it. A channel that has grown beyond its calibrated scale is divided by more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.grid import broadcast_scale
from calibration.simulation.learned_grids import WeightGrid
from calibration.simulation.prepared import PreparedNetwork


def one_bit(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers -1 and 1 and their scale, rank 0: sign(w) and the mean of |w|."""
    return torch.where(weight >= 0, 1.0, -1.0), weight.abs().mean()


def two_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers -1, 0 and 1 and their scale, rank 0: 0 up to 0.7 mean |w|, else the sign; the mean |w| of those kept."""
    magnitude = weight.abs()
    kept = (magnitude > 0.7 * magnitude.mean()).to(weight.dtype)
    return weight.sign() * kept, (magnitude * kept).sum() / kept.sum().clamp_min(1)


def four_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers -7 to 7 and their scale, rank 0: min(ceil(|w| / 2d - 1/2), 7), d = max |w| / 15; sum |w| q / sum q^2."""
    magnitude = weight.abs()
    step = (2 * magnitude.amax() / 15).clamp_min(SMALLEST_SCALE)
    integers = (magnitude / step - 0.5).ceil().clamp(0, 7)
    return weight.sign() * integers, (magnitude * integers).sum() / integers.square().sum().clamp_min(1)


#: The formulas by bits.
FORMS: Mapping[int, Callable[[Tensor], tuple[Tensor, Tensor]]] = {1: one_bit, 2: two_bits, 4: four_bits}


# How much a channel may grow before what it is divided by grows along. A channel that is switched off begins with next
# to nothing: divided by that, the first step of its weights would make them the largest of the tensor by far, and the
# formulas round all others to zero.
_GROWTH = 2.0


class ClosedForm:
    """How one weight's integers and scales follow from it, the channels divided by what `relative` says."""

    def __init__(self, grid: WeightGrid, weight: nn.Parameter) -> None:
        self._form, self._axis, self._weight = FORMS[grid.grid.bits], grid.grid.channel_axis or 0, weight
        self._calibrated = grid.log_scale.detach().exp().clamp_min(SMALLEST_SCALE)
        self._bits = grid.grid.bits
        sizes = self._sizes(weight.detach())
        self._share = (self._calibrated / sizes.clamp_min(SMALLEST_SCALE)).median() / _GROWTH

    def relative(self, weight: Tensor) -> Tensor:
        """What the channels of a weight of any shape are divided by, float32 [C], positive.

        Their calibrated scales, or more where they have grown to more than twice what such a scale is for. Ours.
        """
        return torch.maximum(self._calibrated, self._share * self._sizes(weight))

    @torch.no_grad()
    def scale(self) -> Tensor:
        """The scale of each channel: float32 [C], without a gradient."""
        relative = self.relative(self._weight)
        _, scale = self._form(self._weight / self._along(relative))
        return relative * scale.clamp_min(SMALLEST_SCALE)

    def integers(self, weight: Tensor) -> Tensor:
        """The weight's integers, same shape, float32; what they stand for has the gradient 1 everywhere."""
        with torch.no_grad():
            relative = self._along(self.relative(weight))
            integers, scale = self._form(weight / relative)
            steps = relative * scale.clamp_min(SMALLEST_SCALE)
            remainder = integers - weight / steps
        return weight / steps + remainder

    def _sizes(self, weight: Tensor) -> Tensor:
        """Of each channel what the formula takes of the tensor: the largest magnitude at 4 bits, else the mean."""
        magnitudes = weight.abs().movedim(self._axis, 0).flatten(1)
        return magnitudes.amax(1) if self._bits == 4 else magnitudes.mean(1)

    def _along(self, values: Tensor) -> Tensor:
        return broadcast_scale(values, self._axis, self._weight.dim())


class ClosedForms:
    """The formulas in place of one network's learned weight grids of 1, 2 and 4 bits, changed in place.

    Weights with scales in blocks stay as they are. Raises ValueError where no grid has a formula.
    """

    def __init__(self, network: PreparedNetwork) -> None:
        self._grids = [
            (network.graph.get_parameter(path), grid)
            for path, grid in network.weight_grids().items()
            if grid.grid.bits in FORMS and grid.grid.block is None
        ]
        if not self._grids:
            raise ValueError("no weight has 1, 2 or 4 bits")
        for weight, grid in self._grids:
            grid.form = ClosedForm(grid, weight)

    @torch.no_grad()
    def settle(self) -> None:
        """Let every weight be what its integers stand for, on an ordinary grid that rounds it to the same integers."""
        for weight, grid in self._grids:
            assert grid.form is not None
            scale, integers = grid.form.scale(), grid.form.integers(weight).round()
            grid.form = None
            grid.log_scale.data.copy_(scale.log())
            weight.data.copy_(grid.reals(integers))
