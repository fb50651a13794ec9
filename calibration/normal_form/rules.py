"""One way to say each thing: the operators of an exported graph, rewritten to the few that the tables know."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from calibration.errors import UserError
from calibration.graph.arguments import check_rewritten
from calibration.graph.operators import argument, attribute, axis_order, clip_bounds, is_tensor, kind, static_shape
from calibration.graph.origin import module_path
from calibration.normal_form import decompositions
from calibration.normal_form.aliases import ALIASES
from calibration.normal_form.attention import attention
from calibration.normal_form.comparisons import (
    COMPARISONS,
    EXPORTED,
    conversion_of_truths,
    settle,
    sum_of_truths,
)
from calibration.normal_form.decompositions import before, reshaped
from calibration.normal_form.elementary import ELEMENTARY
from calibration.normal_form.known_values import TENSOR
from calibration.normal_form.mutation import functional, is_in_place
from calibration.normal_form.no_effect import CHECKS, CONVERSIONS, NO_OPERATION
from calibration.normal_form.normalisations import NORMALISATIONS
from calibration.normal_form.one_axis import OVER_ROWS, batch_norm_of_rows
from calibration.normal_form.places import PLACES
from calibration.normal_form.rearrangements import REARRANGEMENTS, circular_border
from calibration.normal_form.regions import without_regions
from calibration.normal_form.spellings import (
    IN_PARTS,
    SPELLINGS,
    WITH_INDICES,
    channel_shuffle,
    hard_sigmoid,
    one_moment,
)
from calibration.normal_form.thresholds import THRESHOLDS

aten = torch.ops.aten
Rule = Callable[[Graph, Node], Node]

#: Containers say nothing about what a node does: the operator's own word is added to their path.
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


def normal_form(captured: GraphModule, *, source: str, copies: dict[Node, Node] | None = None) -> Graph:
    """Rewrite an exported graph: functional operators, no checks, no work without effect, a flat tuple of tensors.

    Parameters that several names share are read under the first one. `source` names the network in warnings; `copies`
    is given the node of the result that has the value of each exported node.
    """
    graph, constants = Graph(), dict[int, str]()
    copies = {} if copies is None else copies
    for node in sorted(without_regions(captured, source).graph.nodes, key=lambda node: node.op != "placeholder"):
        if node.op == "call_module" or node.target in CHECKS:
            continue  # the guards of export: the batch size is free and the image size checked by the caller
        if node.op == "call_function":
            check_rewritten(node, _operator(node), source)
        same = _same_tensor(node)
        if same is not None and not _still_several(node, copies.get(same)):
            _check_dropout(node, source)
            copies[node] = copies[same]
        elif node.op == "output":
            (results,) = node.args
            assert isinstance(results, (list, tuple))
            graph.output(tuple(copies[result] for result in results if isinstance(result, Node)))
        else:
            _check_places(node, source)
            copies[node] = _copy(graph, node, copies)
            if node.op == "get_attr":
                tensor = attribute(captured, str(node.target))
                copies[node].target = constants.setdefault(id(tensor), str(node.target))
                copies[node].meta[TENSOR] = tensor
    for written in graph.nodes:
        written.meta.pop(TENSOR, None)
        written.meta.pop(EXPORTED, None)
    return graph


def _same_tensor(node: Node) -> Node | None:
    """The node whose tensor this one hands on unchanged, or None when it computes."""
    source = node.args[0] if node.op == "call_function" and node.args else None
    if not isinstance(source, Node):
        return None
    if node.target in NO_OPERATION or _is_whole_slice(node) or _moves_nothing(node):
        return source
    if node.target is aten.slice_scatter.default and _is_whole_slice(node, shift=1):
        written = node.args[1]
        assert isinstance(written, Node)
        return written
    # What was written into a part, read back: functionalisation leaves it so behind an in-place addition.
    if node.target is aten.slice.Tensor:
        whole = source
        while (same := _same_tensor(whole)) is not None:
            whole = same
        if whole.target is aten.slice_scatter.default and _bounds(node) == _bounds(whole, shift=1):
            part = whole.args[1]
            assert isinstance(part, Node)
            return part
    if node.target in CONVERSIONS and source.meta["val"].dtype == node.meta["val"].dtype:
        return source
    # Functionalisation gives BatchNorm two statistics beside its result, maxima come with their places; see _RULES.
    if node.target is operator.getitem and node.args[1] == 0 and source.target in _FIRST_OF_SEVERAL:
        return source
    return None


def _still_several(node: Node, copy: Node | None) -> bool:
    """Whether the first of several tensors is read of an operator that no rule has turned into that one."""
    return node.target is operator.getitem and copy is not None and copy.target in _FIRST_OF_SEVERAL


def _bounds(node: Node, *, shift: int = 0) -> tuple[Any, ...]:
    """Axis, start, end and step of a slice, or of a scatter whose arguments stand one further."""
    axis, start, end, step = (
        argument(node, i + shift, name) for i, name in ((1, "dim"), (2, "start"), (3, "end"), (4, "step"))
    )
    return axis or 0, start or 0, sys.maxsize if end is None else end, step or 1


def _moves_nothing(node: Node) -> bool:
    return kind(node) == "transpose" and axis_order(node) == list(range(len(static_shape(node))))


def _is_whole_slice(node: Node, *, shift: int = 0) -> bool:
    if node.target is not aten.slice.Tensor and not shift:
        return False
    return _bounds(node, shift=shift)[1:] == (0, sys.maxsize, 1)


def _check_places(node: Node, source: str) -> None:
    """Refuse the places of maxima, which come behind their values: these alone are written."""
    if node.target in WITH_INDICES and any(user.args[1] != 0 and user.users for user in node.users):
        raise UserError(
            f"{source}: {_name(node)} ({node.target}) is read for the places of its values, which have no translation"
            " to ONNX: leave them to what follows the network, or write that part otherwise in a builder given as"
            " --teacher python:package.module:function"
        )


def _check_dropout(node: Node, source: str) -> None:
    """Refuse a dropout that evaluation does not switch off."""
    if "dropout" in str(node.target) and argument(node, 2, "train") and argument(node, 1, "p"):
        raise UserError(
            f"{source}: {_name(node)} drops values in evaluation mode too, so that no two answers are the same: let it"
            " read the network's mode, as in F.dropout(x, training=self.training) or nn.Dropout, or leave it out in a"
            " builder given as --teacher python:package.module:function"
        )


def _operator(node: Node) -> Any:
    """The operator of a node under the name that the tables know: without side effects, the first of its names."""
    target = functional(node) if is_in_place(node) else node.target
    return ALIASES.get(target, target)


def _copy(graph: Graph, node: Node, copies: Mapping[Node, Node]) -> Node:
    """Write a node, or what it is in normal form, under the name of the module that it comes from."""
    target = _operator(node)
    arguments = torch.fx.node.map_arg(node.args, lambda source: copies[source])
    keywords = torch.fx.node.map_arg(node.kwargs, lambda source: copies[source])
    name = _name(node) if node.op == "call_function" else node.name
    copied = graph.create_node(node.op, target, arguments, keywords, name=name, type_expr=node.type)
    copied.meta = dict(node.meta) | {EXPORTED: node}
    for rule in _RULES.get(target, ()):
        result = rule(graph, copied)
        if result is not copied:
            return result  # another operator's node, or the source's own: the rules that are left are not about it
    settle(graph, copied, node)
    return copied


# Rules: each turns the node just written into its normal form, with nodes of its own around it where it needs them. One
# that hands back another node than it was given ends the list: only the node just written is the operator's to rewrite.


def _reshape(graph: Graph, node: Node) -> Node:
    # A view asks for a memory layout; calls to contiguous() are gone, so only reshape is always right.
    node.target, source, sizes = aten.reshape.default, node.args[0], list(static_shape(node))
    assert isinstance(source, Node)
    # One free dimension is inferred from the others, so the symbolic size need not be computed.
    if sizes.count(-1) > 1:
        return node
    node.args = (source, sizes)
    if kind(source) != "reshape" and list(static_shape(source)) != sizes:
        return node
    graph.erase_node(node)
    last = next(iter(reversed(graph.nodes)))
    result = reshaped(graph, source, sizes, node)
    return result if result is source or next(iter(reversed(graph.nodes))) is last else channel_shuffle(graph, result)


def _batch_norm(graph: Graph, node: Node) -> Node:
    node.target = aten.batch_norm.default
    *tensors, momentum, epsilon = node.args
    node.args = (*tensors, False, momentum, epsilon, False)
    node.meta["val"] = node.meta["val"][0]
    return node


def _pad(graph: Graph, node: Node) -> Node:
    if argument(node, 2, "mode", "constant") == "constant":
        value = argument(node, 3, "value")
        node.target, node.args, node.kwargs = aten.constant_pad_nd.default, (*node.args[:2], value or 0.0), {}
    return circular_border(graph, node) if argument(node, 2, "mode", "constant") == "circular" else node


def _named_padding(graph: Graph, node: Node) -> Node:
    """Padding given as a word, in numbers; left alone where the two ends differ, which numbers here cannot say."""
    kernel, dilation = static_shape(argument(node, 1, "weight"))[2:], argument(node, 5, "dilation", [1])
    dilations = list(dilation) * (2 if len(dilation) == 1 else 1)
    total = [
        d * (k - 1) if argument(node, 4, "padding") == "same" else 0 for k, d in zip(kernel, dilations, strict=True)
    ]
    if any(size % 2 for size in total):
        return node
    arguments = [argument(node, 2, "bias"), argument(node, 3, "stride", [1, 1])]
    groups = argument(node, 6, "groups", 1)
    node.target, node.kwargs = aten.conv2d.default, {}
    node.args = (*node.args[:2], *arguments, [size // 2 for size in total], dilations, groups)
    return node


def _clamp(graph: Graph, node: Node) -> Node:
    low, high = clip_bounds(node)
    if low == 0.0 and high == float("inf"):
        node.target, node.args, node.kwargs = aten.relu.default, (node.args[0],), {}
    return node


def _scaled_operand(graph: Graph, node: Node) -> Node:
    """Make the product in a + alpha * b a node of its own."""
    factor, second = node.kwargs.get("alpha", 1), argument(node, 1, "other")
    node.kwargs = {}
    if factor != 1:
        scaled = before(graph, node, aten.mul.Tensor, (second, factor)) if isinstance(second, Node) else second * factor
        node.args = (node.args[0], scaled)
    return node


def _larger_first(graph: Graph, node: Node) -> Node:
    """Write a sum with a smaller tensor, which is repeated over a larger one, behind that.

    ONNX Runtime's QLinearAdd multiplies and adds in another order where its first input is a single value for a row of
    its second, and which axis is a row depends on the layout that its optimiser chose (MLAS qladd, measured).
    """
    first, second = node.args[:2]
    # A size, as `x.shape[0]` is, stands for a number: it has no shape.
    if isinstance(first, Node) and isinstance(second, Node) and is_tensor(first) and is_tensor(second):
        first_is_whole, second_is_whole = (static_shape(operand) == static_shape(node) for operand in (first, second))
        if second_is_whole and not first_is_whole:
            node.args = (second, first)
    return node


def _reversed_subtraction(graph: Graph, node: Node) -> Node:
    """Write b - alpha * a as (-alpha * a) + b."""
    first, second = node.args[:2]
    scaled = before(graph, node, aten.mul.Tensor, (first, -argument(node, 2, "alpha", 1)))
    node.target, node.args, node.kwargs = aten.add.Tensor, (scaled, second), {}
    return node


def _division(graph: Graph, node: Node) -> Node:
    """Division by a number is multiplication, which layers can take into their weights."""
    divisor = node.args[1]
    if isinstance(divisor, (int, float)) and divisor:
        node.target, node.args = aten.mul.Tensor, (node.args[0], 1 / divisor)
    return node


def _conversion(graph: Graph, node: Node) -> Node:
    """A tensor of another's type: of that tensor nothing else is read, so what is made of constants stays constant."""
    source, value = node.args[0], node.meta["val"]
    node.target, node.args, node.kwargs = aten.to.dtype, (source, value.dtype), {}
    return node


