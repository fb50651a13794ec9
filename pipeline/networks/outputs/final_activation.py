"""The softmax or sigmoid that a network ends in, and the logits in front of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from calibration.graph.operators import argument, kind, static_shape

Activation = Literal["softmax", "log-softmax", "sigmoid"]

aten = torch.ops.aten
_SOFTMAXES: dict[Any, Activation] = {aten.softmax.int: "softmax", aten.log_softmax.int: "log-softmax"}

#: What may stand between activation and output: it hands values on, each as it is, so it does the same to logits.
HANDS_ON = frozenset(
    {
        "reshape",
        "transpose",
        "slice",
        "select",
        "split",
        "item",
        "depth_to_space",
        "channel_shuffle",
        "resize_nearest",
    }
)


@dataclass(frozen=True, kw_only=True)
class FinalActivation:
    """What a graph does last to one output.

    `axis`: of the output, that a softmax runs over; None for a sigmoid. `logits`: name of the node that it reads.
    `moves`: what is done to its result on the way to the output, in order.
    """

    kind: Activation
    axis: int | None
    logits: str
    moves: tuple[Callable[[Tensor], Tensor], ...]

    def moved(self, logits: Tensor) -> Tensor:
        """The logits [B, ...] as the output has them."""
        for move in self.moves:
            logits = move(logits)
        return logits


def final_activation(graph_module: GraphModule, index: int) -> FinalActivation | None:
    """The activation that output number `index` of a captured or folded graph ends in; None where there is none.

    None also where a part of a softmax's classes is all that is left of it: that is no distribution any more.
    """
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    node, moves = output.args[0][index], list[Callable[[Tensor], Tensor]]()
    while kind(node) in HANDS_ON:
        source = node.args[0]
        if not isinstance(source, Node) or len(node.all_input_nodes) > 1:
            return None
        moves.insert(0, move_of(node))
        node = source
    word, axis = _activation(node)
    if word is None:
        return None
    logits = node.args[0]
    if node.target is aten.log.default:
        logits = logits.args[0]
    if axis is not None:
        axis = moved_axis(static_shape(node), axis, moves)
        if axis is None:
            return None
    return FinalActivation(kind=word, axis=axis, logits=logits.name, moves=tuple(moves))


def _activation(node: Node) -> tuple[Activation | None, int | None]:
    """The activation that a node is, and the axis of a softmax."""
    if node.target is aten.log.default and node.args[0].target is aten.softmax.int:  # type: ignore[union-attr]
        return "log-softmax", int(argument(node.args[0], 1, "dim"))  # type: ignore[arg-type]
    if node.target in _SOFTMAXES:
        return _SOFTMAXES[node.target], int(argument(node, 1, "dim"))
    return ("sigmoid", None) if kind(node) == "sigmoid" else (None, None)


def move_of(node: Node) -> Callable[[Tensor], Tensor]:
    """What a node of one input does, as a function of that input."""
    target, args, kwargs = node.target, node.args[1:], dict(node.kwargs)
    assert callable(target)
    return lambda values: target(values, *args, **kwargs)


def moved_axis(shape: tuple[int, ...], axis: int, moves: list[Callable[[Tensor], Tensor]]) -> int | None:
    """Where an axis is after all moves; None where it is not whole there, or is none of its own."""
    sizes = [2 if size < 0 else size for size in shape]
    along = [1] * len(sizes)
    along[axis] = sizes[axis]
    places = torch.arange(sizes[axis]).reshape(along).expand(sizes).float()
    for move in moves:
        places = move(places)
    for number in range(1, places.ndim):
        expected = torch.arange(places.shape[number]).reshape([-1] + [1] * (places.ndim - number - 1))
        if places.shape[number] == sizes[axis] and bool((places == expected).all()):
            return number
    return None
