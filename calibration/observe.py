"""Ranges of a network's tensors: the float graph runs on real batches and every tensor that a plan rounds is seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from calibration.errors import UserError
from calibration.grid import affine_parameters
from calibration.observers import RangeMethod, RangeObserver, choose_range
from calibration.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Range:
    """Scale (> 0) and zero point (on the grid) that calibration chose for one group of tensors."""

    scale: float
    zero_point: int


class _Observing(Interpreter):
    """Runs a graph and shows the tensors that it was told of to their observers."""

    def __init__(self, graph_module: GraphModule, observers: Mapping[str, RangeObserver]) -> None:
        super().__init__(graph_module)
        self.observers = observers
        #: The first tensor that held a value that is not finite.
        self.not_finite: str | None = None

    def run_node(self, n: Node) -> object:
        """Run one node as usual; observe its value when somebody asked for it."""
        value = super().run_node(n)
        if n.name in self.observers:
            assert isinstance(value, Tensor)
            self.observers[n.name].observe(value)
            if self.not_finite is None and not self.observers[n.name].finite:
                self.not_finite = n.name
        return value


def observe(graph_module: GraphModule, plan: Plan, batches: Iterable[Tensor]) -> dict[str, RangeObserver]:
    """Run normalised batches, float32 [B, C, H, W], through a folded graph; one observer per group of the plan.

    Raises UserError when a tensor holds values that are not finite, naming the first one.
    """
    groups = {placement.group: RangeObserver() for placement in plan.activations}
    by_tensor = {placement.tensor: groups[placement.group] for placement in plan.activations}
    interpreter = _Observing(graph_module, by_tensor)
    for batch in batches:
        with torch.no_grad():
            interpreter.run(batch)
        if interpreter.not_finite is not None:
            raise UserError(
                f"{interpreter.not_finite}: the network computes values there that are not finite; check its weights"
                " and that the images are normalised as it expects"
            )
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
