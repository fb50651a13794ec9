"""Operators of networks that nobody has shown us yet: each between two convolutions, on the real runtime.

The graph computes what the network did, the file is linted, the runtime takes it and gives the oracle's outputs, and
what only moves values or is a product or sum of others is not float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backends import backend_named
from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from tests.one_line_net import Net, c3

if TYPE_CHECKING:
    from tests.backends.conftest import Build

Line = Callable[[Tensor], Tensor]

INTEGER: dict[str, Line] = {
    "neg": lambda x: -x,
    "square": lambda x: x.square(),
    "pow 1": lambda x: x.relu() ** 1,
    "pow 2": lambda x: x**2,
    "pow 4": lambda x: (0.5 * x) ** 4,
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(3)),
    "addcmul, scaled": lambda x: torch.addcmul(x, x, x.flip(3), value=0.5),
    "glu": lambda x: F.glu(torch.cat([x, x], 1), 1),
    "stack": lambda x: torch.stack([x, x.flip(3)], 1).flatten(1, 2)[:, 4:20],
    "repeat": lambda x: x.repeat(1, 2, 1, 1)[:, 4:20],
    "tile": lambda x: x.tile(2, 1, 1)[:, 4:20],
    "flip": lambda x: x.flip(3),
    "flip twice": lambda x: x.flip((1, 2)),
    "index": lambda x: x[:, [3, 2, 1, 0] * 4],
    "index select": lambda x: x.index_select(1, torch.arange(16).flip(0)),
    "swapped axes": lambda x: x.swapaxes(2, -1),
    "swapped dimensions": lambda x: x.swapdims(-1, -2),
    "moved axes": lambda x: x.movedim((1, 2), (-1, 1)).moveaxis(-1, 1),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x, 2)[:, 8:24],
    "channel shuffle by hand": lambda x: x.view(-1, 4, 4, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8),
    "channels exchanged otherwise": lambda x: x.view(-1, 4, 4, 8, 8).permute(0, 2, 1, 4, 3).reshape(-1, 16, 8, 8),
    "adaptive max pooling": lambda x: F.adaptive_max_pool2d(x, 4),
    "random relu": lambda x: F.rrelu(x),
    "hard sigmoid by hand": lambda x: F.relu6(x + 3) / 6,
    "hard swish by hand": lambda x: x * F.relu6(x + 3) / 6,
    "hard swish by hand, clamped": lambda x: x * ((x + 3).clamp(0, 6) / 6),
}
FLOAT: dict[str, Line] = {
    "abs": torch.abs,
    "mish": F.mish,
    "softplus": F.softplus,
    "softplus, steep": lambda x: F.softplus(x, beta=2),
    "softplus, straight early": lambda x: F.softplus(x, beta=2, threshold=0.5) + F.softplus(x, threshold=-1),
    "logarithms": lambda x: x.abs().log1p() + (x.abs() + 1).log2() - (x.abs() + 2).log10(),
    "exponentials": lambda x: torch.special.exp2(x / 4) + torch.expm1(x / 4),
    "whole numbers": lambda x: torch.ceil(4 * x) - torch.fix(3 * x) + torch.frac(x),
    "arcus and hyperbolic functions": lambda x: torch.arctan(x) + (x / 4).sinh() - (x / 4).cosh() + (x / 9).tan(),
    "hypotenuse": lambda x: torch.hypot(x, x.flip(3) + 1),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5) + torch.addcdiv(x, x, x.abs() + 1),
    "differences": lambda x: x.mT.diff(dim=1, n=1)[:, [0, *range(15)]].adjoint(),
    "log sigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.5),
    "log": lambda x: (x.abs() + 1).log(),
    "rsqrt": lambda x: (x.abs() + 1).rsqrt(),
    "pow 0.5": lambda x: x.abs() ** 0.5,
    "pow -0.5": lambda x: (x.abs() + 1) ** -0.5,
    "pow -1": lambda x: (x.abs() + 1) ** -1,
    "pow 1.5": lambda x: x.abs() ** 1.5,
    "sin and cos": lambda x: x.sin() * x.cos(),
    "erf": torch.erf,
    "sign": torch.sign,
    "floor": lambda x: torch.floor(4 * x),
    "lerp": lambda x: torch.lerp(x, x.relu(), 0.3),
    "minimum": lambda x: torch.minimum(x, x.flip(3)),
    "maximum": lambda x: torch.max(x, x.flip(3)),
    "sum": lambda x: x * x.sum((2, 3), keepdim=True),
    "amax": lambda x: x - x.amax(1, keepdim=True),
    "min of an axis": lambda x: x - x.min(1, keepdim=True)[0],
    "deviation": lambda x: x - x.std((2, 3), keepdim=True),
    "variance": lambda x: x - x.var(1, keepdim=True, correction=0),
    "instance norm": F.instance_norm,
    "log softmax": lambda x: F.log_softmax(x, 1),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
}


def _network(line: Line) -> Net:
    def compute(n: Any, x: Tensor) -> Tensor:
        result: Tensor = n.b(line(n.a(x)))
        return result

    torch.manual_seed(0)  # of the layers' weights, which modules draw from nowhere else
    return Net(compute, a=c3(3, 16), b=c3(16, 16)).eval()


@pytest.mark.parametrize("name", [*INTEGER, *FLOAT])
def test_it_is_captured_and_runs(name: str, build: Build) -> None:
    module = _network((INTEGER | FLOAT)[name])
    built = build(module, inputs=torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        torch.testing.assert_close(built.folded(built.images)[0], module(built.images), rtol=1e-4, atol=1e-5)
    floats = {node for node in built.plan.float_nodes if not node.startswith("b")}
    assert not floats if name in INTEGER else floats
    backend = backend_named("onnxruntime")
    for opset in (17, 20):
        model = backend.emit(built.frozen, opset=opset, batch=None)
        (expected,), _ = IntegerOracle(model).run(built.images)
        with backend.runner(model.SerializeToString(), threads=1) as runner:
            (theirs,) = map(torch.from_numpy, runner.run(built.images.numpy()))
        if name in INTEGER:
            assert torch.equal(theirs, expected)
        # A float operator may round a last bit otherwise on the runtime, and a tie of the rounding behind it.
        close = (theirs - expected).abs() <= 1e-5 * expected.abs().amax()
        assert close.float().mean() > 0.99
    assert torch.equal(built.simulate()[0], expected) or name in FLOAT


@pytest.mark.parametrize(
    "line",
    [
        lambda x: x.nan_to_num(),
        lambda x: x.cumsum(2),
        lambda x: x.index_select(1, x.argsort(1)[0, :, 0, 0]),
        lambda x: 2 // (x.sigmoid() + 1),
        lambda x: torch.div(2.0, x.sigmoid() + 1, rounding_mode="trunc"),
    ],
)
def test_what_has_no_translation_is_named(line: Line, build: Build) -> None:
    with pytest.raises(UserError, match="has no translation to ONNX"):
        frozen = build(_network(line), inputs=torch.randn(2, 3, 8, 8)).frozen
        backend_named("onnxruntime").emit(frozen, opset=None, batch=None)


def test_a_repetition_along_a_new_axis_is_left_to_an_error() -> None:
    captured = capture(_network(lambda x: x.repeat(1, 1, 1, 1, 1)[0]), torch.randn(2, 3, 8, 8), source="test")
    assert any("repeat" in str(node.target) for node in captured.graph.nodes)


@pytest.mark.parametrize(
    "line", [lambda x: F.adaptive_max_pool2d(x, 5), lambda x: F.adaptive_max_pool1d(x.flatten(2), 5)[..., None]]
)
def test_a_graph_with_maxima_over_unequal_windows_runs_and_has_no_file(line: Line) -> None:
    module = Net(lambda n, x: line(n.a(x)), a=c3(3, 16)).eval()
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    captured = capture(module, images, source="test")
    with torch.no_grad():
        assert torch.equal(captured(images)[0], module(images))
    with pytest.raises(UserError, match="a maximum over windows of unequal size"):
        emit(captured, opset=20)
