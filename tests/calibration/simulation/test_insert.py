"""Prepared networks compute what their plans say: what the emitted file means, in integers, to the last bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import X64, X64_WITHOUT_VNNI
from backends.facts.profile import Profile
from calibration.arithmetic.integer_products import EXACT_IN_FLOAT32, LARGEST_ACTIVATION
from calibration.graph.interface import interface_of
from calibration.simulation.operations import RequantiseProduct
from calibration.simulation.prepared import OPERATIONS, PreparedNetwork
from tests.one_line_net import c3, residual, shared_layer, values_of

if TYPE_CHECKING:
    from tests.calibration.conftest import BuildChain, MakeNet, Noise, Trained

conv = nn.Conv2d
relu = torch.relu

Compute = Callable[[Any, Tensor], Any]


def gap(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def _attention(n: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).flatten(2) for layer in (n.a, n.b, n.c))
    weights = torch.softmax(q.transpose(1, 2) @ k, -1)
    result: Tensor = n.d((v @ weights.transpose(1, 2)).reshape(-1, 16, 9, 9))
    return result


def _squeeze_excite(n: Any, x: Tensor) -> Tensor:
    y = relu(n.a(x))
    result: Tensor = n.d(y * torch.sigmoid(n.c(relu(n.b(gap(y))))))
    return result


A, B, D = c3(3, 16), c3(16, 16), c3(16, 16)

#: Networks whose readers, outputs, operands or movement make insertion difficult.
EXACT: dict[str, tuple[Compute, dict[str, nn.Module]]] = {
    "conv read twice": (lambda n, x: n.b(y := n.a(x)) + n.d(y), {"a": A, "b": B, "d": D}),
    "conv read raw and rectified": (lambda n, x: n.b(relu(y := n.a(x))) + n.d(y), {"a": A, "b": B, "d": D}),
    "conv rectified and returned": (lambda n, x: (n.b(relu(y := n.a(x))), y), {"a": A, "b": B}),
    "relu read by a float operator": (lambda n, x: n.b(y := relu(n.a(x))) * torch.tanh(y), {"a": A, "b": B}),
    "two relus": (lambda n, x: n.b(relu(relu(n.a(x)))), {"a": A, "b": B}),
    "relu6": (lambda n, x: n.b(F.relu6(n.a(x))), {"a": A, "b": B}),
    "relu6 of a product": (lambda n, x: n.b(F.relu6(n.a(x) * 1.5)), {"a": A, "b": B}),
    "clip on both sides of zero": (lambda n, x: n.b(n.a(x).clamp(-0.5, 1)), {"a": A, "b": B}),
    "movement returned": (lambda n, x: F.max_pool2d(relu(n.a(x)), 2).flatten(1), {"a": A}),
    "input returned": (lambda n, x: (n.a(x), x, x.flatten(1)), {"a": A}),
    "one tensor returned twice": (lambda n, x: ((y := n.a(x)), y), {"a": A}),
    "no biases": (
        lambda n, x: n.fc(n.b(relu(n.a(x))).mean((2, 3))),
        {"a": c3(3, 16, bias=False), "b": c3(16, 16, bias=False), "fc": nn.Linear(16, 5, bias=False)},
    ),
    "linear layers over rows": (
        lambda n, x: n.o(relu(n.l(n.a(x).flatten(2).transpose(1, 2)))),
        {"a": A, "l": nn.Linear(16, 24), "o": nn.Linear(24, 5)},
    ),
    "matrix product of activations": (
        lambda n, x: n.d(relu(n.a(x) @ n.b(x).transpose(2, 3))),
        {"a": A, "b": c3(3, 16), "d": D},
    ),
    "matrix product returned": (lambda n, x: n.a(x) @ n.b(x), {"a": A, "b": c3(3, 16)}),
    "attention": (_attention, {"a": A, "b": c3(3, 16), "c": c3(3, 16), "d": D}),
    "number added": (lambda n, x: n.b(relu(n.a(x)) + 0.37), {"a": A, "b": B}),
    "constant added": (lambda n, x: n.b(n.a(x) + n.b.bias.view(1, 16, 1, 1)), {"a": A, "b": B}),
    "tensor added to itself": (lambda n, x: n.b((y := n.a(x)) + y), {"a": A, "b": B}),
    "tensor times itself": (lambda n, x: n.b((y := n.a(x)) * y), {"a": A, "b": B}),
    "difference": (lambda n, x: n.d(n.a(x) - n.b(x)), {"a": A, "b": c3(3, 16), "d": D}),
    "gate per channel": (lambda n, x: n.b((y := n.a(x)) * gap(y)), {"a": A, "b": B}),
    "gate per position": (
        lambda n, x: n.d(torch.sigmoid(n.b(x)) * n.a(x)),
        {"a": A, "b": c3(3, 1), "d": D},
    ),
    "small operand first": (lambda n, x: n.b(gap(y := n.a(x)) + y), {"a": A, "b": B}),
    "squeeze and excite": (
        _squeeze_excite,
        {"a": A, "b": conv(16, 16, 1), "c": conv(16, 16, 1), "d": D},
    ),
    "concat with the input": (lambda n, x: n.b(torch.cat([x, n.a(x)], 1)), {"a": A, "b": c3(19, 16)}),
    "concat of signed and rectified": (
        lambda n, x: n.d(torch.cat([relu(n.a(x)), n.b(x)], 1)),
        {"a": A, "b": c3(3, 16), "d": c3(32, 16)},
    ),
    "concat of relu and relu6": (
        lambda n, x: n.d(torch.cat([relu(n.a(x)), F.relu6(n.b(x))], 1)),
        {"a": A, "b": c3(3, 16), "d": c3(32, 16)},
    ),
    "concat of one tensor": (
        lambda n, x: n.d(torch.cat([(y := relu(n.a(x))), y], 1)),
        {"a": A, "d": c3(32, 16)},
    ),
    "concat with a float tensor": (
        lambda n, x: n.d(torch.cat([n.a(x), torch.tanh(n.b(x))], 1)),
        {"a": A, "b": c3(3, 16), "d": c3(32, 16)},
    ),
    "padding with a number": (
        lambda n, x: n.b(F.pad(relu(n.a(x)), (1, 1, 1, 1), value=0.7)),
        {"a": A, "b": c3(16, 16, padding=0)},
    ),
    "padding with zeros": (
        lambda n, x: n.b(F.pad(n.a(x), (1, 2, 0, 1))),
        {"a": A, "b": c3(16, 16, padding=0)},
    ),
    "padding by reflection": (
        lambda n, x: n.b(F.pad(n.a(x), (1, 1, 1, 1), mode="reflect")),
        {"a": A, "b": c3(16, 16, padding=0)},
    ),
    "pooling past the edge": (
        lambda n, x: n.b(F.max_pool2d(n.a(x), 3, 2, 1, ceil_mode=True)),
        {"a": A, "b": B},
    ),
    "layer called twice": (shared_layer, {"a": A, "b": B, "d": D}),
    "average pooling": (lambda n, x: n.b(F.avg_pool2d(relu(n.a(x)), 3, 2, 1)), {"a": A, "b": B}),
    "average pooling of signed": (
        lambda n, x: n.b(F.avg_pool2d(n.a(x), 2, ceil_mode=True, count_include_pad=False)),
        {"a": A, "b": B},
    ),
    "average pooling on a coarse grid": (
        lambda n, x: n.d(torch.cat([x + x, F.avg_pool2d(x, 3, 1, 1)], 1)),
        {"d": c3(6, 16)},
    ),
    "leaky relu": (lambda n, x: n.b(F.leaky_relu(n.a(x), 0.1)), {"a": A, "b": B}),
    "hard swish": (lambda n, x: n.b(F.hardswish(n.a(x))), {"a": A, "b": B}),
    "norms before activations": (
        lambda n, x: (y := n.a(x)) + n.d(relu(n.m(n.b(relu(n.k(y)))))),
        {"a": A, "k": nn.BatchNorm2d(16), "b": B, "m": nn.BatchNorm2d(16), "d": D},
    ),
    "residual": (residual, {"a": A, "b": B, "c": c3(16, 16), "d": D}),
    "norm of a vector": (
        lambda n, x: relu(n.k(n.fc(gap(n.a(x)).flatten(1)))),
        {"a": A, "fc": nn.Linear(16, 6), "k": nn.BatchNorm1d(6)},
    ),
    "halves of channels": (
        lambda n, x: n.b((y := n.a(x)).chunk(2, 1)[0]) + n.d(y.chunk(2, 1)[1]),
        {"a": A, "b": c3(8, 16), "d": c3(8, 16)},
    ),
    "half of the channels in float": (
        lambda n, x: (n.b((y := n.a(x)).chunk(2, 1)[0]), torch.tanh(y.chunk(2, 1)[1])),
        {"a": A, "b": c3(8, 16)},
    ),
    "slices and enlargements": (
        lambda n, x: n.b(F.interpolate(F.pixel_shuffle(n.a(x), 2)[:, :, 1:, ::2], scale_factor=2.0)),
        {"a": A, "b": c3(4, 16)},
    ),
    "depthwise, grouped, dilated": (
        lambda n, x: n.d(relu(n.c(relu(n.b(relu(n.a(x))))))),
        {"a": A, "b": c3(16, 16, groups=16), "c": c3(16, 32, groups=4), "d": c3(32, 8, dilation=2, stride=2)},
    ),
    "relu of the input": (lambda n, x: n.b(n.a(relu(x))), {"a": A, "b": B}),
    "modules named like methods": (
        lambda n, x: n.items_(n.keys(x) + n.values(x)),
        {"keys": A, "values": c3(3, 16), "items_": D},
    ),
}

#: Networks where an operator of the file is not one float operation of the module's.
CLOSE: dict[str, tuple[Compute, dict[str, nn.Module]]] = {
    "silu": (lambda n, x: n.b(F.silu(n.a(x))), {"a": A, "b": B}),
    "hard sigmoid": (lambda n, x: n.b(F.hardsigmoid(n.a(x))), {"a": A, "b": B}),
    "transposed and grouped": (
        lambda n, x: n.b(relu(n.t(relu(n.a(x))))),
        {"a": A, "t": nn.ConvTranspose2d(16, 16, 3, 2, 1, 1, groups=2), "b": B},
    ),
}


def without_gradients_missing(prepared: PreparedNetwork, images: Tensor) -> list[str]:
    """Names of the parameters that a training step does not reach."""
    outputs = prepared.train()(images)
    torch.autograd.backward(sum(output.square().mean() for output in outputs))
    return [name for name, parameter in prepared.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("variant", ["onnxruntime 8", "onnxruntime 4", "tensorrt 8"])
@pytest.mark.parametrize("name", [*EXACT, *CLOSE])
def test_the_simulation_is_what_the_file_means(
    name: str, variant: str, net: MakeNet, noise: Noise, chain: BuildChain, signal_to_noise: Callable[..., float]
) -> None:
    compute, layers = (EXACT | CLOSE)[name]
    profile, bits = variant.split()
    if name == "layer called twice" and bits == "4":
        layers = layers | {"a": c3(3, 16), "b": B, "d": D}
    built = chain(net(compute, **layers), noise(8, 3, 9, 9), profile, bits=int(bits))
    simulated, oracle, floats = built.simulate(), built.oracle(), built.float_outputs()
    assert interface_of(built.prepared.graph) == interface_of(built.folded)
    for ours, theirs, exact in zip(simulated, oracle, floats, strict=True):
        if name in EXACT:
            assert torch.equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        # What is simulated is an approximation of the network, not anything else.
        assert signal_to_noise(exact, ours) > (20 if bits == "8" else 12)
    trained = built.prepared.train()(built.images)
    for ours, exact in zip(trained, floats, strict=True):
        assert signal_to_noise(exact, ours.detach()) > (20 if bits == "8" else 12)
    assert without_gradients_missing(built.prepared, built.images) == []


# Weights within 63 have a bit less; signed grids spend a bit on the sign of what is never negative.
@pytest.mark.parametrize(("profile", "decibel"), [(X64, 30), (X64_WITHOUT_VNNI, 29), ("tensorrt", 26)])
def test_a_trained_network_loses_little(
    profile: Profile | str, decibel: float, resnet20: Trained, chain: BuildChain, signal_to_noise: Callable[..., float]
) -> None:
    built = chain(resnet20.module, resnet20.images, profile, trained=True)
    built = dataclasses.replace(built, images=resnet20.images[:32])
    (exact,), (simulated,) = built.float_outputs(), built.simulate()
    assert signal_to_noise(exact, simulated) > decibel
    assert torch.equal(simulated, built.oracle()[0])
    with torch.no_grad():
        (trained,) = built.prepared.train()(built.images)
    # In training a few roundings fall the other way, which changes less than quantisation itself does.
    assert signal_to_noise(simulated, trained) > signal_to_noise(exact, simulated)
    assert torch.equal(trained.argmax(1), simulated.argmax(1))


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_layers_beyond_two_to_the_24_are_exact(layer: str, net: MakeNet, noise: Noise, chain: BuildChain) -> None:
    # Weights of one sign and inputs in the upper half of their grid: sums that float32 cannot hold.
    if layer == "conv":
        module = net(lambda n, x: n.b(relu(n.a(x))), a=conv(3, 512, 1), b=conv(512, 8, 3))
    else:
        module = net(lambda n, x: n.b(relu(n.a(x.mean((2, 3))))), a=nn.Linear(3, 4608), b=nn.Linear(4608, 8))
    with torch.no_grad():
        for name in ("a.weight", "b.weight"):
            module.get_parameter(name).abs_().add_(0.05)
    built = chain(module, noise(6, 3, 8, 8).abs(), trained=True)
    grid, weight = built.prepared.weight_grid("b.weight"), built.prepared.graph.get_parameter("b.weight").detach()
    assert grid.eval()(weight).abs().flatten(1).sum(1).max() * LARGEST_ACTIVATION > 2 * EXACT_IN_FLOAT32
    (simulated,), (oracle,) = built.simulate(), built.oracle()
    assert torch.equal(simulated, oracle)
    assert len(torch.unique(simulated)) > 20


# Where quantisers are.


def nodes_of(prepared: PreparedNetwork) -> dict[str, torch.fx.Node]:
    return {node.name: node for node in prepared.graph.graph.nodes}


def test_a_tensor_that_only_some_read_rounded_stays_float_for_the_others(
    net: MakeNet, noise: Noise, chain: BuildChain, signal_to_noise: Callable[..., float]
) -> None:
    # TensorRT: of a residual addition only the skip branch is rounded.
    module = net(residual, a=c3(3, 16), b=c3(16, 16), c=c3(16, 16), d=c3(16, 16))
    built = chain(module, noise(8, 3, 9, 9), "tensorrt")
    placements = {placement.tensor: placement for placement in built.plan.activations}
    assert "c" not in placements and set(placements["relu"].readers) == {"b", "add"}
    nodes = nodes_of(built.prepared)
    assert [node.name for node in nodes["add"].all_input_nodes] == ["relu_dequantise", "c_rescale"]
    # The same, with a reader that wants the float values.
    relu_only = dataclasses.replace(placements["relu"], readers=("b",))
    plan = dataclasses.replace(
        built.plan, activations=tuple(relu_only if p.tensor == "relu" else p for p in built.plan.activations)
    )
    other = chain(module, noise(8, 3, 9, 9), plan=plan)
    assert [node.name for node in nodes_of(other.prepared)["add"].all_input_nodes] == ["relu", "c_rescale"]
    for one in (built, other):
        assert torch.equal(one.simulate()[0], one.oracle()[0])
    assert not torch.equal(built.simulate()[0], other.simulate()[0])


def test_a_conv_with_a_float_reader_is_rescaled_and_rounded_apart(
    net: MakeNet, noise: Noise, chain: BuildChain
) -> None:
    module = net(lambda n, x: n.b(y := n.a(x)) + torch.tanh(y), a=c3(3, 16), b=c3(16, 16))
    built = chain(module, noise(8, 3, 9, 9), "tensorrt")
    nodes = nodes_of(built.prepared)
    assert [node.name for node in nodes["tanh"].all_input_nodes] == ["a_rescale"]
    assert [node.name for node in nodes["a_quantise"].all_input_nodes] == ["a_rescale"]
    assert built.prepared.integers["a"] == "a_quantise"
    assert torch.equal(built.simulate()[0], built.oracle()[0])


def test_tensors_of_a_group_share_one_grid(net: MakeNet, noise: Noise, chain: BuildChain) -> None:
    module = net(lambda n, x: n.d(torch.cat([relu(n.a(x)), relu(n.b(x))], 1)), a=c3(3, 16), b=c3(3, 16), d=c3(32, 16))
    built = chain(module, noise(8, 3, 9, 9))
    groups = {placement.tensor: placement.group for placement in built.plan.activations}
    if groups["relu"] != groups["relu_1"]:  # the target's choice; then by a plan that shares
        shared = tuple(
            dataclasses.replace(placement, group="relu") if placement.tensor == "relu_1" else placement
            for placement in built.plan.activations
        )
        built = chain(module, noise(8, 3, 9, 9), plan=dataclasses.replace(built.plan, activations=shared))
    first, second = (built.prepared.graph.get_submodule(f"{OPERATIONS}.{name}_requantise") for name in ("a", "b"))
    assert isinstance(first, RequantiseProduct) and isinstance(second, RequantiseProduct)
    assert first._grids[0] is second._grids[0] is built.prepared.activation_grid("relu")
    assert len([name for name, _ in built.prepared.named_parameters() if "activation_grids" in name]) == len(
        {placement.group for placement in built.plan.activations}
    )


def test_layers_that_share_a_weight_share_its_grid_and_not_their_biases(
    net: MakeNet, noise: Noise, chain: BuildChain
) -> None:
    first, second = c3(16, 16), c3(16, 16)
    second.weight = first.weight
    module = net(lambda n, x: n.c(relu(n.b(relu(n.a(relu(n.i(x))))))), i=c3(3, 16), a=first, b=second, c=c3(16, 8))
    built = chain(module, noise(8, 3, 9, 9), bits=4)
    names = [name for name, _ in built.prepared.named_parameters()]
    assert len([name for name in names if name.endswith("weight_grid.log_scale") or "weight_integers" in name]) == 3
    assert {"graph.a.bias", "graph.b.bias"} <= set(names)
    assert built.prepared.bias_integers("a") is not built.prepared.bias_integers("b")
    assert torch.equal(built.simulate()[0], built.oracle()[0])


def test_rounded_tensors_are_found_by_their_names(
    net: MakeNet, noise: Noise, chain: BuildChain, signal_to_noise: Callable[..., float]
) -> None:
    built = chain(net(_squeeze_excite, **EXACT["squeeze and excite"][1]), noise(8, 3, 9, 9))
    original = values_of(built.folded, built.images)
    computed = values_of(built.prepared.eval().graph, built.images)
    assert built.prepared.integers.keys() >= {placement.tensor for placement in built.plan.activations}
    for placement in built.plan.activations:
        grid = built.prepared.activation_grid(placement.group)
        integers = computed[built.prepared.integers[placement.tensor]]
        assert torch.equal(integers, integers.round()) and grid.lowest <= int(integers.min()) <= int(integers.max())
        assert signal_to_noise(original[placement.tensor], integers * grid.scale().detach()) > 25
