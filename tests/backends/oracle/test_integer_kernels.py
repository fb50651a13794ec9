"""The oracle's kernels against ONNX Runtime's on every pair of integers, for many random scales and zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.integer_kernels import KERNELS, Quantised, Target

#: Scales and zero points drawn per operator; each is tried on all 65,536 pairs, or all 256 integers.
DRAWS = 100

PAIRS = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij")).astype(np.uint8)


def runtime(operator: str, inputs: list[Any], grids: list[tuple[float, int]], **attributes: Any) -> Any:
    """What ONNX Runtime's integer kernel makes of DequantizeLinear, operator, QuantizeLinear."""
    nodes, constants = [], []
    for index, (scale, zero) in enumerate(grids):
        constants.append(numpy_helper.from_array(np.array(scale, np.float32), f"s{index}"))
        constants.append(numpy_helper.from_array(np.array(zero, np.uint8), f"z{index}"))
    for index in range(len(inputs)):
        nodes.append(helper.make_node("DequantizeLinear", [f"x{index}", f"s{index}", f"z{index}"], [f"r{index}"]))
    nodes.append(helper.make_node(operator, [f"r{index}" for index in range(len(inputs))], ["y"], **attributes))
    last = len(grids) - 1
    nodes.append(helper.make_node("QuantizeLinear", ["y", f"s{last}", f"z{last}"], ["q"]))
    described = [helper.make_tensor_value_info(f"x{i}", TensorProto.UINT8, x.shape) for i, x in enumerate(inputs)]
    result = helper.make_tensor_value_info("q", TensorProto.UINT8, None)
    model = helper.make_model(
        helper.make_graph(nodes, "kernel", described, [result], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    ).SerializeToString()
    # Compare with the fused kernel, not with the operator in float between two roundings.
    assert set(OnnxRuntime().census(model, []).histogram) <= {f"QLinear{operator}", "Transpose"}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{i}": x for i, x in enumerate(inputs)})[0]


def quantised(integers: Any, scale: float, zero: int) -> Quantised:
    return Quantised(
        integers=torch.from_numpy(np.array(integers)),
        scale=torch.tensor(scale, dtype=torch.float32),
        zero_point=torch.tensor(zero, dtype=torch.int32),
        axis=None,
        low=0,
        high=255,
    )


def target(scale: float, zero: int) -> Target:
    return Target(name="q", scale=torch.tensor(scale, dtype=torch.float32), zero_point=zero, low=0, high=255)


def draw(generator: np.random.Generator) -> tuple[float, int]:
    """A scale between 1e-3 and 1, and a zero point, at the ends of the range as often as inside."""
    zero = generator.choice(np.array([0, 255, 128, *generator.integers(0, 256, 2)]))
    return float(np.float32(10 ** generator.uniform(-3, 0))), int(zero)


def related(scale: float, generator: np.random.Generator) -> tuple[float, int]:
    """An output grid that neither saturates everything nor rounds all to one value."""
    return float(np.float32(scale * 2 ** generator.uniform(-1, 2))), draw(generator)[1]


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_every_pair_of_integers(operator: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
        first, second = draw(generator), draw(generator)
        wide = first[0] * second[0] * 128 if operator == "Mul" else max(first[0], second[0])
        out = related(wide, generator)
        theirs = runtime(operator, list(PAIRS), [first, second, out])
        mine = KERNELS[operator]([quantised(PAIRS[0], *first), quantised(PAIRS[1], *second)], {}, target(*out))
        np.testing.assert_array_equal(mine.numpy(), theirs, err_msg=f"{first} {second} {out}")


def sums_near_ties(larger: tuple[int, ...], smaller: tuple[int, ...], *, smaller_first: bool = False) -> int:
    """How many of many sums of two tensors the oracle has otherwise than the runtime; scales are such that sums tie."""
    generator, differing = np.random.default_rng(2), 0
    for _ in range(DRAWS):
        out = float(np.float32(10 ** generator.uniform(-3, 0))), int(generator.choice([0, 100, 128]))
        first = out[0] * generator.integers(1, 60) / generator.integers(1, 40), int(generator.choice([0, 77, 124]))
        second = out[0] * (generator.integers(0, 150) + 0.5) / generator.integers(1, 9), int(generator.choice([0, 33]))
        grids = [(float(np.float32(scale)), zero) for scale, zero in (first, second)]
        values = [generator.integers(0, 256, shape).astype(np.uint8) for shape in (larger, smaller)]
        if smaller_first:
            values, grids = values[::-1], grids[::-1]
        theirs = runtime("Add", values, [*grids, out])
        mine = KERNELS["Add"]([quantised(v, *g) for v, g in zip(values, grids, strict=True)], {}, target(*out))
        differing += int((mine.numpy() != theirs).sum())
    return differing


@pytest.mark.parametrize(
    ("larger", "smaller"),
    [
        ((2, 64, 6, 6), (2, 64, 6, 6)),
        ((2, 64, 1, 1), (2, 64, 1, 1)),
        ((2, 64, 1, 1), (1, 1, 1, 1)),
        ((2, 1, 1, 64), (1, 1, 1, 1)),
        ((2, 16, 6, 6), (1, 1, 1, 1)),
        ((2, 16, 6, 6), (2, 16, 1, 1)),
        ((2, 6, 6, 16), (2, 1, 1, 16)),
        ((2, 16, 6, 1), (2, 16, 1, 1)),
        ((4, 9, 16), (1, 1, 1)),
        ((4, 9, 16), (1, 9, 16)),
        ((8, 16), (1, 1)),
    ],
)
def test_sums_with_what_is_repeated_over_the_first(larger: tuple[int, ...], smaller: tuple[int, ...]) -> None:
    assert sums_near_ties(larger, smaller) == 0


def test_other_sums_are_added_in_another_order() -> None:
    """Why files hold the larger tensor first, and numbers with as many axes as what they are added to."""
    assert sums_near_ties((2, 64, 6, 6), (2, 64, 1, 1), smaller_first=True) > 0
    values, grids = np.tile(np.array([137, 150], np.uint8), 32).reshape(1, 64, 1, 1), [(0.009351424, 124), (0.5, 0)]
    out = (0.0039215675, 0)
    mine = KERNELS["Add"]([quantised(values, *grids[0]), quantised(np.uint8(1), *grids[1])], {}, target(*out))
    assert mine.flatten()[:2].tolist() == [158, 189]
    for shape, theirs in (((1, 1, 1, 1), [158, 189]), ((), [159, 190])):
        sums = runtime("Add", [values, np.ones(shape, np.uint8)], [*grids, out])
        assert sums.flatten()[:2].tolist() == theirs


@pytest.mark.parametrize(
    ("operator", "attributes", "scale"), [("Sigmoid", {}, 1 / 200), ("LeakyRelu", {"alpha": 0.1}, None)]
)
def test_every_integer(operator: str, attributes: dict[str, Any], scale: float | None) -> None:
    generator, every = np.random.default_rng(1), np.arange(256, dtype=np.uint8)
    for _ in range(DRAWS):
        source = draw(generator)
        out = related(scale or source[0], generator)
        theirs = runtime(operator, [every], [source, out], **attributes)
        mine = KERNELS[operator]([quantised(every, *source)], attributes, target(*out))
        np.testing.assert_array_equal(mine.numpy(), theirs, err_msg=f"{source} {out}")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (32, 32)])
