"""A placement plan as data: which tensors are rounded to which grid, and why the rest stays float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from calibration.grid import Grid


@dataclass(frozen=True, kw_only=True)
class ActivationPlacement:
    """One activation quantiser.

    `tensor` names the node whose output is rounded; `readers` the nodes that see the rounded values (everybody
    else sees the float ones); `group` names the scale that tensors share, the tensor's own name where it is
    alone; `limit` is the largest value that the range may cover (6 behind a ReLU6 that the quantiser performs).
    """

    tensor: str
    grid: Grid
    readers: tuple[str, ...]
    group: str
    limit: float | None = None


@dataclass(frozen=True, kw_only=True)
class WeightPlacement:
    """The quantised weight of one layer.

    `integer_bias`: the bias is rounded to int32 at input scale x weight scale; `weight_only`: the layer reads float
    inputs and multiplies them by the reals that the integers stand for, and so is among the plan's float nodes too.
    """

    layer: str
    grid: Grid
    integer_bias: bool
    weight_only: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a backend wants: immutable, in graph order, to JSON and from it.

    `absorbed` maps a node to the node whose kernel computes it; `passthrough` maps a node that only moves integers
    to the quantised tensor that it reads; `float_nodes` maps a node that computes in float to the reason;
    `kinds` maps every planned or float node to its kind; `fused_rounding`: kernels go from integer sums to rounded
    integers in one multiplication, else every operator between two roundings computes float32 reals of its own;
    `exact_averages`: poolings with equal windows sum integers, else they average float32 reals;
    `arm_arithmetic`: tensors are added and multiplied as on ARM (calibration/arithmetic/elementwise.py), else as on
    x86; `variant` names the backend's profile where it has several.
    """

    backend: str
    activations: tuple[ActivationPlacement, ...]
    weights: tuple[WeightPlacement, ...]
    absorbed: Mapping[str, str] = field(default_factory=dict)
    passthrough: Mapping[str, str] = field(default_factory=dict)
    float_nodes: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, str] = field(default_factory=dict)
    fused_rounding: bool = True
    exact_averages: bool = False
    arm_arithmetic: bool = False
    variant: str = ""

    def __post_init__(self) -> None:
        _refuse_duplicates("tensor", (placement.tensor for placement in self.activations))
        _refuse_duplicates("weight of layer", (placement.layer for placement in self.weights))
        groups: dict[str, ActivationPlacement] = {}
        for placement in self.activations:
            first = groups.setdefault(placement.group, placement)
            if (first.grid, first.limit) != (placement.grid, placement.limit):
                raise ValueError(f"the tensors that share the scale {placement.group} have different grids or limits")
        for name in ("absorbed", "passthrough", "float_nodes", "kinds"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """The plan itself: nothing in it can change."""
        return self

    def weight(self, layer: str) -> WeightPlacement | None:
        """The placement of a layer's weight, or None when the layer stays float."""
        return next((placement for placement in self.weights if placement.layer == layer), None)

    def integer_layers(self) -> list[str]:
        """The layers that multiply integers, in graph order: weights may also be integers that are stored alone."""
        layers = (placement.layer for placement in self.weights if not placement.weight_only)
        return [layer for layer in layers if layer not in self.float_nodes]

    def names(self) -> frozenset[str]:
        """Every node of the graph that the plan speaks of."""
        names = {placement.layer for placement in self.weights}
        for placement in self.activations:
            names |= {placement.tensor, *placement.readers}
        for table in (self.absorbed, self.passthrough):
            names |= {*table, *table.values()}
        return frozenset(names | {*self.float_nodes, *self.kinds})

    def to_json(self) -> dict[str, Any]:
        """Plain data, in a fixed order."""
        return {
            "backend": self.backend,
            "variant": self.variant,
            "arm_arithmetic": self.arm_arithmetic,
            "exact_averages": self.exact_averages,
            "activations": [
                {
                    "tensor": placement.tensor,
                    "grid": placement.grid.to_json(),
                    "readers": list(placement.readers),
                    "group": placement.group,
                    "limit": placement.limit,
                }
                for placement in self.activations
            ],
            "weights": [
                {
                    "layer": placement.layer,
                    "grid": placement.grid.to_json(),
                    "integer_bias": placement.integer_bias,
                    "weight_only": placement.weight_only,
                }
                for placement in self.weights
            ],
            "absorbed": dict(self.absorbed),
            "passthrough": dict(self.passthrough),
            "float_nodes": dict(self.float_nodes),
            "kinds": dict(self.kinds),
            "fused_rounding": self.fused_rounding,
        }


def _refuse_duplicates(what: str, names: Iterable[str]) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise ValueError(f"the {what} {', '.join(repeated)} is quantised twice")
