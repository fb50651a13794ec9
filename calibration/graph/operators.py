"""The vocabulary of operations: which ATen operator is what, as one table that planners and emitters share."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from calibration.arithmetic.integer_products import (
    integer_conv2d,
    integer_conv_transpose2d,
    integer_linear,
    wide_matmul,
)
from calibration.arithmetic.scales import SMALLEST_SCALE

aten = torch.ops.aten


#: Kind of every operator that a planner may meet. What is not listed is kind "other" and stays float.
KINDS: dict[Any, str] = {
    operator.getitem: "item",
    aten.conv2d.default: "conv",
    aten.conv2d.padding: "conv",
    integer_conv2d: "conv",
    aten.conv_transpose2d.input: "conv_transpose",
    integer_conv_transpose2d: "conv_transpose",
    aten.linear.default: "linear",
    integer_linear: "linear",
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    wide_matmul: "matmul",
    aten.batch_norm.default: "batch_norm",
    aten.relu.default: "relu",
    aten.relu6.default: "clip",
    aten.hardtanh.default: "clip",
    aten.clamp.default: "clip",
    aten.clamp_min.default: "clip",
    aten.leaky_relu.default: "leaky_relu",
    aten.prelu.default: "prelu",
    aten.sigmoid.default: "sigmoid",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.hardswish.default: "hardswish",
    aten.silu.default: "silu",
    aten.gelu.default: "gelu",
    aten.tanh.default: "tanh",
    aten.elu.default: "elu",
    aten.softmax.int: "softmax",
    aten.linalg_vector_norm.default: "norm",
    aten.exp.default: "exp",
    aten.sqrt.default: "sqrt",
    aten.layer_norm.default: "layer_norm",
    aten.group_norm.default: "group_norm",
    aten.expand.default: "expand",
    aten.expand_as.default: "expand",
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.max_pool2d.default: "max_pool",
    aten.avg_pool2d.default: "average_pool",
    aten.adaptive_avg_pool2d.default: "adaptive_average_pool",
    aten.mean.dim: "mean",
    aten.flatten.using_ints: "reshape",
    aten.view.default: "reshape",
    aten.reshape.default: "reshape",
    aten.unflatten.int: "reshape",
    aten.squeeze.default: "reshape",
    aten.squeeze.dim: "reshape",
    aten.squeeze.dims: "reshape",
    aten.unsqueeze.default: "reshape",
    aten.permute.default: "transpose",
    aten.transpose.int: "transpose",
    aten.slice.Tensor: "slice",
    aten.flip.default: "slice",
    aten.index_select.default: "select",
    aten.select.int: "select",
    aten.chunk.default: "split",
    aten.split.Tensor: "split",
    aten.split_with_sizes.default: "split",
    aten.constant_pad_nd.default: "pad",
    aten.pad.default: "mirror_pad",
    aten.cat.default: "concat",
    aten.pixel_shuffle.default: "depth_to_space",
    aten.channel_shuffle.default: "channel_shuffle",
    aten.upsample_nearest2d.vec: "resize_nearest",
    aten.upsample_bilinear2d.vec: "resize_bilinear",
    # Capture leaves none: they are ours (calibration/rewrites/wide_branches.py).
    aten.clone.default: "copy",
}

#: Operators with trained weights that integer hardware accelerates: what the census of kernels counts.
WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})

#: Operators that move values without computing: what is on a grid before is on the same grid after.
MOVEMENT = frozenset(
    {
        "max_pool",
        "reshape",
        "transpose",
        "slice",
        "select",
        "split",
        "item",
        "pad",
        "mirror_pad",
        "concat",
        "depth_to_space",
        "channel_shuffle",
        "resize_nearest",
    }
)


def kind(node: Node) -> str:
    """The table's word for a node: its operator's kind, or "input", "constant", "output", "item", "other"."""
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return "constant"
    if node.op == "output":
        return "output"
    if node.op != "call_function":
        return "other"
    return KINDS.get(node.target, "other")


def attribute(module: torch.nn.Module, path: str) -> Any:
    """The object behind a dotted path such as `layer1.0.conv1.weight`."""
    owner: Any = module
    for part in path.split("."):
        owner = getattr(owner, part)
    return owner


def constant(graph_module: GraphModule, node: object) -> torch.Tensor | None:
    """The tensor of a constant node, or None when the node is not one."""
    if isinstance(node, Node) and node.op == "get_attr":
        value = attribute(graph_module, str(node.target))
        return value if isinstance(value, torch.Tensor) else None
    return None


def shape(node: Node) -> tuple[int | torch.SymInt, ...]:
    """The shape that capture recorded for a node's tensor; the batch dimension may be symbolic."""
    return tuple(node.meta["val"].shape)


def static_shape(node: Node) -> tuple[int, ...]:
    """The shape with every symbolic dimension as -1."""
    return tuple(size if isinstance(size, int) else -1 for size in shape(node))


