"""Numbers that multiply a tensor, in the form in which they can become part of a scale."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.graph.operators import MOVEMENT, WEIGHTED, constant, kind, multiplier, static_shape
from calibration.normal_form.decompositions import before
from calibration.rewrites.affine import fold_affine
from calibration.rewrites.rewrite import Rewrite


def constant_as_number(graph_module: GraphModule, node: Node) -> None:
    """Write a multiplication by a constant tensor of one positive value, or a division by it, with a number instead."""
    if kind(node) not in {"mul", "div"} or len(node.args) != 2:
        return
    source, other = node.args
    if kind(node) == "mul" and constant(graph_module, source) is not None:
        source, other = other, source
    values = constant(graph_module, other)
    if not isinstance(source, Node) or values is None or values.numel() != 1 or not values.item() > 0:
        return
    if static_shape(source) != static_shape(node) or not values.is_floating_point():
        return
    number = float(values.item())
    node.args = (source, number if kind(node) == "mul" else 1 / number)
    node.target = torch.ops.aten.mul.Tensor


def _numbers_before_products(graph_module: GraphModule) -> bool:
    """Let numbers behind a product of two tensors multiply one of its operands.

    An operand that a layer computes is chosen, for it is or may be rounded, and on its grid the number costs nothing; a
    product without one is left alone.
    """
    return any([_move_before(graph_module, node) for node in list(graph_module.graph.nodes)])


def _move_before(graph_module: GraphModule, node: Node) -> bool:
    factor, product = multiplier(node), node.args[0] if node.args else None
    if factor is None or not isinstance(product, Node) or kind(product) != "matmul" or len(product.users) > 1:
        return False
    for position, operand in enumerate(product.args):
        if isinstance(operand, Node) and _comes_from_a_layer(operand):
            multiplied = before(graph_module.graph, product, node.target, (operand, factor))
            product.update_arg(position, multiplied)
            node.replace_all_uses_with(product)
            graph_module.graph.erase_node(node)
            fold_affine(graph_module, multiplied)
            return True
    return False


def _comes_from_a_layer(node: Node) -> bool:
    """Whether a tensor is a weighted layer's output, over movement and numbers."""
    while kind(node) in MOVEMENT - {"concat"} or multiplier(node) is not None:
        source = node.args[0]
        if not isinstance(source, Node):
            return False
        node = source
    return kind(node) in WEIGHTED


NUMBERS_BEFORE_PRODUCTS = Rewrite(
    name="numbers in front of products",
    edit=_numbers_before_products,
    source="a number that multiplies a rounded tensor changes a scale and no integer (measured beside the profiles)",
)
