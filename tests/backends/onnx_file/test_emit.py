"""Emission: what the file says is what the graph computes, names are safe, bytes are the same every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.onnx_file.emit import emit
from backends.onnx_file.view import OPSETS, OnnxView
from backends.oracle.backend import IntegerOracle
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.rewrites.fold import fold
from tests.one_line_net import Net
from tests.opsets import RUNNABLE_OPSETS

Build = Callable[..., Any]


def run(model: onnx.ModelProto, images: Tensor) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return outputs


def _folded(module: nn.Module, images: Tensor) -> Any:
    return fold(capture(module.eval(), images[:2], source="test"))


def assert_float_file_equals(module: nn.Module, images: Tensor, *, opset: int = 20) -> onnx.ModelProto:
    folded = _folded(module, images)
    model = emit(folded, opset=opset)
    with torch.no_grad():
        expected = folded(images)
    for mine, theirs in zip(expected, run(model, images), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-4, atol=1e-5)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def unread(model: onnx.ModelProto) -> set[str]:
    """Initialisers that nothing reads: ONNX Runtime warns of each at every load."""
    return {tensor.name for tensor in model.graph.initializer} - {v for node in model.graph.node for v in node.input}


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_borders_leave_nothing_that_is_not_read(mode: str, images: Tensor) -> None:
    class Bordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(nn.functional.pad(self.a(x), (1, 2, 3, 1), mode=mode))
            return result

    assert not unread(assert_float_file_equals(Bordered(), images))


def test_float_files_compute_what_the_graph_does(exact_network: str, build: Build) -> None:
    built = build(exact_network)
    with torch.no_grad():
        expected = built.folded(built.images)
    model = emit(built.folded, opset=20)
    assert not unread(model) and not unread(built.model())
    for mine, theirs in zip(expected, run(model, built.images), strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-4, atol=1e-5)


def test_float_files_with_other_operators(close_network: str, build: Build) -> None:
    built = build(close_network)
    model = emit(built.folded, opset=20)
    with torch.no_grad():
        expected = built.folded(built.images)
    oracle, _ = IntegerOracle(model).run(built.images)
    for mine, theirs, reference in zip(expected, run(model, built.images), oracle, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(reference.numpy(), theirs, rtol=1e-4, atol=1e-5)


class ManyOperators(nn.Module):
    """One network through operators whose ONNX form changed between opsets."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.prelu = nn.PReLU(16)
        self.o = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(F.pad(self.a(x), (1, 1, 1, 1)))
        first, second = torch.split(x, [8, 8], 1)
        x = torch.cat([F.gelu(first), F.elu(second)], 1)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest").clamp(-2, 3)
        x = F.max_pool2d(torch.tanh(x) / 2 + F.hardsigmoid(x), 2)
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        result: Tensor = self.o(tokens.mean(1, keepdim=True).squeeze(1))[:, None].select(1, 0)
        return result


@pytest.mark.parametrize("opset", RUNNABLE_OPSETS)
def test_every_opset(opset: int, images: Tensor, build: Build) -> None:
    model = assert_float_file_equals(ManyOperators(), images, opset=opset)
    assert model.opset_import[0].version == opset
    built = build(ManyOperators(), inputs=images)
    quantised = built.model(opset=opset)
    mine, _ = IntegerOracle(quantised).run(images)
    np.testing.assert_allclose(mine[0].numpy(), run(quantised, images)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [OPSETS.start - 1, OPSETS.stop])
def test_other_opsets_are_refused(opset: int, build: Build) -> None:
    with pytest.raises(UserError, match=f"^--opset {opset}: 17 to 23 are possible$"):
        build("conv").model(opset=opset)


def test_int4_needs_its_opset(build: Build) -> None:
    with pytest.raises(UserError, match="int4 weights exist from opset 21 on"):
        build("conv", bits=4).model(opset=20, pack_int4=True)


def test_equal_networks_give_equal_bytes(build: Build) -> None:
    first, second = build("residual").model(), build("residual").model()
    assert first.SerializeToString() == second.SerializeToString()


def test_the_batch_is_free_or_fixed(build: Build) -> None:
    built = build("residual")
    free, fixed = built.model(), emit(built.frozen, opset=20, form=built.profile.form, batch=4)
    sizes = [[d.dim_param or d.dim_value for d in m.graph.input[0].type.tensor_type.shape.dim] for m in (free, fixed)]
    assert sizes == [["batch", 3, 12, 12], [4, 3, 12, 12]]
    for count in (1, 5):
        assert run(free, built.images[:count])[0].shape == (count, 10)
    assert run(fixed, built.images[:4])[0].shape == (4, 10)


