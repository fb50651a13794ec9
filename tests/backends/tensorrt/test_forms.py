"""Rules 37 and 38: forms of layers that TensorRT-RTX multiplies as integers, where the networks' own become floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import host_profile
from backends.facts.tensorrt_rules import PROFILE
from backends.onnx_file.view import OnnxView
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.ahead_of_time import build_ahead_of_time
from backends.tensorrt.backend import TensorRT
from tests.one_line_net import Net

Build = Callable[..., Any]
TOKENS, WIDTH, HEADS = 64, 64, 4
AS_IT_IS = replace(PROFILE, rewrites=())


def attention(parts: Any) -> Tensor:
    query, key, value = parts
    mixed = (query @ key.transpose(2, 3) * 0.25).softmax(-1) @ value
    joined: Tensor = mixed.transpose(1, 2).reshape(-1, TOKENS, WIDTH)
    return joined


def of_a_vision_transformer(y: Tensor) -> Tensor:
    return attention(y.reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0))


def of_chunks(y: Tensor) -> Tensor:
    return attention([part.reshape(-1, TOKENS, HEADS, 16).transpose(1, 2) for part in y.chunk(3, -1)])


def gated(y: Tensor) -> Tensor:
    return torch.tanh(y[..., :WIDTH]) * torch.sigmoid(y[..., WIDTH : 2 * WIDTH]) + y[..., 2 * WIDTH :]


def transformer(form: Callable[[Tensor], Tensor]) -> nn.Module:
    def forward(n: Any, x: Tensor) -> Tensor:
        tokens = n.a(x).flatten(2).transpose(1, 2)
        result: Tensor = n.o(tokens + form(n.qkv(n.norm(tokens))))
        return result

    torch.manual_seed(0)
    return Net(
        forward,
        a=nn.Conv2d(3, WIDTH, 4, stride=4),
        norm=nn.LayerNorm(WIDTH),
        qkv=nn.Linear(WIDTH, 3 * WIDTH),
        o=nn.Linear(WIDTH, 32),
    )


def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")


@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("form", [of_a_vision_transformer, of_chunks])
def test_rule_31_parts_are_multiplied_as_one_product_of_integers(form: Any, build: Build) -> None:
    whole = build(transformer(form), AS_IT_IS, inputs=images())
    engine = build_ahead_of_time(whole.model().SerializeToString())
    assert engine.float_layers == ("qkv",), "a compiler that no longer expands the weight needs no rule"
    parts = build(transformer(form), PROFILE, inputs=images())
    engine = build_ahead_of_time(TensorRT().emit(parts.frozen).SerializeToString())
    assert engine.integer_layers == ("a", "qkv_0", "qkv_1", "qkv_2", "o")
    assert engine.float_layers == ()
    census = TensorRT().census(parts.model().SerializeToString(), list(engine.integer_layers))
    assert census.remark.endswith("; products of two activations: 2 of 2 int8")
    (product,) = [kernel for kernel in engine.kernels if "qkv_0" in kernel.nodes and kernel.multiplies_integers]
    assert {"qkv_0", "qkv_1", "qkv_2"} <= set(product.nodes)


def test_rule_31_the_parts_have_the_integers_of_the_whole(build: Build) -> None:
    # Nothing behind these parts is rounded before the last layer reads it, so the outputs are equal to the bit.
    whole, parts = (build(transformer(gated), profile, inputs=images()) for profile in (AS_IT_IS, PROFILE))
    assert parts.plan.integer_layers() == ["a", "qkv_0", "qkv_1", "qkv_2", "o"]
    first, second = OnnxView(whole.model()), OnnxView(parts.model())
    rows = [_stored(second, f"qkv_{index}") for index in range(3)]
    np.testing.assert_array_equal(np.concatenate(rows), _stored(first, "qkv"))
    outputs = [IntegerOracle(built.model(), fused_rounding=False).run(built.images)[0][0] for built in (whole, parts)]
    assert torch.equal(*outputs)
    assert torch.equal(outputs[1], parts.simulate()[0])


def _stored(view: OnnxView, layer: str) -> Any:
    """The integers of a layer's weight."""
    (node,) = [node for node in view.nodes if node.name == layer]
    dequantise = view.dequantised(node, 1)
    assert dequantise is not None
    return view.value(dequantise.input[0])


def test_rule_31_is_tensorrts_own(build: Build) -> None:
    plan = build(transformer(of_chunks), host_profile(), inputs=images()).plan
    assert plan.integer_layers() == ["a", "qkv", "o"]


def _upsampling() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 1)
    )


@pytest.mark.usefixtures("rtx")
def test_rule_32_a_transposed_convolution_is_one_that_multiplies_integers(build: Build) -> None:
    engine = build_ahead_of_time(build(_upsampling(), AS_IT_IS).model().SerializeToString())
    assert engine.float_layers == ("_2",), "a compiler that has an integer kernel needs no rule"
    built = build(_upsampling(), PROFILE)
    engine = build_ahead_of_time(TensorRT().emit(built.frozen).SerializeToString())
    assert engine.integer_layers == ("_0", "_2_conv2d", "_4") and engine.float_layers == ()
    (oracle, *_), _ = IntegerOracle(built.model(), fused_rounding=False).run(built.images)
    assert torch.equal(oracle, built.simulate()[0])
