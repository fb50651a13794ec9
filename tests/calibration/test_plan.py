"""A plan is data: it cannot change, contradicts itself nowhere, and survives JSON."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from backends.device.bundle_check.records import from_json
from calibration.grid import Grid
from calibration.plan import ActivationPlacement, Plan, WeightPlacement

ACTIVATION = Grid(bits=8, signed=False, symmetric=True)
WEIGHT = Grid(bits=4, signed=True, symmetric=True, narrow=True, channel_axis=0)
BLOCKS = dataclasses.replace(WEIGHT, block=64)


def plan(**changes: Any) -> Plan:
    content: dict[str, Any] = {
        "backend": "onnxruntime",
        "activations": (
            ActivationPlacement(tensor="x", grid=ACTIVATION, readers=("conv",), group="x"),
            ActivationPlacement(tensor="relu", grid=ACTIVATION, readers=("cat", "add"), group="relu", limit=6.0),
            ActivationPlacement(tensor="relu_1", grid=ACTIVATION, readers=("cat",), group="relu", limit=6.0),
        ),
        "weights": (
            WeightPlacement(layer="conv", grid=WEIGHT, integer_bias=True),
            WeightPlacement(layer="fc", grid=BLOCKS, integer_bias=False, weight_only=True),
        ),
        "absorbed": {"relu": "conv"},
        "passthrough": {"cat": "relu"},
        "float_nodes": {"tanh": "no integer kernel"},
        "kinds": {"conv": "conv", "tanh": "tanh"},
    }
    return Plan(**(content | changes))


def test_a_plan_survives_json() -> None:
    written = plan()
    text = json.dumps(written.to_json())
    read = from_json(Plan, json.loads(text), where="plan")
    assert read == written
    assert json.dumps(read.to_json()) == text == json.dumps(plan().to_json())
    # Tuples and read-only tables have become what JSON has.
    assert json.loads(text) == written.to_json()


def test_a_plan_cannot_change() -> None:
    frozen, absorbed = plan(), {"relu": "conv"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.backend = "other"  # type: ignore[misc]
    for table in (frozen.absorbed, frozen.passthrough, frozen.float_nodes, frozen.kinds):
        with pytest.raises(TypeError):
            table["conv"] = "other"  # type: ignore[index]
    other = plan(absorbed=absorbed)
    absorbed["tanh"] = "conv"
    assert "tanh" not in other.absorbed
    assert copy.deepcopy(frozen) is frozen


def test_a_tensor_or_weight_is_quantised_once() -> None:
    twice = (ActivationPlacement(tensor="x", grid=ACTIVATION, readers=(), group="x"),) * 2
    with pytest.raises(ValueError, match="the tensor x is quantised twice"):
        plan(activations=twice)
    with pytest.raises(ValueError, match="the weight of layer conv is quantised twice"):
        plan(weights=(WeightPlacement(layer="conv", grid=WEIGHT, integer_bias=True),) * 2)


@pytest.mark.parametrize("changes", [{"grid": Grid(bits=8, signed=True, symmetric=True)}, {"limit": None}])
def test_tensors_that_share_a_scale_share_grid_and_limit(changes: dict[str, Any]) -> None:
    first, second, third = plan().activations
    with pytest.raises(ValueError, match="the tensors that share the scale relu have different grids or limits"):
        plan(activations=(first, second, dataclasses.replace(third, **changes)))


def test_placements_are_found_by_layer() -> None:
    assert plan().weight("conv") == WeightPlacement(layer="conv", grid=WEIGHT, integer_bias=True)
    assert plan().weight("tanh") is None


def test_a_plan_knows_the_nodes_that_it_speaks_of() -> None:
    assert plan().names() == {"x", "conv", "fc", "relu", "relu_1", "cat", "add", "tanh"}
    assert plan().integer_layers() == ["conv"]
