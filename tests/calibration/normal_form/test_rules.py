"""There is one way to say each thing after capture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.graph.operators import clip_bounds, is_non_negative, kind, tensor_inputs

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

REWRITTEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "convolution with zeros around": (lambda n, x: F.conv2d(x, n.a.weight, padding="same"), ["conv"]),
    "convolution without": (lambda n, x: F.conv2d(x, n.a.weight, padding="valid"), ["conv"]),
    "view": (lambda n, x: n.a(x).view(-1, 2, 128), ["conv", "reshape"]),
    "channel shuffle": (
        lambda n, x: n.a(x).view(-1, 2, 2, 8, 8).transpose(1, 2).contiguous().view(-1, 4, 8, 8),
        ["conv", "channel_shuffle"],
    ),
    "transposition that is no shuffle": (
        lambda n, x: n.a(x).view(-1, 2, 2, 8, 8).transpose(1, 2).contiguous().view(-1, 4, 64),
        ["conv", "reshape", "transpose", "reshape"],
    ),
    "zero padding": (lambda n, x: F.pad(n.a(x), (1, 2, 0, 1)), ["conv", "pad"]),
    "other padding": (lambda n, x: F.pad(n.a(x), (1, 2, 0, 1), value=0.5), ["conv", "pad"]),
    "reflection": (lambda n, x: F.pad(n.a(x), (1, 2, 0, 1), mode="reflect"), ["conv", "mirror_pad"]),
    "clamp from zero": (lambda n, x: n.a(x).clamp(min=0), ["conv", "relu"]),
    "clamp_min to zero": (lambda n, x: n.a(x).clamp_min(0.0), ["conv", "relu"]),
    "clamp on both sides": (lambda n, x: n.a(x).clamp(0, 6), ["conv", "clip"]),
    "clamp from one": (lambda n, x: n.a(x).clamp(1), ["conv", "clip"]),
    "add": (lambda n, x: torch.add(n.a(x), x[:, :1]), ["conv", "slice", "add"]),
    "add with factor": (lambda n, x: torch.add(n.a(x), x[:, :1], alpha=-2), ["conv", "slice", "mul", "add"]),
    "add number with factor": (lambda n, x: torch.add(n.a(x), 3.0, alpha=-2), ["conv", "add"]),
    "sub with factor": (lambda n, x: torch.sub(n.a(x), x[:, :1], alpha=0.5), ["conv", "slice", "mul", "sub"]),
    "number minus tensor": (lambda n, x: 1 - n.a(x), ["conv", "mul", "add"]),
    "tensor minus tensor": (lambda n, x: torch.rsub(n.a(x), x[:, :1], alpha=2), ["conv", "slice", "mul", "add"]),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_operators_are_rewritten_to_their_normal_form(name: str, net: MakeNet, noise: Noise) -> None:
    compute, kinds = REWRITTEN[name]
    module = net(compute, a=nn.Conv2d(3, 4, 3, padding=1)).eval()
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    assert [kind(node) for node in graph_module.graph.nodes if node.op == "call_function"] == kinds
    images = noise(3, 3, 8, 8, seed=1)
    torch.testing.assert_close(graph_module(images)[0], module(images))
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            assert node.meta["val"].shape[1:] == _shape_of(graph_module, node.name, images)[1:]


NEUTRAL: dict[str, Callable[[Any, Any], Any]] = {
    "leaky ReLU over one": lambda n, x: F.leaky_relu(n.a(x), 0.2) / 1.0,
    "normalisation over one": lambda n, x: n.a((x * 255 - 127.5) / 1.0),
    "sum of a list of one quotient": lambda n, x: sum([n.a(x) / (x[:, :1] + 9)]),
    "sum of ReLUs": lambda n, x: sum(torch.relu(n.a(x * i)) for i in (1, 2)),
    "difference and zero": lambda n, x: n.a(x) - x[:, :1] + 0,
    "sum over one": lambda n, x: (n.a(x) + 2.0) / 1.0,
    "sum less zero": lambda n, x: (n.a(x) + x[:, :1]) - 0,
    "ReLU times one": lambda n, x: torch.relu(n.a(x)) * 1.0,
    "one over": lambda n, x: 1 / (torch.sigmoid(n.a(x)) * 9.99 + 0.01),
    "the same tensor, read again": lambda n, x: (lambda y: (y / 1) + (y * 1) * y + y)(n.a(x) - 3),
    "hard sigmoid over one": lambda n, x: (F.relu6(n.a(x) + 3) / 6) / 1,
    "reshape of a reshape to what it was": lambda n, x: n.a(x).reshape(-1, 256).reshape(-1, 4, 8, 8) * 1,
    "mask times one": lambda n, x: n.a(x) + n.a.bias.new_ones(4, 1, 1).to(torch.bool) * 1,
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_changes_nothing_changes_nothing(name: str, net: MakeNet, noise: Noise) -> None:
    module = net(NEUTRAL[name], a=nn.Conv2d(3, 4, 3, padding=1)).eval()
    graph_module, images = capture(module, noise(2, 3, 8, 8), source="test"), noise(3, 3, 8, 8, seed=1)
    torch.testing.assert_close(graph_module(images)[0], module(images))


def _shape_of(graph_module: torch.fx.GraphModule, name: str, images: Tensor) -> torch.Size:
    values: dict[str, Tensor] = {}

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    Keeping(graph_module, garbage_collect_values=False).run(images)
    return values[name].shape


@pytest.mark.parametrize("smaller_first", [False, True])
def test_of_two_tensors_the_larger_one_is_first_in_a_sum(smaller_first: bool, net: MakeNet, noise: Noise) -> None:
    def compute(n: Any, x: Tensor) -> Tensor:
        large = n.a(x)
        small = F.adaptive_avg_pool2d(large, 1)
        result: Tensor = small + large if smaller_first else large + small
        return result

    module, images = net(compute, a=nn.Conv2d(3, 4, 3)).eval(), noise(2, 3, 8, 8)
    graph_module = capture(module, images, source="test")
    (addition,) = [node for node in graph_module.graph.nodes if kind(node) == "add"]
    assert [source.name for source in tensor_inputs(addition)] == ["a", "adaptive_avg_pool2d"]
    torch.testing.assert_close(graph_module(images)[0], module(images))


def test_a_tensor_that_is_read_twice_is_two_inputs(net: MakeNet, noise: Noise) -> None:
    graph_module = capture(net(lambda n, x: x + x), noise(2, 3, 8, 8), source="test")
    (addition,) = [node for node in graph_module.graph.nodes if kind(node) == "add"]
    assert [node.name for node in tensor_inputs(addition)] == ["x", "x"]


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda n, x: torch.relu(x), True),
        (lambda n, x: F.relu6(x), True),
        (lambda n, x: x.clamp(0.5, 1), True),
        (lambda n, x: x.clamp(-0.5, 1), False),
        (lambda n, x: torch.sigmoid(x), True),
        (lambda n, x: F.leaky_relu(x), False),
        (lambda n, x: F.max_pool2d(torch.relu(x), 2), True),
        (lambda n, x: F.avg_pool2d(x, 2), False),
        (lambda n, x: torch.relu(x) + torch.sigmoid(x), True),
        (lambda n, x: torch.relu(x) + x, False),
        (lambda n, x: torch.relu(x) + 1.0, False),
        (lambda n, x: torch.add(torch.relu(x), torch.relu(x), alpha=-1), False),
        (lambda n, x: torch.relu(x) * torch.relu(x), True),
        (lambda n, x: torch.cat([torch.relu(x), x], 1), False),
        (lambda n, x: torch.cat([torch.relu(x), torch.sigmoid(x)], 1), True),
        (lambda n, x: F.pad(torch.relu(x), (1, 1), value=-1.0), False),
        (lambda n, x: F.pad(torch.relu(x), (1, 1), value=1.0), True),
        (lambda n, x: F.pad(torch.relu(x), (1, 1, 1, 1), mode="reflect"), True),
        (lambda n, x: torch.relu(x).chunk(3, 1)[1], True),
        (lambda n, x: x.flatten(1), False),
    ],
)
def test_what_cannot_be_negative(
    compute: Callable[[Any, Tensor], Tensor], expected: bool, net: MakeNet, noise: Noise
) -> None:
    graph_module = capture(net(compute), noise(2, 3, 8, 8), source="test")
    (results,) = next(node for node in graph_module.graph.nodes if node.op == "output").args
    assert isinstance(results, tuple) and isinstance(results[0], torch.fx.Node)
    assert is_non_negative(results[0]) is expected


@pytest.mark.parametrize(
    ("compute", "bounds"),
    [
        (lambda n, x: F.relu6(x), (0.0, 6.0)),
        (lambda n, x: F.hardtanh(x, -2, 3), (-2.0, 3.0)),
        (lambda n, x: x.clamp(max=3), (-float("inf"), 3.0)),
        (lambda n, x: x.clamp_min(0.5), (0.5, float("inf"))),
        (lambda n, x: x.clamp(-1, 2.5), (-1.0, 2.5)),
    ],
)
def test_bounds_of_clips(
    compute: Callable[[Any, Tensor], Tensor], bounds: tuple[float, float], net: MakeNet, noise: Noise
) -> None:
    graph_module = capture(net(compute), noise(2, 3, 8, 8), source="test")
    (clip,) = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    assert kind(clip) == "clip" and clip_bounds(clip) == bounds
