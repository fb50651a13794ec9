"""The weighted layers in a report: what the plan wanted of each, and what the runtime made of it."""

from __future__ import annotations

from collections.abc import Mapping

from backends.base import Census
from calibration.plan import Plan
from pipeline.report.schema import FloatLayer, Kernels, Layer


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
    integer = None if census is None else set(census.integer)
    planned = [
        Layer(
            name=placement.layer,
            kind=plan.kinds.get(placement.layer, "other"),
            weight_bits=placement.grid.bits,
            sqnr_db=round(noise[placement.layer], 2) if placement.layer in noise else None,
            integer=None if integer is None else placement.layer in integer,
            reason="" if integer is None or placement.layer in integer else "this runtime kept it in float",
        )
        for placement in plan.weights
    ]
    left = [
        Layer(
            name=f.name,
            kind=plan.kinds[f.name],
            weight_bits=None,
            sqnr_db=None,
            integer=False,
            reason=f.reason,
        )
        for f in kernels_of(plan, None).float_layers
    ]
    return (*planned, *left)
