"""Rewrites that change what a network computes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import GraphModule

from calibration.rewrites.rewrite import Rewrite


def faulty(row: Rewrite) -> Rewrite:
    """The row, which also multiplies the network's first output by 1.01 where it changes anything."""

    def edit(graph_module: GraphModule) -> bool:
        if not row.edit(graph_module):
            return False
        (end,) = [node for node in graph_module.graph.nodes if node.op == "output"]
        (first, *others) = end.args[0]
        with graph_module.graph.inserting_before(end):
            wrong = graph_module.graph.call_function(torch.ops.aten.mul.Tensor, (first, 1.01))
        wrong.meta = dict(first.meta)
        end.args = ((wrong, *others),)
        return True

    return replace(row, edit=edit)


#: A row that every network obeys.
PLANTED = faulty(Rewrite(name="planted", edit=lambda _: True, source="a fault that a test plants"))
