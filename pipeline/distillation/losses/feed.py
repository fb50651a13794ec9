"""FEED: the student's last map, through a non-linear transform of its own per teacher, is to be that teacher's map.

Source: Park and Kwak, FEED, arXiv 1909.10754. The three 3x3 convolutions of a transform come from somebody else's
account of it; the weight beta was not recovered.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.1  # of LeakyReLU, from the same account as the three convolutions
# Keeps the division by an all but vanishing map finite.
_LENGTH_EPSILON = 1e-8


def feed_loss(transformed: Tensor, teacher: Tensor) -> Tensor:
    """|| g(x_teacher) - g(transformed) ||_1 averaged over the batch, g(x) = x flattened over its L2 norm.

    Args:
        transformed: the student's map behind its transform, [B, C, H, W], any floating type.
        teacher: [B, C, H', W'], a constant; resized bilinearly (align_corners) to H x W.

    Returns:
        Scalar, float32 (float64 for float64 maps), in [0, 2 sqrt(C H W)].

    Raises:
        ValueError: maps of other batch sizes or numbers of channels.

    Source: FEED, arXiv 1909.10754; the mean over the batch and the resizing are ours.
    """
    if transformed.ndim != 4 or teacher.ndim != 4 or transformed.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"maps [B, C, H, W] of one size are needed: {tuple(transformed.shape)}, {tuple(teacher.shape)}"
        )
    with torch.autocast(transformed.device.type, enabled=False):
        working = torch.promote_types(transformed.dtype, torch.float32)
        transformed, teacher = transformed.to(working), teacher.detach().to(working)
        if teacher.shape[2:] != transformed.shape[2:]:
            teacher = functional.interpolate(teacher, size=transformed.shape[2:], mode="bilinear", align_corners=True)
        return (_unit(transformed) - _unit(teacher)).abs().sum(1).mean()


def _unit(maps: Tensor) -> Tensor:
    flat = maps.flatten(1)
    return flat / flat.square().sum(1, keepdim=True).add(_LENGTH_EPSILON**2).sqrt()


def non_linear_transform(channels: int, teacher_channels: int, generator: torch.Generator) -> nn.Sequential:
    """Three 3x3 convolutions with LeakyReLU between them, [B, channels, H, W] to [B, teacher_channels, H, W]."""
    sizes = (channels, teacher_channels, teacher_channels, teacher_channels)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [seeded_conv(before, after, 3, generator), nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers[:-1])


def seeded_conv(channels: int, outputs: int, size: int, generator: torch.Generator) -> nn.Conv2d:
    """A convolution that keeps the map's size, its weights He-normal from the generator, its bias zero."""
    with torch.device("meta"):
        layer = nn.Conv2d(channels, outputs, size, padding=size // 2)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        nn.init.kaiming_normal_(layer.weight, generator=generator)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return layer
