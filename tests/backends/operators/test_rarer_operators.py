"""Operators and layers of other people's networks, each between two convolutions, on the real runtime.

The graph computes what the network did, the runtime gives the oracle's outputs, and what only moves values or is a
layer is on integers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from backends import backend_named
from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.rewrites.fold import fold
from tests.one_line_net import Net, c3
from tests.versions import older

if TYPE_CHECKING:
    from tests.backends.conftest import Build

Line = Callable[[Any, Tensor], Tensor]
Make = Callable[[], nn.Module]


def _tokens(x: Tensor) -> Tensor:
    """The positions of [B, 16, 8, 8] as heads of tokens [B, 4, 64, 4]."""
    return x.flatten(2).transpose(1, 2).reshape(-1, 64, 4, 4).transpose(1, 2)


def _map(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).flatten(2).transpose(1, 2).reshape(-1, 16, 8, 8)


def _attended(**options: Any) -> Line:
    return lambda n, x: _map(F.scaled_dot_product_attention(_tokens(x), _tokens(x), _tokens(x), **options))


def _shared_keys(n: Any, x: Tensor) -> Tensor:
    query, key = _tokens(x), _tokens(x)[:, :2]
    return _map(F.scaled_dot_product_attention(query, key, key + 1, is_causal=True, scale=0.3, enable_gqa=True))


def _written(n: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 2::3] = x[:, 2::3].sigmoid()
    y[:, 4] = y[:, 5]
    return y


def _tied(n: Any, x: Tensor) -> Tensor:
    down = F.conv2d(x, n.w.weight, stride=2, padding=1)
    return F.conv_transpose2d(down, n.w.weight, stride=2, padding=1, output_padding=1)


def _pruned() -> nn.Module:
    layer = c3(16, 16)
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]  # torch's
    return layer


def _tracked() -> nn.Module:
    norm = nn.InstanceNorm2d(16, affine=True, track_running_stats=True)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(torch.linspace(-0.2, 0.2, 16))
    norm.running_var.copy_(torch.linspace(0.5, 2.0, 16))
    return norm


def _added_product(n: Any, x: Tensor) -> Tensor:
    rows = x.flatten(2)
    return torch.baddbmm(rows, rows @ rows.transpose(1, 2), rows, beta=0.5, alpha=0.1).reshape(-1, 16, 8, 8)


def _hidden_scores(n: Any, x: Tensor) -> Tensor:
    rows = x.flatten(2).transpose(1, 2)
    scores = rows @ rows.transpose(1, 2)
    seen = scores.masked_fill(scores < scores.mean(-1, keepdim=True), -torch.inf).softmax(-1) @ rows
    return seen.transpose(1, 2).reshape(-1, 16, 8, 8)


def _chosen(n: Any, x: Tensor) -> Tensor:
    y = torch.where((x > -0.5) & ~(x.roll(1, 2) > 0.5), x, 0.1 * x)
    y[y > 1] = 1.0
    return y * (x.mean((2, 3), keepdim=True) <= 0.1)


def _placed(n: Any, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, [3, 0, 2]] = x[:, [1, 5, 7]] * 2
    y[:, :, [0, 3], [1, 1]] = x[:, :, 0, :2]
    return torch.cat([part * 2 for part in torch.tensor_split(torch.hstack([y, x]), (3, 9), 1)], 1)[:, ::2]


_MASK = torch.ones(64, 64, dtype=torch.bool).tril(3)
_HIDDEN = _MASK.clone()
_HIDDEN[[0, 17]] = False  # rows that see nothing

#: Name -> the line, and what else it reads: everything on integers.
INTEGER: dict[str, tuple[Line, dict[str, Make]]] = {
    "indices from the end": (lambda n, x: x[:, [-1, -2, *range(14)]], {}),
    "squeeze without dimensions": (lambda n, x: x * F.adaptive_avg_pool2d(x, 1).squeeze()[:, :, None, None], {}),
    "nearest, areas": (lambda n, x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), {}),
    "nearest, areas, unequal": (lambda n, x: F.interpolate(x, size=(5, 11), mode="nearest-exact"), {}),
    "circular border": (lambda n, x: n.c(x), {"c": lambda: c3(16, 16, padding_mode="circular")}),
    "running instance norm": (lambda n, x: n.i(x), {"i": _tracked}),
    "pruned": (lambda n, x: n.c(x), {"c": _pruned}),
    "weight norm": (lambda n, x: n.c(x), {"c": lambda: torch.nn.utils.weight_norm(c3(16, 16))}),
    "batch norm of a weight": (
        lambda n, x: F.conv2d(
            x,
            F.batch_norm(n.c.weight.reshape(1, 16, -1), None, None, training=True).reshape(16, 16, 3, 3),
            padding=1,
        ),
        {"c": lambda: c3(16, 16)},
    ),
    "convolution over rows": (
        lambda n, x: n.n(n.c(x.flatten(2))).relu().reshape(-1, 16, 8, 8),
        {"c": lambda: nn.Conv1d(16, 16, 3, padding=1), "n": lambda: nn.BatchNorm1d(16)},
    ),
    "convolution over rows, same": (
        lambda n, x: n.c(x.flatten(2)).reshape(-1, 16, 8, 8),
        {"c": lambda: nn.Conv1d(16, 16, 4, padding="same")},
    ),
    "efficient channel attention": (
        lambda n, x: x * torch.sigmoid(n.c(x.mean((2, 3)).unsqueeze(1)).squeeze(1))[:, :, None, None],
        {"c": lambda: nn.Conv1d(1, 1, 3, padding=1)},
    ),
    "mean of rows": (lambda n, x: x * F.adaptive_avg_pool1d(x.flatten(2), 1)[..., None], {}),
    "maxima of rows": (lambda n, x: F.max_pool1d(x.flatten(2), 2).reshape(-1, 16, 8, 4), {}),
    "averages of rows": (lambda n, x: F.avg_pool1d(x.flatten(2), 2).reshape(-1, 16, 8, 4), {}),
    "rows to the nearest": (
        lambda n, x: F.interpolate(x.flatten(2), scale_factor=2, mode="nearest").reshape(-1, 16, 8, 16),
        {},
    ),
    "tiles and back": (lambda n, x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2), {}),
    "windows": (lambda n, x: F.unfold(x, 3, padding=1, stride=2)[:, ::9].reshape(-1, 16, 4, 4), {}),
    "windows of axes": (
        lambda n, x: x.unfold(2, 4, 2).unfold(3, 3, 5)[..., 1].reshape(-1, 16, 3, 8),
        {},
    ),
    "sums of windows": (lambda n, x: F.fold(F.unfold(x, 3, padding=1), (8, 8), 3, padding=1), {}),
    "written parts": (_written, {}),
    "places written": (_placed, {}),
    "channels by a mask of weights": (
        lambda n, x: torch.cat([x[:, n.l.weight[0] > 0], x[:, n.l.weight[0] <= 0]], 1),
        {"l": lambda: nn.Linear(16, 16)},
    ),
    "a matrix": (
        lambda n, x: (x.mean((2, 3)) @ n.l.weight)[:, :, None, None] * x,
        {"l": lambda: nn.Linear(16, 16)},
    ),
    "an Einstein sum over channels": (
        lambda n, x: torch.einsum("bchw,oc->bohw", x, n.l.weight),
        {"l": lambda: nn.Linear(16, 16)},
    ),
    "an Einstein sum over positions": (lambda n, x: torch.einsum("bchw,bdhw->bcd", x, x)[..., None], {}),
    "computed matrix": (
        lambda n, x: x * F.linear(x.mean((2, 3)), n.l(x[:1].mean((2, 3))).reshape(16, 16))[:, :, None, None],
        {"l": lambda: nn.Linear(16, 256)},
    ),
    "a sum with a product": (_added_product, {}),
    "one weight, two axes": (_tied, {"w": lambda: c3(16, 16)}),
}
#: The same with an operator in float.
FLOAT: dict[str, tuple[Line, dict[str, Make]]] = {
    "root mean square": (lambda n, x: n.r(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), {"r": lambda: nn.RMSNorm(16)}),
    "positions by a mask of weights": (
        lambda n, x: x * x[:, :, n.l.weight > 0].amax(2)[:, :, None, None],
        {"l": lambda: nn.Linear(8, 8)},
    ),
    "threshold": (lambda n, x: F.threshold(x, 0.1, 0.0), {}),
    "threshold, another value": (lambda n, x: F.threshold(x, 0.1, 20.0), {}),
    "hard shrink": (lambda n, x: F.hardshrink(x, 0.2), {}),
    "soft shrink": (lambda n, x: F.softshrink(x, 0.2), {}),
    "bounds of tensors": (lambda n, x: torch.clamp(x, torch.full((16, 1, 1), -0.1), torch.full((16, 1, 1), 0.3)), {}),
    "logarithm of a sum": (lambda n, x: x - x.logsumexp(1, keepdim=True), {}),
    "constant mask": (lambda n, x: x.masked_fill(torch.eye(8) > 0, 0.5), {}),
    "local response": (lambda n, x: F.local_response_norm(x, 3), {}),
    "filled part": (lambda n, x: torch.cat([x[:, :8], torch.fill(x[:, 8:], 0.5)], 1), {}),
    "rounded": (lambda n, x: torch.round(x * 4) / 4, {}),
    "remainders": (lambda n, x: x % 0.3 + x.fmod(-0.25) + x.remainder(-2), {}),
    "a remainder of a count": (lambda n, x: x * ((x > 0).sum(1, keepdim=True) % 2), {}),
    "whole quotients": (
        lambda n, x: x // 0.3 + torch.div(x, -0.25, rounding_mode="floor") + torch.div(x, 0.2, rounding_mode="trunc"),
        {},
    ),
    "chosen by comparing": (_chosen, {}),
    "scores hidden by the image": (_hidden_scores, {}),
    "spread and mean": (lambda n, x: torch.sub(x, torch.var_mean(x, 1, keepdim=True)[1]) / x.std(1, keepdim=True), {}),
    "norms": (lambda n, x: x / (x.norm(3, 1, True) + x.norm(torch.inf, 1, True) + 0.1), {}),
    "attention": (_attended(), {}),
    "attention, scaled": (_attended(scale=0.7), {}),
    "attention, causal": (_attended(is_causal=True), {}),
    "attention, truths": (_attended(attn_mask=_MASK), {}),
    "attention, numbers": (_attended(attn_mask=torch.where(_MASK, 0.1, -torch.inf)), {}),
    "attention, truths that hide rows": (_attended(attn_mask=_HIDDEN), {}),
    "attention, numbers that hide rows": (_attended(attn_mask=torch.where(_HIDDEN, 0.1, -torch.inf)), {}),
    "attention, rows hidden in forward": (
        lambda n, x: _attended(attn_mask=torch.ones(64, 64, dtype=torch.bool).tril(-1))(n, x),
        {},
    ),
    "attention, shared keys": (_shared_keys, {}),
}


def network_of(line: Line, layers: dict[str, Make]) -> Net:
    """The line between two convolutions of 16 channels."""
    torch.manual_seed(0)  # of the layers' weights, which modules draw from nowhere else
    made = {name: make() for name, make in layers.items()}
    return Net(lambda n, x: n.b(line(n, n.a(x))), a=c3(3, 16), b=c3(16, 16), **made).eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")  # torch's own, of the form that is asked for here
@pytest.mark.parametrize("name", [*INTEGER, *FLOAT])
def test_it_is_captured_and_runs(name: str, build: Build) -> None:
    if name == "channels by a mask of weights" and older("torch", "2.12"):
        with pytest.raises(UserError, match="its control flow depends on the values of a tensor"):
            build(network_of(*(INTEGER | FLOAT)[name]), inputs=torch.randn(4, 3, 8, 8))
        return  # torch 2.11 does not count the channels that two masks choose; 2.12.0 and what came after do
    if name == "an Einstein sum over positions":
        line, _ = INTEGER[name]
        module: nn.Module = Net(lambda n, x: line(n, n.a(x)), a=c3(3, 16)).eval()
    else:
        module = network_of(*(INTEGER | FLOAT)[name])
    built = build(module, inputs=torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(1)))
    with torch.no_grad():
        expected = module(built.images)
        torch.testing.assert_close(built.folded(built.images)[0], expected, rtol=1e-4, atol=1e-5)
    floats = {node for node in built.plan.float_nodes if node != "b"}
    assert not floats if name in INTEGER else floats
    backend = backend_named("onnxruntime")
    plain = emit(built.folded, opset=20).SerializeToString()
    with backend.runner(plain, threads=1) as runner:
        torch.testing.assert_close(
            torch.from_numpy(runner.run(built.images.numpy())[0]), expected, rtol=1e-4, atol=1e-4
        )
    model = backend.emit(built.frozen, opset=None, batch=None)
    (oracle,), _ = IntegerOracle(model).run(built.images)
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        (result,) = map(torch.from_numpy, runner.run(built.images.numpy()))
    layers_on_integers = [placement.layer for placement in built.plan.weights]
    assert not backend.census(model.SerializeToString(), layers_on_integers).floating
    if name in INTEGER:
        assert torch.equal(result, oracle) and torch.equal(built.simulate()[0], oracle)
    # A float operator may round a last bit otherwise on the runtime, and a tie of the rounding behind it.
    assert ((result - oracle).abs() <= 1e-5 * oracle.abs().amax()).float().mean() > 0.99


def test_products_of_queries_and_keys_are_integer_with_every_mask(build: Build) -> None:
    for name in ("attention", "attention, causal", "attention, truths", "attention, shared keys"):
        plan = build(network_of(*FLOAT[name]), inputs=torch.randn(2, 3, 8, 8)).plan
        products = [node for node, word in plan.kinds.items() if word == "matmul"]
        assert len(products) == 2 and len(set(products) - plan.float_nodes.keys()) == 1


def _computed_weight(n: Any, x: Tensor) -> Tensor:
    t = n.a(x)
    weights = n.g(t.mean((2, 3))).reshape(-1, 1, 3, 3)
    mixed = F.conv2d(t.reshape(1, -1, 8, 8), weights, padding=1, groups=t.shape[0] * 16)
    return mixed.reshape(-1, 16, 8, 8)


def _autocast(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = layer(x)
    return result.float()


@pytest.mark.parametrize(
    ("line", "layers", "words"),
    [
        (_computed_weight, {"a": lambda: c3(3, 16), "g": lambda: nn.Linear(16, 144)}, "weight is computed from the im"),
        (lambda n, x: n.c(x.unsqueeze(2)), {"c": lambda: nn.Conv3d(3, 4, 3, padding=1)}, "conv3d.*three axes"),
        (lambda n, x: n.n(x.unsqueeze(2)), {"n": lambda: nn.BatchNorm3d(3)}, "over a volume"),
        (lambda n, x: n.c(x.flatten(2))[0], {"c": lambda: nn.LSTM(64, 8, batch_first=True)}, "lstm.*step by step"),
        (lambda n, x: n.c(x.flatten(2))[0], {"c": lambda: nn.GRU(64, 8, batch_first=True)}, "gru.*step by step"),
        (lambda n, x: torch.where(x.isnan(), 0.0, x), {}, r"isnan.*NaN and infinity are no values.*clamp"),
        (lambda n, x: x % (x.abs() + 1), {}, r"remainder.*by a tensor write them as torch\.floor\(x / n\)"),
        (lambda n, x: torch.div(x, x + 9, rounding_mode="floor"), {}, r"div.*by a tensor write them as torch\.floor"),
        (lambda n, x: x.cumsum(1), {}, r"cumsum.*sums and products that run along an axis"),
        (lambda n, x: x.masked_fill(x < 0, torch.nan), {}, r"masked_fill.*where they depend on no image"),
        (lambda n, x: x.topk(2, 1)[0], {}, r"belong behind the artifact.*end2end = False.*two stages.*--submodule"),
        (lambda n, x: n.c(x.half()).float(), {"c": lambda: c3(3, 4).half()}, r"is computed in float32.*by \.float\(\)"),
        (lambda n, x: x.double().mean((2, 3)).float(), {}, "is computed in float32 here: leave the conversion out"),
        (lambda n, x: x.long().float(), {}, "whole numbers and truths"),
        (lambda n, x: n.c(x), {"c": lambda: c3(3, 4).half()}, r"its c\.weight is float16.*call \.float\(\)"),
        (lambda n, x: _autocast(n.c, x), {"c": lambda: c3(3, 4)}, r"bfloat16 under torch\.autocast.*enabled=False"),
        (lambda n, x: F.interpolate(x, size=(5, 5), mode="bicubic", antialias=True), {}, "anti-aliasing.*antialias=F"),
    ],
)
def test_what_is_not_translated_is_named_with_the_way_round(line: Line, layers: dict[str, Make], words: str) -> None:
    module = Net(line, **{name: make() for name, make in layers.items()}).eval()
    with pytest.raises(UserError, match=words):
        emit(fold(capture(module, torch.randn(2, 3, 8, 8), source="test")), opset=20)


def test_a_deformable_convolution_is_named_and_not_the_zeros_before_it() -> None:
    from torchvision.ops import deform_conv2d

    module = Net(lambda n, x: deform_conv2d(x, n.o(x), n.c.weight, padding=1), o=c3(3, 18), c=c3(3, 8)).eval()
    with pytest.raises(UserError, match=r"deform_conv2d.*computed positions.*--submodule"):
        emit(fold(capture(module, torch.randn(2, 3, 8, 8), source="test")), opset=20)
