"""What the tests of the public face share: a small network of one's own, images at hand and the student of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import faqd


def pixels(count: int = 24, size: int = 16, channels: int = 3) -> NDArray[np.uint8]:
    """Random images [count, channels, size, size]."""
    return np.random.default_rng(0).integers(0, 256, (count, channels, size, size), np.uint8)


def small(classes: int = 4) -> nn.Module:
    """A classifier of images of any size, its weights the same each time."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return body.append(nn.Linear(8, classes)).eval()


@pytest.fixture(scope="session")
def network() -> faqd.Network:
    """It, captured."""
    return faqd.capture(small(), torch.zeros(2, 3, 16, 16), mean=(0.5,), std=(0.25,), name="small")


@pytest.fixture(scope="session")
def images(network: faqd.Network) -> faqd.Images:
    """24 images at hand, opened for it."""
    return faqd.open_images(pixels(), network)


@pytest.fixture(scope="session")
def student(network: faqd.Network, images: faqd.Images) -> faqd.Student:
    """It, calibrated on them; to be read and never trained."""
    return faqd.prepare(network, images)


@pytest.fixture(scope="session", autouse=True)
def quick_runs(little_time_for_latency: None, digits_captured_once: None, flags_assembled_once: None) -> None:
    """No test here is about times, nor about how the embedded network is captured or a tree of flags is made."""
