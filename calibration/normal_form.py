"""One way to say each thing: the operators of an exported graph, rewritten to the few that the tables know."""

from __future__ import annotations

import logging
import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from calibration.mutation import functional, is_in_place
from calibration.operators import argument, attribute, clip_bounds, static_shape

aten = torch.ops.aten
_log = logging.getLogger(__name__)

#: Operators that do nothing in a network that only infers.
NO_OPERATION = frozenset(
    {
        aten.dropout.default,
        aten.dropout_.default,
        aten.feature_dropout.default,
        aten.feature_dropout_.default,
        aten.alpha_dropout.default,
        aten.alpha_dropout_.default,
        aten.feature_alpha_dropout.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.detach.default,
        aten.detach_.default,
        aten.alias.default,
        aten.lift_fresh_copy.default,
    }
)

#: Conversions; those that keep the type do nothing, as the whole network lies on one device.
_CONVERSIONS = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten.type_as.default,
        aten._to_copy.default,
    }
)

#: Checks that export leaves behind: of shapes, which hold by construction, and of values, which no device checks.
_CHECKS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)

#: Containers say nothing about what a node does: the operator's own word is added to their path.
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


def normal_form(captured: GraphModule, *, source: str) -> Graph:
    """Rewrite an exported graph: functional operators, no checks, no work without effect, a flat tuple of tensors.

    Parameters that several names share are read under the first one. `source` names the network in warnings.
    """
    graph, copies, constants = Graph(), dict[Node, Node](), dict[int, str]()
    for node in sorted(captured.graph.nodes, key=lambda node: node.op != "placeholder"):
        if node.op == "call_module" or node.target in _CHECKS:
            continue  # the guards of export: the batch size is free and the image size checked by the caller
        same = _same_tensor(node)
        if same is not None:
            _warn_of_dropout(node, source)
            copies[node] = copies[same]
        elif node.op == "output":
            (results,) = node.args
            assert isinstance(results, (list, tuple))
            graph.output(tuple(copies[result] for result in results if isinstance(result, Node)))
        else:
            copies[node] = _copy(graph, node, copies)
            if node.op == "get_attr":
                tensor = attribute(captured, str(node.target))
                copies[node].target = constants.setdefault(id(tensor), str(node.target))
    return graph


