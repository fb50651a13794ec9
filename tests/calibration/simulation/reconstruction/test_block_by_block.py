"""Reconstructed networks: nearer to the float one, on the grids of the plan, and the same whatever the scales are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.simulation.prepared import PreparedNetwork
from calibration.simulation.reconstruction.block_by_block import BlockChange, Reconstructing, bytes_per_image
from calibration.simulation.reconstruction.reconstruction import Reconstruction
from tests.calibration.conftest import BuildChain, Chain, MakeNet, Noise, Trained
from tests.one_line_net import c3, residual, shared_layer

LAYERS = {"a": (3, 12), "b": (12, 12), "c": (12, 12), "d": (12, 8)}


def reconstructed(made: Chain, network: PreparedNetwork) -> tuple[list[BlockChange], Reconstruction]:
    work = Reconstructing(network, made.folded, made.images)
    changes = [work.reconstruct(block, torch.Generator().manual_seed(i)) for i, block in enumerate(work.blocks)]
    return changes, work.changes()


def error(made: Chain, network: PreparedNetwork, images: Tensor) -> float:
    with torch.no_grad():
        return float((network.eval()(images)[0] - made.folded(images)[0]).square().mean())


@pytest.fixture
def made(chain: BuildChain, net: MakeNet, noise: Noise) -> Chain:
    torch.manual_seed(0)
    return chain(net(residual, **{name: c3(*sizes) for name, sizes in LAYERS.items()}), noise(64, 3, 8, 8), bits=3)


def test_it_comes_nearer_on_images_that_it_never_saw(made: Chain, noise: Noise) -> None:
    others = noise(16, 3, 8, 8, seed=1)
    before = error(made, made.prepared, others)
    changes, _ = reconstructed(made, network := copy.deepcopy(made.prepared))
    assert error(made, network, others) < 0.7 * before
    assert sum(change.layers for change in changes) == 4
    assert all(change.after < change.before for change in changes)


def test_what_runs_is_what_was_found(made: Chain) -> None:
    flags = [parameter.requires_grad for parameter in made.prepared.parameters()]
    reconstructed(made, made.prepared)
    assert [parameter.requires_grad for parameter in made.prepared.parameters()] == flags
    for simulated, exact in zip(made.simulate(), made.oracle(), strict=True):
        assert torch.equal(simulated, exact)


def test_its_changes_make_the_same_of_another_copy(made: Chain) -> None:
    other = copy.deepcopy(made.prepared)
    _, changes = reconstructed(made, made.prepared)
    kept = Reconstruction.of_tensors(changes.tensors())
    assert kept.not_in(other) is None
    kept.apply(other)
    for (name, one), two in zip(made.prepared.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_float_weights_stand_behind_the_integers_as_near_as_these_allow(made: Chain) -> None:
    rounded, learner = copy.deepcopy(made.prepared), copy.deepcopy(made.prepared)
    _, changes = reconstructed(made, made.prepared)
    changes.apply(rounded)
    changes.apply(learner, towards=made.folded)
    for path in changes.scales:
        grid, scale = learner.weight_grid(path), learner.weight_grid(path).scale()[:, None, None, None]
        weight, real = learner.graph.get_parameter(path), made.folded.get_parameter(path)
        assert torch.equal(grid(weight), rounded.weight_grid(path)(rounded.graph.get_parameter(path)))
        steps = (weight / scale - grid(weight)).abs()
        assert steps.max() <= 0.4901
        as_it_was = ((real / scale - grid(weight)).abs() <= 0.49) & (weight == real)
        assert torch.equal(as_it_was, steps < 0.4899)
        assert 0.2 < as_it_was.float().mean() < 1
    images = made.images[:4]
    with torch.no_grad():
        assert torch.equal(learner.eval()(images)[0], rounded.eval()(images)[0])


def test_what_is_another_network_s_is_named(made: Chain) -> None:
    _, changes = reconstructed(made, made.prepared)
    path, values = next(iter(changes.constants.items()))
    assert Reconstruction(constants={path: values[:1]}).not_in(made.prepared) == path
    assert Reconstruction(scales={"z.weight": values}).not_in(made.prepared) == "z.weight"
    assert Reconstruction.of_tensors({path: values}).not_in(made.prepared) is None
    assert Reconstruction.of_tensors({"constant z": values}).not_in(made.prepared) == "z"
    assert Reconstruction(constants={path: values.double()}).not_in(made.prepared) == path


def test_the_same_seeds_find_the_same(made: Chain) -> None:
    first, again = (reconstructed(made, copy.deepcopy(made.prepared))[1].tensors() for _ in range(2))
    assert all(torch.equal(values, again[name]) for name, values in first.items())


def test_how_weights_are_scaled_does_not_matter(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    """A layer times 128, the next divided by it: the same function, with the same integers."""

    def network(factor: float) -> nn.Module:
        torch.manual_seed(0)
        layers = {name: c3(*sizes) for name, sizes in LAYERS.items()}
        with torch.no_grad():
            for parameter in layers["b"].parameters():
                parameter.mul_(factor)
            layers["c"].weight.div_(factor)
        made: nn.Module = net(residual, **layers)
        return made

    outputs = []
    for factor in (1.0, 128.0):
        made = chain(network(factor), noise(32, 3, 8, 8), bits=3, trained=True)
        changes, _ = reconstructed(made, made.prepared)
        assert all(change.layers for change in changes)
        outputs.append(made.simulate()[0])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-4)


def test_a_block_that_comes_no_nearer_stays_as_it_was(made: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: value.clone() for name, value in made.prepared.state_dict().items()}

    def worse(self: Reconstructing, layer: Any, block: object, generator: object) -> None:
        layer.weight.mul_(-1)
        layer.grid.log_scale.add_(1)

    monkeypatch.setattr(Reconstructing, "_round", worse)
    changes, changed = reconstructed(made, made.prepared)
    assert [change.layers for change in changes] == [0] * len(changes)
    assert all(change.after == change.before for change in changes)
    assert not changed.tensors()
    assert all(torch.equal(value, before[name]) for name, value in made.prepared.state_dict().items())


def test_a_layer_that_runs_twice_stays_as_it_is(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    made = chain(net(shared_layer, a=c3(3, 4), b=c3(4, 4), d=c3(4, 2)), noise(16, 3, 8, 8), bits=3)
    _, changes = reconstructed(made, made.prepared)
    assert "b.weight" not in changes.constants
    assert "d.weight" in changes.constants


def test_layers_without_a_bias(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    layers = {name: c3(*sizes, bias=False) for name, sizes in LAYERS.items()}
    made = chain(net(residual, **layers), noise(64, 3, 8, 8), bits=3)
    others = noise(16, 3, 8, 8, seed=1)
    before = error(made, made.prepared, others)
    reconstructed(made, made.prepared)
    assert error(made, made.prepared, others) < before


def test_memory_of_an_image_by_hand(made: Chain) -> None:
    """64 places: 3 channels of the image in single precision; of the second block 12 that go in and 8 that come out."""
    work = Reconstructing(made.prepared, made.folded, made.images)
    assert bytes_per_image(made.folded, work.blocks) == 64 * (4 * 3 + 4 * 12 + 8 * 8)


def test_a_trained_network_at_two_bits(chain: BuildChain, digits: Trained, signal_to_noise: Any) -> None:
    made = chain(digits.module, digits.images[:64], bits=2, trained=True)
    others = digits.images[64:128]

    def ratio(network: PreparedNetwork) -> float:
        with torch.no_grad():
            measured: float = signal_to_noise(made.folded(others)[0], network.eval()(others)[0])
        return measured

    reconstructed(made, network := copy.deepcopy(made.prepared))
    assert ratio(network) > ratio(made.prepared) + 3
