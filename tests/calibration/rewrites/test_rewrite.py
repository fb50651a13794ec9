"""Rewrites: their order is checked, and the row that changes what a network computes is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.graph.interface import interface_of
from calibration.rewrites.channels_last import ROWS_OF_CHANNELS_LAST
from calibration.rewrites.explicit_borders import BORDERS_BEFORE_AVERAGES, STRIDES_BEFORE_POINTWISE
from calibration.rewrites.fold import FOLDING, fold
from calibration.rewrites.gaps import GAPS_GATHERED
from calibration.rewrites.multipliers import NUMBERS_BEFORE_PRODUCTS
from calibration.rewrites.parts import LAYERS_PER_PART
from calibration.rewrites.rewrite import RewriteChangedOutputs, check_order, names_of, rewritten
from calibration.rewrites.subpixel import SIGNED_TRANSPOSED_AS_CONVOLUTIONS, TRANSPOSED_AS_CONVOLUTIONS
from calibration.rewrites.wide_branches import WIDE_BRANCHES
from tests.faulty_row import faulty
from tests.one_line_net import Net

C = nn.Conv2d
OF_PROFILES = (
    TRANSPOSED_AS_CONVOLUTIONS,
    SIGNED_TRANSPOSED_AS_CONVOLUTIONS,
    BORDERS_BEFORE_AVERAGES,
    STRIDES_BEFORE_POINTWISE,
    GAPS_GATHERED,
    NUMBERS_BEFORE_PRODUCTS,
    LAYERS_PER_PART,
    ROWS_OF_CHANNELS_LAST,
    WIDE_BRANCHES,
)


def _tied(n: Any, x: Tensor) -> Tensor:
    return F.conv_transpose2d(torch.relu(n.a(x)), n.a.weight)


def _attention(n: Any, x: Tensor) -> Tensor:
    query, key, value = n.qkv(n.a(x).flatten(2).transpose(1, 2)).chunk(3, -1)
    result: Tensor = n.o(torch.softmax(query @ key.transpose(1, 2) * 0.25, -1) @ value).mean(1)
    return result


def _attention_net() -> Net:
    return Net(_attention, a=C(3, 64, 4, stride=4), qkv=nn.Linear(64, 192), o=nn.Linear(64, 10))


def _masked(n: Any, x: Tensor) -> Tensor:
    return torch.softmax(n.a(x).flatten(2) + torch.tensor([0.0, float("-inf")]).repeat(50), -1)


#: For every row a network that it changes.
CHANGED: dict[str, Callable[[], nn.Module]] = {
    "constants": lambda: Net(lambda n, x: F.conv2d(x, n.a.weight * 2 - 1), a=C(3, 8, 3)),
    "tables of positions": lambda: Net(
        lambda n, x: n.a(x).flatten(1) + torch.arange(72.0).unsqueeze(0).expand(x.shape[0], -1) * 2, a=C(3, 2, 7)
    ),
    "finite masks": lambda: Net(_masked, a=C(3, 4, 3)),
    "weights per axis": lambda: Net(_tied, a=C(3, 8, 3)),
    "products and layers": lambda: Net(
        lambda n, x: n.a(x).flatten(1) @ n.l.weight.t(), a=C(3, 2, 7), l=nn.Linear(72, 5)
    ),
    "windows cut short": lambda: Net(lambda n, x: F.avg_pool2d(n.a(x), 2, 3, ceil_mode=True), a=C(3, 8, 3)),
    "borders as paddings": lambda: Net(lambda n, x: n.a(F.pad(x, (1, 1, 1, 1))), a=C(3, 8, 3)),
    "layers": lambda: Net(lambda n, x: torch.relu(n.bn(n.a(x))), a=C(3, 8, 3), bn=nn.BatchNorm2d(8, eps=0.1)),
    "poolings": lambda: Net(lambda n, x: n.a(x).mean((2, 3)), a=C(3, 8, 3)),
    "slopes": lambda: Net(lambda n, x: n.p(n.a(x)), a=C(3, 8, 3), p=nn.PReLU()),
    "useless ReLUs": lambda: Net(lambda n, x: torch.relu(torch.sigmoid(n.a(x))), a=C(3, 8, 3)),
    "activations before reshapes": lambda: Net(lambda n, x: torch.relu(n.a(x).flatten(1)), a=C(3, 8, 3)),
    TRANSPOSED_AS_CONVOLUTIONS.name: lambda: Net(lambda n, x: n.a(x), a=nn.ConvTranspose2d(3, 4, 2, stride=2)),
    SIGNED_TRANSPOSED_AS_CONVOLUTIONS.name: lambda: Net(
        lambda n, x: n.b(torch.relu(n.a(x))), a=nn.ConvTranspose2d(3, 4, 2, stride=2), b=nn.ConvTranspose2d(4, 4, 2)
    ),
    BORDERS_BEFORE_AVERAGES.name: lambda: Net(lambda n, x: F.avg_pool2d(n.a(x), 3, 1, 1), a=C(3, 8, 3)),
    STRIDES_BEFORE_POINTWISE.name: lambda: Net(lambda n, x: n.b(n.a(x)), a=C(3, 8, 3), b=C(8, 8, 1, stride=2)),
    GAPS_GATHERED.name: lambda: Net(lambda n, x: F.max_pool2d(n.a(x), 3, 2, 1, dilation=2), a=C(3, 8, 3)),
    NUMBERS_BEFORE_PRODUCTS.name: _attention_net,
    LAYERS_PER_PART.name: _attention_net,
    ROWS_OF_CHANNELS_LAST.name: _attention_net,
    WIDE_BRANCHES.name: lambda: Net(
        lambda n, x: n.d(torch.relu(n.b(y := torch.relu(n.a(x)))) + n.c(y) + y.amax((2, 3), keepdim=True)),
        a=C(3, 8, 3),
        b=C(8, 8, 1),
        c=C(8, 8, 1),
        d=C(8, 8, 1),
    ),
}


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(5))


def trained(module: nn.Module) -> nn.Module:
    """The module with BatchNorm statistics of its own, for inference."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None and part.running_var is not None
            part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
            part.running_var.uniform_(0.5, 2, generator=generator)
    return module.eval()


