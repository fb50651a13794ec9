"""The optimiser: updates by hand, who decays and who does not, and the same state after a pause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config import DistillationConfig, QuantisationConfig
from pipeline.distillation.training.optimiser import (
    TRANSFORM_RATE,
    Rates,
    ScheduledOptimiser,
    optimiser_of_quantised,
)


class Network(nn.Module):
    """Two weights and the logarithm of a scale, as the optimiser sees a prepared network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.log_scale = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor(0.5))
        self.transform = nn.Parameter(torch.tensor(3.0))

    def scale_parameters(self, *, activations: bool, weights: bool) -> list[nn.Parameter]:
        return [self.log_scale] if activations else []

    def weight_parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def loss(self) -> torch.Tensor:
        return (3 * self.weight).sum() + 5 * self.log_scale + self.transform


def made(
    network: Network, *, units: Mapping[nn.Parameter, torch.Tensor] = MappingProxyType({}), **changes: Any
) -> ScheduledOptimiser:
    prepared: Any = network
    return optimiser_of_quantised(
        prepared,
        [network.transform],
        DistillationConfig(**changes),
        QuantisationConfig(),
        rates=Rates(weights=0.1, scales=0.01),
        steps=8,
        units=units,
    )


def stepped(count: int, **changes: Any) -> Network:
    network = Network()
    optimiser = made(network, **changes)
    for step in range(count):
        optimiser.update(network.loss(), step)
    return network


def test_sgd_with_momentum_by_hand() -> None:
    # Nesterov: v = 0.9 v + g, w -= rate (g + 0.9 v); the gradient is 3, the first rates are those of a cosine.
    network, v, expected = stepped(2, optimiser="sgd"), 0.0, [1.0, -2.0]
    for step in range(2):
        v = 0.9 * v + 3
        rate = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 8))
        expected = [w - rate * (3 + 0.9 * v) for w in expected]
    assert network.weight.tolist() == pytest.approx(expected, rel=1e-5)


def test_scales_and_transforms_learn_by_adam_beside_sgd() -> None:
    network = stepped(1, optimiser="sgd")
    # Adam's first step is the rate itself, whatever the gradient.
    assert float(network.log_scale.detach()) == pytest.approx(0.5 - 0.01, rel=1e-5)
    assert float(network.transform.detach()) == pytest.approx(3 - TRANSFORM_RATE, rel=1e-5)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_weights_alone_decay(optimiser: str) -> None:
    plain, decayed = stepped(1, optimiser=optimiser), stepped(1, optimiser=optimiser, weight_decay=0.5)
    change = (decayed.weight - plain.weight).tolist()
    # 0.1 x 0.5 x w, and with Nesterov's momentum 1.9 times that.
    factor = 1.9 if optimiser == "sgd" else 1.0
    assert change == pytest.approx([-0.05 * factor, 0.1 * factor], rel=1e-4)
    assert torch.equal(decayed.log_scale, plain.log_scale) and torch.equal(decayed.transform, plain.transform)


@pytest.mark.parametrize("changes", [{}, {"optimiser": "sgd"}, {"weight_decay": 0.1}], ids=str)
def test_it_goes_on_where_it_was(changes: dict[str, Any]) -> None:
    whole, network = stepped(5, **changes), stepped(0)
    optimiser = made(network, **changes)
    for step in range(2):
        optimiser.update(network.loss(), step)
    kept = {name: tensor.clone() for name, tensor in optimiser.tensors().items()}
    resumed = made(network, **changes)
    resumed.restore(kept | {"network.weight": torch.zeros(2)})
    for step in range(2, 5):
        resumed.update(network.loss(), step)
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), network.parameters(), strict=True))


def test_what_has_units_learns_as_what_they_multiply() -> None:
    """Weights a hundred times as large, read as a hundredth of them: the same function, and so the same steps."""
    plain, scaled, units = Network(), Network(), torch.tensor([100.0, 0.25])
    with torch.no_grad():
        scaled.weight.mul_(units)

    def loss(weight: torch.Tensor, network: Network) -> torch.Tensor:
        return (weight - 3).square().sum() + (network.log_scale - network.transform).square()

    optimisers = made(plain), made(scaled, units={scaled.weight: units})
    for step in range(5):
        optimisers[0].update(loss(plain.weight, plain), step)
        optimisers[1].update(loss(scaled.weight / units, scaled), step)
    assert (scaled.weight / units).tolist() == pytest.approx(plain.weight.tolist(), rel=1e-5)
    assert torch.equal(plain.log_scale, scaled.log_scale) and torch.equal(plain.transform, scaled.transform)


def test_the_rate_is_that_of_the_channel_and_sgd_has_one_for_all() -> None:
    for optimiser, moved in (("adam", [0.1, 1.0]), ("sgd", [0.1 * 3 * 1.9] * 2)):
        network = Network()
        stepping = made(network, units={network.weight: torch.tensor([1.0, 10.0])}, optimiser=optimiser)
        stepping.update(network.loss(), 0)
        expected = [1.0 - moved[0], -2.0 - moved[1]]
        assert network.weight.tolist() == pytest.approx(expected, rel=1e-5), optimiser
