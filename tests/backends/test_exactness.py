"""Simulation, oracle and ONNX Runtime compute the same integers, tensor by tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from backends.facts.onnxruntime_rules import CPU_PROFILES
from backends.facts.widths import Widths
from backends.onnx_file.exposed import exposed
from backends.onnx_file.view import OnnxView
from backends.oracle.backend import IntegerOracle
from tests.one_line_net import Net, c3

VARIANTS: dict[str, dict[str, Any]] = {
    "8 bits": {"bits": 8},
    "zero-heavy and saturating": {"bits": 8, "sparse": True, "saturating": True, "seed": 1},
    "4 bits": {"bits": 4, "seed": 2},
    "three levels": {"bits": 2, "seed": 3},
    "two levels, 4-bit activations": {"bits": 1, "widths": Widths(weights=1, activations=4), "seed": 4},
}


def runtime_tensors(model: onnx.ModelProto, images: Any, names: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """Outputs and rounded tensors of ONNX Runtime, the latter as additional outputs of the same file."""
    extended = exposed(model, names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    results = []
    for proto in (model, extended):
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results.append(session.run(None, {session.get_inputs()[0].name: images}))
    count = len(model.graph.output)
    return results[0], dict(zip(names, results[1][count:], strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_simulation_oracle_and_runtime_are_equal(exact_network: str, variant: str, build: Callable[..., Any]) -> None:
    built = build(exact_network, **VARIANTS[variant])
    packed = VARIANTS[variant]["bits"] <= 4
    model = built.model(opset=21 if packed else 20, pack_int4=packed)
    outputs, rounded = IntegerOracle(model).run(built.images, trace=True)
    theirs, their_rounded = runtime_tensors(model, built.images.numpy(), list(rounded))
    for name, values in rounded.items():
        np.testing.assert_array_equal(values.numpy(), their_rounded[name], err_msg=f"rounded tensor {name}")
    for mine, runtime, simulated in zip(outputs, theirs, built.simulate(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), runtime)
        np.testing.assert_array_equal(mine.numpy(), simulated.numpy())
    # A network whose integers are all the same would pass every comparison.
    assert any(len(np.unique(values.numpy())) > 8 for values in rounded.values())


def test_float_operators_differ_by_one_step_at_most(close_network: str, build: Callable[..., Any]) -> None:
    built = build(close_network)
    model = built.model()
    outputs, rounded = IntegerOracle(model).run(built.images, trace=True)
    theirs, their_rounded = runtime_tensors(model, built.images.numpy(), list(rounded))
    for name, values in rounded.items():
        assert np.abs(values.numpy() - their_rounded[name].astype(np.int32)).max() <= 1, name
    for mine, runtime, simulated in zip(outputs, theirs, built.simulate(), strict=True):
        step = float(mine.abs().max()) / 64
        assert np.abs(mine.numpy() - runtime).max() <= step
        assert float((mine - simulated).abs().max()) <= step


@pytest.mark.parametrize("variant", [name for name, variant in VARIANTS.items() if "widths" not in variant])
def test_tensorrt_files_are_simulated_exactly(every_network: str, variant: str, build: Callable[..., Any]) -> None:
    # TensorRT's documented semantics: exact sums, then float32 reals up to the next rounding, whatever is between.
    built = build(every_network, "tensorrt", **VARIANTS[variant])
    outputs, rounded = IntegerOracle(built.model(), fused_rounding=False).run(built.images, trace=True)
    for mine, simulated in zip(outputs, built.simulate(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), simulated.numpy())
    assert {(int(values.min()) < -128, int(values.max()) > 127) for values in rounded.values()} == {(False, False)}


def test_tensorrts_sums_are_rescaled_then_rounded_by_hand(build: Callable[..., Any]) -> None:
    built = build("conv", "tensorrt")
    view = OnnxView(model := built.model())
    _, rounded = IntegerOracle(model, fused_rounding=False).run(built.images[:1], trace=True)
    first, second = (node for node in view.nodes if node.op_type == "QuantizeLinear" and node.name in ("x_q", "relu_q"))
    scales = [view.scale(node) for node in (first, next(n for n in view.nodes if n.name == "a_weight_dq"), second)]
    weight, bias = view.value("a_weight"), view.value("a_bias")
    assert weight is not None and bias is not None and all(scale is not None for scale in scales)
    integers = np.pad(rounded["x_q"].numpy()[0], ((0, 0), (1, 1), (1, 1))).astype(np.int64)
    for channel, row, column in ((0, 0, 0), (3, 5, 7), (15, 11, 11)):
        sums = np.float32((integers[:, row : row + 3, column : column + 3] * weight[channel].astype(np.int64)).sum())
        real = np.float32(sums * np.float32(scales[0] * scales[1][channel])) + bias[channel]  # type: ignore[index]
        expected = np.clip(np.rint(np.float32(max(real, np.float32(0)) / scales[2])), -128, 127)
        assert rounded["relu_q"][0, channel, row, column] == expected


@pytest.mark.parametrize(
    "network",
    ["average_pool", "average_pool_signed", "average_pool_of_a_border", "number_in_concat", "number_and_result"],
)
def test_average_pooling_and_numbers_in_scales_are_exact_on_the_oracle(network: str, build: Callable[..., Any]) -> None:
    built = build(network, inputs=torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(3)))
    model = built.model()
    outputs, rounded = IntegerOracle(model).run(built.images, trace=True)
    theirs, their_rounded = runtime_tensors(model, built.images.numpy(), list(rounded))
    for name, values in rounded.items():
        np.testing.assert_array_equal(values.numpy(), their_rounded[name], err_msg=f"rounded tensor {name}")
    for mine, runtime, simulated in zip(outputs, theirs, built.simulate(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), runtime)
        np.testing.assert_array_equal(mine.numpy(), simulated.numpy())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    "network", ["residual", "add_broadcast", "add_input", "fork_before_relu", "hard_swish", "hard_sigmoid"]
)
def test_the_sums_of_arm_are_simulated_exactly(network: str, bits: int, build: Callable[..., Any]) -> None:
    # Proven on ONNX Runtime's own kernels by the tests marked emulation.
    built = build(network, CPU_PROFILES["arm64"][0], bits=bits)
    outputs, _ = IntegerOracle(built.model(), arm_arithmetic=True).run(built.images)
    for mine, simulated in zip(outputs, built.simulate(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), simulated.numpy())


def test_ties_in_the_hard_sigmoids_of_arm_go_away_from_zero(build: Callable[..., Any]) -> None:
    built = build("hard_sigmoid", CPU_PROFILES["arm64"][0])
    grids = built.prepared.activation_grids
    with torch.no_grad():
        # Half a step of the gate per step of its input: every odd integer is a tie.
        grids["a_grid"].log_scale.copy_(torch.tensor(math.log(6 * 2.0**-9)))
        grids["hardsigmoid_grid"].log_scale.copy_(torch.tensor(math.log(2.0**-8)))
    built = built.refrozen()
    (simulated,) = built.simulate()
    equal = []
    for arm_arithmetic in (True, False):
        (output,), _ = IntegerOracle(built.model(), arm_arithmetic=arm_arithmetic).run(built.images)
        equal.append(torch.equal(output, simulated))
    assert equal == [True, False]


@pytest.mark.parametrize("steepest", [1.0, 1.7])
def test_prelus_are_exact_without_their_slow_kernel(steepest: float, build: Callable[..., Any]) -> None:
    prelu = nn.PReLU(16)
    with torch.no_grad():
        prelu.weight.copy_(torch.linspace(-0.5, steepest, 16))
    module = Net(lambda n, x: n.b(n.p(n.a(x))), a=c3(3, 16), p=prelu, b=c3(16, 16))
    built = build(module)
    model = built.model()
    assert not {"PRelu", "Max" if steepest > 1 else "Min"} & {node.op_type for node in model.graph.node}
    (expected,), _ = IntegerOracle(model).run(built.images)
    (theirs,), _ = runtime_tensors(model, built.images.numpy(), [])
    np.testing.assert_array_equal(expected.numpy(), theirs)
    np.testing.assert_array_equal(built.simulate()[0].numpy(), theirs)
