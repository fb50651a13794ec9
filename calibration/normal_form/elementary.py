"""Elementary functions in terms of others, as every runtime has these.

Spellings of the normal form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from calibration.graph.operators import argument, is_tensor, static_shape
from calibration.normal_form.spellings import Write, rule_of, source_of

aten = torch.ops.aten


def _logarithm(base: float) -> Callable[[Write, Node], Node]:
    return lambda w, node: w(aten.mul.Tensor, w(aten.log.default, source_of(node)), 1 / math.log(base))


def _ceiling(w: Write, node: Node) -> Node:
    return w(aten.mul.Tensor, w(aten.floor.default, w(aten.mul.Tensor, source_of(node), -1.0)), -1.0)


def _towards_zero(w: Write, source: Node) -> Node:
    below = w(aten.floor.default, w(aten.relu.default, w(aten.mul.Tensor, source, -1.0)))
    return w(aten.sub.Tensor, w(aten.floor.default, w(aten.relu.default, source)), below)


def _rounded(w: Write, node: Node) -> Node:
    """To so many places behind the point, half to even, as torch computes it."""
    factor = 10.0 ** int(argument(node, 1, "decimals"))
    return w(aten.mul.Tensor, w(aten.round.default, w(aten.mul.Tensor, source_of(node), factor)), 1 / factor)


def _hypotenuse(w: Write, node: Node) -> Node:
    squares = [w(aten.mul.Tensor, side, side) for side in (source_of(node), argument(node, 1, "other"))]
    return w(aten.sqrt.default, w(aten.add.Tensor, *squares))


def _divisor(node: Node) -> float:
    """The number that an operator divides by; 0 where it is a tensor, or divides whole numbers."""
    source, number = node.args[0], argument(node, 1, "other")
    if not isinstance(source, Node) or not is_tensor(source):
        return 0.0  # a number may stand on the left, as in 2 // x
    return float(number) if isinstance(number, (int, float)) else 0.0


def _rest(w: Write, node: Node) -> tuple[Node, Node]:
    """What a division towards zero leaves, of the source's sign, and 1 where it has not the divisor's, else 0."""
    rest, below = w(aten.fmod.Scalar, source_of(node), _divisor(node)), math.copysign(1.0, -_divisor(node))
    return rest, w(aten.sign.default, w(aten.relu.default, w(aten.mul.Tensor, rest, below)))


def _remainder(w: Write, node: Node) -> Node | None:
    """Of the divisor's sign, as Python has it. Source: torch's own kernel, fmod and then once the divisor."""
    if not _divisor(node):
        return None
    rest, other_side = _rest(w, node)
    return w(aten.add.Tensor, rest, w(aten.mul.Tensor, other_side, _divisor(node)))


def _floored_quotient(w: Write, node: Node) -> Node | None:
    """Without what is left the quotient is whole but for rounding. Source: torch's own kernel, and Python's."""
    if not _divisor(node):
        return None
    rest, other_side = _rest(w, node)
    whole = w(aten.round.default, w(aten.mul.Tensor, w(aten.sub.Tensor, source_of(node), rest), 1 / _divisor(node)))
    return w(aten.sub.Tensor, whole, other_side)


def _quotient(w: Write, node: Node) -> Node | None:
    """Floored without what rounding does to it, towards zero with it, as torch has them."""
    if not _divisor(node) or argument(node, 2, "rounding_mode") != "trunc":
        return _floored_quotient(w, node) if argument(node, 2, "rounding_mode") == "floor" else None
    return _towards_zero(w, w(aten.div.Tensor, source_of(node), _divisor(node)))


def _added_quotient(w: Write, node: Node) -> Node:
    quotient = w(aten.div.Tensor, argument(node, 1, "tensor1"), argument(node, 2, "tensor2"))
    value = argument(node, 3, "value", 1)
    return w(aten.add.Tensor, source_of(node), quotient if value == 1 else w(aten.mul.Tensor, quotient, value))


def _difference(w: Write, node: Node) -> Node | None:
    """Every value less the one before it."""
    source, axis = source_of(node), int(argument(node, 2, "dim", -1))
    length = static_shape(source)[axis]
    borders = (argument(node, place, name) for place, name in ((3, "prepend"), (4, "append")))
    if int(argument(node, 1, "n", 1)) != 1 or length < 2 or any(border is not None for border in borders):
        return None
    later, earlier = (w(aten.slice.Tensor, source, axis, start, start + length - 1) for start in (1, 0))
    return w(aten.sub.Tensor, later, earlier)


def _outer(w: Write, node: Node) -> Node:
    rows = w(aten.unsqueeze.default, source_of(node), 1)
    return w(aten.mul.Tensor, rows, w(aten.unsqueeze.default, argument(node, 1, "vec2"), 0))


#: Rule of the normal form per operator.
ELEMENTARY: Mapping[Any, tuple[Callable[[Graph, Node], Node], ...]] = {
    target: (rule_of(spelling),)
    for target, spelling in {
        aten.log1p.default: lambda w, node: w(aten.log.default, w(aten.add.Tensor, source_of(node), 1.0)),
        aten.expm1.default: lambda w, node: w(aten.sub.Tensor, w(aten.exp.default, source_of(node)), 1.0),
        aten.exp2.default: lambda w, node: w(aten.exp.default, w(aten.mul.Tensor, source_of(node), math.log(2))),
        aten.log2.default: _logarithm(2),
        aten.log10.default: _logarithm(10),
        aten.ceil.default: _ceiling,
        aten.trunc.default: lambda w, node: _towards_zero(w, source_of(node)),
        aten.frac.default: lambda w, node: w(aten.sub.Tensor, source_of(node), _towards_zero(w, source_of(node))),
        aten.round.decimals: _rounded,
        aten.hypot.default: _hypotenuse,
        aten.remainder.Scalar: _remainder,
        aten.floor_divide.default: _floored_quotient,
        aten.floor_divide.Scalar: _floored_quotient,
        aten.div.Tensor_mode: _quotient,
        aten.div.Scalar_mode: _quotient,
        aten.addcdiv.default: _added_quotient,
        aten.diff.default: _difference,
        aten.outer.default: _outer,
        aten.mT.default: lambda w, node: w(aten.transpose.int, source_of(node), -2, -1),
        aten.adjoint.default: lambda w, node: w(aten.transpose.int, source_of(node), -2, -1),
        aten.mH.default: lambda w, node: w(aten.transpose.int, source_of(node), -2, -1),
    }.items()
}
