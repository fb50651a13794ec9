"""When two computations are the same: what rounding explains, where terms cancel as well, and what it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from calibration.graph.nearness import LARGEST_DIFFERENCE, LARGEST_FACTOR, apart, differing, sensitivity

Noise = Callable[..., Tensor]
EPSILON = torch.finfo(torch.float32).eps


def test_an_output_that_is_nothing_but_rounding_is_moved_by_rounding_alone(noise: Noise) -> None:
    """A softmax sums to 1: what is left after taking 1 away is rounding, another in every order of the sum."""

    def network(images: Tensor) -> list[Tensor]:
        return [images.softmax(1).sum(1, keepdim=True) - 1]

    images = noise(3, 64, 4, 4)
    plain = network(images)
    others = [images.flip(1).softmax(1).flip(1).cumsum(1)[:, -1:] - 1]
    assert apart(others[0], plain[0]) > 0.1
    assert differing(others, plain, network, images) == []
    wrong = [others[0] + 1e-3]
    assert [index for index, _ in differing(wrong, plain, network, images)] == [0]


def test_what_does_not_cancel_is_moved_by_next_to_nothing(noise: Noise) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten()).eval()
    images = noise(3, 3, 8, 8)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (moved,) = sensitivity(lambda shown: [network(shown.clone())], images, [network(images)])
    assert EPSILON / 8 < moved < LARGEST_DIFFERENCE / LARGEST_FACTOR
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_views_are_written_through_while_last_bits_are_random(noise: Noise) -> None:
    def network(images: Tensor) -> list[Tensor]:
        whole = images + 0
        whole.flatten(1).mul_(3)
        whole[:, 0] = 7
        return [whole - images]

    images = noise(2, 3, 4, 4)
    assert torch.allclose(network(images)[0][:, 1:], 2 * images[:, 1:], atol=1e-6)
    assert sensitivity(network, images, network(images))[0] < 8 * EPSILON


def test_rounding_is_held_against_the_values_that_are_compared(noise: Noise) -> None:
    """An image less the mean of its batch is exactly 0 alone: no difference from that is rounding."""

    def network(images: Tensor) -> list[Tensor]:
        return [images - images.mean(0, keepdim=True)]

    images = noise(2, 3, 4, 4)
    among, alone = [network(images)[0][:1]], network(images[:1])
    assert len(differing(alone, among, network, images[:1])) == 1


def test_chance_explains_nothing(noise: Noise) -> None:
    images = noise(2, 3, 4, 4)
    assert sensitivity(lambda shown: [shown + torch.rand(shown.shape)], images, [images]) == [0.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_apart_from_one(value: float) -> None:
    assert apart(torch.full((2, 3), value), torch.ones(2, 3)) == float("inf")
