"""SAKD: a classification branch at the end of each stage, fed by a parameter-free uniformisation of its map.

Source of the idea: Guo et al., Semantic-aware knowledge distillation with parameter-free feature uniformisation,
Visual Intelligence 2023. The paper's equations were not recovered: the uniformisation, the branch and the loss here
are OUR RECONSTRUCTION. Label-free: the teacher's branches learn the teacher's own logits, then the student's branches
learn the teacher's branches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def uniformise(maps: Tensor, *, side: int) -> Tensor:
    """A map of any size as a vector of side^2 numbers, by attention of channels to their mean: our reconstruction.

    With the map resized to side x side, N = side^2 and F [N, C]: q = mean over channels of F, w = softmax over channels
    of (F^T q / sqrt(N)), v = F w.

    Args:
        maps: [B, C, H, W], any floating type.
        side: height and width that all maps are brought to (adaptive averages), >= 1.

    Returns:
        [B, side^2], float32 (float64 for float64 maps).
    """
    with torch.autocast(maps.device.type, enabled=False):
        working = maps.to(torch.promote_types(maps.dtype, torch.float32))
        columns = functional.adaptive_avg_pool2d(working, side).flatten(2)  # [B, C, N]
        query = columns.mean(1, keepdim=True)
        weights = (columns @ query.mT / math.sqrt(side * side)).softmax(1)  # [B, C, 1]
        return (columns * weights).sum(1)


class SemanticBranch(nn.Module):
    """One linear classifier on the uniformised map of a stage: our reconstruction."""

    def __init__(self, *, side: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.side = side
        bound = 1 / side  # of torch's own linear layers: 1 / sqrt(inputs)
        self.weight = nn.Parameter((2 * torch.rand(classes, side * side, generator=generator) - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W] to logits [B, classes]."""
        return functional.linear(uniformise(maps, side=self.side), self.weight, self.bias)
