"""Random images on which graphs of one network are compared: such as the network has numbers for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.errors import UserError
from calibration.ranges.finite import all_finite, first_not_finite
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.tools.randomness import generator_for

_COUNT = 2


def noise(preprocessing: Preprocessing, purpose: str) -> Tensor:
    """Normal noise of the size of the network's images, float32 [2, C, H, W]."""
    p = preprocessing
    return torch.randn((_COUNT, p.channels, p.height, p.width), generator=generator_for(0, purpose))


def probe_images(captured: GraphModule, preprocessing: Preprocessing, purpose: str, *, source: str) -> Tensor:
    """Normal noise, or random pixels where the network has no numbers for that, float32 [2, C, H, W].

    Roots, logarithms and powers of pixel values are NaN below 0, where no image is: there the images are of pixels
    from 1 to 254, normalised as images are. What becomes of 0 and 255 the run's own images show.

    Raises:
        UserError: outputs are NaN or infinite for such pixels too; `source` names the network.
    """
    images = noise(preprocessing, purpose)
    if all_finite(captured, images):
        return images
    generator = generator_for(0, f"{purpose}, pixels")
    pixels = torch.randint(1, 255, images.shape, generator=generator, dtype=torch.uint8)
    images = normalise(pixels, preprocessing)
    check_finite(captured, images, source=source, shown="random pixels from 1 to 254")
    return images


def check_finite(captured: GraphModule, images: Tensor, *, source: str, shown: str) -> None:
    """Raise UserError where outputs for images [B, C, H, W], which `shown` names, are NaN or infinite."""
    if all_finite(captured, images):
        return
    raise UserError(
        f"{source}: the network gives NaN or infinity for {shown} ({first_not_finite(captured, images)}): there is"
        " nothing to compare or to learn; are --mean and --std those that it was trained with, and its weights sound?"
    )
