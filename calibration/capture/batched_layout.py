"""Where a tensor that was captured for one image holds several: on which axis, how they are put there and taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from calibration.graph.nearness import HIDES


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensor [*sizes] of one image, and the axis that is as many times as long for several images.

    Along that axis the images are the outer index: of `sizes[axis]` places in a row, each is one image's.
    """

    sizes: tuple[int, ...]
    axis: int

    @property
    def is_first(self) -> bool:
        """Whether the images have the first axis for themselves."""
        return self.axis == 0 and self.sizes[0] == 1

    def joined(self, values: Tensor) -> Tensor:
        """Tensors of images [B, *sizes] as one tensor of this layout."""
        return values.movedim(0, self.axis).flatten(self.axis, self.axis + 1).contiguous()

    def apart(self, values: Tensor) -> Tensor:
        """A tensor of this layout as [B, *sizes]."""
        before, behind = self.sizes[: self.axis], self.sizes[self.axis :]
        return values.reshape(*before, -1, *behind).movedim(self.axis, 0)


Layouts = dict[Node, Layout | tuple[Layout, ...]]
"""Node of the graph for one image -> how its result holds several; of one that gives several tensors, each of them."""


def layout_of(sizes: Sequence[int], values: Tensor, count: int) -> Layout | None:
    """The layout of `values` for `count` images, where one image has [*sizes]; None where they are not so."""
    longer = [
        axis
        for axis, (one, several) in enumerate(zip(sizes, values.shape, strict=False))
        if several == count * one and one
    ]
    same = [axis for axis, (one, several) in enumerate(zip(sizes, values.shape, strict=False)) if several == one]
    if len(sizes) != values.dim() or len(longer) != 1 or len(longer) + len(same) != len(sizes):
        return None
    return Layout(sizes=tuple(sizes), axis=longer[0])


def are_equal(ours: Tensor, theirs: Tensor, *, tolerance: float = 1e-4) -> bool:
    """Whether two results [B, ...] of one operator are the same, numbers up to float32's rounding of long sums."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if not ours.is_floating_point():
        return bool(torch.equal(ours, theirs))
    sizes = theirs.abs()
    size = float(sizes.where(sizes < HIDES, 0.0).max()) if theirs.numel() else 0.0
    return bool(torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * size, equal_nan=True))