def _neutral(number: float) -> Rule:
    """Drop an operation with the number that changes nothing, such as the zero that Python's sum() starts with."""

    def rule(graph: Graph, node: Node) -> Node:
        source, other = node.args[:2]
        if not isinstance(source, Node) or isinstance(other, Node) or other != number:
            return node
        if source.meta["val"].dtype != node.meta["val"].dtype:
            return node  # a mask times one is a number
        graph.erase_node(node)
        return source

    return rule


#: Operators whose first result alone is written.
_FIRST_OF_SEVERAL = frozenset(
    {aten._native_batch_norm_legit_no_training.default, aten.adaptive_max_pool1d.default, *WITH_INDICES}
)

_RULES: dict[Any, tuple[Rule, ...]] = {
    **{target: (rule,) for target, rule in SPELLINGS.items()},
    **OVER_ROWS,
    **ELEMENTARY,
    **THRESHOLDS,
    **NORMALISATIONS,
    **REARRANGEMENTS,
    **PLACES,
    **COMPARISONS,
    **dict.fromkeys(CONVERSIONS, (conversion_of_truths,)),
    aten.batch_norm.default: (batch_norm_of_rows,),
    operator.getitem: (decompositions.item_of_unbind, one_moment),
    aten.conv2d.padding: (_named_padding,),
    aten.view.default: (_reshape, channel_shuffle),
    aten._unsafe_view.default: (_reshape, channel_shuffle),
    aten.reshape.default: (_reshape, channel_shuffle),
    aten.reshape_as.default: (_reshape, channel_shuffle),
    aten.view_as.default: (_reshape, channel_shuffle),
    aten._native_batch_norm_legit_no_training.default: (_batch_norm, batch_norm_of_rows),
    aten.pad.default: (_pad,),
    aten.clamp.default: (_clamp,),
    aten.clamp_min.default: (_clamp,),
    aten.add.Tensor: (sum_of_truths, _scaled_operand, _neutral(0), decompositions.without_expansion, _larger_first),
    aten.sub.Tensor: (_scaled_operand, _neutral(0), decompositions.without_expansion),
    aten.mul.Tensor: (_neutral(1), hard_sigmoid, decompositions.without_expansion),
    aten.div.Tensor: (_neutral(1), _division, hard_sigmoid, decompositions.without_expansion),
    aten.rsub.Scalar: (_reversed_subtraction,),
    aten.rsub.Tensor: (_reversed_subtraction,),
    aten.linear.default: (decompositions.linear_over_rows,),
    aten.silu.default: (decompositions.gated(aten.sigmoid.default),),
    aten.hardswish.default: (decompositions.gated(aten.hardsigmoid.default),),
    aten.scaled_dot_product_attention.default: (attention,),
    aten.roll.default: (decompositions.roll,),
    aten.einsum.default: (decompositions.einstein_sum,),
    aten.type_as.default: (conversion_of_truths, _conversion),
    aten.to.other: (conversion_of_truths, _conversion),
    aten.zeros_like.default: (decompositions.constant_like(aten.zeros.default),),
    aten.ones_like.default: (decompositions.constant_like(aten.ones.default),),
    aten.full_like.default: (decompositions.constant_like(aten.full.default),),
    aten.new_zeros.default: (decompositions.constant_of_size(aten.zeros.default),),
    aten.new_ones.default: (decompositions.constant_of_size(aten.ones.default),),
    aten.new_full.default: (decompositions.constant_of_size(aten.full.default),),
}


#: Names of the operators that the normal form rewrites, or leaves out as they do nothing.
REWRITTEN = frozenset(
    str(target) for target in (*_RULES, *ALIASES, *IN_PARTS, *NO_OPERATION, *CONVERSIONS, *CHECKS, *_FIRST_OF_SEVERAL)
)


def _name(node: Node) -> str:
    """The module path with underscores for dots; the operator's word is added where the module is no single layer."""
    stack = node.meta.get("nn_module_stack") or {}
    path, (_, kind) = module_path(node), list(stack.values())[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    word = str(getattr(node.target, "__name__", node.target)).split(".")[0].strip("_")
    is_layer = kind.startswith("torch.nn.modules") and not kind.endswith(_CONTAINERS)
    name = path if is_layer and path else f"{path}_{word}" if path else word
    return name.replace(".", "_").replace("/", "_")
