"""The weighted layers in a report: what the plan asks of each, and what the runtime made of it."""

from __future__ import annotations

from collections.abc import Mapping

from backends.base import Census
from calibration.plan import Plan
from pipeline.report.schema import FloatLayer, Kernels, Layer

_REFUSED = "this runtime kept it in float"


def kernels_of(plan: Plan, census: Census | None) -> Kernels:
    """Weighted layers counted by what runs them, where a census says so, and the float ones with their reasons."""
    left = [
        FloatLayer(name=name, reason=reason)
        for name, reason in plan.float_nodes.items()
        if plan.kinds.get(name) in {"conv", "conv_transpose", "linear"}
    ]
    if census is None:
        return Kernels(integer=None, float=None, float_layers=tuple(left))
    refused = [
        FloatLayer(name=name, reason="planned as integer, but this runtime kept it in float")
        for name in census.floating
    ]
    return Kernels(integer=len(census.integer), float=len(left) + len(refused), float_layers=(*left, *refused))


def layers_of(plan: Plan, census: Census | None, noise: Mapping[str, float]) -> tuple[Layer, ...]:
    """Every weighted layer: bits, noise in dB where it was measured, and whether integers run it."""
    executed = None if census is None else set(census.integer)
    planned = [
        _layer(plan, name, noise, integer, _REFUSED if integer is False else "")
        for name, integer in ((name, None if executed is None else name in executed) for name in plan.integer_layers())
    ]
    left = [_layer(plan, f.name, noise, False, f.reason) for f in kernels_of(plan, None).float_layers]
    return (*planned, *left)


def _layer(plan: Plan, name: str, noise: Mapping[str, float], integer: bool | None, reason: str) -> Layer:
    weight = plan.weight(name)
    return Layer(
        name=name,
        kind=plan.kinds.get(name, "other"),
        weight_bits=None if weight is None else weight.grid.bits,
        sqnr_db=round(noise[name], 2) if name in noise else None,
        integer=integer,
        reason=reason,
    )
