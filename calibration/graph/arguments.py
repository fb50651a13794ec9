"""Which arguments are read where an operator of ATen becomes something of ours: all others must be as by default.

What a rule, a translation or a kernel of ours does not look at would be computed otherwise without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.fx import Graph, Node

from calibration.errors import UserError

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Names, with spaces between, of an operator's arguments with a default that are read; others are always read.

    `rule`: by its rule of the normal form; None where it has none. `kept`: of a node that stays in the graph, by all
    that looks at it: planning, folding, simulation, the file; None where none stays.
    """

    rule: str | None = None
    kept: str | None = None


#: Arguments that change no value: where a tensor lies and how, which kernel computes it, and in which order.
IMMATERIAL: Final = frozenset(
    {"memory_format", "device", "pin_memory", "non_blocking", "copy", "cudnn_enabled", "cudnn_enable", "path"}
)

_CONVOLUTION = "bias stride padding dilation groups"
_TRANSPOSED = "bias stride padding output_padding groups dilation"

#: Every operator that the normal form rewrites or leaves out, or that stays, and has arguments with a default.
READS: Final[Mapping[Any, Reads]] = {
    # Layers and products.
    aten.conv1d.default: Reads(rule=_CONVOLUTION),
    aten.conv1d.padding: Reads(rule=_CONVOLUTION),
    aten.conv2d.default: Reads(kept=_CONVOLUTION),
    aten.conv2d.padding: Reads(rule=_CONVOLUTION, kept=_CONVOLUTION),
    aten.conv_transpose1d.default: Reads(rule=_TRANSPOSED),
    aten.conv_transpose2d.input: Reads(kept=_TRANSPOSED),
    aten.linear.default: Reads(rule="bias", kept="bias"),
    aten.baddbmm.default: Reads(rule="beta alpha"),
    aten.einsum.default: Reads(rule=""),
    aten.scaled_dot_product_attention.default: Reads(rule="attn_mask is_causal scale enable_gqa"),
    # Activations.
    aten.celu.default: Reads(kept="alpha"),
    aten.clamp.default: Reads(rule="min max", kept="min max"),
    aten.clamp.Tensor: Reads(rule="min max"),
    aten.elu.default: Reads(rule="alpha scale input_scale", kept="alpha"),
    aten.gelu.default: Reads(kept="approximate"),
    aten.glu.default: Reads(rule="dim"),
    aten.hardshrink.default: Reads(rule="lambd"),
    aten.hardtanh.default: Reads(kept="min_val max_val"),
    aten.leaky_relu.default: Reads(kept="negative_slope"),
    aten.log_softmax.int: Reads(kept=""),
    aten.rrelu.default: Reads(rule="lower upper"),
    aten.softmax.int: Reads(kept=""),
    aten.softplus.default: Reads(rule="beta threshold", kept=""),
    aten.softshrink.default: Reads(rule="lambd"),
    # Arithmetic.
    aten.add.Tensor: Reads(rule="alpha", kept="alpha"),
    aten.sub.Tensor: Reads(rule="alpha", kept="alpha"),
    aten.rsub.Scalar: Reads(rule="alpha"),
    aten.rsub.Tensor: Reads(rule="alpha"),
    aten.addcdiv.default: Reads(rule="value"),
    aten.addcmul.default: Reads(rule="value"),
    aten.diff.default: Reads(rule="n dim prepend append"),
    # Reductions and norms.
    aten.all.dim: Reads(rule="keepdim"),
    aten.all.dims: Reads(rule="dim keepdim"),
    aten.amax.default: Reads(kept="dim keepdim"),
    aten.amin.default: Reads(kept="dim keepdim"),
    aten.any.dim: Reads(rule="keepdim"),
    aten.any.dims: Reads(rule="dim keepdim"),
    aten.linalg_matrix_norm.str_ord: Reads(rule="dim keepdim"),
    aten.linalg_norm.default: Reads(rule="ord dim keepdim"),
    aten.linalg_norm.ord_str: Reads(rule="dim keepdim"),
    aten.linalg_vector_norm.default: Reads(rule="ord dim keepdim", kept="ord dim keepdim"),
    aten.logsumexp.default: Reads(rule="keepdim"),
    aten.max.dim: Reads(rule="keepdim"),
    aten.min.dim: Reads(rule="keepdim"),
    aten.mean.dim: Reads(kept="keepdim"),
    aten.norm.ScalarOpt_dim: Reads(rule="keepdim"),
    aten.std.correction: Reads(rule="dim correction keepdim"),
    aten.std.dim: Reads(rule="unbiased keepdim"),
    aten.std_mean.correction: Reads(rule="dim correction keepdim"),
    aten.std_mean.dim: Reads(rule="unbiased keepdim"),
    aten.sum.dim_IntList: Reads(kept="keepdim"),
    aten.var.correction: Reads(rule="dim correction keepdim"),
    aten.var.dim: Reads(rule="unbiased keepdim"),
    aten.var_mean.correction: Reads(rule="dim correction keepdim"),
    aten.var_mean.dim: Reads(rule="unbiased keepdim"),
    aten.batch_norm.default: Reads(rule="", kept=""),
    aten.group_norm.default: Reads(kept="weight bias eps"),
    aten.layer_norm.default: Reads(kept="weight bias eps"),
    aten.rms_norm.default: Reads(rule="weight eps"),
    # Poolings.
    aten.avg_pool1d.default: Reads(rule="stride padding ceil_mode count_include_pad"),
    aten.avg_pool2d.default: Reads(kept="stride padding ceil_mode count_include_pad divisor_override"),
    aten.avg_pool3d.default: Reads(rule="stride padding"),
    aten.max_pool1d.default: Reads(rule="stride padding dilation ceil_mode"),
    aten.max_pool2d.default: Reads(kept="stride padding dilation ceil_mode"),
    # What moves values.
    aten.cat.default: Reads(kept="dim"),
    aten.chunk.default: Reads(kept="dim"),
    aten.constant_pad_nd.default: Reads(kept="value"),
    aten.expand.default: Reads(kept=""),
    aten.flatten.using_ints: Reads(kept="start_dim end_dim"),
    aten.index_add.default: Reads(rule="alpha"),
    aten.index_put.default: Reads(rule=""),
    aten.pad.default: Reads(rule="mode value", kept="mode value"),
    aten.roll.default: Reads(rule="dims"),
    aten.slice.Tensor: Reads(rule="dim start end step", kept="dim start end step"),
    aten.slice_scatter.default: Reads(rule="dim start end step"),
    aten.split.Tensor: Reads(kept="dim"),
    aten.split_with_sizes.default: Reads(kept="dim"),
    aten.stack.default: Reads(rule="dim"),
    aten.tensor_split.indices: Reads(rule="dim"),
    aten.tensor_split.sections: Reads(rule="dim"),
    aten.unbind.int: Reads(rule="dim"),
    # Copies, conversions and new tensors: their type is read off what they give.
    aten.clone.default: Reads(rule="", kept=""),
    aten.contiguous.default: Reads(rule=""),
    aten.copy.default: Reads(rule=""),
    aten._to_copy.default: Reads(rule="dtype"),
    aten.to.device: Reads(rule=""),
    aten.to.dtype: Reads(rule=""),
    aten.to.dtype_layout: Reads(rule="dtype"),
    aten.to.other: Reads(rule=""),
    aten.full_like.default: Reads(rule="dtype"),
    aten.ones_like.default: Reads(rule="dtype"),
    aten.zeros_like.default: Reads(rule="dtype"),
    aten.new_full.default: Reads(rule="dtype"),
    aten.new_ones.default: Reads(rule="dtype"),
    aten.new_zeros.default: Reads(rule="dtype"),
}


