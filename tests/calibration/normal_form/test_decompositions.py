"""Compound operators become those that the tables know, and compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.graph.operators import kind
from calibration.normal_form.decompositions import _product_of
from calibration.rewrites.fold import fold

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise


def _tokens(n: Any, x: Tensor) -> Tensor:
    """From images [B, 3, 8, 8] to tokens [B, 2, 64, 4]: heads, positions, channels."""
    result: Tensor = n.a(x).reshape(-1, 2, 4, 64).transpose(2, 3)
    return result


def _sum(n: Any, x: Tensor) -> Tensor:
    total: Any = sum([n.a(x), x[:, :1]])
    result: Tensor = total / 1
    return result


def _in_place(n: Any, x: Tensor) -> Tensor:
    y = torch.cat([n.a(x), n.a(x)], 1)
    z = y[:, :8]
    z += n.a(x)
    return z


def _positions(n: Any, x: Tensor) -> Tensor:
    """A table of positions that is made anew for every batch, as EdgeNeXt does."""
    mask = torch.zeros((x.shape[0], 8, 8)).bool()
    rows = (~mask).cumsum(1, dtype=torch.float32)[:, None]
    result: Tensor = n.a(x) + rows.sin()
    return result


def _autocast(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    with torch.autocast(device_type="cpu", enabled=False):
        z = torch.relu(y.float()) * 2
    result: Tensor = z + y
    return result


COMPUTED: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "silu": (lambda n, x: F.silu(n.a(x)), ["conv", "sigmoid", "mul"]),
    "hard swish": (lambda n, x: F.hardswish(n.a(x)), ["conv", "hardsigmoid", "mul"]),
    "attention": (
        lambda n, x: F.scaled_dot_product_attention(t := _tokens(n, x), t, t),
        ["conv", "reshape", "transpose", "transpose", "matmul", "mul", "softmax", "matmul"],
    ),
    "attention with a mask and a scale": (
        lambda n, x: F.scaled_dot_product_attention(t := _tokens(n, x), t, t, torch.eye(64), scale=0.3),
        ["conv", "reshape", "transpose", "transpose", "matmul", "mul", "add", "softmax", "matmul"],
    ),
    "rolling": (
        lambda n, x: torch.roll(n.a(x), (2, -3), (2, 3)),
        ["conv", "slice", "slice", "concat", "slice", "slice", "concat"],
    ),
    "Einstein sum": (
        lambda n, x: torch.einsum("bhic,bhjc->bhij", t := _tokens(n, x), t),
        ["conv", "reshape", "transpose", "transpose", "matmul"],
    ),
    "Einstein sum in another order": (
        lambda n, x: torch.einsum("bhic,bhjc->bjhi", t := _tokens(n, x), t),
        ["conv", "reshape", "transpose", "transpose", "matmul", "transpose"],
    ),
    "linear layers over tokens": (
        lambda n, x: n.l(torch.relu(n.l(n.a(x)))),
        ["conv", "reshape", "linear", "relu", "linear", "reshape"],
    ),
    "two linear layers in a row": (
        lambda n, x: n.l(n.l(n.a(x))),
        ["conv", "reshape", "linear", "linear", "reshape"],
    ),
    "taking apart": (
        lambda n, x: (parts := n.a(x).reshape(-1, 2, 4, 64).unbind(1))[0] * 2 + parts[1],
        ["conv", "reshape", "select", "select", "mul", "add"],
    ),
    "normalised vectors": (lambda n, x: F.normalize(n.a(x), dim=1), ["conv", "norm", "clip", "div"]),
    "a sum from nothing": (_sum, ["conv", "slice", "add"]),
    "a write into a part": (_in_place, ["conv", "conv", "concat", "slice", "conv", "add"]),
    "positions": (_positions, ["conv", "add"]),
    "a region of its own": (_autocast, ["conv", "relu", "mul", "add"]),
    "pooling to a larger map": (
        lambda n, x: F.adaptive_avg_pool2d(F.max_pool2d(n.a(x), 4), 4),
        ["conv", "max_pool", "resize_nearest"],
    ),
    "pooling to a smaller map": (lambda n, x: F.adaptive_avg_pool2d(n.a(x), 3), ["conv", "adaptive_average_pool"]),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_it_is_written_in_operators_that_are_known(name: str, net: MakeNet, noise: Noise) -> None:
    compute, kinds = COMPUTED[name]
    module = net(compute, a=nn.Conv2d(3, 8, 3, padding=1), l=nn.Linear(8, 8)).eval()
    folded = fold(capture(module, noise(2, 3, 8, 8), source="test"))
    assert [kind(node) for node in folded.graph.nodes if node.op == "call_function"] == kinds
    images = noise(3, 3, 8, 8, seed=1)
    torch.testing.assert_close(folded(images)[0], module(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", COMPUTED)
def test_it_runs_on_onnx_runtime(name: str, net: MakeNet, noise: Noise) -> None:
    from backends.onnx_file.emit import emit
    from backends.onnxruntime.backend import OnnxRuntime
    from backends.oracle.backend import IntegerOracle

    module = net(COMPUTED[name][0], a=nn.Conv2d(3, 8, 3, padding=1), l=nn.Linear(8, 8)).eval()
    model = emit(fold(capture(module, noise(2, 3, 8, 8), source="test")), opset=20)
    images = noise(3, 3, 8, 8, seed=1)
    expected = module(images).detach()
    with OnnxRuntime().runner(model.SerializeToString(), threads=1) as runner:
        (output,) = runner.run(images.numpy())
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-4, atol=1e-4)
    (oracle,), _ = IntegerOracle(model).run(images)
    torch.testing.assert_close(oracle, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)), ((1, 5, 2, 3), (7, 1, 3, 4)), ((2, 3), (6, 3, 4)), ((6, 2, 3), (3, 4))],
)
def test_a_product_without_values_has_the_shape_of_torch_s(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    assert _product_of(torch.empty(left), torch.empty(right)).shape == (torch.zeros(left) @ torch.zeros(right)).shape
