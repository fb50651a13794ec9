"""Borders and strides written as operators of their own: where, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.graph.interface import interface_of
from calibration.graph.operators import argument, kind
from calibration.rewrites.explicit_borders import BORDERS_BEFORE_AVERAGES, STRIDES_BEFORE_POINTWISE
from calibration.rewrites.fold import fold
from calibration.rewrites.rewrite import Rewrite, rewritten

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

C = nn.Conv2d


def kinds(graph_module: GraphModule) -> list[str]:
    return [kind(node) for node in graph_module.graph.nodes if node.op == "call_function"]


def changed_by(module: nn.Module, images: Tensor, row: Rewrite) -> tuple[GraphModule, GraphModule]:
    """The folded graph before and after, which give equal outputs for two batch sizes."""
    folded = fold(capture(module.eval(), images[:2], source="test"))
    changed = rewritten(folded, (row,))
    assert interface_of(changed) == interface_of(folded)
    with torch.no_grad():
        for batch in (images, images[:1]):
            for before, after in zip(folded(batch), changed(batch), strict=True):
                torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    return folded, changed


@pytest.mark.parametrize("padding", [1, (1, 0), (0, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_border_of_a_signed_map_is_a_padding(
    padding: int | tuple[int, int], stride: int, net: MakeNet, noise: Noise
) -> None:
    module = net(lambda n, x: n.b(F.avg_pool2d(n.a(x), 3, stride, padding)), a=C(3, 8, 3), b=C(8, 8, 1))
    _, changed = changed_by(module, noise(3, 3, 13, 12), BORDERS_BEFORE_AVERAGES)
    assert kinds(changed) == ["conv", "pad", "average_pool", "conv"]


@pytest.mark.parametrize(
    "pooling",
    [
        lambda x: F.avg_pool2d(torch.relu(x), 3, 1, 1),  # its zero point is 0
        lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 2),
        lambda x: F.max_pool2d(x, 3, 1, 1),
    ],
)
def test_other_poolings_stay(pooling: Callable[[Tensor], Tensor], net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.b(pooling(n.a(x))), a=C(3, 8, 3), b=C(8, 8, 1))
    folded, changed = changed_by(module, noise(3, 3, 12, 12), BORDERS_BEFORE_AVERAGES)
    assert changed is folded


def test_strides_of_pointwise_convolutions_are_left_out_in_front(net: MakeNet, noise: Noise) -> None:
    """Both branches of a residual block as in the first ResNets."""
    module = net(
        lambda n, x: torch.relu(n.c(torch.relu(n.b(y := torch.relu(n.a(x))))) + n.d(y)),
        a=C(3, 8, 3),
        b=C(8, 8, 1, stride=2),
        c=C(8, 8, 3, padding=1),
        d=C(8, 8, 1, stride=2, bias=False),
    )
    _, changed = changed_by(module, noise(3, 3, 13, 12), STRIDES_BEFORE_POINTWISE)
    assert kinds(changed).count("max_pool") == 1
    assert all(argument(node, 3, "stride", [1, 1]) == [1, 1] for node in changed.graph.nodes if kind(node) == "conv")


def test_borders_of_pointwise_convolutions_with_strides_are_paddings_in_front(net: MakeNet, noise: Noise) -> None:
    module = net(
        lambda n, x: (n.b(y := n.a(x)), n.c(y), n.d(y)),
        a=C(3, 8, 3),
        b=C(8, 8, 1, stride=2, padding=1),
        c=C(8, 4, 1, stride=2, padding=(0, 2), bias=False),
        d=C(8, 4, 1, stride=2),
    )
    _, changed = changed_by(module, noise(3, 3, 13, 12), STRIDES_BEFORE_POINTWISE)
    assert kinds(changed).count("max_pool") == 3 and kinds(changed).count("pad") == 2
    for node in changed.graph.nodes:
        if kind(node) == "conv" and node.name != "a":
            assert (argument(node, 3, "stride", [1, 1]), argument(node, 4, "padding", [0, 0])) == ([1, 1], [0, 0])


@pytest.mark.parametrize(
    "compute",
    [
        lambda n, x: (n.leaps(y := n.a(x)), n.wide(y)),
        lambda n, x: (n.leaps(y := n.a(x)), n.steps(y)),
        lambda n, x: (n.leaps(y := n.a(x)), torch.tanh(y)),
        lambda n, x: (n.leaps(y := n.a(x)), y),
        lambda n, x: (n.leaps(y := n.a(x)), n.far(y)),
        lambda n, x: n.depthwise(n.a(x)),
        lambda n, x: n.steps(n.a(x)),
    ],
)
def test_strides_stay_where_others_read_the_map(
    compute: Callable[[object, Tensor], Tensor], net: MakeNet, noise: Noise
) -> None:
    module = net(
        compute,
        a=C(3, 8, 3),
        leaps=C(8, 8, 1, stride=2),
        far=C(8, 8, 1, stride=3),
        steps=C(8, 8, 1),
        wide=C(8, 8, 3, stride=2),
        depthwise=C(8, 8, 1, stride=2, groups=8),
    )
    folded, changed = changed_by(module, noise(3, 3, 12, 12), STRIDES_BEFORE_POINTWISE)
    assert changed is folded