def unread(node: Node, names: str | None, *, target: Any = None) -> str | None:
    """What to say of the first argument of a node that is neither among `names` nor as by default; None of none.

    `names` is a column of `READS`, None where the operator has no row there; `target` another operator that takes the
    same arguments.
    """
    target = target or node.target
    if names is None:
        return None
    read = names.split()
    for position, slot in enumerate(target._schema.arguments):
        if not slot.has_default_value() or slot.name in read or slot.name in IMMATERIAL:
            continue
        value = node.args[position] if len(node.args) > position else node.kwargs.get(slot.name, slot.default_value)
        if not _is_as_by_default(value, slot.default_value):
            looked_at = f"of its options {', '.join(read)} are read" if read else "none of its options is read"
            return (
                f"its argument {slot.name}={value} has no translation: {looked_at}, and {slot.name} must be"
                f" {slot.default_value}"
            )
    return None


def _is_as_by_default(value: object, default: object) -> bool:
    """Whether a value is the default, or says what is so anyhow: numbers of float32, tensors with all their values."""
    if value is torch.float32 or value is torch.strided:
        return True
    return not isinstance(value, Node) and bool(value == default)


def check_rewritten(node: Node, target: Any, where: str) -> None:
    """Raise UserError where a rule of the normal form does not read an argument of a node that it rewrites.

    `target` is the node's operator under the name that the rules know; `where` says whose node it is.
    """
    row = READS.get(target)
    _refuse(node, unread(node, None if row is None else row.rule, target=target), where)


def check_kept(graph: Graph, source: str) -> None:
    """Raise UserError where a node of a graph in normal form has an argument that nothing of ours reads.

    Only of what is computed from the image: what constants alone give is computed by torch, with all its arguments.
    """
    computed = set[Node]()
    for node in graph.nodes:
        is_number = node.target is aten.sym_size.int
        if node.op == "placeholder" or (not is_number and any(other in computed for other in node.all_input_nodes)):
            computed.add(node)
            row = READS.get(node.target)
            _refuse(node, unread(node, None if row is None else row.kept), source)


def _refuse(node: Node, said: str | None, source: str) -> None:
    if said is not None:
        raise UserError(
            f"{source}: {node.name} ({node.target}): {said}; write that part otherwise in a builder given as --teacher"
            " python:package.module:function (docs/networks.md)"
        )
