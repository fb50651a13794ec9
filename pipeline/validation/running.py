"""A runtime's runner as a column of outputs, whatever batch size its model takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from backends.base import Runner
from calibration.errors import UserError
from pipeline.validation.score import Outputs


def runner_outputs(runner: Runner, fixed: int | None) -> Outputs:
    """A function from normalised images float32 [B, C, H, W] to all outputs [B, ...].

    `fixed`: the only batch size that the model takes; images run in groups of it, the last one filled up by repetition.
    """

    def run(images: Tensor) -> list[Tensor]:
        if fixed is None:
            return [torch.from_numpy(np.asarray(output)) for output in runner.run(images.numpy())]
        parts = []
        for group in torch.split(images, fixed):
            outputs = runner.run(filled_up(group, fixed).numpy())
            parts.append([np.asarray(output)[: len(group)] for output in outputs])
        return [torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True)]

    return run


def filled_up(images: Tensor, size: int) -> Tensor:
    """Images [B, C, H, W], repeated until there are `size`; a larger batch is cut."""
    return torch.from_numpy(np.resize(images.numpy(), (size, *images.shape[1:])))


def latency_batch(asked: int, fixed: int | None) -> tuple[int, tuple[str, ...]]:
    """The batch size that latency is measured at, and what to say about it.

    Raises UserError for one that the model does not take; 1, the default, gives way to it.
    """
    if fixed is None or asked == fixed:
        return asked, ()
    if asked != 1:
        raise UserError(f"--batch {asked}: the model takes batches of {fixed} alone (--static-batch)")
    return fixed, (f"latency is measured at batch {fixed}, the only one that the model takes (--static-batch)",)
