"""Losses of all outputs, of a batch and of each of its images."""

from __future__ import annotations

import pytest
import torch

from pipeline.distillation.losses.of_outputs import image_losses, output_loss
from pipeline.networks.outputs.meaning import Output


@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 4)])
def test_the_mean_over_images_of_values_is_the_batchs_loss(shape: tuple[int, ...]) -> None:
    mine, theirs = torch.randn((2, 5, *shape), generator=torch.Generator().manual_seed(0))
    outputs = [Output(name="depth", shape=shape, holds="values", axis=1)]

    losses = image_losses([mine], [theirs], outputs, no_logits)

    assert losses.shape == (5,)
    assert float(losses.mean()) == pytest.approx(float(output_loss([mine], [theirs], outputs, no_logits)), rel=1e-5)


def no_logits(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    raise AssertionError("no output holds classes")
