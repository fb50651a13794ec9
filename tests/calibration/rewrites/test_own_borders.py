"""A border of zeros becomes the padding of what reads it, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.graph.operators import argument, kind
from calibration.rewrites import own_borders
from calibration.rewrites.fold import difference_of_graphs, fold
from calibration.rewrites.own_borders import one_sided_border
from calibration.rewrites.rewrite import RewriteChangedOutputs

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

C = nn.Conv2d


def folded_from(module: nn.Module, images: Tensor) -> GraphModule:
    """The folded graph, which computes what the captured one does for two batch sizes."""
    captured = capture(module.eval(), images[:2], source="test")
    folded = fold(captured)
    assert max(difference_of_graphs(captured, folded, batch) for batch in (images, images[:1])) <= 1e-6
    return folded


def kinds(graph_module: GraphModule) -> list[str]:
    return [kind(node) for node in graph_module.graph.nodes if node.op == "call_function"]


def paddings(graph_module: GraphModule) -> list[list[int]]:
    """The paddings of the graph's convolutions and poolings, in order."""
    places = {"conv": 4, "average_pool": 3}
    nodes = [node for node in graph_module.graph.nodes if kind(node) in places]
    return [list(argument(node, places[kind(node)], "padding", [0, 0])) for node in nodes]


@pytest.mark.parametrize(
    ("border", "own", "total"),
    [((1, 1, 1, 1), 0, [1, 1]), ((2, 2), 0, [0, 2]), ((0, 0, 3, 3), (1, 0), [4, 0]), ((1, 1, 2, 2, 0, 0), 1, [3, 2])],
)
def test_a_convolution_takes_an_equal_border(
    border: tuple[int, ...], own: int | tuple[int, int], total: list[int], net: MakeNet, noise: Noise
) -> None:
    module = net(lambda n, x: n.a(F.pad(x, border)), a=C(3, 8, 3, stride=2, padding=own))
    folded = folded_from(module, noise(3, 3, 9, 10))
    assert kinds(folded) == ["conv"] and paddings(folded) == [total]


def test_all_its_readers_take_it_with_weights_in_groups_and_dilated(net: MakeNet, noise: Noise) -> None:
    module = net(
        lambda n, x: torch.cat([n.b(p := F.pad(n.a(x), (2, 2, 2, 2))), n.c(p)], 1),
        a=C(3, 8, 3),
        b=C(8, 8, 5, groups=8, bias=False),
        c=C(8, 4, 3, dilation=2),
    )
    folded = folded_from(module, noise(3, 3, 9, 10))
    assert kinds(folded) == ["conv", "conv", "conv", "concat"] and paddings(folded) == [[0, 0], [2, 2], [2, 2]]


def test_a_border_that_others_read_too_stays_for_them(net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.b(p := F.pad(n.a(x), (1, 1, 1, 1))) + p[:, :, 1:-1, 1:-1], a=C(3, 8, 3), b=C(8, 8, 3))
    folded = folded_from(module, noise(3, 3, 9, 10))
    assert kinds(folded).count("pad") == 1 and paddings(folded) == [[0, 0], [1, 1]]


@pytest.mark.parametrize("how", [{}, {"count_include_pad": True, "padding": 1}])
def test_an_average_counts_the_zeros(how: dict[str, Any], net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.b(F.avg_pool2d(F.pad(n.a(x), (1, 1, 1, 1)), 4, 2, **how)), a=C(3, 8, 3), b=C(8, 8, 1))
    folded = folded_from(module, noise(3, 3, 9, 10))
    assert kinds(folded) == ["conv", "average_pool", "conv"]
    assert paddings(folded)[1] == ([1, 1] if not how else [2, 2])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    "read",
    [
        lambda n, x: n.b(F.pad(x, (1, 1, 1, 1), value=0.5)),
        lambda n, x: n.b(F.pad(x, (1, 1, 1, 1), mode="reflect")),
        lambda n, x: n.b(F.pad(x, (-1, -1, 1, 1))),  # it takes values away
        lambda n, x: n.b(F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:-1]),  # of channels
        lambda n, x: n.wide(F.pad(x, (1, 1, 1, 1, 1, 1))),  # of channels too
        lambda n, x: n.b(F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 3)),  # the largest of negative values is 0 here
        lambda n, x: n.b(F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 4, 2, padding=1, count_include_pad=False)),
        lambda n, x: n.b(F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, padding=1)),  # torch takes half a window at most
        lambda n, x: n.b(F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2, ceil_mode=True)),
        lambda n, x: n.b(F.avg_pool2d(F.pad(x, (2, 2, 2, 2)), 3, 2)),  # a window of zeros alone
        lambda n, x: n.b(F.pad(x, (0, 1, 0, 1))),
        lambda n, x: n.same(F.pad(x, (1, 1, 1, 1))),  # whose own is one-sided
        lambda n, x: F.conv2d(p := F.pad(x, (1, 1, 1, 1)), p, padding=1),  # it is the weight too
    ],
)
def test_what_is_no_padding_of_its_reader_stays(read: nn.Module, net: MakeNet, noise: Noise) -> None:
    module = net(
        lambda n, x: read(n, n.a(x)), a=C(3, 8, 3), b=C(8, 8, 3), same=C(8, 8, 2, padding="same"), wide=C(10, 8, 3)
    )
    folded = folded_from(module, noise(3, 3, 13, 12))
    assert {"pad", "mirror_pad"} & set(kinds(folded))


def test_every_run_would_notice_a_weight_whose_border_was_taken(
    net: MakeNet, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = net(lambda n, x: F.conv2d(p := F.pad(n.a(x), (1, 1, 1, 1)), p, padding=1), a=C(3, 8, 3))
    captured = capture(module.eval(), noise(2, 3, 9, 10), source="test")
    monkeypatch.setattr(own_borders, "takes_border_in", lambda reader, border: kind(reader) == "conv")
    with pytest.raises(RewriteChangedOutputs, match="the rewrite 'borders as paddings' changed the output output"):
        fold(captured, check=noise(2, 3, 9, 10))


def test_a_one_sided_border_is_named_where_convolutions_alone_read_it(net: MakeNet, noise: Noise) -> None:
    module = net(
        lambda n, x: n.b(F.pad(y := n.a(F.pad(x, (0, 1, 2, 3))), (1, 0))) + y.mean(), a=C(3, 8, 3), b=C(8, 8, 2)
    )
    borders = [one_sided_border(node) for node in folded_from(module, noise(3, 3, 9, 10)).graph.nodes]
    assert [border for border in borders if border is not None] == [(2, 3, 0, 1), (0, 0, 1, 0)]
    module = net(lambda n, x: n.b(p := F.pad(n.a(x), (0, 1, 0, 1))) + p.mean(), a=C(3, 8, 3), b=C(8, 8, 2))
    assert not any(one_sided_border(node) for node in folded_from(module, noise(3, 3, 9, 10)).graph.nodes)
