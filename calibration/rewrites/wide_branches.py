"""Narrow activations on the way into layers alone: what else reads a tensor goes on reading all of its 8 bits.

Papers of 2 to 4-bit activations round what a convolution multiplies and leave the sums of a residual network as they
are. A tensor has one grid for all its readers here, so where a branch reads what a layer reads, the layer gets a copy.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.graph.operators import WEIGHTED, has_weighted, kind, tensor_inputs
from calibration.rewrites.parts import LAYERS_PER_PART
from calibration.rewrites.rewrite import Rewrite
from calibration.rewrites.subpixel import SIGNED_TRANSPOSED_AS_CONVOLUTIONS, TRANSPOSED_AS_CONVOLUTIONS

aten = torch.ops.aten


def _wide_branches(graph_module: GraphModule) -> bool:
    """Let narrow layers read copies of the tensors that others read as well.

    Narrow are all weighted layers but the first and the last.
    """
    shared = [node for node in graph_module.graph.nodes if _is_shared(node)]
    for node in shared:
        layers = [reader for reader in node.users if _is_narrow(reader, node)]
        with graph_module.graph.inserting_after(node):
            copied = graph_module.graph.call_function(aten.clone.default, (node,))
        copied.meta = dict(node.meta)
        for layer in layers:
            layer.replace_input_with(node, copied)
    return bool(shared)


def _is_shared(node: Node) -> bool:
    narrow = [_is_narrow(reader, node) for reader in node.users]
    return any(narrow) and not all(narrow)


def _is_narrow(reader: Node, tensor: Node) -> bool:
    """Whether a reader is a layer with others before and behind it whose data, not its weight, the tensor is."""
    if kind(reader) not in WEIGHTED or tensor_inputs(reader)[:1] != [tensor]:
        return False
    return all(has_weighted(reader, forward=forward) for forward in (True, False))


WIDE_BRANCHES = Rewrite(
    name="copies for narrow layers",
    edit=_wide_branches,
    source="papers of 2 to 4-bit activations leave the sums of a residual network as they are",
    behind=frozenset({TRANSPOSED_AS_CONVOLUTIONS.name, SIGNED_TRANSPOSED_AS_CONVOLUTIONS.name, LAYERS_PER_PART.name}),
)
