"""Two changes of sign behind each other are none."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from calibration.rewrites.rewrite import Rewrite


def _drop_double_negations(graph_module: GraphModule) -> bool:
    changed = False
    for node in list(graph_module.graph.nodes):
        source = node.args[0] if _is_negation(node) else None
        if isinstance(source, Node) and _is_negation(source):
            node.replace_all_uses_with(source.args[0])
            changed = True
    return changed


def _is_negation(node: Node) -> bool:
    # Capture writes a negation as a product with -1.
    return bool(node.target == torch.ops.aten.mul.Tensor and node.args[1] == -1.0)


DOUBLE_NEGATIONS = Rewrite(
    name="double negations",
    edit=_drop_double_negations,
    source="a change of sign is one pass over a map, and two of them are nothing",
)
