"""Grids with learned scales: the modules that own what quantisation trains beside the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn

from calibration.arithmetic.integer_products import EXACT_BIAS, EXACT_IN_FLOAT32, LARGEST_ACTIVATION
from calibration.arithmetic.rounding import requantise, sign
from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.grid import Grid, broadcast_scale, in_blocks
from calibration.ranges.observers import weight_scale


class _LearnedScale(nn.Module):
    """A scale, or one per channel or block, stored as its logarithm.

    So one learning rate means one relative change whatever the tensor's magnitude, and it stays positive [ours].
    """

    def __init__(self, log_scale: Tensor) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(log_scale)
        self._held: Tensor | None = None

    def scale(self) -> Tensor:
        """The scale in use: float32, rank 0, [C] or in blocks [C, blocks]; positive."""
        return self.learned_scale()

    def learned_scale(self) -> Tensor:
        """The same number as `scale`, always with its gradient."""
        return self._in_use(self.log_scale.exp().clamp_min(SMALLEST_SCALE)) if self._held is None else self._held

    def _in_use(self, scale: Tensor) -> Tensor:
        return scale


@contextmanager
def shared_scales(grids: Sequence[_LearnedScale]) -> Iterator[None]:
    """Within it every grid's scale is computed once, all in one operation, instead of wherever one is read.

    For one forward pass: the gradients of all readers meet in one tensor. Each of the small operations that this saves
    costs as much as a pass over a small map, and there are hundreds in a training step. Last bits may differ.
    """
    sizes = [grid.log_scale.numel() for grid in grids]
    together = torch.cat([grid.log_scale.reshape(-1) for grid in grids]).exp().clamp_min(SMALLEST_SCALE)
    try:
        for grid, scale in zip(grids, torch.split(together, sizes), strict=True):
            grid._held = grid._in_use(scale.reshape(grid.log_scale.shape))
        yield
    finally:
        for grid in grids:
            grid._held = None


class TensorGrid(Protocol):
    """What operations ask of the grid of a tensor that they read: zero point, range of centred integers, scale."""

    @property
    def zero(self) -> int: ...
    @property
    def lowest(self) -> int: ...
    @property
    def highest(self) -> int: ...
    def scale(self) -> Tensor: ...


class ActivationGrid(_LearnedScale):
    """Grid, learned scale and fixed zero point of one activation tensor, or of a group that shares them.

    `limit`: the largest real value that the grid may reach. At the limit the scale's gradient passes all the same, or a
    scale that once reached it could never shrink again.
    Raises ValueError for a scale that is not positive and finite and for a zero point off the grid.
    """

    zero_point: Tensor
    lowest: int
    highest: int
    #: Whether readers see the scale without its gradient (calibration/simulation/clipping.py).
    is_constant = False

    def __init__(self, grid: Grid, *, scale: float, zero_point: int, limit: float | None = None) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"a scale of {scale} is no scale")
        if not grid.quant_min <= zero_point <= grid.quant_max:
            raise ValueError(f"the zero point {zero_point} is not on the grid")
        super().__init__(torch.tensor(math.log(scale)))
        self.grid, self.limit = grid, limit
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self._read_zero_point()
        self.register_load_state_dict_post_hook(_read_zero_point_again)  # type: ignore[no-untyped-call]  # torch's

    def scale(self) -> Tensor:
        """The scale in use: float32, rank 0; positive."""
        scale = self.learned_scale()
        return scale.detach() if self.is_constant else scale

    def _read_zero_point(self) -> None:
        # As numbers: reading the buffer in every step would wait for the GPU.
        #: The zero point, and the range of the centred integers.
        self.zero = int(self.zero_point)
        self.resolve(self.grid.bits)

    def resolve(self, bits: int) -> None:
        """Round the same range to another number of bits, 2 to 8, for a while: finer or coarser steps between its ends.

        Zero stays on the grid; the zero point is that of the grid's own bits, so only training may run meanwhile.
        """
        self._fineness = (2**bits - 1) / (2**self.grid.bits - 1)
        self.lowest: int = round((self.grid.quant_min - self.zero) * self._fineness)
        self.highest: int = round((self.grid.quant_max - self.zero) * self._fineness)

    def _in_use(self, scale: Tensor) -> Tensor:
        if self._fineness != 1:
            scale = scale / self._fineness
        if self.limit is None:
            return scale
        # Rounded down, so that the largest integer stands for no more than the limit: only then may a runtime leave
        # out the clip that the rounding performs.
        held = scale.detach().clamp_max(self.limit / self.highest * (1 - 2.0**-22))
        return held + (scale - scale.detach())


def _read_zero_point_again(module: nn.Module, _: Any) -> None:
    assert isinstance(module, ActivationGrid)
    module._read_zero_point()


@final
class MultipliedGrid:
    """The grid of a tensor that a positive number multiplies: the same integers, each standing for so much more."""

    def __init__(self, source: TensorGrid, factor: float) -> None:
        self.source, self.factor = source, factor

    @property
    def zero(self) -> int:
        """The zero point."""
        return self.source.zero

    @property
    def lowest(self) -> int:
        """The smallest centred integer."""
        return self.source.lowest

    @property
    def highest(self) -> int:
        """The largest centred integer."""
        return self.source.highest

    def scale(self) -> Tensor:
        """The scale in use: float32, rank 0; one multiplication in float32, as the file's scale is computed."""
        return self.source.scale() * self.factor


