"""Where in the user's network a node of a graph comes from."""

from __future__ import annotations

from torch.fx import Node


def module_path(node: Node) -> str:
    """The dotted path of the module that a node comes from; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return "" if path.startswith("_") else path  # nodes that export added itself carry a placeholder instead of a path
