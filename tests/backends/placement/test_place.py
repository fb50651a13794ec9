"""Where ONNX Runtime's profile rounds, by golden counts on known networks and by small networks for every rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.device.bundle_check.records import from_json
from backends.facts.onnxruntime_rules import X64_WITHOUT_VNNI
from backends.facts.widths import Widths
from backends.onnxruntime.backend import OnnxRuntime
from backends.placement.place import place
from calibration.errors import UserError
from calibration.graph.operators import multiplier
from calibration.plan import Plan
from tests.backends.conftest import AS_IT_IS, PROFILES, KnownNetwork
from tests.one_line_net import Net, c3

Build = Callable[..., Any]
relu = torch.relu

# Weighted layers, rounded tensors, grids, and kernels of the runtime's own optimised graph.
GOLDEN: dict[str, tuple[int, int, int, dict[str, int]]] = {
    "resnet18": (21, 30, 30, {"QLinearConv": 20, "QLinearAdd": 8, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
    "mobilenet_v2": (53, 64, 64, {"QLinearConv": 52, "QLinearAdd": 10, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
    "shufflenet_v2_x1_0": (57, 58, 42, {"QLinearConv": 56, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
    "squeezenet1_1": (26, 28, 20, {"QLinearConv": 26, "QLinearGlobalAveragePool": 1}),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_known_networks_run_on_integers_throughout(name: str, build: Build, known_network: KnownNetwork) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    built = build(known_network(name), inputs=images)
    weights, tensors, grids, kernels = GOLDEN[name]
    layers = [placement.layer for placement in built.plan.weights]
    groups = {placement.group for placement in built.plan.activations}
    assert (len(layers), len(built.plan.activations), len(groups)) == (weights, tensors, grids)
    assert built.plan.float_nodes == {}
    backend = OnnxRuntime()
    census = backend.census(backend.emit(built.frozen).SerializeToString(), layers)
    assert census.floating == ()
    assert census.integer == tuple(layers)
    assert {kernel: census.histogram[kernel] for kernel in kernels} == kernels
    assert not census.histogram.keys() & {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add", "Relu", "Clip", "Mul"}


def _placement(plan: Plan, tensor: str) -> Any:
    return next(placement for placement in plan.activations if placement.tensor == tensor)


def test_relus_and_clips_are_rounded_with_their_layer(build: Build) -> None:
    plan = build("depthwise").plan
    assert plan.absorbed == {"relu6": "a", "relu6_1": "b"}
    assert [placement.tensor for placement in plan.activations] == ["x", "relu6", "relu6_1", "c"]
    assert [placement.limit for placement in plan.activations] == [None, 6.0, 6.0, None]
    assert [placement.grid.symmetric for placement in plan.activations] == [False, True, True, False]


def test_a_clip_that_is_no_relu6_stays_float(build: Build) -> None:
    built = build("clamp")
    assert "clamp" in built.plan.float_nodes
    assert {placement.tensor for placement in built.plan.activations} >= {"a", "clamp"}


def test_both_sides_of_an_addition_are_rounded(build: Build) -> None:
    plan = build("residual").plan
    assert plan.absorbed["relu_1"] == "add"
    assert _placement(plan, "b").readers == ("add",)
    assert set(_placement(plan, "relu").readers) == {"max_pool2d", "add"}
    assert plan.passthrough["max_pool2d"] == "relu"
    assert plan.float_nodes == {}


def test_movement_shares_the_grid_of_what_it_moves(build: Build) -> None:
    plan = build("shortcut_a").plan
    tensors = {placement.tensor for placement in plan.activations}
    assert len([name for name in plan.passthrough if name.startswith(("slice", "pad", "constant_pad"))]) == 3
    assert set(plan.passthrough.values()) == {"relu"}
    assert not tensors & set(plan.passthrough)


def test_a_concatenation_of_one_sort_shares_one_grid(build: Build) -> None:
    plan = build("concat").plan
    assert _placement(plan, "relu").group == _placement(plan, "relu_1").group == "relu"
    assert plan.passthrough == {"cat": "relu"}


def test_a_concatenation_of_relus_and_others_keeps_their_grids(build: Build) -> None:
    # On a common signed grid the ReLU could not be absorbed, and its convolution would run in float.
    built = build("mixed_concat")
    groups = {placement.tensor: placement.group for placement in built.plan.activations}
    assert {tensor: groups[tensor] for tensor in ("a", "relu", "cat")} == {"a": "a", "relu": "relu", "cat": "cat"}
    assert built.plan.absorbed == {"relu": "b"}
    census = OnnxRuntime().census(built.model().SerializeToString(), ["a", "b", "c"])
    assert census.floating == () and census.histogram["QLinearConcat"] == 1


def test_every_reader_of_an_integer_kernel_sees_its_rounded_output(build: Build) -> None:
    plan = build("fork_before_relu").plan
    assert set(_placement(plan, "a").readers) == {"relu", "c"}
    assert plan.float_nodes.keys() == {"relu"}


def test_borders_of_zeros_move_and_others_do_not(build: Build) -> None:
    assert any(name.startswith(("pad", "constant_pad")) for name in build("pad_slice").plan.passthrough)
    ones = build("pad_ones").plan
    assert any(name.startswith(("pad", "constant_pad")) for name in ones.float_nodes)
    assert any(placement.tensor.startswith(("pad", "constant_pad")) for placement in ones.activations)


@pytest.mark.parametrize("name", ["average_pool", "average_pool_relu", "average_pool_ceil"])
def test_windows_of_one_size_are_summed_by_a_convolution(name: str, build: Build) -> None:
    built = build(name)
    assert built.plan.float_nodes == {}
    census = OnnxRuntime().census(built.model().SerializeToString(), ["a"])
    assert not census.histogram.keys() & {"QLinearAveragePool", "AveragePool", "Conv", "Relu"}


def test_windows_that_leave_out_a_border_keep_the_kernel_for_averages(build: Build) -> None:
    built = build("average_pool_of_a_border")
    assert OnnxRuntime().census(built.model().SerializeToString(), ["a"]).histogram["QLinearAveragePool"] == 1


def test_a_softmax_between_integers_stays_float_on_the_runtime(build: Build) -> None:
    module = Net(lambda n, x: n.b(torch.softmax(n.a(x), 1)), a=c3(3, 16), b=c3(16, 16)).eval()
    built = build(module)
    assert set(built.plan.float_nodes) == {"softmax"}
    census = OnnxRuntime().census(built.model().SerializeToString(), ["a", "b"])
    assert census.floating == () and census.histogram["Softmax"] == 1 and "QLinearSoftmax" not in census.histogram


@pytest.mark.parametrize("name", ["number", "number_in_concat", "number_and_result", "quick_gelu", "scores"])
def test_a_number_on_integers_is_no_operator(name: str, build: Build) -> None:
    built = build(name)
    assert built.plan.float_nodes == {}
    written = Counter(node.op_type for node in built.model().graph.node)
    assert written["Mul"] == (name == "quick_gelu")
    factors = [node for node in built.folded.graph.nodes if multiplier(node) is not None]
    assert factors and all(node.name in built.plan.passthrough for node in factors)


def test_a_number_on_a_float_tensor_and_a_negative_one_are_float(build: Build) -> None:
    def compute(n: Any, x: Tensor) -> Tensor:
        gates = torch.tanh(y := n.a(x))
        result: Tensor = n.b(gates * y * 0.5) + n.b(-relu(y)).exp() * 0.5
        return result

    plan = build(Net(compute, a=c3(3, 16), b=c3(16, 16)).eval()).plan
    reasons = {reason for node, reason in plan.float_nodes.items() if plan.kinds[node] == "mul"}
    assert reasons == {"one operand is a number", "a number multiplies a tensor that is not rounded"} | {
        "its input is computed in float"
    }


def test_transposed_convolutions_are_stored_as_integers_and_run_in_float(build: Build) -> None:
    built = build("transposed", AS_IT_IS)
    weights = {placement.layer: placement.grid for placement in built.plan.weights}
    assert weights["t"].channel_axis == 1
    assert "t" in built.plan.float_nodes
    census = OnnxRuntime().census(built.model().SerializeToString(), list(weights))
    assert census.floating == ("t",)


def test_float_operators_are_given_a_reason(build: Build) -> None:
    for name in ("clamp", "bilinear", "attention"):
        plan = build(name).plan
        assert plan.float_nodes, name
        assert all(plan.kinds[node] for node in plan.float_nodes)
        assert all(reason for reason in plan.float_nodes.values())


def test_weights_keep_eight_bits_where_it_matters(build: Build) -> None:
    bits = {p.layer: p.grid.bits for p in build("depthwise", bits=4).plan.weights}
    assert bits == {"a": 8, "b": 8, "c": 8}
    switched = Widths(weights=4, first=4, depthwise=3, last=5)
    bits = {p.layer: p.grid.bits for p in build("depthwise", widths=switched).plan.weights}
    assert bits == {"a": 4, "b": 4, "c": 5}
    bits = {p.layer: p.grid.bits for p in build("residual", bits=4).plan.weights}
    assert bits == {"a": 8, "b": 4, "down": 4, "c": 4, "fc": 8}


def test_a_profile_may_limit_the_weights(build: Build) -> None:
    frozen = build("residual", X64_WITHOUT_VNNI).frozen
    assert max(abs(int(stored.integers.min())) for stored in frozen.weights.values()) <= 63
    assert max(int(stored.integers.max()) for stored in frozen.weights.values()) <= 63


def test_weights_computed_at_run_time_stay_float(build: Build) -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.w = nn.Conv2d(3, 16, 3), nn.Parameter(torch.randn(16, 16, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(torch.relu(self.a(x)), self.w * x.mean())

    plan = build(Dynamic()).plan
    assert [placement.layer for placement in plan.weights] == ["a"]
    assert plan.float_nodes["conv2d"] == "its weight is computed at run time"


def test_a_network_without_layers_is_the_users_mistake(build: Build) -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.max_pool2d(x, 2)

    with pytest.raises(UserError, match="no layer that this backend can quantise"):
        build(Nothing())


def test_plans_are_data(exact_network: str, build: Build) -> None:
    plan = build(exact_network).plan
    assert from_json(Plan, plan.to_json(), where="plan") == plan
    assert Counter(p.tensor for p in plan.activations).most_common(1)[0][1] == 1
    assert all(p.group in {q.tensor for q in plan.activations} for p in plan.activations)


def test_narrow_activations_are_what_inner_layers_read(build: Build) -> None:
    built = build("residual", widths=Widths(weights=2, activations=3))
    bits = {placement.tensor: placement.grid.bits for placement in built.plan.activations}
    layers = [placement.layer for placement in built.plan.weights]
    inner = set(layers[1:-1])
    read = {str(node.args[0]) for node in built.folded.graph.nodes if node.name in inner}
    narrow = {built.plan.passthrough.get(tensor, tensor) for tensor in read}
    assert {tensor for tensor, width in bits.items() if width == 3} == narrow == {"relu", "relu_1", "clone_default"}
    assert bits["x"] == 8 and set(bits.values()) == {3, 8}
    weights = {placement.layer: placement.grid.bits for placement in built.plan.weights}
    assert weights[layers[0]] == weights[layers[-1]] == 8 and {weights[layer] for layer in inner} == {2}


def test_a_layer_that_multiplies_floats_is_no_integer_layer_though_its_weight_is_stored_as_integers(
    build: Build,
) -> None:
    plan = build("transposed", AS_IT_IS).plan
    assert plan.weight("t") is not None and "float arithmetic on stored integers" in plan.float_nodes["t"]
    assert plan.integer_layers() == ["a", "b"]
    plan = build("transposed", replace(PROFILES["openvino"], rewrites=())).plan
    assert plan.integer_layers() == ["a", "t", "b"]


def test_a_plan_says_how_its_runtime_computes(build: Build) -> None:
    folded, profile = build("residual").folded, replace(PROFILES["onnxruntime"], rewrites=())
    for variant, arm, averages, fused in (("one", True, False, False), ("other", False, True, True)):
        changed = replace(
            profile, variant=variant, arm_arithmetic=arm, averages_as_convolutions=averages, fused_rounding=fused
        )
        plan = place(folded, changed, Widths())
        assert (plan.backend, plan.variant, plan.arm_arithmetic) == ("onnxruntime", variant, arm)
        assert (plan.exact_averages, plan.fused_rounding) == (averages, fused)


def test_biases_are_integers_where_the_runtime_takes_them_so(build: Build) -> None:
    for name, integer in (("onnxruntime", True), ("openvino", False), ("tensorrt", False)):
        plan = place(build("residual").folded, PROFILES[name], Widths())
        assert {(weight.integer_bias, weight.weight_only) for weight in plan.weights} == {(integer, False)}, name