class WeightForm(Protocol):
    """What a weight's grid asks of a formula that takes the place of its learned scale (`closed_forms`)."""

    def integers(self, weight: Tensor) -> Tensor: ...
    def scale(self) -> Tensor: ...


class WeightGrid(_LearnedScale):
    """Symmetric grid of one weight with a learned scale per channel, or per channel and block of inputs.

    `weight` float, of any shape; `floor` float, broadcast to the scale, is the smallest scale to begin with;
    `first_scale`, where it is known already, what `weight_scale` says of weight and grid. `form`: where integers and
    scale follow from the weight for a while, instead of being learned.
    """

    form: WeightForm | None = None

    def __init__(
        self, grid: Grid, weight: Tensor, *, floor: Tensor | None = None, first_scale: Tensor | None = None
    ) -> None:
        scale = weight_scale(weight, grid) if first_scale is None else first_scale
        super().__init__((scale if floor is None else torch.maximum(scale, floor)).log())
        self.grid = grid

    def forward(self, weight: Tensor) -> Tensor:
        """The weight's integers, same shape, float32; straight-through gradient inside the grid, zero outside.

        In evaluation float64 where the sums of the weight's products may be too large for float32.
        """
        if self.form is not None:
            return self.form.integers(weight)
        axis, block = self.grid.channel_axis, self.grid.block
        values, multiplier = in_blocks(weight, block), self._along(self.scale().reciprocal(), weight.dim())
        if self.grid.bits == 1:
            integers = sign(values * multiplier)
        else:
            integers = requantise(values, multiplier, self.grid.quant_min, self.grid.quant_max)
        if block is not None:
            return integers.flatten(1)  # multiplied as reals: nothing is summed in integers
        if self.training:
            return integers
        sums = integers.detach().abs().transpose(0, axis or 0).flatten(1).sum(1, dtype=torch.float64)
        fits = float(sums.max()) * LARGEST_ACTIVATION < EXACT_IN_FLOAT32 - EXACT_BIAS
        return integers if fits else integers.double()

    def _in_use(self, scale: Tensor) -> Tensor:
        return scale if self.form is None else self.form.scale()

    def reals(self, integers: Tensor) -> Tensor:
        """The weight that integers of this grid stand for, same shape, float32."""
        values = in_blocks(integers, self.grid.block) * self._along(self.scale(), integers.dim())
        return values if self.grid.block is None else values.flatten(1)

    def _along(self, scale: Tensor, dimensions: int) -> Tensor:
        """A scale shaped to multiply the weight as `in_blocks` gives it."""
        if self.grid.block is not None:
            return scale.unsqueeze(-1)
        return broadcast_scale(scale, self.grid.channel_axis, dimensions)
