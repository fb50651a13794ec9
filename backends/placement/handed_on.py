"""Which operators hand values on as they are, so that what is on a grid before them is on it behind them."""

from __future__ import annotations

from torch.fx import Node

from backends.facts.profile import Profile
from calibration.graph.operators import (
    MOVEMENT,
    argument,
    is_non_negative,
    kind,
    multiplier,
    static_shape,
    tensor_inputs,
)


def moves(node: Node, profile: Profile) -> bool:
    """Whether a node hands integers on as they are; a number that multiplies them may change what they stand for."""
    word = kind(node)
    if word == "mul":
        return profile.numbers_in_scales and multiplier(node) is not None
    if word == "adaptive_average_pool":
        return static_shape(node)[-2:] == static_shape(tensor_inputs(node)[0])[-2:]  # windows of one position
    if word == "pad":
        return _border(node) == 0.0  # a border of zeros is on every grid; any other value is not
    if word == "concat":
        sources = tensor_inputs(node)
        if profile.numbers_in_scales and any(_is_multiplied(source) for source in sources):
            return False  # equal integers would stand for unlike reals
        # A ReLU is absorbed on the grid of non-negative values only: with others, each part keeps its own grid.
        return profile.non_negative == profile.signed or len({is_non_negative(source) for source in sources}) == 1
    return word in MOVEMENT


def _is_multiplied(node: Node) -> bool:
    """Whether a number has changed the scale of a tensor on its way here; a concatenation takes none of these."""
    while multiplier(node) is None:
        if kind(node) not in MOVEMENT or kind(node) == "concat":
            return False
        (node, *_) = tensor_inputs(node)
    return True


def _border(node: Node) -> float:
    """The value that a pad writes around its input; other modes, which repeat values of the input, are no "pad"."""
    return float(argument(node, 2, "value", 0.0) or 0.0)
