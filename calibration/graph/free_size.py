"""What of a network follows the height and width of its images: the same graph, captured at two sizes and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from calibration.errors import UserError
from calibration.graph.operators import attribute, kind, static_shape
from calibration.graph.origin import module_path

#: Kinds whose size is an argument that may differ: what it follows is found in the shapes.
_SIZED = frozenset({"reshape", "resize_nearest", "resize_bilinear", "resize_bicubic"})
_RESIZED = frozenset({"resize_nearest", "resize_bilinear", "resize_bicubic"})

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class FreeSize:
    """Every tensor's sizes at both sizes of images, (-1, -1) the batch's, and whose height and width a resize takes.

    That is any of those tensors, the first ones first.
    """

    sizes: Mapping[str, Sizes]
    follows: Mapping[str, tuple[str, ...]]

    def shape(self, node: str) -> tuple[int, ...] | None:
        """A tensor's shape with -1 for what is free; None for one that neither graph has."""
        pairs = self.sizes.get(node)
        return None if pairs is None else tuple(one if one == other else -1 for one, other in pairs)


def free_size(graph_module: GraphModule, other: GraphModule) -> FreeSize:
    """Compare a graph with that of the same network for images of another size.

    Raises UserError naming the first layer that is not the same: another operator, a constant or an argument that
    depends on the size, such as the windows of an attention.
    """
    nodes, others = list(graph_module.graph.nodes), list(other.graph.nodes)
    for node, there in zip(nodes, others, strict=False):
        if (node.op, node.target, node.name) != (there.op, there.target, there.name):
            raise _depends(node, "what is computed there is another at another size")
        if node.op == "get_attr":
            mine, theirs = attribute(graph_module, str(node.target)), attribute(other, str(there.target))
            if not (isinstance(mine, Tensor) and mine.shape == theirs.shape and torch.equal(mine, theirs)):
                raise _depends(node, "it is a table for one size")
        elif kind(node) not in _SIZED and _plain(node) != _plain(there):
            raise _depends(node, "its arguments are others at another size")
    if len(nodes) != len(others):
        raise _depends(nodes[-1], "the graph has another number of operators at another size")
    sizes = {
        node.name: tuple(zip(static_shape(node), static_shape(there), strict=True))
        for node, there in zip(nodes, others, strict=True)
        if isinstance(node.meta.get("val"), Tensor) and static_rank(node) == static_rank(there)
    }
    return FreeSize(sizes=sizes, follows=dict(_followed(nodes, sizes)))


def static_rank(node: Node) -> int:
    """How many axes a node's tensor has."""
    return len(static_shape(node))


def _followed(nodes: list[Node], sizes: Mapping[str, Sizes]) -> list[tuple[str, tuple[str, ...]]]:
    """Each resize to a given size with the tensors before it, the image first, that have this size."""
    resizes = []
    for index, node in enumerate(nodes):
        # A factor is right at every size; a size is that of another tensor.
        if kind(node) not in _RESIZED or node.args[1] is None:
            continue
        target = sizes[node.name][2:]
        if all(one == other for one, other in target):
            continue
        before = [earlier.name for earlier in nodes[:index] if len(sizes.get(earlier.name, ())) == 4]
        followed = tuple(name for name in before if sizes[name][2:] == target)
        if not followed:
            raise _depends(node, "it resizes to a size that no tensor before it has")
        resizes.append((node.name, followed))
    return resizes


def _plain(node: Node) -> Any:
    """A node's arguments with the names of other nodes in their place."""
    return map_arg((node.args, node.kwargs), lambda source: source.name)


def _depends(node: Node, why: str) -> UserError:
    place = module_path(node) or "the top module"
    return UserError(
        f"--dynamic-size: {node.name} (in {place}) depends on the size of images: {why};"
        " leave --dynamic-size out and make a file for each size (--image-size)"
    )
