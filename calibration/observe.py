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
    """Scale and zero point that calibration chose for one group of tensors."""

    scale: float
    zero_point: int


class _Observing(Interpreter):
    """Runs a graph and shows the tensors that it was told of to their observers."""

    def __init__(self, graph_module: GraphModule, observers: Mapping[str, RangeObserver]) -> None:
        super().__init__(graph_module)
        self.observers = observers

    def run_node(self, n: Node) -> object:
        """Run one node as usual; observe its value when somebody asked for it."""
        value = super().run_node(n)
        if n.name in self.observers:
            assert isinstance(value, Tensor)
            self.observers[n.name].observe(value)
        return value


def observe(graph_module: GraphModule, plan: Plan, batches: Iterable[Tensor]) -> dict[str, RangeObserver]:
    """Run normalised batches, float32 [B, C, H, W], through a folded graph; one observer per group of the plan.

    Raises UserError when a tensor holds values that are not finite, naming it.
    """
    groups = {placement.group: RangeObserver() for placement in plan.activations}
    by_tensor = {placement.tensor: groups[placement.group] for placement in plan.activations}
    interpreter = _Observing(graph_module, by_tensor)
    with torch.no_grad():
        for batch in batches:
            interpreter.run(batch)
    for tensor, observer in by_tensor.items():
        if not observer.finite:
            raise UserError(f"{tensor}: the network computes values that are not finite there; check its weights")
    return groups


def choose_ranges(observers: Mapping[str, RangeObserver], plan: Plan, method: RangeMethod) -> dict[str, Range]:
    """Scale and zero point per group, by the named method; the method "auto" is least squares (see `choose_range`)."""
    chosen = {}
    for placement in plan.activations:
        if placement.group not in chosen:
            low, high = choose_range(observers[placement.group], placement.grid, method)
            if placement.limit is not None:
                high = min(high, placement.limit)
            scale, zero_point = affine_parameters(low, high, placement.grid)
            chosen[placement.group] = Range(scale=scale, zero_point=zero_point)
    return chosen
