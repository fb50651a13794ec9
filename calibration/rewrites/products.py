"""Products by constants are linear layers, and linear layers by computed weights are products."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.graph.constants import new_constants
from calibration.graph.operators import argument, constant, static_shape
from calibration.normal_form.decompositions import before, linear_over_rows

aten = torch.ops.aten


def product_as_layer(graph_module: GraphModule, node: Node) -> None:
    """Make a matrix product by a constant matrix a linear layer, whose weight has integers; others are left alone.

    A constant that others read is copied, for theirs lies the other way round.
    """
    source, other = node.args[:2]
    values = constant(graph_module, other)
    if (
        values is None
        or values.dim() != 2
        or not isinstance(source, Node)
        or constant(graph_module, source) is not None
    ):
        return
    if not values.is_floating_point() or len(static_shape(source)) < 2 or static_shape(source).count(-1) > 1:
        return
    (weight,) = new_constants(graph_module, node, {"weight": values.detach().t().contiguous()}, holder="transposed")
    node.target, node.args, node.kwargs = aten.linear.default, (source, weight), {}
    _over_rows(graph_module, node)


def layer_as_product(graph_module: GraphModule, node: Node) -> None:
    """Make a linear layer whose weight is computed from the image a product of two tensors, and a sum with its bias."""
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    if not isinstance(weight, Node) or constant(graph_module, weight) is not None:
        return
    turned = before(graph_module.graph, node, aten.transpose.int, (weight, -2, -1))
    product = before(graph_module.graph, node, aten.matmul.default, (node.args[0], turned))
    if isinstance(bias, Node):
        product = before(graph_module.graph, node, aten.add.Tensor, (product, bias))
    node.replace_all_uses_with(product)
    graph_module.graph.erase_node(node)


def _over_rows(graph_module: GraphModule, node: Node) -> None:
    readers = list(node.users)
    with graph_module.graph.inserting_after(node):
        result = linear_over_rows(graph_module.graph, node)
    if result is not node:
        for reader in readers:
            reader.replace_input_with(node, result)