def test_every_row_has_a_network_that_it_changes() -> None:
    assert set(CHANGED) == {row.name for row in (*FOLDING, *OF_PROFILES)}


@pytest.mark.parametrize("name", CHANGED)
def test_a_fault_in_a_row_is_named(name: str, images: Tensor) -> None:
    captured = capture(trained(CHANGED[name]()), images[:2], source="test")
    rows = FOLDING if name in names_of(FOLDING) else (next(row for row in OF_PROFILES if row.name == name),)
    graph = captured if rows is FOLDING else fold(captured, check=images)
    right = rewritten(graph, rows, check=images)
    assert right is not graph and interface_of(right) == interface_of(graph)
    with torch.no_grad():
        torch.testing.assert_close(right(images)[0], graph(images)[0], rtol=1e-4, atol=1e-5)
    wrong = tuple(faulty(row) if row.name == name else row for row in rows)
    with pytest.raises(RewriteChangedOutputs, match="of its largest value") as raised:
        rewritten(graph, wrong, check=images)
    assert raised.value.row.name == name
    # Nobody has looked without images, and the graph that was given is as it was.
    assert rewritten(graph, wrong) is not graph
    assert rewritten(graph, rows, check=images) is not graph


def test_rows_keep_to_their_order() -> None:
    check_order(FOLDING)
    check_order(OF_PROFILES)
    with pytest.raises(ValueError, match="tables of positions must stand behind constants"):
        check_order((FOLDING[1], FOLDING[0]))
    with pytest.raises(ValueError, match="stands twice"):
        check_order((FOLDING[0], FOLDING[0]))
    with pytest.raises(ValueError, match="behind borders as paddings"):
        rewritten(GraphModule(nn.Module(), torch.fx.Graph()), FOLDING[::-1][4:6])


@pytest.mark.parametrize(
    ("change", "words"), [({"name": ""}, "name"), ({"source": ""}, "source"), ({"tolerance": 1.0}, "outside")]
)
def test_a_row_is_checked_at_birth(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(FOLDING[0], **change)
