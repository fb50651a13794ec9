"""Which input of an addition is the skip branch of a residual block: path analysis, not names."""

from __future__ import annotations

from torch.fx import Node

from calibration.graph.operators import WEIGHTED, kind, tensor_inputs


def skip_input(addition: Node) -> Node | None:
    """The input that is not fused into a convolution's epilogue, or None when the addition is no residual one.

    The branch that ends in a weighted layer read by nobody else is fused with the addition; the other is the skip.
    When both end so (a projection shortcut), the longer way back to the common ancestor is the fused one. A weighted
    layer that the other branch starts from has two readers, and ends no branch. Source: the placement that NVIDIA ships
    in ModelOpt 0.47, onnx/quantization/graph_utils.py.
    """
    inputs = tensor_inputs(addition)
    if len(inputs) != 2:
        return None
    first, second = inputs
    ends = [_backbone(first), _backbone(second)]
    if ends[0] is None and ends[1] is None:
        return None
    if ends[0] is not None and ends[1] is not None:
        ancestor_distance = _distances_to_common_ancestor(first, second)
        if ancestor_distance is None:
            return None
        return second if ancestor_distance[0] >= ancestor_distance[1] else first
    return second if ends[0] is not None else first


def _backbone(node: Node) -> Node | None:
    """The weighted layer that computes this tensor for the addition alone, if there is one."""
    if kind(node) in WEIGHTED and len(node.users) == 1:
        return node
    return None


def _ancestors(node: Node) -> dict[Node, int]:
    """Every node that this one depends on, itself included, with the longest distance in steps."""
    distance, order = {node: 0}, [node]
    for current in order:
        for source in tensor_inputs(current):
            steps = distance[current] + 1
            if steps > distance.get(source, -1):
                distance[source] = steps
                order.append(source)
    return distance


def _distances_to_common_ancestor(first: Node, second: Node) -> tuple[int, int] | None:
    """Steps from each node back to their nearest common ancestor."""
    of_first, of_second = _ancestors(first), _ancestors(second)
    common = of_first.keys() & of_second.keys()
    if not common:
        return None
    nearest = min(common, key=lambda node: (of_first[node] + of_second[node], node.name))
    return of_first[nearest], of_second[nearest]
