"""BatchNorm is gone from a folded graph, and the graph computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.graph.operators import kind, static_shape
from calibration.rewrites.fold import difference_of_graphs, fold

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

Resemble = Callable[[nn.Module], nn.Module]


def kinds(graph_module: GraphModule) -> list[str]:
    return [kind(node) for node in graph_module.graph.nodes if node.op == "call_function"]


def folded_from(module: nn.Module, images: Tensor, resemble_trained: Resemble) -> GraphModule:
    """The folded graph of a network, after comparing it with the captured one for three batch sizes."""
    captured = capture(resemble_trained(module), images[:2], source="test")
    before = {name: value.clone() for name, value in captured.state_dict().items()}
    folded = fold(captured)
    assert difference_of_graphs(captured, folded, images) <= 1e-5
    assert difference_of_graphs(captured, folded, images[:1]) <= 1e-5
    assert interface_of(folded) == interface_of(captured)
    assert all(torch.equal(before[name], value) for name, value in captured.state_dict().items())
    assert {name for name, _ in folded.named_parameters()}.isdisjoint({"bn.weight", "bn.bias"})
    return folded


LAYERS: dict[str, nn.Module] = {
    "conv": nn.Conv2d(3, 8, 3, padding=1),
    "conv without bias": nn.Conv2d(3, 8, 3, stride=2, bias=False),
    "same padding": nn.Conv2d(3, 8, (2, 4), padding="same"),
    "depthwise": nn.Conv2d(3, 6, 3, groups=3, bias=False),
    "transposed": nn.ConvTranspose2d(3, 8, 3, stride=2, bias=False),
    "transposed and grouped": nn.ConvTranspose2d(3, 6, 3, stride=2, padding=1, output_padding=1, groups=3),
    "dilated": nn.Conv2d(3, 8, 3, dilation=2),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_norm_is_folded_into_the_layer_before_it(
    name: str, net: MakeNet, noise: Noise, resemble_trained: Resemble
) -> None:
    layer = LAYERS[name]
    channels = layer.out_channels
    assert isinstance(channels, int)
    module = net(lambda n, x: torch.relu(n.bn(n.a(x))), a=layer, bn=nn.BatchNorm2d(channels, eps=1e-3))
    folded = folded_from(module, noise(5, 3, 9, 9), resemble_trained)
    assert kinds(folded) == [kinds(folded)[0], "relu"]
    assert set(dict(folded.named_parameters())) == {"a_folded.weight", "a_folded.bias"}


def test_grouped_convolutions_and_linear_layers_are_folded(
    net: MakeNet, noise: Noise, resemble_trained: Resemble
) -> None:
    module = net(
        lambda n, x: n.bn2(n.fc(n.bn1(n.b(n.a(x))).mean((2, 3)))),
        a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 8, 3, groups=2),
        bn1=nn.BatchNorm2d(8),
        fc=nn.Linear(8, 5, bias=False),
        bn2=nn.BatchNorm1d(5, affine=False),
    )
    folded = folded_from(module, noise(5, 3, 9, 9), resemble_trained)
    assert kinds(folded) == ["conv", "conv", "adaptive_average_pool", "reshape", "linear"]


def test_statistics_of_unlike_size_are_folded_exactly(net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.bn(n.a(x)), a=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8)).eval()
    norm = module.get_submodule("bn")
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and norm.running_mean is not None
    with torch.no_grad():
        norm.running_var.copy_(torch.logspace(-6, 4, 8))
        norm.running_mean.copy_(torch.linspace(-3, 3, 8))
        norm.weight.copy_(torch.tensor([1e-8, 0.0, -1.0, 2.0, 0.1, 30.0, 1.0, -5.0]))
    captured = capture(module, noise(2, 3, 9, 9), source="test")
    folded = fold(captured)
    images = noise(5, 3, 9, 9)
    with torch.no_grad():
        channels = list(zip(folded(images)[0].unbind(1), captured(images)[0].unbind(1), strict=True))
    for ours, theirs in channels:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


ALONE: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, nn.Module], list[str]]] = {
    "after a relu": (
        lambda n, x: n.bn(torch.relu(n.a(x))),
        {"a": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(8)},
        ["conv", "relu", "conv"],
    ),
    "first": (
        lambda n, x: n.a(n.bn(x)),
        {"a": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(3)},
        ["conv", "conv"],
    ),
    "layer read by another": (
        lambda n, x: torch.relu(n.bn(y := n.a(x))) + y,
        {"a": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(8)},
        ["conv", "conv", "relu", "add"],
    ),
    "two of one layer": (
        lambda n, x: torch.relu(n.bn(y := n.a(x))) + n.bn2(y),
        {"a": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(8)},
        ["conv", "conv", "relu", "conv", "add"],
    ),
    "layer called twice": (
        lambda n, x: n.bn(n.a(n.a(x))),
        {"a": nn.Conv2d(3, 3, 3), "bn": nn.BatchNorm2d(3)},
        ["conv", "conv", "conv"],
    ),
    "two in a row": (
        lambda n, x: n.bn2(n.bn(n.a(x))),
        {"a": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(8), "bn2": nn.BatchNorm2d(8)},
        ["conv"],
    ),
    "shared by two layers": (
        lambda n, x: torch.relu(n.bn(n.a(x))) + n.bn(n.b(x)),
        {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm2d(8)},
        ["conv", "relu", "conv", "add"],
    ),
    "of a vector": (
        lambda n, x: n.bn(torch.relu(n.a(x)).mean((2, 3))),
        {"a": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm1d(8)},
        ["conv", "relu", "adaptive_average_pool", "reshape", "reshape", "conv", "reshape"],
    ),
    "of rows": (
        lambda n, x: n.bn(n.a(x).flatten(2)),
        {"a": nn.Conv2d(3, 8, 3), "bn": nn.BatchNorm1d(8)},
        ["conv", "reshape", "reshape", "conv", "reshape"],
    ),
    "over tokens of a linear layer": (
        lambda n, x: n.bn(n.a(x.flatten(2))),
        {"a": nn.Linear(81, 8), "bn": nn.BatchNorm1d(3)},
        ["reshape", "linear", "reshape", "reshape", "conv", "reshape"],
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_a_batch_norm_without_a_layer_of_its_own_becomes_a_depthwise_convolution(
    name: str, net: MakeNet, noise: Noise, resemble_trained: Resemble
) -> None:
    compute, layers, expected = ALONE[name]
    folded = folded_from(net(compute, **layers), noise(5, 3, 9, 9), resemble_trained)
    assert kinds(folded) == expected
    if "two in a row" not in name and "shared" not in name:
        (layer,) = [node for node in folded.graph.nodes if node.name == "bn"]
        channels, *rest = static_shape(layer.args[1])
        assert kind(layer) == "conv" and rest == [1, 1, 1] and layer.args[6] == channels


def test_a_weight_shared_with_another_layer_is_left_alone(
    net: MakeNet, noise: Noise, resemble_trained: Resemble
) -> None:
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    second.weight = first.weight
    module = net(lambda n, x: n.bn(n.b(torch.relu(n.a(x)))), a=first, b=second, bn=nn.BatchNorm2d(3))
    folded = folded_from(module, noise(5, 3, 9, 9), resemble_trained)
    assert kinds(folded) == ["conv", "relu", "conv", "conv"]


def test_networks_of_torchvision_fold(noise: Noise, resemble_trained: Resemble) -> None:
    depthwise = torchvision.models.mobilenet_v2()
    before_activations = torchvision.models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=8)
    for module in (depthwise, before_activations):
        folded = folded_from(module, noise(3, 3, 64, 64), resemble_trained)
        assert "batch_norm" not in kinds(folded)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(8, track_running_stats=False), None], ids=["no statistics", "training for ever"]
)
def test_a_batch_norm_over_the_batch_is_refused(norm: nn.Module | None, net: MakeNet, noise: Noise) -> None:
    if norm is None:
        kept = nn.BatchNorm2d(8)
        module = net(
            lambda n, x: F.batch_norm(n.a(x), n.bn.running_mean, n.bn.running_var, training=True),
            a=nn.Conv2d(3, 8, 3),
            bn=kept,
        )
        name = "batch_norm"
    else:
        module, name = net(lambda n, x: n.bn(n.a(x)), a=nn.Conv2d(3, 8, 3), bn=norm), "bn"
    captured = capture(module, noise(2, 3, 9, 9), source="test")
    with pytest.raises(UserError, match=f"^{name}: a BatchNorm that normalises by the statistics of its batch"):
        fold(captured)


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda n, x: x.mean((2, 3)), ["adaptive_average_pool", "reshape"]),
        (lambda n, x: x.mean((-1, -2)), ["adaptive_average_pool", "reshape"]),
        (lambda n, x: x.mean((3, 2), keepdim=True), ["adaptive_average_pool"]),
        (lambda n, x: F.avg_pool2d(x, 9), ["adaptive_average_pool"]),
        (lambda n, x: F.avg_pool2d(x, x.shape[2:]), ["adaptive_average_pool"]),
        (lambda n, x: F.adaptive_avg_pool2d(x, 1), ["adaptive_average_pool"]),
        (lambda n, x: F.adaptive_avg_pool2d(x, (9, 9)) + 1, ["add"]),
        (lambda n, x: F.avg_pool2d(x, 3), ["average_pool"]),
        (lambda n, x: F.avg_pool2d(x, 9, padding=1), ["average_pool"]),
        (lambda n, x: F.avg_pool2d(x, 9, divisor_override=7), ["adaptive_average_pool", "mul"]),
        (lambda n, x: x.mean(1), ["mean"]),
        (lambda n, x: x.mean((1, 2, 3)), ["mean"]),
        (lambda n, x: x.flatten(2).mean(2), ["reshape", "mean"]),
        (lambda n, x: F.adaptive_avg_pool2d(x, 3), ["average_pool"]),
        (lambda n, x: F.adaptive_avg_pool2d(x, 4), ["adaptive_average_pool"]),
    ],
)
def test_averages_over_the_whole_map_have_one_form(
    compute: Callable[[Any, Tensor], Tensor],
    expected: list[str],
    net: MakeNet,
    noise: Noise,
    resemble_trained: Resemble,
) -> None:
    folded = folded_from(net(compute), noise(5, 3, 9, 9), resemble_trained)
    assert kinds(folded) == expected
    for node in folded.graph.nodes:
        if kind(node) == "adaptive_average_pool":
            assert static_shape(node)[2:] in {(1, 1), (4, 4)}
            assert node.name in {"mean", "avg_pool2d", "adaptive_avg_pool2d"}


def test_the_largest_difference_is_relative_to_the_first(net: MakeNet, noise: Noise) -> None:
    images = noise(2, 3, 4, 4)
    first = capture(net(lambda n, x: (x, x * 0)), images, source="test")
    second = capture(net(lambda n, x: (x * 1.5, x * 0)), images, source="test")
    assert difference_of_graphs(first, second, images) == pytest.approx(0.5)
    assert difference_of_graphs(first, first, images) == 0.0


def test_a_prelu_with_one_slope_becomes_a_leaky_relu(net: MakeNet, noise: Noise) -> None:
    one, several = nn.PReLU(init=0.2), nn.PReLU(8)
    module = net(lambda n, x: n.several(n.one(n.a(x))), a=nn.Conv2d(3, 8, 3), one=one, several=several).eval()
    images = noise(2, 3, 9, 9)
    folded = fold(capture(module, images, source="test"))
    assert kinds(folded) == ["conv", "leaky_relu", "prelu"]
    torch.testing.assert_close(folded(images)[0], module(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("before", [torch.relu, torch.sigmoid, F.relu6, lambda t: F.max_pool2d(torch.relu(t), 2)])
def test_a_relu_of_what_is_not_negative_disappears(
    before: Callable[[Tensor], Tensor], net: MakeNet, noise: Noise, resemble_trained: Resemble
) -> None:
    module = net(lambda n, x: n.b(torch.relu(before(n.a(x)))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1))
    folded = folded_from(module, noise(4, 3, 12, 12), resemble_trained)
    alone = net(lambda n, x: n.b(before(n.a(x))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1))
    assert kinds(folded) == kinds(folded_from(alone, noise(4, 3, 12, 12), resemble_trained))


def test_a_relu_of_what_may_be_negative_stays(net: MakeNet, noise: Noise, resemble_trained: Resemble) -> None:
    module = net(lambda n, x: n.b(torch.relu(F.leaky_relu(n.a(x)))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 1))
    assert kinds(folded_from(module, noise(4, 3, 12, 12), resemble_trained)) == ["conv", "leaky_relu", "relu", "conv"]


@pytest.mark.parametrize(
    "line",
    [
        lambda x: torch.cat([x.relu(), -torch.ones(1, 3, 1, 9).expand(len(x), -1, -1, -1)], 2),
        lambda x: (x > 0) * 1.0,
        lambda x: (x > 0) * -1.0,
    ],
)
def test_a_relu_of_constants_or_masks_is_kept(line: Any, net: MakeNet, noise: Noise) -> None:
    module, images = net(lambda n, x: F.relu(line(x))).eval(), noise(2, 3, 9, 9)
    captured = capture(module, images, source="test")
    torch.testing.assert_close(fold(captured)(images)[0], captured(images)[0])