def tensor_inputs(node: Node) -> list[Node]:
    """The nodes whose tensors this operator computes on, constants left out, in argument order.

    A node that is read twice is listed twice: x + x has two inputs.
    """
    sources: list[Node] = []

    def visit(source: Node) -> Node:
        if kind(source) != "constant" and is_tensor(source):
            sources.append(source)
        return source

    map_arg((node.args, node.kwargs), visit)
    return sources


def is_tensor(node: Node) -> bool:
    """Whether capture recorded one floating-point tensor (or a list of them, for a split) for the node."""
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """An operator's argument, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def axis_order(node: Node) -> list[int]:
    """For every axis of a transposition's output the axis of its input that it is."""
    order = list(range(len(static_shape(node))))
    if node.target is aten.permute.default:
        return [int(axis) % len(order) for axis in argument(node, 1, "dims")]
    first, second = (int(argument(node, place, f"dim{place - 1}")) % len(order) for place in (1, 2))
    order[first], order[second] = order[second], order[first]
    return order


def pair(value: Any) -> tuple[int, ...]:
    """A size given for both axes at once or for each."""
    sizes = tuple(int(size) for size in value) if isinstance(value, (list, tuple)) else (int(value),)
    return sizes * 2 if len(sizes) == 1 else sizes


def output_groups(layer: Node) -> int:
    """How often the output channels of a weighted layer's weight repeat: the groups of a transposed convolution.

    Its weight is [Cin, Cout / groups, kh, kw], so that one index of the channel axis is a channel of every group.
    """
    return int(argument(layer, 6, "groups", 1)) if kind(layer) == "conv_transpose" else 1


def clip_bounds(node: Node) -> tuple[float, float]:
    """Lower and upper bound of a node of kind "clip"; infinite where it has none."""
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    if node.target is aten.hardtanh.default:
        return float(argument(node, 1, "min_val", -1.0)), float(argument(node, 2, "max_val", 1.0))
    low = argument(node, 1, "min", argument(node, 1, "low"))
    high = argument(node, 2, "max", argument(node, 2, "high"))
    return -math.inf if low is None else float(low), math.inf if high is None else float(high)


def multiplier(node: Node) -> float | None:
    """The positive number that an operator multiplies a tensor by: on a grid it changes the scale alone.

    None for any other operator, and for numbers so large or small that no scale could take them.
    """
    if kind(node) != "mul" or not isinstance(node.args[0], Node):
        return None
    number = argument(node, 1, "other")
    possible = isinstance(number, (int, float)) and SMALLEST_SCALE <= number <= 1 / SMALLEST_SCALE
    return float(number) if possible else None


def upper_limit(node: Node) -> float:
    """The value above which the operator's own clipping lets nothing pass; infinite where it has none."""
    if kind(node) == "copy":
        return upper_limit(tensor_inputs(node)[0])
    return clip_bounds(node)[1] if kind(node) == "clip" else 1.0 if kind(node) == "hardsigmoid" else math.inf


def is_non_negative(node: Node) -> bool:
    """Whether the operator's mathematics rules out negative values."""
    word = kind(node)
    if word in {"relu", "sigmoid", "hardsigmoid", "softmax"}:
        return True
    if word == "clip":
        return clip_bounds(node)[0] >= 0
    if word == "pad":
        return float(argument(node, 2, "value", 0.0) or 0.0) >= 0 and _reads_non_negative(node)
    if word in MOVEMENT or word in {"average_pool", "adaptive_average_pool", "mean", "resize_bilinear", "copy"}:
        return _reads_non_negative(node)
    if word in {"add", "mul"}:
        numbers = len(node.args) - len(tensor_inputs(node))
        return _reads_non_negative(node) and numbers == (0 if multiplier(node) is None else 1)
    return False


def _reads_non_negative(node: Node) -> bool:
    """Whether all tensors that an operator reads are such; of constants and of what is no float nothing is known."""
    tensors = (torch.Tensor, list, tuple)
    read = [node for node in node.all_input_nodes if node.op == "get_attr" or isinstance(node.meta.get("val"), tensors)]
    return bool(read) and all(is_non_negative(source) for source in read)


def fixed_layers(graph_module: GraphModule) -> list[str]:
    """Names of the weighted layers whose stored weight is no parameter, so that no training changes it."""
    weights = {
        node.name: constant(graph_module, argument(node, 1, "weight"))
        for node in graph_module.graph.nodes
        if kind(node) in WEIGHTED
    }
    return [
        name for name, weight in weights.items() if weight is not None and not isinstance(weight, torch.nn.Parameter)
    ]


def has_weighted(layer: Node, *, forward: bool) -> bool:
    """Whether any other weighted layer lies before (or, forward, behind) this one."""
    stack, seen = [layer], {layer}
    while stack:
        node = stack.pop()
        for neighbour in node.users if forward else node.all_input_nodes:
            if neighbour not in seen:
                if kind(neighbour) in WEIGHTED:
                    return True
                seen.add(neighbour)
                stack.append(neighbour)
    return False
