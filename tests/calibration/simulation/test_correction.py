"""Corrected statistics: the float layers' means and spreads, the same integers of the weights, nothing else touched."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from backends.facts.onnxruntime_rules import X64
from backends.facts.profile import Profile
from calibration.errors import UserError
from calibration.ranges.observation import choose_ranges, observe
from calibration.simulation.correction import Corrections, FloatStatistics, _factor, find_corrections
from calibration.simulation.insert import insert
from tests.calibration.conftest import BuildChain, Chain, MakeNet, Noise, Trained
from tests.one_line_net import c3, residual, shared_layer, values_of


def correct(made: Chain) -> Corrections:
    """The corrections of a chain from its own images, applied to its network."""
    corrections = find_corrections(made.prepared.eval(), made.folded, [made.images])
    corrections.apply(made.prepared)
    return corrections


def error(made: Chain) -> float:
    return float((made.simulate()[0] - made.float_outputs()[0]).square().mean())


def rounded_outputs(made: Chain) -> dict[str, Tensor]:
    """What every 3 x 3 convolution of rounded maps and weights gives, by ordinary arithmetic in float64."""
    values, network, sums = values_of(made.prepared.eval().graph, made.images), made.prepared, {}
    for placement in made.plan.weights:
        layer = next(node for node in made.folded.graph.nodes if node.name == placement.layer)
        source, weight, bias = layer.args[0].name, layer.args[1].target, layer.args[2].target
        maps = values[network.integers[source]].double() * network.tensor_grids[source].scale().double()
        grid, stored = network.weight_grid(weight), network.graph.get_parameter(weight)
        weights = grid(stored).double() * grid.scale().double().reshape(-1, 1, 1, 1)
        sums[placement.layer] = functional.conv2d(
            maps, weights, network.graph.get_parameter(bias).double(), padding=1
        ).detach()
    return sums


@pytest.mark.parametrize("bits", [4, 2, 1])
def test_every_layer_has_the_float_layers_mean_and_spread(
    bits: int, chain: BuildChain, net: MakeNet, noise: Noise
) -> None:
    layers = {"a": c3(3, 12), "b": c3(12, 12), "c": c3(12, 12), "d": c3(12, 8)}
    made = chain(net(residual, **layers), noise(16, 3, 8, 8), bits=bits)
    before = error(made)
    corrections = correct(made)

    assert corrections.biases.keys() == {f"{name}.bias" for name in layers}
    # The first and the last layer have 8 bits, which keep the spread.
    assert corrections.factors.keys() == {"b.weight", "c.weight"}
    floats = values_of(made.folded, made.images)
    for name, real in rounded_outputs(made).items():
        real_outputs = floats[name].double()
        # Biases are rounded to steps of the sums, in this layer and in those before it.
        torch.testing.assert_close(real.mean((0, 2, 3)), real_outputs.mean((0, 2, 3)), rtol=0, atol=1e-3)
        if f"{name}.weight" in corrections.factors:
            torch.testing.assert_close(
                real.std((0, 2, 3), correction=0), real_outputs.std((0, 2, 3), correction=0), rtol=2e-3, atol=0
            )
    assert error(made) < before


def test_a_number_by_hand(chain: BuildChain, net: MakeNet) -> None:
    """One weight of 2 bits after a layer that passes its image on: 0, 1, 2, 3 times 3 and 1 of 2 steps."""
    layers = {name: nn.Conv2d(1, 1, 1) for name in "abc"}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.fill_(1.0)
            layer.bias.zero_()  # type: ignore[union-attr]  # a layer that is made with one
        layers["b"].weight.fill_(3.0)
        layers["b"].bias.fill_(5.0)  # type: ignore[union-attr]  # as above
    images = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 2, 2).repeat(2, 1, 1, 1)
    made = chain(net(lambda n, x: n.c(n.b(n.a(x))), **layers), images, bits=2, trained=True)
    grid = made.prepared.weight_grid("b.weight")
    grid.log_scale.data.fill_(0.0)  # the weight 3 is clipped to one step of 1
    corrections = correct(made)
    # Rounded, the layer gives x + 5: mean 6.5, spread s of x. Wanted are 3 x + 5: mean 9.5, spread 3 s.
    torch.testing.assert_close(corrections.factors["b.weight"], torch.tensor([3.0]), rtol=1e-2, atol=0)
    torch.testing.assert_close(corrections.biases["b.bias"], torch.tensor([5.0]), rtol=1e-2, atol=0)


def test_no_integer_of_a_weight_moves(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    layers = {"a": c3(3, 8), "b": c3(8, 8), "c": c3(8, 4)}
    made = chain(net(lambda n, x: n.c(n.b(n.a(x).relu()).relu()), **layers), noise(8, 3, 8, 8), bits=2)
    network = made.prepared
    before = {path: grid(network.graph.get_parameter(path)) for path, grid in network.weight_grids().items()}
    factors = correct(made).factors
    assert (factors["b.weight"] - 1).abs().max() > 0.05
    for path, grid in network.weight_grids().items():
        assert torch.equal(grid(network.graph.get_parameter(path)), before[path])


def test_what_the_float_network_gives_is_computed_once_for_several_students(
    chain: BuildChain, net: MakeNet, noise: Noise
) -> None:
    layers = {"a": c3(3, 8), "b": c3(8, 4)}
    made = chain(net(lambda n, x: n.b(n.a(x).relu()), **layers), noise(8, 3, 8, 8), bits=8)
    network, batches, known = made.prepared.eval(), list(torch.split(made.images, 4)), FloatStatistics()
    alone = find_corrections(network, made.folded, batches)
    for _ in range(2):
        shared = find_corrections(network, made.folded, batches, known=known)
        assert all(torch.equal(values, alone.biases[name]) for name, values in shared.biases.items())
    assert [of_batch.keys() for of_batch in known] == [{"a", "b"}] * 2
    # What was kept is what is read, batch by batch: means that are 1 more ask for a bias that is.
    for of_batch in known:
        mean, deviation = of_batch["b"]
        of_batch["b"] = mean + 1, deviation
    moved = find_corrections(network, made.folded, batches, known=known)
    assert torch.allclose(moved.biases["b.bias"], alone.biases["b.bias"] + 1, atol=1e-5)


def test_the_float_network_shares_nothing_that_is_corrected(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    layers = {"a": c3(3, 8), "b": c3(8, 8), "c": c3(8, 4)}
    made = chain(net(lambda n, x: n.c(n.b(n.a(x).relu()).relu()), **layers), noise(8, 3, 8, 8), bits=4)
    ranges = choose_ranges(observe(made.folded, made.plan, [made.images]), made.plan, "auto")
    kept = copy.deepcopy(made.folded.state_dict())
    shared = insert(made.folded, made.plan, ranges, shared=True).eval()
    corrections = find_corrections(shared, made.folded, [made.images])
    corrections.apply(shared)

    assert all(torch.equal(value, kept[name]) for name, value in made.folded.state_dict().items())
    places = {name: value.data_ptr() for name, value in made.folded.state_dict().items()}
    own = {name: value.data_ptr() for name, value in shared.graph.state_dict().items() if name in places}
    assert {name for name in own if own[name] == places[name]} == {"a.weight", "c.weight"}
    again = find_corrections(insert(made.folded, made.plan, ranges).eval(), made.folded, [made.images])
    assert torch.equal(corrections.biases["b.bias"], again.biases["b.bias"])


def test_batches_are_averaged_by_their_images(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    layers = {"a": c3(3, 8), "b": c3(8, 8), "c": c3(8, 4)}
    made = chain(net(lambda n, x: n.c(n.b(n.a(x).relu()).relu()), **layers), noise(8, 3, 8, 8), bits=4)
    network, parts = made.prepared.eval(), [made.images[:6], made.images[6:]]
    both = find_corrections(network, made.folded, parts)
    first, second = (find_corrections(network, made.folded, [part]) for part in parts)
    for path, factor in both.factors.items():
        torch.testing.assert_close(factor, (6 * first.factors[path] + 2 * second.factors[path]) / 8)


def test_a_channel_that_is_switched_off_stays_so(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    layers = {"a": c3(3, 8), "b": c3(8, 8), "c": c3(8, 4)}
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.copy_(noise(*layer.weight.shape) * 0.2)
        layers["b"].weight[3] = 0.0
    made = chain(net(lambda n, x: n.c(n.b(n.a(x).relu()).relu()), **layers), noise(8, 3, 8, 8), bits=2, trained=True)
    corrections = correct(made)
    assert corrections.factors["b.weight"][3] == 1
    assert all(torch.isfinite(values).all() for values in (*corrections.factors.values(), *corrections.biases.values()))


def shared_bias(n: Any, x: Tensor) -> Tensor:
    y = functional.conv2d(n.a(x).relu(), n.b.weight, n.b.bias, padding=1).relu()
    return n.d(functional.conv2d(y, n.c.weight, n.b.bias, padding=1).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("compute", "second", "biases", "factors"),
    [
        (shared_layer, c3(8, 8), {"a.bias", "d.bias"}, set()),
        (shared_bias, c3(8, 8), {"a.bias", "d.bias"}, {"b.weight", "c.weight"}),
        (lambda n, x: n.d(n.b(n.a(x).relu()).relu()), c3(8, 8, bias=False), {"a.bias", "d.bias"}, set()),
    ],
    ids=["weight and bias", "bias", "no bias"],
)
def test_what_layers_share_and_what_is_not_there_is_left(
    compute: Any,
    second: nn.Module,
    biases: set[str],
    factors: set[str],
    chain: BuildChain,
    net: MakeNet,
    noise: Noise,
) -> None:
    layers = {"a": c3(3, 8), "b": second, "c": c3(8, 8), "d": c3(8, 4)}
    corrections = correct(chain(net(compute, **layers), noise(8, 3, 8, 8), bits=4))
    assert corrections.biases.keys() == biases and corrections.factors.keys() <= factors


def test_linear_layers_over_tokens(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    layers = {"a": c3(3, 8), "b": nn.Linear(8, 16), "c": nn.Linear(16, 8), "d": nn.Linear(8, 5)}
    made = chain(
        net(lambda n, x: n.d(n.c(n.b(n.a(x).flatten(2).transpose(1, 2)).relu()).relu().mean(1)), **layers),
        noise(32, 3, 8, 8),
        bits=2,
    )
    before = error(made)
    corrections = correct(made)
    assert corrections.factors.keys() == {"b.weight", "c.weight"}
    assert corrections.biases.keys() == {f"{n}.bias" for n in "abcd"}
    assert error(made) < before
    assert torch.equal(made.oracle()[0], made.simulate()[0])


@pytest.mark.parametrize("profile", [X64, "tensorrt"])
def test_a_trained_network_comes_much_nearer(profile: Profile | str, chain: BuildChain, resnet20: Trained) -> None:
    """Integer biases (ONNX Runtime) and float ones (TensorRT); judged on images that corrected nothing."""
    made = chain(resnet20.module, resnet20.images[:128], profile, bits=4, trained=True)
    before, others = error(made), resnet20.images[128:]
    correct(made)
    few = replace(made, images=made.images[:16])
    assert torch.equal(few.oracle()[0], few.simulate()[0])
    with torch.no_grad():
        expected, after = made.folded(others)[0], made.prepared(others)[0]
    assert float((after - expected).square().mean()) < 0.25 * before


def test_a_division_by_what_is_rounded_to_nothing_is_named(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    def divides(n: Any, x: Tensor) -> Tensor:
        maps = n.a(x)
        shares: Tensor = n.b(torch.where(maps.abs() > 0.5, 1 / maps, maps))
        return shares

    made = chain(net(divides, a=c3(3, 8), b=c3(8, 8)), noise(4, 3, 8, 8))
    with pytest.raises(
        UserError, match=r"^b: what this layer reads is NaN or infinite once the network is quan.*e-3\)$"
    ):
        correct(made)


def test_a_spread_is_changed_by_four_at_most_and_not_where_a_channel_is_switched_off() -> None:
    """Deviations of the float network over those of the student; a hundred-thousandth of the largest is none."""
    float_deviations = torch.tensor([1.0, 2.0, 9.0, 1.0, 1e-5, 1.0])
    measured = torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0, 9e-5])
    assert _factor(float_deviations, measured).tolist() == [1, 2, 4, 0.25, 1, 1]
