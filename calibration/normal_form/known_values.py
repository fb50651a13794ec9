"""What a node of a graph that is being written holds whatever the images are: values of constants, computed at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from calibration.graph.constants import is_pure

#: Where a constant's node keeps its tensor while the graph is written; nothing of it stays behind.
TENSOR = "tensor"


def known_value(node: object) -> Tensor | None:
    """The tensor that a node computes from constants alone; None of any other."""
    if not isinstance(node, Node):
        return None
    needed, stack = set[Node](), [node]
    while stack:
        one = stack.pop()
        if one in needed:
            continue
        if one.op not in ("get_attr", "call_function") or (one.op == "call_function" and not is_pure(one)):
            return None
        needed.add(one)
        stack.extend(one.all_input_nodes)
    values = dict[Node, object]()
    with torch.no_grad():
        for one in [other for other in node.graph.nodes if other in needed]:
            if one.op == "get_attr":
                values[one] = one.meta.get(TENSOR)
            else:
                assert callable(one.target)
                parts = (one.args, one.kwargs)
                arguments, keywords = (map_arg(part, values.__getitem__) for part in parts)  # type: ignore[arg-type]  # of torch's own kinds
                values[one] = one.target(*arguments, **keywords)
    value = values[node]
    return value if isinstance(value, Tensor) and not value.is_meta else None
