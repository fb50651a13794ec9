"""PACT's way of learning: the scale's gradient comes from clipped values alone, everything else stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.ranges.observation import choose_ranges, observe
from calibration.simulation.clipping import ClippedScales
from calibration.simulation.insert import insert
from calibration.simulation.learned_grids import ActivationGrid
from calibration.simulation.normalised_training import Normalisation
from calibration.simulation.prepared import OPERATIONS, PreparedNetwork
from tests.one_line_net import folded_with_seed, small_images


class Net(nn.Module):
    """Two convolutions with an addition between their maps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.second(x)).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def folded() -> GraphModule:
    return folded_with_seed(Net)


@pytest.fixture
def network(folded: GraphModule) -> PreparedNetwork:
    plan = place(folded, X64, Widths(weights=8))
    return insert(folded, plan, choose_ranges(observe(folded, plan, [small_images(1)]), plan, "minmax")).train()


def scale_gradients(network: PreparedNetwork, batch: Tensor) -> dict[str, float]:
    network.zero_grad()
    torch.autograd.backward(network(batch)[0].square().sum())
    return {
        name.removesuffix("_grid.log_scale"): float(grid.grad) if grid.grad is not None else 0.0
        for name, grid in network.activation_grids.named_parameters()
    }


def test_a_scale_that_clips_nothing_does_not_learn(network: PreparedNetwork) -> None:
    batch = small_images(1)  # the very images of the ranges
    for grid in network.activation_grids.children():
        assert isinstance(grid, ActivationGrid)
        grid.log_scale.data += 0.1
    by_lsq = scale_gradients(network, batch)
    ClippedScales(network)
    by_pact = scale_gradients(network, batch)
    assert all(abs(value) > 0 for value in by_lsq.values())
    # A grid that begins at zero has zeros at that end, and zeros do not move with a scale.
    assert all(value == 0 for value in by_pact.values())


def test_the_gradient_is_that_of_the_clipped_values_by_hand(network: PreparedNetwork) -> None:
    batch, (group, grid) = small_images(1), next(iter(network.activation_grids.items()))
    assert isinstance(grid, ActivationGrid)
    grid.log_scale.data -= 1.0  # the first grid, of the images: now it clips
    clipped = ClippedScales(network)
    with torch.no_grad():
        integers = (batch / grid.scale()).round().clamp(grid.lowest, grid.highest)
        at_end = (integers == grid.highest) | (integers == grid.lowest)
    assert 0 < int(at_end.sum()) < at_end.numel()
    gradient = scale_gradients(network, batch)[group.removesuffix("_grid")]

    # dL/d log s = sum over the clipped of dL/dy * y, y the values that the integers stand for; dL/dy by a probe.
    probe = torch.ones_like(batch, requires_grad=True)
    operations = network.graph.get_submodule(OPERATIONS)
    rounding = operations.get_submodule(f"{group.removesuffix('_grid')}_quantise")
    hook = rounding.register_forward_hook(lambda module, arguments, output: output * probe)
    torch.autograd.backward(network(batch)[0].square().sum())
    hook.remove()
    assert probe.grad is not None
    assert gradient == pytest.approx(float((probe.grad * at_end).sum()), rel=1e-4)
    clipped.settle()


def test_values_and_all_other_gradients_stay(network: PreparedNetwork) -> None:
    other, batch = copy.deepcopy(network), small_images(2)
    ClippedScales(other)
    outputs = []
    for one in (network, other):
        one.zero_grad()
        outputs.append(one(batch)[0])
        torch.autograd.backward(outputs[-1].square().sum())
    assert torch.equal(*outputs)
    for mine, theirs in zip(network.graph.named_parameters(), other.graph.named_parameters(), strict=True):
        if "log_scale" not in mine[0] and mine[1].grad is not None and theirs[1].grad is not None:
            torch.testing.assert_close(mine[1].grad, theirs[1].grad)


def test_it_settles_to_the_ordinary_way(network: PreparedNetwork) -> None:
    batch = small_images(2)
    before = scale_gradients(network, batch)
    ClippedScales(network).settle()
    assert scale_gradients(network, batch) == before


def test_it_reaches_the_rounding_behind_a_normalisation(network: PreparedNetwork, folded: GraphModule) -> None:
    normalisation = Normalisation(network, folded)
    normalisation.begin([small_images(1)])
    ClippedScales(network)
    narrow = [grid for grid in network.activation_grids.children() if isinstance(grid, ActivationGrid)]
    for grid in narrow:
        grid.log_scale.data -= 1.0
    assert all(value != 0 for value in scale_gradients(network, small_images(2)).values())
