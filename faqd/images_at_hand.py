"""Images in hand through a runtime: what `Artifact.run` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.base import Backend
from backends.onnx_file.serialised import Serialised
from calibration.errors import UserError
from pipeline.images.batches import images_at_once
from pipeline.images.data import open_held, open_images, ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.sources.image_source import ImageSource
from pipeline.validation.running import runner_outputs
from pipeline.validation.subject import fixed_batch_of

AT_HAND = "images at hand"
"""What images are called that have no name as on the command line."""

_BATCH = 64


def run_model(
    backend: Backend,
    model: Serialised,
    images: Any,
    preprocessing: Preprocessing,
    names: Sequence[str],
    *,
    threads: int,
    any_size: bool = False,
) -> Mapping[str, NDArray[np.float32]]:
    """The outputs of these names for images of any form; see `faqd.results.Artifact.run`. `any_size`: it is free."""
    if (absent := backend.unavailable()) is not None:
        raise UserError(absent)
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UserError(f"run(threads={threads!r}): must be a whole number, at least 1")
    parts = list[list[Tensor]]()
    with backend.runner(model, threads=threads) as runner:
        outputs = runner_outputs(runner, fixed_batch_of(model))
        for batch in normalised_batches(images, preprocessing, any_size=any_size):
            parts.append(outputs(batch))
    columns = [torch.cat(part).numpy() for part in zip(*parts, strict=True)]
    return dict(zip(names, columns, strict=True))


def normalised_batches(images: Any, preprocessing: Preprocessing, *, any_size: bool = False) -> list[Tensor]:
    """Images of any form as batches float32 [B, C, H, W], in their order.

    Raises UserError for images of another form, and where one cannot be read.
    """
    size = images_at_once(preprocessing, _BATCH)
    array = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if isinstance(array, Tensor) and array.is_floating_point():
        return list(torch.split(_normalised(array, preprocessing, any_size=any_size), size))
    source = opened_source(images, preprocessing)
    indices = np.arange(len(source), dtype=np.int64)
    batches = [
        normalise(batch.images, preprocessing)
        for batch in ordered_batches(source, indices, preprocessing, batch_size=size)
    ]
    if (broken := source.unreadable.summary()) is not None:
        raise UserError(f"{source.name}: {broken}: leave them out, so that there is an answer for each image")
    return batches


def opened_source(images: Any, preprocessing: Preprocessing) -> ImageSource:
    """The open source of images that are named as on the command line, or at hand."""
    if isinstance(images, str):
        return open_images(images, preprocessing)
    if hasattr(images, "__fspath__"):
        return open_images(str(images.__fspath__()), preprocessing)
    return open_held(images, preprocessing, where=AT_HAND).images


def _normalised(images: Tensor, p: Preprocessing, *, any_size: bool) -> Tensor:
    """Float images as they are, if they are what the network takes."""
    other_size = not any_size and tuple(images.shape[2:]) != (p.height, p.width)
    if images.ndim != 4 or images.shape[1] != p.channels or 0 in images.shape or other_size:
        raise UserError(
            f"images are {str(images.dtype).removeprefix('torch.')} {list(images.shape)}: normalised images must be"
            f" float32 [batch, {p.channels}, {p.height}, {p.width}]; unnormalised ones uint8, which are prepared here"
        )
    return images.detach().to(device="cpu", dtype=torch.float32)
