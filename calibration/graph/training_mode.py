"""A captured float network as one that learns: its BatchNorms normalise by their batch and keep running statistics."""

from __future__ import annotations

from torch.fx import GraphModule

from calibration.graph.interface import interface_of, make_graph_module
from calibration.graph.operators import kind
from calibration.graph.sharing import draft_of

# Position of `training` among aten.batch_norm's arguments: input, weight, bias, mean, variance, training, ...
_TRAINING = 5


def in_training(graph_module: GraphModule, *, training: bool = True) -> GraphModule:
    """A copy of a captured graph whose BatchNorms train, or infer again; its parameters and buffers are its own.

    What capturing took away stays away: dropout.
    """
    changed = draft_of(graph_module, shared=False)
    for node in changed.graph.nodes:
        if kind(node) == "batch_norm":
            node.args = (*node.args[:_TRAINING], training, *node.args[_TRAINING + 1 :])
    return make_graph_module(changed, changed.graph, interface_of(graph_module))
