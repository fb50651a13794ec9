"""Images of a step: by the numbers that a network's maps hold, by memory, and by how many images there are."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import faqd
from pipeline.distillation.training.batch import (
    BUDGET_BYTES,
    BYTES_PER_NUMBER,
    memory_of,
    numbers_per_image,
    resolve_batch_size,
)


def test_numbers_of_all_maps_by_hand() -> None:
    """Images 3 * 8 * 8, a map 4 * 8 * 8 and its ReLU, one of 4 * 4 * 4, its mean over positions, two classes."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), *head)
    network = faqd.capture(module.eval(), image_size=8, mean=(0.5,), std=(0.25,))
    by_hand = 3 * 64 + 2 * 4 * 64 + 4 * 16 + 2
    flat = 2 * 4  # the mean, and the same as a row
    assert numbers_per_image(network.folded) == by_hand + flat


@pytest.mark.parametrize(
    ("images", "numbers", "memory", "expected"),
    [
        (5000, 200_000, None, 128),  # CIFAR's ResNets: as published
        (5000, 200_000, 16 * 2**30, 128),
        (93, 200_000, None, 32),  # half of them, as a power of two
        (20, 200_000, None, 16),
        (5, 200_000, None, 5),
        (1, 200_000, None, 1),
        (5000, BUDGET_BYTES // BYTES_PER_NUMBER // 5, None, 4),  # room for five
        (5000, BUDGET_BYTES, None, 1),  # for none: one must do
        (5000, BUDGET_BYTES // BYTES_PER_NUMBER // 64, 10 * 2**30, 32),  # half the budget: a quarter of 10 GiB
    ],
)
def test_default_by_images_and_memory(images: int, numbers: int, memory: int | None, expected: int) -> None:
    assert resolve_batch_size(None, images=images, numbers=numbers, memory=memory) == expected


def test_what_a_loss_needs_and_what_is_typed() -> None:
    assert resolve_batch_size(None, images=100, numbers=BUDGET_BYTES, least=3) == 3
    assert resolve_batch_size(512, images=1000, numbers=BUDGET_BYTES) == 512
    assert resolve_batch_size(512, images=100, numbers=1) == 100


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the system does not say how much memory it has")
def test_memory_is_at_most_what_the_machine_has() -> None:
    memory = memory_of(torch.device("cpu"))
    assert memory is not None and 0 < memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
