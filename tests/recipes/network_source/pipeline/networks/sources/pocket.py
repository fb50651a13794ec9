"""`pocket:CLASSES`: a network of two convolutions with an inverse hyperbolic sine between them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.networks.sources.sourced import CLASSIFIER, SourcedModel, reproducible_weights
from pipeline.networks.weights import load_weights


class Pocket(nn.Module):
    """Images [B, 3, H, W] to logits [B, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, stride=2), nn.Conv2d(16, classes, 3)

    def forward(self, images: Tensor) -> Tensor:
        """One vector of logits per image."""
        logits: Tensor = self.last(torch.asinh(self.first(images).neg().neg())).mean((2, 3))
        return logits


def load_pocket(rest: str, weights: Path | None) -> SourcedModel:
    """The network with so many classes, with random weights or those of a file; UserError for another variant."""
    if not rest.isdecimal():
        raise UserError(f"pocket:{rest}: must be pocket:CLASSES with a whole number")
    with reproducible_weights():
        module = Pocket(int(rest))
    notes = () if weights is None else load_weights(weights, module, f"{weights} for pocket:{rest}")
    return SourcedModel(module=module, preprocessing=None, notes=notes, output_kinds=CLASSIFIER)
