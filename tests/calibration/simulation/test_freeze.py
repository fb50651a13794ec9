"""A frozen network holds the integers that the prepared one computes with."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from backends.facts.onnxruntime_rules import X64
from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.errors import UserError
from calibration.simulation.freeze import FrozenNetwork, freeze

if TYPE_CHECKING:
    from tests.calibration.conftest import BuildChain, Chain, MakeNet, Noise


@pytest.fixture(scope="module")
def trained(chain: BuildChain, net: MakeNet, noise: Noise) -> Chain:
    """A W4A8 network with float layers inside, after a few steps of training."""
    module = net(
        lambda n, x: n.fc(torch.tanh(n.c(torch.relu(n.b(torch.relu(n.a(x)))) * n.gain)).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 8, 3),
        c=nn.Conv2d(8, 8, 3, bias=False),
        fc=nn.Linear(8, 5),
    )
    module.register_parameter("gain", nn.Parameter(torch.linspace(0.5, 1.5, 8).reshape(8, 1, 1)))
    built = chain(module, noise(8, 3, 11, 11), X64, bits=4)
    optimiser = torch.optim.Adam(built.prepared.parameters(), lr=1e-3)
    for step in range(5):
        optimiser.zero_grad()
        built.prepared.train()(noise(8, 3, 11, 11, seed=step))[0].square().mean().backward()
        optimiser.step()
    return built


@pytest.fixture(scope="module")
def frozen(trained: Chain) -> FrozenNetwork:
    return freeze(trained.prepared, trained.folded)


def test_weights_lie_on_their_narrow_grids(trained: Chain, frozen: FrozenNetwork) -> None:
    assert {layer: weight.bits for layer, weight in frozen.weights.items()} == {"a": 8, "b": 4, "c": 4, "fc": 8}
    for layer, weight in frozen.weights.items():
        stored = dict(trained.prepared.graph.named_parameters())[f"{layer}.weight"].detach()
        assert weight.integers.dtype == np.int8 and weight.integers.shape == tuple(stored.shape)
        assert weight.scale.dtype == np.float32 and weight.scale.shape == (len(stored),) and weight.axis == 0
        assert np.abs(weight.integers).max() == 2 ** (weight.bits - 1) - 1
        step = torch.from_numpy(weight.scale).reshape(-1, *[1] * (stored.dim() - 1))
        error = (torch.from_numpy(weight.integers.astype(np.float32)) * step - stored).abs() / step
        clipped = torch.from_numpy(np.abs(weight.integers) == 2 ** (weight.bits - 1) - 1)
        assert float(error[~clipped].max()) <= 0.5 + 1e-4


def test_biases_are_int32_at_input_scale_times_weight_scale(trained: Chain, frozen: FrozenNetwork) -> None:
    inputs = {"a": "x", "b": "relu", "fc": "mean"}
    assert frozen.biases.keys() == inputs.keys()
    for layer, bias in frozen.biases.items():
        stored = dict(trained.prepared.graph.named_parameters())[f"{layer}.bias"].detach().numpy()
        assert bias.integers.dtype == np.int32 and bias.axis == 0
        np.testing.assert_array_equal(bias.scale, frozen.activations[inputs[layer]].scale * frozen.weights[layer].scale)
        np.testing.assert_array_equal(bias.integers, np.rint(stored / bias.scale).astype(np.int32))


def test_activations_have_the_learned_scales_and_fixed_zero_points(trained: Chain, frozen: FrozenNetwork) -> None:
    assert list(frozen.activations) == [placement.tensor for placement in trained.plan.activations]
    for placement in trained.plan.activations:
        grid, stored = trained.prepared.activation_grid(placement.group), frozen.activations[placement.tensor]
        assert stored.scale.dtype == np.float32 and stored.scale.shape == ()
        assert stored.scale == grid.scale().detach().numpy() and stored.zero_point == int(grid.zero_point)
        assert stored.signed is placement.grid.signed


def test_float_constants_are_the_trained_ones(trained: Chain, frozen: FrozenNetwork) -> None:
    learned = dict(trained.prepared.graph.named_parameters())
    for name, value in frozen.graph_module.named_parameters():
        assert torch.equal(value, learned[name])
        assert not torch.equal(value, trained.folded.get_parameter(name))
    assert "gain" in dict(frozen.graph_module.named_parameters())


@pytest.mark.parametrize("training", [True, False])
def test_freezing_changes_nothing(training: bool, trained: Chain, frozen: FrozenNetwork) -> None:
    """Neither a network that is copied to be read, nor one that is read as it is."""
    prepared, folded = trained.prepared.train(training), trained.folded
    before = copy.deepcopy([prepared.state_dict(), folded.state_dict()])
    again = freeze(prepared, folded)
    assert all(part.training == training for part in prepared.modules())
    for old, new in zip(before, (prepared.state_dict(), folded.state_dict()), strict=True):
        assert all(torch.equal(old[name], value) for name, value in new.items())
    assert again.weights.keys() == frozen.weights.keys() and again.biases.keys() == frozen.biases.keys()
    for layer, bias in again.biases.items():
        np.testing.assert_array_equal(bias.integers, frozen.biases[layer].integers)


def test_freezing_twice_gives_the_same(trained: Chain, frozen: FrozenNetwork) -> None:
    again = freeze(trained.prepared, trained.folded)
    for layer, weight in again.weights.items():
        np.testing.assert_array_equal(weight.integers, frozen.weights[layer].integers)
    assert again.plan == frozen.plan == trained.plan


# What cannot be frozen.


def test_a_bias_beyond_int32_is_refused_by_name(trained: Chain) -> None:
    prepared = copy.deepcopy(trained.prepared)
    with torch.no_grad():
        prepared.graph.get_parameter("b.bias")[3] = 1e9
    with pytest.raises(UserError, match=r"^b: its bias does not fit int32"):
        freeze(prepared, trained.folded)


def test_sums_beyond_int32_are_refused_by_name(trained: Chain) -> None:
    prepared = copy.deepcopy(trained.prepared)
    step = prepared.bias_integers("b").scale().detach()
    with torch.no_grad():
        # The bias alone still fits.
        prepared.graph.get_parameter("b.bias").copy_(step * (2**31 - 2**12))
    with pytest.raises(UserError, match=r"^b: its integer sums may reach 2147[0-9]+, beyond int32's 2147483647"):
        freeze(prepared, trained.folded)


@pytest.mark.parametrize("name", ["b.weight", "fc.bias", "gain"])
def test_values_that_are_not_finite_are_refused_by_name(name: str, trained: Chain) -> None:
    prepared = copy.deepcopy(trained.prepared)
    with torch.no_grad():
        prepared.graph.get_parameter(name).flatten()[0] = float("nan")
    with pytest.raises(UserError, match=f"^{name}: training has left values there that are not finite"):
        freeze(prepared, trained.folded)


def test_a_scale_that_is_not_finite_is_refused_by_name(trained: Chain) -> None:
    for change in ("activation", "weight"):
        prepared = copy.deepcopy(trained.prepared)
        grid = prepared.activation_grid("relu") if change == "activation" else prepared.weight_grid("b.weight")
        with torch.no_grad():
            grid.log_scale.fill_(float("nan"))
        what = "the scale of relu" if change == "activation" else "the weight scale of b"
        with pytest.raises(UserError, match=f"^{what}: training has left values"):
            freeze(prepared, trained.folded)


def test_weights_that_vanish_beside_their_bias_still_fit(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    # Folding a BatchNorm with a multiplier of almost zero leaves such channels in real networks.
    module = net(lambda n, x: n.b(torch.relu(n.a(x))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        for name in ("a", "b"):
            module.get_parameter(f"{name}.weight")[1] = 1e-12
            module.get_parameter(f"{name}.bias")[1] = 40.0
            module.get_parameter(f"{name}.weight")[2] = 0.0
    built = chain(module, noise(8, 3, 9, 9), trained=True)
    frozen = freeze(built.prepared, built.folded)
    for layer in ("a", "b"):
        assert 2**27 < abs(int(frozen.biases[layer].integers[1])) <= 2**28 + 1
        assert frozen.weights[layer].scale[2] == np.float32(SMALLEST_SCALE)
        assert not frozen.weights[layer].integers[1:3].any()
    assert torch.equal(built.simulate()[0], built.oracle()[0])
