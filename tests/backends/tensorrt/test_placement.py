"""Where TensorRT's profile rounds: rules 4 to 7 of runtimes.md, section F."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backends.facts.profile import LayerShape
from backends.facts.tensorrt_rules import SKIPPED, skip_layer
from backends.onnx_file.view import OnnxView
from calibration.errors import UserError
from tests.backends.conftest import KnownNetwork

Build = Callable[..., Any]
ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "BatchNormalization")


def activations_inside_roundings(view: OnnxView) -> list[str]:
    """Layers of a file whose output is rounded before an activation reads it."""
    names = []
    for node in filter(view.is_weighted, view.nodes):
        for quantise in view.readers(node.output[0]):
            dequantised = [r for q in view.readers(quantise.output[0]) for r in view.readers(q.output[0])]
            if quantise.op_type == "QuantizeLinear" and any(r.op_type in ACTIVATIONS for r in dequantised):
                names.append(node.name)
    return names


class Bottlenecks(nn.Module):
    """A projection block and an identity block, as in ResNet-50, with an activation of choice."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.activation = activation
        self.stem, self.project = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1)
        self.a1, self.a2 = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 32, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        f = self.activation
        x = f(self.stem(x))
        x = f(self.project(x) + self.norm(self.a2(f(self.a1(x)))))
        x = f(x + self.b2(f(self.b1(x))))
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


@pytest.mark.parametrize("activation", [torch.relu, nn.functional.silu, nn.functional.hardswish, torch.sigmoid])
def test_rule_4_only_inputs_are_rounded(activation: Callable[[Tensor], Tensor], build: Build) -> None:
    built = build(Bottlenecks(activation), "tensorrt")
    view = OnnxView(built.model())
    assert activations_inside_roundings(view) == []
    layers = [node for node in view.nodes if view.is_weighted(node)]
    assert len(layers) == 7
    for node in layers:
        assert view.dequantised(node, 0) is not None and view.dequantised(node, 1) is not None, node.name
    # Every activation is computed by the kernel before it: none is listed as a float operator of its own.
    assert built.plan.float_nodes == {}
    gates = [name for name in built.plan.absorbed if name.endswith(("_sigmoid", "_hardsigmoid"))]
    assert len(built.plan.absorbed) - len(gates) == 5


def test_rule_4_an_activation_needs_no_rounding_behind_it(build: Build) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.max_pool2d(torch.relu(self.a(x)), 2)
            return torch.relu(self.b(x))

    plan = build(Pooled(), "tensorrt").plan
    assert plan.absorbed == {"relu": "a", "relu_1": "b"}
    assert plan.float_nodes == {}
    assert [placement.tensor for placement in plan.activations] == ["x", "max_pool2d"]


def test_rule_4_a_swish_written_out_is_one_activation(build: Build) -> None:
    plan = build("swish", "tensorrt").plan
    assert plan.absorbed == {"sigmoid": "a", "mul": "a"}
    assert plan.float_nodes == {}
    gated = build("squeeze_excite", "tensorrt").plan
    assert "mul" in gated.float_nodes


def test_rule_5_the_skip_branch_alone_is_rounded(build: Build) -> None:
    view = OnnxView(build(Bottlenecks(), "tensorrt").model())
    additions = [node for node in view.nodes if node.op_type == "Add"]
    assert len(additions) == 2
    rounded = [[view.dequantised(node, position) is not None for position in (0, 1)] for node in additions]
    # Of two convolutions the one on the shorter way from the fork is the skip branch.
    assert rounded == [[True, False], [True, False]]
    assert view.producer(additions[0].input[1]).name == "a2"  # type: ignore[union-attr]
    assert view.producer(additions[1].input[1]).name == "b2"  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "additions"), [("resnet18", 8), ("mobilenet_v2", 10)])
def test_rule_5_on_known_networks(name: str, additions: int, build: Build, known_network: KnownNetwork) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    built = build(known_network(name), "tensorrt", inputs=images)
    view = OnnxView(built.model())
    sums = [node for node in view.nodes if node.op_type == "Add"]
    assert len(sums) == additions
    assert all(sum(view.dequantised(node, position) is not None for position in (0, 1)) == 1 for node in sums)
    assert activations_inside_roundings(view) == []
    assert built.plan.float_nodes == {}


def test_rule_5_an_addition_that_is_not_residual_stays_float(build: Build) -> None:
    # The convolution is itself what the other branch starts from (ConvNeXt's pattern).
    class NotResidual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            result: Tensor = self.b(y + torch.tanh(y))
            return result

    built = build(NotResidual(), "tensorrt")
    view = OnnxView(built.model())
    (addition,) = [node for node in view.nodes if node.op_type == "Add"]
    assert [view.dequantised(addition, position) for position in (0, 1)] == [None, None]
    assert "add" in built.plan.float_nodes


def test_rule_6_a_concatenation_has_one_scale(build: Build) -> None:
    built = build("dense", "tensorrt")
    groups = {placement.tensor: placement.group for placement in built.plan.activations}
    assert len(groups) > 2
    assert len({group for tensor, group in groups.items() if tensor != "x"}) == 1
    view = OnnxView(built.model())
    scales = {view.input(node, 1) for node in view.nodes if node.op_type == "QuantizeLinear" and node.input[0] != "x"}
    assert len(scales) == 1


