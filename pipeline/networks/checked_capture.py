"""Capture a network and hold its graph against it; where its code is for one image alone, at one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.proof.module_and_graph import check_first_link, wide_images
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.probe_images import noise, probe_images
from pipeline.tools.randomness import generator_for


def checked_capture(
    module: nn.Module, preprocessing: Preprocessing, *, source: str, static_batch: int | None = None
) -> tuple[GraphModule, Tensor]:
    """A module's graph over a free batch size, and random images [2, C, H, W] for which it gives numbers.

    The graph computes what the module does on random images of a wide range. A module that does not take several
    images, or gives them other answers than alone, is captured at one image where `static_batch` is 1: its graph gives
    each image of a batch the module's answer for it alone. `source` names the network in errors.

    Raises:
        UserError: the network cannot be captured, or its graph is not what it computes; the line names --static-batch 1
            where that is a way round.
    """
    try:
        return _checked(module, preprocessing, source, one_image=False)
    except UserError as refusal:
        try:
            alone = _checked(module, preprocessing, source, one_image=True)
        except UserError as second:
            raise (second if static_batch == 1 else refusal) from None
        if static_batch == 1:
            return alone
        raise UserError(
            f"{refusal}. One image at a time it can be taken: --static-batch 1 makes a model of batch 1 alone"
        ) from refusal


def of_one_image(source: str) -> str:
    """What to tell of a network that was captured at one image."""
    return (
        f"{source}: its code is for one image at a time: captured so, and trained with batches in which every image has"
        " the answer that the network gives it alone"
    )


def _checked(
    module: nn.Module, preprocessing: Preprocessing, source: str, *, one_image: bool
) -> tuple[GraphModule, Tensor]:
    p = preprocessing
    captured = capture(module, noise(p, "fold check"), source=source, one_image=one_image)
    example = probe_images(module, captured, p, "fold check", source=source)
    wide = wide_images((p.channels, p.height, p.width), generator_for(0, "first link"))
    check_first_link(module, captured, torch.cat([example[:1], wide]), source=source, shown="random images")
    return captured, example
