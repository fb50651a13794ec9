"""What a backend's tables ask about a layer: its shape and the bits that its place asks for, worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from backends.facts.profile import LayerShape
from backends.facts.widths import Widths
from backends.placement.layer_facts import layer_shape, weight_bits
from calibration.capture.graph_from_module import capture
from calibration.graph.operators import WEIGHTED, kind

WIDTHS = Widths(weights=2, first=6, depthwise=5, last=7)


class Layers(nn.Module):
    """A layer of every kind; 8 channels of 6 x 6 pixels, then 4 tokens of 3 numbers, then 12 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)
        self.transposed = nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 3), groups=2)
        self.single = nn.Conv2d(6, 1, (12, 18))
        self.spread = nn.Conv2d(1, 4, 1)
        self.tokens = nn.Linear(1, 3)
        self.vector = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Apply them in order."""
        x = self.transposed(self.grouped(self.depthwise(torch.relu(self.first(x)))))
        tokens = self.tokens(self.spread(self.single(x)).flatten(2))
        result: Tensor = self.vector(tokens.flatten(1))
        return result


def layers_of(module: nn.Module, *sizes: int) -> tuple[GraphModule, dict[str, Node]]:
    graph = capture(module.eval(), torch.randn(*sizes), source="test")
    return graph, {node.name: node for node in graph.graph.nodes if kind(node) in WEIGHTED}


def test_shapes_and_bits() -> None:
    graph, layers = layers_of(Layers(), 2, 3, 6, 6)
    names = ["first", "depthwise", "grouped", "transposed", "single", "spread", "tokens", "vector"]
    by_name = dict(zip(names, layers.values(), strict=True))
    assert {name: layer_shape(graph, layer) for name, layer in by_name.items()} == {
        "first": LayerShape(kind="conv", inputs=3, outputs=8, kernel=(1, 1), first=True),
        "depthwise": LayerShape(kind="conv", inputs=1, outputs=8, kernel=(3, 3), groups=8),
        "grouped": LayerShape(kind="conv", inputs=4, outputs=4, kernel=(1, 1), groups=2),
        # Its weight [4, 3, 2, 3] begins with all inputs, and has the outputs of one group.
        "transposed": LayerShape(kind="conv_transpose", inputs=2, outputs=6, kernel=(2, 3), groups=2),
        "single": LayerShape(kind="conv", inputs=6, outputs=1, kernel=(12, 18)),
        "spread": LayerShape(kind="conv", inputs=1, outputs=4, kernel=(1, 1)),
        # Each of 4 channels is a row of one image; how many rows there are depends on the batch, which is free.
        "tokens": LayerShape(kind="linear", inputs=1, outputs=3, rows_per_image=4),
        "vector": LayerShape(kind="linear", inputs=12, outputs=10, rows_per_image=1),
    }
    # "spread" reads one channel and has one group: that is no depthwise convolution.
    assert {name: weight_bits(graph, layer, WIDTHS) for name, layer in by_name.items()} == {
        "first": 6, "depthwise": 5, "grouped": 2, "transposed": 2, "single": 2, "spread": 2, "tokens": 2, "vector": 7,
    }  # fmt: skip


def test_rows_are_known_where_the_batch_size_is() -> None:
    graph, layers = layers_of(Layers(), 2, 3, 6, 6)
    tokens = list(layers.values())[-2]
    tokens.meta["val"] = torch.empty(2, 4, 3)
    assert layer_shape(graph, tokens) == LayerShape(kind="linear", inputs=1, outputs=3, rows=8, rows_per_image=4)


def test_a_layer_that_is_first_depthwise_and_last_has_the_most_bits_of_the_three() -> None:
    graph, (only,) = (made := layers_of(nn.Conv2d(4, 4, 3, groups=4), 2, 4, 6, 6))[0], made[1].values()
    for first, depthwise, last in ((6, 5, 3), (5, 6, 3), (3, 5, 6)):
        assert weight_bits(graph, only, Widths(weights=2, first=first, depthwise=depthwise, last=last)) == 6
    assert weight_bits(graph, only, Widths(weights=8, first=3, depthwise=3, last=3)) == 8
