"""Targets averaged over an image and its mirror image: better than the teacher's own, and no dearer in training.

A network's mean over an image and its mirror image is usually better than the network. Half a training batch are
images, the other half the same ones mirrored: one pass of the teacher gives the logits of both, and the student
learns their mean on both [ours].
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_mirror_images(images: Tensor) -> Tensor:
    """Images [B, C, H, W] and, behind them, their left-right mirror images: [2B, C, H, W] in the same layout."""
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return torch.cat((images, images.flip(3))).contiguous(memory_format=layout)


def mean_of_mirrored(outputs: Tensor) -> Tensor:
    """Replace logits [2B, K] of images and their mirror images by the mean of both, at both places."""
    images, mirrored = outputs.chunk(2)
    return ((images + mirrored) / 2).repeat(2, 1)