def test_global_pooling_is_rounded_on_both_sides(build: Build) -> None:
    built = build("residual", "tensorrt")
    view = OnnxView(built.model())
    (pooling,) = [node for node in view.nodes if node.op_type == "GlobalAveragePool"]
    assert view.dequantised(pooling, 0) is not None
    # The rounding behind it is that of the linear layer: TensorRT moves it over the Flatten.
    (flatten,) = view.readers(pooling.output[0])
    (rounding,) = view.readers(flatten.output[0])
    assert (flatten.op_type, rounding.op_type) == ("Flatten", "QuantizeLinear")


def test_a_pooling_of_floats_is_left_alone(build: Build) -> None:
    class Floats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.softmax(self.a(x), 1)  # float, and so has no scale that the pooling could take part in
            result: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
            return result

    built = build(Floats(), "tensorrt")
    view = OnnxView(built.model())
    (pooling,) = [node for node in view.nodes if node.op_type == "GlobalAveragePool"]
    assert view.dequantised(pooling, 0) is None
    assert built.plan.float_nodes["adaptive_avg_pool2d"] == "its input is computed in float"


def test_a_pooled_gate_is_rounded_once(build: Build) -> None:
    view = OnnxView(build("squeeze_excite", "tensorrt").model())
    (pooling,) = [node for node in view.nodes if node.op_type == "GlobalAveragePool"]
    assert view.dequantised(pooling, 0) is not None
    assert [node.op_type for node in view.readers(pooling.output[0])] == ["QuantizeLinear"]


def test_results_stay_float(build: Build) -> None:
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.adaptive_avg_pool2d(torch.relu(self.a(x)), 1).flatten(1)

    view = OnnxView(build(Pools(), "tensorrt").model())
    assert view.producer("output").op_type == "Flatten"  # type: ignore[union-attr]
    assert sum(node.op_type == "QuantizeLinear" for node in view.nodes) == 2


def _conv(
    inputs: int, outputs: int, kernel: int | tuple[int, int] = 3, groups: int = 1, first: bool = False
) -> LayerShape:
    sizes = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    return LayerShape(kind="conv", inputs=inputs, outputs=outputs, kernel=sizes, groups=groups, first=first)


@pytest.mark.parametrize(
    ("layer", "integer"),
    [
        (_conv(64, 64), True),
        (_conv(16, 16, 1), True),
        (_conv(3, 64, 7, first=True), True),
        (_conv(3, 16, first=True), True),
        (_conv(3, 8, first=True), True),
        (_conv(3, 12, first=True), False),
        (_conv(3, 30, first=True), False),
        (_conv(3, 32), True),
        (_conv(8, 8), False),
        (_conv(8, 16), True),
        (_conv(16, 8), True),
        (_conv(12, 20), False),
        (_conv(8, 32, (1, 7)), False),
        (_conv(32, 32, (1, 7)), True),
        (_conv(1, 32, 3, groups=32), True),
        (_conv(1, 58, 3, groups=58), False),
        (_conv(1, 32, 1, groups=32), False),
        (_conv(4, 128, 3, groups=32), True),
        (_conv(4, 128, (1, 3), groups=32), False),
        (_conv(16, 64, 1, groups=4), True),
        (LayerShape(kind="linear", inputs=512, outputs=1000), True),
        (LayerShape(kind="linear", inputs=512, outputs=1), False),
        (LayerShape(kind="linear", inputs=512, outputs=1000, rows=1), False),
        (LayerShape(kind="linear", inputs=8, outputs=8, rows=64), True),
        (LayerShape(kind="conv_transpose", inputs=16, outputs=16, kernel=(2, 2)), True),
        (LayerShape(kind="conv_transpose", inputs=8, outputs=8, kernel=(2, 2)), False),
    ],
)
def test_rule_7_the_table_of_shapes(layer: LayerShape, integer: bool) -> None:
    assert (skip_layer(layer) is None) is integer


def test_rule_7_every_row_has_a_reason_of_its_own() -> None:
    assert len({row.reason for row in SKIPPED}) == len(SKIPPED)


def test_rule_7_reads_the_shapes_of_layers(build: Build) -> None:
    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.narrow = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.depthwise = nn.Conv2d(16, 16, 3, groups=16, padding=1)
            self.up = nn.ConvTranspose2d(16, 16, 2, stride=2, groups=2)
            self.regress = nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.depthwise(torch.relu(self.first(x)))
            kept, changed = x.chunk(2, 1)
            x = self.up(torch.relu(torch.cat([kept, self.narrow(changed)], 1)))
            result: Tensor = self.regress(x.mean((2, 3)))
            return result

    built = build(Shapes(), "tensorrt")
    assert [placement.layer for placement in built.plan.weights] == ["first", "depthwise"]
    skipped = {
        node for node in built.plan.float_nodes if built.plan.kinds[node] in ("conv", "conv_transpose", "linear")
    }
    assert skipped == {"narrow", "up_conv2d", "regress"}


def test_a_network_of_nothing_but_narrow_layers_is_the_users_mistake(build: Build) -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(torch.relu(self.a(x)))
            return result

    with pytest.raises(UserError, match="enough channels"):
        build(Narrow(), "tensorrt")
