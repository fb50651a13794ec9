"""Functions that change at a threshold in terms of operators that every runtime has.

Spellings of the normal form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from calibration.graph.operators import argument
from calibration.normal_form.comparisons import beyond
from calibration.normal_form.spellings import Write, rule_of, source_of

aten = torch.ops.aten

# Beyond it log(1 + exp(x)) is x in float32: torch's threshold of softplus.
_STRAIGHT = 20.0


def _threshold(w: Write, node: Node) -> Node:
    source, limit = source_of(node), float(argument(node, 1, "threshold"))
    instead = float(argument(node, 2, "value"))
    if limit == instead:
        return w(aten.relu.default, source) if limit == 0.0 else w(aten.clamp_min.default, source, limit)
    passes = beyond(w, source, limit)
    kept = w(aten.mul.Tensor, source, passes)
    if instead == 0.0:
        return kept
    # value - value * passes: exactly 0, or exactly the value.
    others = w(aten.add.Tensor, w(aten.mul.Tensor, passes, -instead), instead)
    return w(aten.add.Tensor, kept, others)


def _hard_shrink(w: Write, node: Node) -> Node:
    source, limit = source_of(node), float(argument(node, 1, "lambd", 0.5))
    return w(aten.mul.Tensor, source, beyond(w, w(aten.abs.default, source), limit))


def _soft_shrink(w: Write, node: Node) -> Node:
    source, limit = source_of(node), float(argument(node, 1, "lambd", 0.5))
    above = w(aten.relu.default, w(aten.sub.Tensor, source, limit))
    below = w(aten.relu.default, w(aten.sub.Tensor, w(aten.mul.Tensor, source, -1.0), limit))
    return w(aten.sub.Tensor, above, below)


def _soft_plus(w: Write, node: Node) -> Node | None:
    """Where beta x is beyond its threshold it is x itself: from 20 on what float32 says as well, before that a step."""
    beta, threshold = float(argument(node, 1, "beta", 1)), float(argument(node, 2, "threshold", 20))
    if beta == 1.0 and threshold >= _STRAIGHT:
        return w(aten.softplus.default, source_of(node)) if len(node.args) > 1 else None
    scaled = source_of(node) if beta == 1.0 else w(aten.mul.Tensor, source_of(node), beta)
    curved = w(aten.softplus.default, scaled)
    if threshold < _STRAIGHT:
        above = w(aten.mul.Tensor, w(aten.sub.Tensor, scaled, curved), beyond(w, scaled, threshold))
        curved = w(aten.add.Tensor, curved, above)
    return curved if beta == 1.0 else w(aten.mul.Tensor, curved, 1 / beta)


def _largest(w: Write, node: Node) -> Node:
    return w(aten.clamp.default, source_of(node), None, argument(node, 1, "max"))


def _clamp_between_tensors(w: Write, node: Node) -> Node:
    result = source_of(node)
    for place, name, bound in ((1, "min", aten.maximum.default), (2, "max", aten.minimum.default)):
        if (other := argument(node, place, name)) is not None:
            result = w(bound, result, other)
    return result


def _logarithm_of_sum(w: Write, node: Node) -> Node:
    """With the largest value taken out, so that nothing overflows."""
    source, axes = source_of(node), argument(node, 1, "dim")
    axes, keep = list(axes) if isinstance(axes, (list, tuple)) else [axes], bool(argument(node, 2, "keepdim", False))
    largest = w(aten.amax.default, source, axes, True)
    summed = w(aten.sum.dim_IntList, w(aten.exp.default, w(aten.sub.Tensor, source, largest)), axes, True)
    result = w(aten.add.Tensor, w(aten.log.default, summed), largest)
    return result if keep else w(aten.squeeze.dims, result, axes)


#: Rule of the normal form per operator.
THRESHOLDS: Mapping[Any, tuple[Callable[[Graph, Node], Node], ...]] = {
    target: (rule_of(spelling),)
    for target, spelling in {
        aten.threshold.default: _threshold,
        aten.softplus.default: _soft_plus,
        aten.hardshrink.default: _hard_shrink,
        aten.softshrink.default: _soft_shrink,
        aten.clamp_max.default: _largest,
        aten.clamp.Tensor: _clamp_between_tensors,
        aten.clamp_min.Tensor: _clamp_between_tensors,
        aten.clamp_max.Tensor: lambda w, node: w(aten.minimum.default, source_of(node), argument(node, 1, "max")),
        aten.logsumexp.default: _logarithm_of_sum,
    }.items()
}
