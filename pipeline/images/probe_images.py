"""Random images on which graphs of one network are compared: such as the network has numbers for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.eager import Eager
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.ranges.finite import all_finite, first_not_finite
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.tools.randomness import generator_for

_COUNT = 2


def noise(preprocessing: Preprocessing, purpose: str) -> Tensor:
    """Normal noise of the size of the network's images, float32 [2, C, H, W]."""
    p = preprocessing
    return torch.randn((_COUNT, p.channels, p.height, p.width), generator=generator_for(0, purpose))


def probe_images(
    module: nn.Module, captured: GraphModule, preprocessing: Preprocessing, purpose: str, *, source: str
) -> Tensor:
    """Normal noise, or random pixels where a module's graph has no numbers for that, float32 [2, C, H, W].

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
    check_finite(module, captured, images, source=source, shown="random pixels from 1 to 254")
    return images


def check_finite(module: nn.Module, captured: GraphModule, images: Tensor, *, source: str, shown: str) -> None:
    """Raise UserError where a graph's outputs for images [B, C, H, W] are NaN or infinite; `shown` names the images.

    The line tells whether the `module` that was captured has numbers there.
    """
    if all_finite(captured, images):
        return
    where = first_not_finite(captured, images)
    eager = Eager(module, one_image=interface_of(captured).one_image)
    if all(bool(answer.isfinite().all()) for answer in eager(images)):
        raise UserError(
            f"{source}: the network gives numbers for {shown}, and its graph NaN or infinity ({where}): what"
            " torch.where or a mask leaves out is multiplied by 0 there, and NaN and infinity stay; keep them from"
            " arising, as in torch.where(x > 0, torch.log(x.clamp(min=1e-6)), 0)"
        )
    raise UserError(
        f"{source}: the network gives NaN or infinity for {shown} ({where}): there is nothing to compare or to learn;"
        " are --mean and --std those that it was trained with, and its weights sound?"
    )
