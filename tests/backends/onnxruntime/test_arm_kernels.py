"""ONNX Runtime's kernels on ARM, one by one: all pairs of integers, all table entries, every kind of core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from backends.facts.onnxruntime_rules import ARM64
from backends.onnxruntime import emulation
from backends.onnxruntime.emulation import EmulatedOnnxRuntime
from backends.onnxruntime.emulation_setup import describe_processors
from backends.oracle.backend import IntegerOracle
from backends.oracle.integer_kernels import ARM_KERNELS, Quantised, Target
from calibration.grid import Grid
from tests.backends.onnxruntime.test_emulation import differing, network

DRAWS = 60
#: Cores by what their kernels multiply with: nothing wider than 8 by 8 bits; dot products; also 8-bit matrices.
CORES = ("cortex-a53", "neoverse-n1", "max")


class Graphs:
    """Writes a model whose outputs are one integer kernel each."""

    def __init__(self, nodes: list[onnx.NodeProto]) -> None:
        self.nodes, self.constants, self.results = nodes, list[Any](), list[Any]()

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def grid(self, name: str, scale: float, zero: int) -> list[str]:
        return [self.constant(f"{name}_s", np.float32(scale)), self.constant(f"{name}_z", np.uint8(zero))]

    def kernel(self, name: str, operator: str, inputs: list[tuple[str, Any, Any]], scale: float, zero: int) -> None:
        """One operator between DequantizeLinear of each input (name, scale, zero point) and QuantizeLinear."""
        reals = [f"{name}_{index}" for index in range(len(inputs))]
        for real, (integers, input_scale, input_zero) in zip(reals, inputs, strict=True):
            self.nodes.append(
                helper.make_node("DequantizeLinear", [integers, *self.grid(real, input_scale, input_zero)], [real])
            )
        self.nodes.append(helper.make_node(operator, reals, [f"{name}_y"]))
        rounding = [f"{name}_y", *self.grid(f"{name}_q", scale, zero)]
        self.nodes.append(helper.make_node("QuantizeLinear", rounding, [name]))
        self.results.append(helper.make_tensor_value_info(name, TensorProto.UINT8, None))

    def differing(self, x: Any) -> int:
        """Integers that differ between the oracle and the emulated processor."""
        described = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))]
        model = helper.make_model(
            helper.make_graph(self.nodes, "kernels", described, self.results, self.constants),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
        expected, _ = IntegerOracle(model, arm_arithmetic=True).run(torch.from_numpy(x))
        with EmulatedOnnxRuntime(ARM64).runner(model.SerializeToString(), threads=1) as runner:
            results = runner.run(x)
        assert any(len(np.unique(result)) > 100 for result in results)
        return sum(int((mine.numpy() != theirs).sum()) for mine, theirs in zip(expected, results, strict=True))


def pairs() -> tuple[Graphs, Any]:
    """A graph that begins with the integers u0 and u1, and its input of all pairs of them."""
    graphs = Graphs([helper.make_node("Split", ["x", "halves"], ["x0", "x1"], axis=0)])
    graphs.constant("halves", np.array([1, 1]))
    for index in range(2):
        graphs.nodes.append(helper.make_node("Cast", [f"x{index}"], [f"u{index}"], to=TensorProto.UINT8))
    return graphs, np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij")).astype(np.float32)


@pytest.mark.emulation
@pytest.mark.parametrize("reach", ["multipliers", "float32"])
def test_every_pair_of_integers_is_added_as_on_arm(reach: str) -> None:
    generator = np.random.default_rng(0)
    graphs, every = pairs()
    for draw in range(DRAWS):
        first, second = np.exp(generator.uniform(-6, 0, 2))
        ratio = generator.uniform(-1, 2) if reach == "multipliers" else generator.uniform(-9, -8)
        zeros = generator.integers(0, 256, 3)
        inputs = [("u0", first, zeros[0]), ("u1", second, zeros[1])]
        graphs.kernel(f"q{draw}", "Add", inputs, max(first, second) * 2**ratio, zeros[2])
    assert graphs.differing(every) == 0


@pytest.mark.emulation
def test_every_pair_of_integers_is_multiplied_as_on_arm() -> None:
    generator = np.random.default_rng(0)
    graphs, every = pairs()
    for draw in range(DRAWS):
        first, second = np.exp(generator.uniform(-6, 0, 2))
        zeros = generator.integers(0, 256, 3)
        inputs = [("u0", first, zeros[0]), ("u1", second, zeros[1])]
        graphs.kernel(f"q{draw}", "Mul", inputs, first * second * 2 ** generator.uniform(5, 9), zeros[2])
    assert graphs.differing(every) == 0


@pytest.mark.emulation
def test_every_integer_has_the_hard_and_the_smooth_sigmoid_of_arm() -> None:
    generator = np.random.default_rng(0)
    graphs = Graphs([helper.make_node("Cast", ["x"], ["u"], to=TensorProto.UINT8)])
    graphs.constant("one", np.uint8(1))
    for draw in range(2 * DRAWS):
        scale, zero = np.exp(generator.uniform(-6, -2)), generator.integers(0, 256)
        output = 2.0**-8 if draw % 2 else generator.uniform(0.5, 1) / 255
        graphs.kernel(f"smooth{draw}", "Sigmoid", [("u", scale, zero)], output, 0)
        # Ties in every second: half a step of the output per step of the input.
        divided = 2.0**-9 if draw % 2 else scale / 6
        graphs.kernel(f"hard{draw}", "Add", [("u", divided, zero), ("one", 0.5, 0)], output, 0)
    assert graphs.differing(np.arange(256, dtype=np.float32)[None]) == 0


@pytest.fixture
def on_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Emulate one of `CORES`: its instructions, and the description of it that ONNX Runtime reads."""

    def choose(core: str) -> None:
        emulation.emulated_command("arm64")  # says what is missing
        unpacked = emulation.environment_folder("arm64")
        for folder in ("root", "packages"):
            (tmp_path / folder).mkdir()
            for entry in (unpacked / folder).iterdir():
                if entry.name != "proc":
                    (tmp_path / folder / entry.name).symlink_to(entry)
        describe_processors(tmp_path / "root", core)
        monkeypatch.setattr(emulation, "environment_folder", lambda cpu: tmp_path)
        chosen = replace(emulation.EMULATED["arm64"], cpu=core)
        monkeypatch.setattr(emulation, "EMULATED", {**emulation.EMULATED, "arm64": chosen})

    return choose


