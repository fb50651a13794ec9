"""Means and covariances of a layer's factors and of what its outputs are to be, added up over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

# Variance in parts of the mean square below which a factor is constant: of 8-bit integers at the places that are read
# one that differs leaves 1e-10 [ours].
_NO_VARIANCE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What least squares asks of factors X and outputs Y, float64, by groups G of K inputs and O outputs each."""

    covariance: Tensor
    """Of X, [G, K, K]."""
    cross: Tensor
    """Of X and Y, [G, K, O]."""
    mean_factors: Tensor
    """[G, K]."""
    mean_outputs: Tensor
    """[G, O]."""
    variance: Tensor
    """Of Y, [G, O]."""


@final
class MomentSums:
    """Sums over batches. `about_zero`: moments about zero instead of the means, for a layer that has no bias."""

    def __init__(self, *, about_zero: bool = False) -> None:
        self._about_zero = about_zero
        self._count = 0
        self._sums: tuple[Tensor, ...] = ()

    def add(self, factors: Tensor, outputs: Tensor) -> None:
        """Look at factors [G, N, K] and outputs [G, N, O]."""
        x, y = factors.double(), outputs.double()
        new = (x.transpose(1, 2) @ x, x.transpose(1, 2) @ y, x.sum(1), y.sum(1), y.square().sum(1))
        self._sums = tuple(a + b for a, b in zip(self._sums, new, strict=True)) if self._sums else new
        self._count += factors.shape[1]

    def joined(self, other: MomentSums) -> MomentSums:
        """The sums of both, added up the same way."""
        both = MomentSums(about_zero=self._about_zero)
        both._sums = tuple(a + b for a, b in zip(self._sums, other._sums, strict=True))
        both._count = self._count + other._count
        return both

    def moments(self) -> Moments:
        """Those of all that was added."""
        xx, xy, x, y, yy = (total / self._count for total in self._sums)
        if self._about_zero:
            x, y = torch.zeros_like(x), torch.zeros_like(y)
        covariance, cross = xx - x[:, :, None] * x[:, None, :], xy - x[:, :, None] * y[:, None, :]
        # What is left of a factor that is always the same is the rounding of these sums, of either sign.
        constant = covariance.diagonal(dim1=1, dim2=2) <= _NO_VARIANCE * xx.diagonal(dim1=1, dim2=2)
        return Moments(
            covariance=covariance.masked_fill(constant[:, :, None] | constant[:, None, :], 0),
            cross=cross.masked_fill(constant[:, :, None], 0),
            mean_factors=x,
            mean_outputs=y,
            variance=(yy - y.square()).clamp_min(0),
        )
