"""Ranges of a network's tensors: the float graph runs on real batches and every tensor that a plan rounds is seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.errors import UserError
from calibration.graph.watching import Watching
from calibration.grid import affine_parameters
from calibration.plan import Plan
from calibration.ranges.finite import first_not_finite
from calibration.ranges.observers import RangeMethod, RangeObserver, choose_range

#: Images that run through the network at a time: a part of a batch, so that its maps take a part of the memory.
_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Range:
    """Scale (> 0) and zero point (on the grid) that calibration chose for one group of tensors."""

    scale: float
    zero_point: int


def observe(graph_module: GraphModule, plan: Plan, batches: Iterable[Tensor]) -> dict[str, RangeObserver]:
    """Run normalised batches, float32 [B, C, H, W], through a folded graph; one observer per group of the plan.

    Raises UserError when a tensor or an output holds values that are not finite, naming the first one.
    """
    groups = {placement.group: RangeObserver() for placement in plan.activations}
    by_tensor = {placement.tensor: groups[placement.group] for placement in plan.activations}
    not_finite: list[str] = []
    ends = dict[str, tuple[float, float]]()  # of each tensor in a batch, in the order of the graph

    def look(name: str, values: Tensor) -> None:
        seen = by_tensor[name].count(values)
        if seen is None:
            not_finite.append(name)
            return
        low, high = ends.get(name, seen)
        ends[name] = min(low, seen[0]), max(high, seen[1])

    watching = Watching(graph_module, by_tensor, look)
    for batch in batches:
        ends.clear()
        for images in torch.split(batch, _AT_ONCE):
            with torch.no_grad():
                outputs = watching.run(images)
            if not not_finite and not all(bool(torch.isfinite(output).all()) for output in outputs):
                raise UserError(
                    f"the network's outputs are NaN or infinite for images that calibrate"
                    f" ({first_not_finite(graph_module, images)}): check what it does with black, white and"
                    " one-coloured images, and that they are normalised as it expects"
                )
            if not_finite:
                raise UserError(
                    f"{not_finite[0]}: the network computes values there that are not finite; check its weights"
                    " and that the images are normalised as it expects"
                )
        for name, (low, high) in ends.items():
            by_tensor[name].end_batch(low, high)
    return groups


def choose_ranges(observers: Mapping[str, RangeObserver], plan: Plan, method: RangeMethod) -> dict[str, Range]:
    """Scale and zero point per group, by the named method; the method "auto" is least squares (`choose_range`).

    The range of a group with a limit ends there at the latest.
    """
    chosen: dict[str, Range] = {}
    for placement in plan.activations:
        if placement.group not in chosen:
            low, high = choose_range(observers[placement.group], placement.grid, method)
            if placement.limit is not None:
                high = min(high, placement.limit)
            scale, zero_point = affine_parameters(low, high, placement.grid)
            chosen[placement.group] = Range(scale=scale, zero_point=zero_point)
    return chosen
