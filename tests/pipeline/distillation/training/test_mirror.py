"""Targets averaged over mirror images, and the batches that hold both."""

from __future__ import annotations

import pytest
import torch

from pipeline.distillation.training.mirror import mean_of_mirrored, with_mirror_images


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_followed_by_its_mirror_images_in_its_own_layout(layout: torch.memory_format) -> None:
    images = torch.randn((3, 4, 5, 6), generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)

    both = with_mirror_images(images)

    assert torch.equal(both[:3], images)
    for column in range(6):
        assert torch.equal(both[3:, :, :, column], images[:, :, :, 5 - column])
    assert both.is_contiguous(memory_format=layout)


def test_the_mean_by_hand() -> None:
    outputs = torch.tensor([[1.0, 2.0], [4.0, 0.0], [3.0, -2.0], [0.0, 1.0]])

    assert mean_of_mirrored(outputs).tolist() == [[2.0, 0.0], [2.0, 0.5], [2.0, 0.0], [2.0, 0.5]]


def test_outputs_that_mirroring_does_not_change_stay_as_they_are() -> None:
    outputs = torch.randn((4, 7), generator=torch.Generator().manual_seed(1)).repeat(2, 1)

    assert torch.equal(mean_of_mirrored(outputs), outputs)