def _same_tensor(node: Node) -> Node | None:
    """The node whose tensor this one hands on unchanged, or None when it computes."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, Node):
        return None
    if node.target in NO_OPERATION or _is_whole_slice(node):
        return source
    if node.target in _CONVERSIONS and source.meta["val"].dtype == node.meta["val"].dtype:
        return source
    # Functionalisation gives BatchNorm two statistics beside its result; see _RULES.
    if node.target is operator.getitem and source.target is aten._native_batch_norm_legit_no_training.default:
        return source
    return None


def _is_whole_slice(node: Node) -> bool:
    if node.target is not aten.slice.Tensor:
        return False
    start, end, step = (argument(node, i, name) for i, name in ((2, "start"), (3, "end"), (4, "step")))
    return start in (None, 0) and (end is None or end == sys.maxsize) and step in (None, 1)


def _warn_of_dropout(node: Node, source: str) -> None:
    if "dropout" in str(node.target) and argument(node, 2, "train"):
        _log.warning("%s: %s drops values in evaluation mode too; it is left out", source, _name(node))


def _copy(graph: Graph, node: Node, copies: Mapping[Node, Node]) -> Node:
    """Write a node, or what it is in normal form, under the name of the module that it comes from."""
    target = functional(node) if is_in_place(node) else node.target
    arguments = torch.fx.node.map_arg(node.args, lambda source: copies[source])
    keywords = torch.fx.node.map_arg(node.kwargs, lambda source: copies[source])
    name = _name(node) if node.op == "call_function" else node.name
    copied = graph.create_node(node.op, target, arguments, keywords, name=name, type_expr=node.type)
    copied.meta = dict(node.meta)
    if target in _RULES:
        _RULES[target](graph, copied)
    return copied


# Rules: each turns the node just written into its normal form, with nodes of its own before it where it needs them.


def _reshape(graph: Graph, node: Node) -> None:
    # A view asks for a memory layout; calls to contiguous() are gone, so only reshape is always right.
    node.target = aten.reshape.default
    sizes = static_shape(node)
    # One free dimension is inferred from the others, so the symbolic size need not be computed.
    if sizes.count(-1) <= 1:
        node.args = (node.args[0], list(sizes))


def _batch_norm(graph: Graph, node: Node) -> None:
    node.target = aten.batch_norm.default
    *tensors, momentum, epsilon = node.args
    node.args = (*tensors, False, momentum, epsilon, False)
    node.meta["val"] = node.meta["val"][0]


def _pad(graph: Graph, node: Node) -> None:
    if argument(node, 2, "mode", "constant") == "constant":
        value = argument(node, 3, "value")
        node.target, node.args, node.kwargs = aten.constant_pad_nd.default, (*node.args[:2], value or 0.0), {}


def _named_padding(graph: Graph, node: Node) -> None:
    """Padding given as a word, in numbers; left alone where the two ends differ, which numbers here cannot say."""
    kernel, dilation = static_shape(argument(node, 1, "weight"))[2:], argument(node, 5, "dilation", [1])
    dilations = list(dilation) * (2 if len(dilation) == 1 else 1)
    total = [
        d * (k - 1) if argument(node, 4, "padding") == "same" else 0 for k, d in zip(kernel, dilations, strict=True)
    ]
    if any(size % 2 for size in total):
        return
    arguments = [argument(node, 2, "bias"), argument(node, 3, "stride", [1, 1])]
    groups = argument(node, 6, "groups", 1)
    node.target, node.kwargs = aten.conv2d.default, {}
    node.args = (*node.args[:2], *arguments, [size // 2 for size in total], dilations, groups)


def _clamp(graph: Graph, node: Node) -> None:
    low, high = clip_bounds(node)
    if low == 0.0 and high == float("inf"):
        node.target, node.args, node.kwargs = aten.relu.default, (node.args[0],), {}


def _scaled_operand(graph: Graph, node: Node) -> None:
    """Make the product in a + alpha * b a node of its own."""
    factor = node.kwargs.get("alpha", 1)
    node.kwargs = {}
    if factor == 1:
        return
    second = argument(node, 1, "other")
    if isinstance(second, Node):
        with graph.inserting_before(node):
            scaled = graph.call_function(aten.mul.Tensor, (second, factor))
        scaled.meta = dict(node.meta) | {"val": second.meta["val"]}
        node.args = (node.args[0], scaled)
    else:
        node.args = (node.args[0], second * factor)


def _reversed_subtraction(graph: Graph, node: Node) -> None:
    """Write b - alpha * a as (-alpha * a) + b."""
    first, second = node.args[:2]
    with graph.inserting_before(node):
        scaled = graph.call_function(aten.mul.Tensor, (first, -argument(node, 2, "alpha", 1)))
    assert isinstance(first, Node)
    scaled.meta = dict(node.meta) | {"val": first.meta["val"]}
    node.target, node.args, node.kwargs = aten.add.Tensor, (scaled, second), {}


_RULES: dict[Any, Callable[[Graph, Node], None]] = {
    aten.conv2d.padding: _named_padding,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.reshape.default: _reshape,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.pad.default: _pad,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.add.Tensor: _scaled_operand,
    aten.sub.Tensor: _scaled_operand,
    aten.rsub.Scalar: _reversed_subtraction,
    aten.rsub.Tensor: _reversed_subtraction,
}


def _name(node: Node) -> str:
    """The module path with underscores for dots; the operator's word is added where the module is no single layer."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    if path.startswith("_"):  # nodes that export added itself carry a placeholder instead of a path
        path = ""
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    word = str(getattr(node.target, "__name__", node.target)).split(".")[0].strip("_")
    is_layer = kind.startswith("torch.nn.modules") and not kind.endswith(_CONTAINERS)
    name = path if is_layer and path else f"{path}_{word}" if path else word
    return name.replace(".", "_").replace("/", "_")