@pytest.mark.emulation
@pytest.mark.parametrize("signed", [False, True], ids=["U8S8", "S8S8"])
@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_both_signs_of_activations_are_exact_on_every_core(
    name: str, core: str, signed: bool, build: Callable[..., Any], on_core: Callable[[str], None]
) -> None:
    # A core without dot products ends with an illegal instruction if the runtime takes kernels that need them.
    on_core(core)
    grid = Grid(bits=8, signed=True, symmetric=False)
    profile = replace(ARM64, non_negative=grid, signed=grid) if signed else ARM64
    module, images = network(name)
    # The linter knows that int8 activations are slow elsewhere and refuses them.
    assert differing(build(module, profile, inputs=images), profile, linted=not signed) == {}


@pytest.mark.emulation
def test_a_core_without_dot_products_has_none(build: Callable[..., Any], on_core: Callable[[str], None]) -> None:
    on_core("cortex-a53")
    describe_processors(emulation.environment_folder("arm64") / "root", "neoverse-n1")
    module, images = network("resnet20")
    with pytest.raises(Exception, match="Illegal instruction"):
        differing(build(module, ARM64, inputs=images), ARM64)


def fixed_point(pairs: Any, scales: Any, zeros: Any) -> Any:
    """The oracle's sum on ARM of pairs [2, ...] of integers."""
    inputs = [
        Quantised(
            integers=torch.from_numpy(np.array(values)).int(),
            scale=torch.tensor(float(scale)),
            zero_point=torch.tensor(int(zero), dtype=torch.int32),
            axis=None,
            low=0,
            high=255,
        )
        for values, scale, zero in zip(pairs, scales, zeros, strict=False)
    ]
    target = Target(name="q", scale=torch.tensor(float(scales[2])), zero_point=int(zeros[2]), low=0, high=255)
    return ARM_KERNELS["Add"](inputs, {}, target).numpy()


def test_a_fixed_point_sum_by_hand() -> None:
    # Both ratios are 0.5: multipliers 2**21, shift 22. 1 + 2 halves to 1.5 -> 2, 1 + 4 to 2.5 -> 3, -1 + -2 to -2.
    halves = np.array([[1, 1, 0, 255], [2, 4, 0, 255]])
    assert fixed_point(halves, (0.5, 0.5, 1.0), (0, 0, 0)).tolist() == [2, 3, 0, 255]
    assert fixed_point(np.array([[9, 9], [8, 8]]), (0.5, 0.5, 1.0), (10, 10, 100)).tolist() == [98, 98]
