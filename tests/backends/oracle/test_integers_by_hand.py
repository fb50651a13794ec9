"""What the oracle takes for integers, and when a rounding takes the place of a clip: by hand."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from backends.oracle.backend import IntegerOracle, Reference
from backends.oracle.differences import Comparison
from backends.oracle.integer_kernels import KERNELS, Quantised, Target, accumulate_to_float, all_quantised, moved
from backends.oracle.layer_samples import layer_tensors, oracle_layers
from calibration.grid import Grid
from calibration.plan import Plan, WeightPlacement


def on_a_grid(integers: Any, *, scale: Any = 0.5, zero: Any = 10, axis: int | None = None, **more: Any) -> Quantised:
    parts = torch.tensor(integers, dtype=torch.int32), torch.tensor(scale), torch.tensor(zero, dtype=torch.int32)
    return Quantised(integers=parts[0], scale=parts[1], zero_point=parts[2], axis=axis, low=0, high=255, **more)


def test_reals_of_integers() -> None:
    assert on_a_grid([[10, 12], [0, 255]]).real().tolist() == [[0, 1], [-5, 122.5]]
    columns = on_a_grid([[10, 12], [0, 255]], scale=[0.5, 2.0], zero=[10, 5], axis=1)
    assert columns.centred().tolist() == [[0, 7], [-10, 250]] and columns.real().tolist() == [[0, 14], [-5, 500]]
    rows = on_a_grid([[10, 12], [0, 255]], scale=[0.5, 2.0], zero=[10, 5], axis=0)
    assert rows.real().tolist() == [[0, 1], [-10, 500]]
    blocks = on_a_grid([[1, 2, 3, 4]], scale=[[1.0, 10.0]], zero=[[0, 1]], axis=1, block=2)
    assert blocks.real().tolist() == [[1, 2, 20, 30]]
    # 2049 is no float16: its neighbours are 2048 and 2050.
    assert on_a_grid([2059], scale=1.0, half=True).real().tolist() == [2048]
    assert Target(name="q", scale=torch.tensor(1.0), zero_point=3, low=0, high=9).saturate(
        torch.tensor([0.5, 1.5, -4.0, 7.0])
    ).tolist() == [3, 5, 0, 9]  # fmt: skip


def test_which_inputs_must_be_integers() -> None:
    grid, real = on_a_grid([1]), torch.ones(1)
    for operator in ("Conv", "Gemm", "MatMul", "Add", "Mul"):
        assert all_quantised([grid, grid], operator) and all_quantised([grid, grid, real], operator)
        assert not all_quantised([grid, real], operator) and not all_quantised([real, grid], operator)
        assert not all_quantised([grid], operator)
    assert all_quantised([grid], "Sigmoid") and all_quantised([grid, None], "Sigmoid")
    assert not all_quantised([real], "Sigmoid") and not all_quantised([], "Sigmoid")


def test_movement_keeps_integers_while_one_grid_holds_for_all() -> None:
    first, second = on_a_grid([[1, 2]]), on_a_grid([[3, 4]])
    (joined,) = moved("Concat", [first, second], {"axis": 1})
    assert isinstance(joined, Quantised) and joined.integers.tolist() == [[1, 2, 3, 4]] and joined.scale == 0.5
    for other in (on_a_grid([[3, 4]], scale=1.0), on_a_grid([[3, 4]], zero=11), on_a_grid([[3, 4]]).real()):
        (reals,) = moved("Concat", [first, other], {"axis": 1})
        assert isinstance(reals, torch.Tensor) and reals[0, :2].tolist() == [-4.5, -4]
    (reals,) = moved("Transpose", [on_a_grid([[1, 2]], scale=[0.5], zero=[0], axis=0)], {"perm": [1, 0]})
    assert isinstance(reals, torch.Tensor), "scales of an axis do not move along"


@pytest.mark.parametrize(
    ("more", "attributes", "expected"),
    [
        ([], {}, [10, 7, 8, 10]),
        ([torch.tensor(0.0)], {"mode": "constant"}, [10, 7, 8, 10]),
        ([torch.tensor(0.5)], {}, [0.5, -1.5, -1, 0.5]),
        ([], {"mode": "edge"}, [7, 7, 8, 8]),
    ],
)
def test_a_border_of_zeros_is_the_zero_point(more: list[Any], attributes: dict[str, Any], expected: list[Any]) -> None:
    padded = on_a_grid([[[[7, 8]]]])
    (result,) = moved("Pad", [padded, torch.tensor([0, 0, 0, 1, 0, 0, 0, 1]), *more], attributes)
    values = result.integers if isinstance(result, Quantised) else result
    assert values.flatten().tolist() == expected


def test_a_layer_that_writes_floats_adds_its_float_bias() -> None:
    x, weight = on_a_grid([[12, 10]], scale=0.5), on_a_grid([[3, 1], [0, 4]], scale=[2.0, 1.0], zero=[0, 0], axis=0)
    # Centred 2 and 0: sums 6 and 0 of the rows, times 0.5 x 2 and 0.5 x 1.
    assert accumulate_to_float("Gemm", [x, weight], {"transB": 1}).tolist() == [[6, 0]]
    assert accumulate_to_float("Gemm", [x, weight, torch.tensor([0.25, 1])], {"transB": 1}).tolist() == [[6.25, 1]]
    bias = on_a_grid([1, 2], zero=0)
    assert accumulate_to_float("Gemm", [x, weight, bias], {"transB": 1}).tolist() == [[7, 1]]


def test_a_kernel_adds_a_float_bias_before_it_rounds() -> None:
    x, weight = on_a_grid([[12, 10]], scale=0.5), on_a_grid([[3, 1], [0, 4]], scale=1.0, zero=0)
    target = Target(name="q", scale=torch.tensor(0.25), zero_point=3, low=0, high=255)
    # Sums 6 and 0 are 3 and 0 as reals; 3.25 and 1 are 13 and 4 steps.
    for bias, expected in (((), [15, 3]), ((torch.tensor([0.25, 1.0]),), [16, 7])):
        assert KERNELS["Gemm"]([x, weight, *bias], {"transB": 1}, target).tolist() == [expected]


@pytest.mark.parametrize(
    ("operator", "attributes", "shapes"),
    [
        ("MatMul", {}, ((1, 4, 700), (1, 700, 6))),
        ("MatMul", {}, ((4, 700), (700, 6))),
        ("Gemm", {}, ((4, 700), (700, 6))),
        ("Gemm", {"transB": 1}, ((4, 700), (6, 700))),
        ("Conv", {}, ((2, 700, 2, 2), (6, 700, 1, 1))),
    ],
)
def test_sums_beyond_float32_are_rounded_once(
    operator: str, attributes: dict[str, Any], shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    """700 products of about 250 x 120 pass 2**24: added in float32 they would be rounded on the way."""
    draw = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randint(low, low + 8, shape, generator=draw) for low, shape in zip((245, 120), shapes, strict=True)
    )
    if operator == "Conv":
        exact = torch.einsum("bchw,oc->bohw", x, weight[..., 0, 0])
    else:
        exact = x @ (weight.T if attributes else weight)
    operands = [on_a_grid(values.tolist(), scale=1.0, zero=0) for values in (x, weight)]
    assert int(exact.max()) > 2**24
    assert torch.equal(accumulate_to_float(operator, operands, attributes), exact.float())


def clipped(activation: str, bounds: tuple[float, ...], kind: Any, zero: int, scale: float) -> onnx.ModelProto:
    """x, rounded to sixteenths, times 1 by a convolution of integers, an activation, and a rounding."""
    constants = {
        "s": np.float32(1 / 16), "z": np.uint8(128), "w": np.ones((1, 1, 1, 1), np.int8), "one": np.float32(1),
        "nothing": np.int8(0), "step": np.float32(scale), "zero": np.array(zero, kind),
    } | {f"bound{index}": np.float32(bound) for index, bound in enumerate(bounds)}  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "s", "z"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w", "one", "nothing"], ["w_dq"]),
        helper.make_node("Conv", ["x_dq", "w_dq"], ["y"], name="conv"),
        helper.make_node(activation, ["y", *(f"bound{index}" for index in range(len(bounds)))], ["a"], name="act"),
        helper.make_node("QuantizeLinear", ["a", "step", "zero"], ["a_q"]),
        helper.make_node("DequantizeLinear", ["a_q", "step", "zero"], ["output"]),
    ]
    sizes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 4]) for name in ("x", "output")]
    stored = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "clipped", sizes[:1], sizes[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize(
    ("activation", "bounds", "kind", "zero", "scale", "expected"),
    [
        # Zero at the lowest integer: the rounding clips below 0 itself, 255 steps above it.
        ("Relu", (), np.uint8, 0, 1 / 16, [0, 0, 1, 5]),
        ("Relu", (), np.int8, -128, 1 / 16, [0, 0, 1, 5]),
        # Zero within the grid: negative numbers have integers there, so the ReLU must be computed.
        ("Relu", (), np.int8, 0, 1 / 16, [0, 0, 1, 5]),
        # The grid reaches 255 / 64, as far as the clip or less: the rounding performs it.
        ("Clip", (0.0, 255 / 64), np.int8, -128, 1 / 64, [0, 0, 1, 255 / 64]),
        # It reaches further: 5 must become 3.
        ("Clip", (0.0, 3.0), np.int8, -128, 1 / 16, [0, 0, 1, 3]),
        ("Clip", (0.0, 3.0), np.uint8, 0, 1 / 16, [0, 0, 1, 3]),
        # What is raised to 1 is no rounding's doing.
        ("Clip", (1.0, 255 / 64), np.uint8, 0, 1 / 64, [1, 1, 1, 255 / 64]),
        # No upper bound of its own.
        ("Clip", (0.0,), np.uint8, 0, 1 / 16, [0, 0, 1, 5]),
    ],
)
def test_a_rounding_performs_what_it_clips_as_hard(
    activation: str, bounds: tuple[float, ...], kind: Any, zero: int, scale: float, expected: list[float]
) -> None:
    oracle = IntegerOracle(clipped(activation, bounds, kind, zero, scale), fused_rounding=True)
    (output,), _ = oracle.run(torch.tensor([[[[-2.0, -0.5, 1.0, 5.0]]]]))
    assert output.flatten().tolist() == expected


def test_differences_are_counted_by_hand() -> None:
    """Of the integers 0, 0, 16 and 80 behind the ReLU the other side has 0, 3, 16 and 70; then all the same."""
    comparison = Comparison(clipped("Relu", (), np.uint8, 0, 1 / 16))
    images = torch.tensor([[[[-2.0, -0.5, 1.0, 5.0]]]])
    theirs = {"x_q": torch.tensor([[[[96, 120, 144, 208]]]]), "a_q": torch.tensor([[[[0, 3, 16, 70]]]])}
    comparison.add(images, {name: values.to(torch.int32) for name, values in theirs.items()})
    same = theirs | {"a_q": torch.tensor([[[[0, 0, 16, 80]]]])}
    comparison.add(images, {name: values.to(torch.int32) for name, values in same.items()})
    entry = comparison.tensors["a_q"]
    assert (entry.elements, entry.differing, entry.largest) == (8, 2, 10)
    assert (entry.own, entry.own_largest, entry.ties, entry.saturated) == (2, 10, 0, 1), "0 is the end of the grid"
    assert entry.example == "first at [0, 0, 0, 1]: 0 here, 3 there"
    assert comparison.first() is entry and comparison.tensors["x_q"].differing == 0


def test_a_bundle_holds_of_each_layer_what_its_kernel_writes() -> None:
    """Behind the activation that it absorbs; a layer that the file does not name is left out."""
    model, grid = clipped("Relu", (), np.uint8, 0, 1 / 16), Grid(bits=8, signed=True, symmetric=True)
    layers = tuple(WeightPlacement(layer=name, grid=grid, integer_bias=True) for name in ("conv", "gone"))
    images = torch.tensor([[[[-2.0, -0.5, 1.0, 5.0]]]])
    for absorbed, tensor, values in (({"act": "conv"}, "a", [0, 0, 1, 5]), ({"act": "other"}, "y", [-2, -0.5, 1, 5])):
        plan = Plan(backend="tensorrt", activations=(), weights=layers, absorbed=absorbed)
        assert layer_tensors(model, plan) == {"conv": tensor}
        stored = np.load(io.BytesIO(oracle_layers(model, plan, images)))
        assert stored["layers"].tolist() == ["conv"] and stored["tensors"].tolist() == [tensor]
        assert stored["values_0"].flatten().tolist() == values
    # A layer whose tensor is an output of the file already.
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    plan = Plan(backend="tensorrt", activations=(), weights=layers[:1])
    assert np.load(io.BytesIO(oracle_layers(model, plan, images)))["values_0"].flatten().tolist() == [-2, -0.5, 1, 5]


def test_the_runner_gives_outputs_in_order() -> None:
    with Reference().runner(clipped("Relu", (), np.uint8, 0, 1 / 16).SerializeToString(), threads=1) as runner:
        (output,) = runner.run(np.array([[[[-2.0, -0.5, 1.0, 5.0]]]], np.float64))
    assert output.flatten().tolist() == [0, 0, 1, 5]
