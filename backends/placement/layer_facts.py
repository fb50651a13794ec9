"""What a backend's tables ask about a weighted layer: its shape, and the weight bits that its place asks for."""

from __future__ import annotations

import math

from torch import SymInt
from torch.fx import GraphModule, Node

from backends.facts.profile import LayerShape
from backends.facts.widths import Widths
from calibration.graph.operators import argument, constant, has_weighted, kind, shape, static_shape


def layer_shape(module: GraphModule, layer: Node) -> LayerShape:
    """The shape of a layer with a constant weight."""
    weight = constant(module, argument(layer, 1, "weight"))
    assert weight is not None
    sizes, rows = tuple(weight.shape), static_shape(layer)[:-1]
    transposed = kind(layer) == "conv_transpose"  # weight [Cin, Cout/groups, kh, kw]
    groups = int(argument(layer, 6, "groups", 1)) if kind(layer) != "linear" else 1
    return LayerShape(
        kind=kind(layer),
        inputs=sizes[0] // groups if transposed else sizes[1],
        outputs=sizes[1] * groups if transposed else sizes[0],
        kernel=sizes[2:],
        groups=groups,
        first=kind(layer.args[0]) == "input" if isinstance(layer.args[0], Node) else False,
        rows=math.prod(rows) if kind(layer) == "linear" and min(rows) >= 0 else None,
        rows_per_image=_rows_per_image(layer) if kind(layer) == "linear" else None,
    )


def _rows_per_image(layer: Node) -> int:
    """Rows of a linear layer's product that one image gives: 1 behind a flattened map, else its tokens."""
    image = next(node for node in layer.graph.nodes if kind(node) == "input")
    return math.prod(map(_example, shape(layer)[:-1])) // _example(shape(image)[0])


def _example(size: int | SymInt) -> int:
    """A size; a free one as the example has it that the network was captured with."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    assert isinstance(hint, int)
    return hint


def weight_bits(module: GraphModule, layer: Node, widths: Widths) -> int:
    """Weight bits that the layer's place in the network asks for."""
    weight = constant(module, argument(layer, 1, "weight"))
    assert weight is not None
    bits = widths.weights
    if kind(layer) == "conv" and weight.shape[1] == 1 and weight.shape[0] > 1 and argument(layer, 6, "groups", 1) > 1:
        bits = max(bits, widths.depthwise)
    if not has_weighted(layer, forward=False):
        bits = max(bits, widths.first)
    if not has_weighted(layer, forward=True):
        bits = max(bits, widths.last)
    return bits
