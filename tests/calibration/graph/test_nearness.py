"""When two computations are the same: what rounding explains, where terms cancel as well, and what it does not."""

from __future__ import annotations

import math
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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_apart_from_all_but_itself(value: float) -> None:
    other, numbers = torch.tensor([[1.0, value, 2.0]]), torch.tensor([[1.0, 3.4e38, 2.0]])
    assert apart(other, numbers) == apart(numbers, other) == math.inf
    assert apart(other, other.clone()) == 0
    assert apart(other * torch.tensor([1.0, 1.0, 1.5]), other) == 0.5


def test_numbers_that_masks_have_hide_no_others() -> None:
    lowest = torch.finfo(torch.float32).min
    masked = torch.tensor([[1.0, lowest, 2.0]])
    assert apart(torch.tensor([[1.5, lowest, 2.0]]), masked) == 0.25
    assert apart(torch.tensor([[1.0, lowest / 2, 2.0]]), masked) == pytest.approx(0.5)
    assert apart(torch.tensor([[1.0, -2.0, 2.0]]), masked) == pytest.approx(1.0)
    assert apart(masked, torch.tensor([[1.0, -2.0, 2.0]])) > 1e30


def test_an_infinity_that_rounding_moves_explains_no_difference(noise: Noise) -> None:
    """Of numbers around 0 rounding decides the sign: infinities come and go, and what is wrong beside them stays."""

    def network(images: Tensor) -> list[Tensor]:
        rounding = images.softmax(1).sum(1, keepdim=True) - 1
        return [torch.cat([torch.where(rounding > 0, math.inf, 1.0), images], 1)]

    images = noise(2, 64, 8, 8)
    plain = network(images)
    assert sensitivity(network, images, plain) == [0.0]
    assert [index for index, _ in differing([plain[0] * 1.01], plain, network, images)] == [0]