def test_global_pooling(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(2)
    for _ in range(DRAWS // 2):
        source = draw(generator)
        out = related(source[0] / 4, generator)
        maps = generator.integers(0, 256, (4, 64, *size)).astype(np.uint8)
        theirs = runtime("GlobalAveragePool", [maps], [source, out])
        mine = KERNELS["GlobalAveragePool"]([quantised(maps, *source)], {}, target(*out))
        np.testing.assert_array_equal(mine.numpy(), theirs, err_msg=f"{source} {out}")


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1},
        {"kernel_shape": [7, 7], "strides": [7, 7]},
    ],
)
def test_average_pooling(attributes: dict[str, Any]) -> None:
    generator = np.random.default_rng(3)
    for _ in range(DRAWS // 2):
        source = draw(generator)
        out = related(source[0], generator)
        maps = generator.integers(0, 256, (2, 16, 11, 14)).astype(np.uint8)
        theirs = runtime("AveragePool", [maps], [source, out], **attributes)
        mine = KERNELS["AveragePool"]([quantised(maps, *source)], attributes, target(*out))
        np.testing.assert_array_equal(mine.numpy(), theirs, err_msg=f"{source} {out}")


def test_rounding_is_half_to_even_by_hand() -> None:
    # 0.5 * 1 = 0.5 -> 0, 0.5 * 3 = 1.5 -> 2, 0.5 * 5 = 2.5 -> 2, and 0.5 * 255 = 127.5 -> 128; zero point 3 on top.
    ones = quantised(np.array([1, 1, 1, 1]), 1.0, 0)
    mine = KERNELS["Mul"]([quantised(np.array([1, 3, 5, 255]), 0.5, 0), ones], {}, target(1.0, 0))
    assert mine.tolist() == [0, 2, 2, 128]
    moved = target(1.0, 3).saturate(torch.tensor([0.5, 1.5, 2.5, 300.0, -9.0]))
    assert moved.tolist() == [3, 5, 5, 255, 0]


def test_a_convolution_by_hand() -> None:
    # Sum of (x - 2) * w = (7 - 2) * 3 + (1 - 2) * -4 = 19, plus the bias 5 is 24; times 0.5 * 0.25 / 1.5 is 2.
    data = Quantised(
        integers=torch.tensor([7, 1]).reshape(1, 2, 1, 1),
        scale=torch.tensor(0.5),
        zero_point=torch.tensor(2, dtype=torch.int32),
        axis=None,
        low=0,
        high=255,
    )
    weight = Quantised(
        integers=torch.tensor([3, -4]).reshape(1, 2, 1, 1),
        scale=torch.tensor([0.25]),
        zero_point=torch.zeros(1, dtype=torch.int32),
        axis=0,
        low=-128,
        high=127,
    )
    bias = Quantised(
        integers=torch.tensor([5], dtype=torch.int32),
        scale=torch.tensor([0.125]),
        zero_point=torch.zeros(1, dtype=torch.int32),
        axis=0,
        low=-(2**31),
        high=2**31 - 1,
    )
    assert KERNELS["Conv"]([data, weight, bias], {}, target(1.5, 10)).item() == 12


def test_sums_beyond_float32_are_exact() -> None:
    # 40,000 products of 255 * 127 and one of 1: float32 would lose the last one.
    count = 40_001
    integers = torch.full((1, count, 1, 1), 255, dtype=torch.uint8)
    integers[0, -1] = 1
    weights = torch.full((1, count, 1, 1), 127, dtype=torch.int8)
    weights[0, -1] = 1
    exact = 255 * 127 * 40_000 + 1
    data = quantised(integers.numpy(), 1.0, 0)
    weight = Quantised(
        integers=weights, scale=torch.ones(1), zero_point=torch.zeros(1, dtype=torch.int32), axis=0, low=-128, high=127
    )
    bias = Quantised(
        integers=torch.tensor([-exact + 7], dtype=torch.int32),
        scale=torch.ones(1),
        zero_point=torch.zeros(1, dtype=torch.int32),
        axis=0,
        low=-(2**31),
        high=2**31 - 1,
    )
    assert KERNELS["Conv"]([data, weight, bias], {}, target(1.0, 0)).item() == 7
