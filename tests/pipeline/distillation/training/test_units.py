"""Units of learning: by hand, and the same steps for two forms of one function."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from backends.facts.onnxruntime_rules import host_profile
from calibration.simulation.prepared import PreparedNetwork
from pipeline.distillation.training.units import learning_units, units_of
from tests.chain import Steps, folded_graph, steps_of
from tests.one_line_net import Net, c3

IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_sizes_over_their_median() -> None:
    units = units_of({"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor(8.0)})
    assert {name: unit.tolist() for name, unit in units.items()} == {"a": [[0.5], [1.0]], "b": 4.0}
    assert units_of({}) == {}


@pytest.fixture
def two_forms() -> tuple[Steps, Steps]:
    """One function; in the second form the first layer's channels are 100 times as large, the other undoes it."""
    torch.manual_seed(0)
    first, second = c3(3, 8), c3(8, 4)
    larger, undoing = copy.deepcopy(first), copy.deepcopy(second)
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.mul_(100)
        undoing.weight.div_(100)
    plain, scaled = (
        steps_of(
            folded_graph(Net(lambda net, x: net.b(net.a(x).relu()), a=one, b=other), IMAGES[:2]), IMAGES, host_profile()
        )
        for one, other in ((first, second), (larger, undoing))
    )
    return plain, scaled


def one_step(made: Steps, rate: float) -> PreparedNetwork:
    """Every weight moved by a rate in its units, as Adam's first step does."""
    network = copy.deepcopy(made.prepared)
    units = learning_units(network, made.folded)
    with torch.no_grad():
        for path in network.weight_grids():
            weight = network.graph.get_parameter(path)
            weight.sub_(rate * units[weight])
    return network


def outputs(network: PreparedNetwork) -> Tensor:
    with torch.no_grad():
        values: Tensor = network.eval()(IMAGES)[0]
    return values


def test_units_follow_the_weights_scales(two_forms: tuple[Steps, Steps]) -> None:
    plain, scaled = ([*learning_units(made.prepared, made.folded).values()] for made in two_forms)
    assert [unit.shape for unit in plain] == [unit.shape for unit in scaled]
    assert [tuple(unit.shape) for unit in plain] == [(8, 1, 1, 1), (4, 1, 1, 1), (8,), (4,)]
    ratios = [float((large / small).mean()) for small, large in zip(plain, scaled, strict=True)]
    # The median has moved as well: what counts is that one layer's weights and biases go with its scales.
    assert ratios[0] / ratios[1] == pytest.approx(100 * 100, rel=1e-3)
    assert ratios[2] / ratios[3] == pytest.approx(100, rel=1e-3)


def test_the_same_function_takes_the_same_step(two_forms: tuple[Steps, Steps]) -> None:
    before = [outputs(made.prepared) for made in two_forms]
    medians = [float(_median(made)) for made in two_forms]
    rates = [1e-2 * median / medians[0] for median in medians]
    after = [outputs(one_step(made, rate)) for made, rate in zip(two_forms, rates, strict=True)]
    step = float(before[0].std()) / 100
    assert (before[0] - before[1]).abs().max() < step
    assert (after[0] - before[0]).abs().max() > 5 * step
    assert (after[0] - after[1]).abs().max() < step


def test_constants_of_the_code_learn_nothing() -> None:
    fixed = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    net = Net(lambda net, x: net.b(torch.conv2d(x, fixed, padding=1).relu()), b=c3(4, 2))
    made = steps_of(folded_graph(net, IMAGES[:2]), IMAGES, host_profile())
    assert len(made.prepared.weight_grids()) == 2
    assert sorted(unit.dim() for unit in learning_units(made.prepared, made.folded).values()) == [1, 4]


def _median(made: Steps) -> Tensor:
    grids = made.prepared.weight_grids().values()
    return torch.cat([grid.grid.quant_max * grid.scale().detach().flatten() for grid in grids]).median()