def test_outputs_keep_their_public_names(build: Build) -> None:
    model = build("three_outputs").model()
    assert [output.name for output in model.graph.output] == ["logits", "mask", "map"]
    assert [output.name for output in build("conv").model().graph.output] == ["output"]


class AwkwardNames(nn.Module):
    """Layers, weights and results that are all called alike."""

    def __init__(self) -> None:
        super().__init__()
        self.output, self.conv, self.conv_q = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        self.x_scale, self.x_q = nn.Parameter(torch.full((1,), 3.0)), nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.conv(torch.relu(self.output(x * self.x_scale + self.x_q))))
        return {"output": self.conv_q(y), "conv": y, "x": x}


def test_names_never_collide(images: Tensor, build: Build) -> None:
    model = assert_float_file_equals(AwkwardNames(), images)
    assert [output.name for output in model.graph.output] == ["output", "conv", "x_out"]
    built = build(AwkwardNames(), inputs=images)
    quantised = built.model()
    mine, _ = IntegerOracle(quantised).run(images)
    for first, second, simulated in zip(mine, run(quantised, images), built.simulate(), strict=True):
        np.testing.assert_array_equal(first.numpy(), second)
        np.testing.assert_array_equal(first.numpy(), simulated.numpy())
    # Layers are found by their nodes' names, whatever their tensors are called.
    assert {"output", "conv", "conv_q"} <= {node.name for node in quantised.graph.node}


@pytest.mark.parametrize("channels", [3, 5, 16])
def test_int4_packs_any_count(channels: int, build: Build) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.odd = nn.Conv2d(3, channels, 1), nn.Conv2d(channels, channels, 1)
            self.last = nn.Conv2d(channels, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(torch.relu(self.odd(torch.relu(self.first(x)))))
            return result

    built = build(Odd(), bits=4)
    view = OnnxView(built.model(opset=21, pack_int4=True))
    assert view.initialisers["odd_weight"].data_type == onnx.TensorProto.INT4
    assert view.initialisers["first_weight"].data_type == onnx.TensorProto.INT8
    assert len(view.initialisers["odd_weight"].raw_data) == (channels * channels + 1) // 2
    np.testing.assert_array_equal(view.value("odd_weight"), built.frozen.weights["odd"].integers)


class Unknown(nn.Module):
    """An operator that has no translation, inside a named module."""

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cumsum(x, 1)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.strange = nn.Conv2d(3, 16, 3), self.Inner()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.strange(self.conv(x))
        return result


def test_an_operator_without_translation_is_named(images: Tensor) -> None:
    with pytest.raises(UserError, match=r"^strange_cumsum \(aten\.cumsum\.default, in strange\): .* no translation"):
        emit(_folded(Unknown(), images), opset=20)


def test_a_pooling_to_the_size_it_has_does_nothing(images: Tensor, build: Build) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 16, 3, stride=2), nn.Linear(400, 10)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(F.adaptive_avg_pool2d(torch.relu(self.a(x)), 5).flatten(1))
            return result

    assert_float_file_equals(Head(), images)
    built = build(Head(), inputs=images)
    assert built.plan.float_nodes == {}
    mine, _ = IntegerOracle(built.model()).run(images)
    np.testing.assert_array_equal(mine[0].numpy(), run(built.model(), images)[0])
    np.testing.assert_array_equal(mine[0].numpy(), built.simulate()[0].numpy())


def test_slopes_of_a_prelu_need_not_be_trained(images: Tensor) -> None:
    network = Net(lambda n, x: F.prelu(n.a(x), n.slopes), a=nn.Conv2d(3, 8, 3))
    network.register_buffer("slopes", torch.linspace(0.1, 0.8, 8))
    assert_float_file_equals(network.eval(), images)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_a_border_that_convolutions_read_is_their_padding(target: str, build: Build) -> None:
    for model in (build("borders", target).model(), emit(build("borders", target).folded, opset=20)):
        pads = [list(a.ints) for node in model.graph.node for a in node.attribute if a.name == "pads"]
        # Rows above and columns left of the map, then rows below and columns right.
        assert pads == [[0, 0, 1, 1], [0, 1, 1, 2], [1, 2, 1, 2], [0, 0, 0, 1]]
        assert not [node for node in model.graph.node if node.op_type == "Pad"]


def test_a_border_that_another_reads_is_an_operator(images: Tensor) -> None:
    module = Net(
        lambda n, x: n.b(p := F.pad(n.a(x), (0, 1, 0, 1))) + p.amax((2, 3), keepdim=True),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Conv2d(8, 8, 3),
    )
    folded = fold(capture(module.eval(), images[:2], source="test"))
    model = emit(folded, opset=20)
    assert [node.op_type for node in model.graph.node].count("Pad") == 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    np.testing.assert_allclose(theirs, folded(images)[0].detach().numpy(), atol=1e-5)
