"""The oracle: a Q/DQ ONNX file executed with exact integer arithmetic and the semantics of a runtime's kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from backends.artifact import linted_artifact
from backends.base import Array, Backend, Census, Runner
from backends.facts.onnxruntime_rules import CPU_PROFILES, host_profile
from backends.facts.profile import Profile
from backends.onnx_file.serialised import Serialised, parsed
from backends.onnx_file.view import INTEGER_RANGES, OnnxView, attributes, node_name
from backends.oracle.integer_kernels import (
    ARM_KERNELS,
    KERNELS,
    Quantised,
    Target,
    Value,
    accumulate_to_float,
    all_quantised,
    half_rounded,
    moved,
)
from backends.oracle.plain_operators import FLOATS, MOVES, moves_values
from calibration.errors import UserError
from calibration.simulation.freeze import FrozenNetwork

_WEIGHTED = ("Conv", "Gemm", "MatMul")


class IntegerOracle:
    """Executes a Q/DQ ONNX model; the same file gives the same integers on every machine.

    A weighted operator whose inputs come from DequantizeLinear multiplies integers and accumulates exactly; when a
    QuantizeLinear follows (over a ReLU or Clip that it performs), the result is rescaled by one float32 multiplier
    and rounded half to even, which is what ONNX Runtime's kernels do (measured equal on every output). Additions
    and poolings follow the formulas of its MLAS library. All else runs in float32. Without `fused_rounding` it has
    TensorRT's documented semantics: exact sums are rescaled to float32 reals, every other operator computes reals, and
    a QuantizeLinear divides by its scale; where the file is float16 each of these results is rounded to float16.
    `arm_arithmetic`: tensors are added and multiplied as on ARM. Raises UserError for an operator that is not known.
    """

    def __init__(self, model: onnx.ModelProto, *, fused_rounding: bool = True, arm_arithmetic: bool = False) -> None:
        self.kernels = ARM_KERNELS if arm_arithmetic else KERNELS
        self.view = view = OnnxView(model)
        self.constants = {name: _held(view.value(name)) for name in view.initialisers}
        #: Tensors of float16, whose values are computed in float32 and then rounded.
        self.half = half_tensors(view)
        self.attributes = [attributes(node) for node in view.nodes]
        self.inputs = [entry.name for entry in model.graph.input]
        self.outputs = [entry.name for entry in model.graph.output]
        unknown = [node for node in view.nodes if node.op_type not in _KNOWN]
        if unknown:
            raise UserError(f"{node_name(unknown[0])}: the reference backend does not know {unknown[0].op_type}")
        self.targets = {
            index: target
            for index, node in enumerate(view.nodes)
            if fused_rounding and node.op_type in KERNELS and (target := self._target(node)) is not None
        }
        #: Tensors that nobody reads after a node, by the node's index.
        self.finished: dict[int, list[str]] = {}
        last = {name: index for index, node in enumerate(view.nodes) for name in node.input}
        for name, index in last.items():
            if name not in view.outputs:
                self.finished.setdefault(index, []).append(name)

    def integer_layers(self) -> list[str]:
        """Names of the weighted nodes that multiply integers, in file order."""
        return [
            node.name
            for node in self.view.nodes
            if node.op_type in _WEIGHTED
            and self.view.dequantised(node, 0) is not None
            and self.view.dequantised(node, 1)
        ]

    def run(
        self, images: Tensor, *, trace: bool = False, instead: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs, float32, for images float32 [B, C, H, W]; with `trace` also all rounded tensors by name, int32.

        `instead`: rounded tensors, int32, that operators read in place of the oracle's own, which are still traced: so
        each of these is computed from the others as given.
        """
        values: dict[str, Tensor | Quantised] = {self.inputs[0]: images.float()}
        rounded: dict[str, Tensor] = {}
        performed: set[str] = set()
        with torch.no_grad():
            for index, node in enumerate(self.view.nodes):
                if node.output[0] not in performed:
                    inputs = [self._value(name, values) for name in node.input]
                    target = self.targets.get(index)
                    if target is not None and all_quantised(inputs, node.op_type):
                        values[target.name] = self.kernels[node.op_type](inputs, self.attributes[index], target)
                        performed.update(self._chain(node, target.name))
                    else:
                        results = self._plain(index, node, inputs)
                        values.update(zip(node.output, map(self._rounded, node.output, results), strict=True))
                if trace and node.op_type == "QuantizeLinear":
                    rounded[node.output[0]] = _real(values[node.output[0]])
                if instead is not None and node.op_type == "QuantizeLinear" and node.output[0] in instead:
                    values[node.output[0]] = instead[node.output[0]]
                for name in self.finished.get(index, ()):
                    values.pop(name, None)
        return [_real(values[name]) for name in self.outputs], rounded

    def _rounded(self, name: str, value: Tensor | Quantised) -> Tensor | Quantised:
        return half_rounded(value) if isinstance(value, Tensor) and name in self.half else value

    def limits(self, rounded: str) -> tuple[int, int]:
        """Smallest and largest integer of a rounded tensor's type."""
        quantise = self.view.producer(rounded)
        assert quantise is not None
        target = self._rounding(quantise)
        return target.low, target.high

    def _target(self, node: onnx.NodeProto) -> Target | None:
        """The QuantizeLinear that rounds this node's output, when its kernel can perform the rounding."""
        reader = self.view.only_reader(node.output[0])
        if reader is not None and reader.op_type in ("Relu", "Clip"):
            following = self.view.only_reader(reader.output[0])
            if following is None or following.op_type != "QuantizeLinear" or not self._performs(following, reader):
                return None
            reader = following
        return self._rounding(reader) if reader is not None and reader.op_type == "QuantizeLinear" else None

    def _rounding(self, quantise: onnx.NodeProto) -> Target:
        low, high = INTEGER_RANGES[self.view.initialisers[quantise.input[2]].data_type]
        return Target(
            name=quantise.output[0],
            scale=self.constants[quantise.input[1]],
            zero_point=int(self.constants[quantise.input[2]]),
            low=low,
            high=high,
        )

    def _performs(self, quantise: onnx.NodeProto, activation: onnx.NodeProto) -> bool:
        """Whether a rounding clips at least as hard as the ReLU or Clip(0, ...) before it."""
        target = self._rounding(quantise)
        if target.zero_point != target.low:
            return False
        if activation.op_type == "Relu":
            return True
        low, high = (self.view.value(self.view.input(activation, position)) for position in (1, 2))
        reach = float(target.scale) * (target.high - target.zero_point)
        return (low is None or float(low) <= 0.0) and high is not None and reach <= float(high)

    def _chain(self, node: onnx.NodeProto, last: str) -> list[str]:
        """Outputs of the node and of all that its kernel performs, up to the rounded tensor."""
        names = [node.output[0]]
        while names[-1] != last:
            names.append(self.view.readers(names[-1])[0].output[0])
        return names

    def _value(self, name: str, values: Mapping[str, Tensor | Quantised]) -> Value:
        if not name:
            return None
        return values[name] if name in values else self.constants[name]

    def _plain(self, index: int, node: onnx.NodeProto, inputs: list[Value]) -> Sequence[Tensor | Quantised]:
        """A node on its own, whatever follows."""
        if node.op_type == "QuantizeLinear":
            target = self._rounding(node)
            return [target.saturate(_real(inputs[0]) / target.scale)]
        if node.op_type == "DequantizeLinear":
            return [self._dequantise(index, node, inputs)]
        if moves_values(node.op_type, self.attributes[index]):
            return moved(node.op_type, inputs, self.attributes[index])
        if node.op_type in _WEIGHTED and all_quantised(inputs, node.op_type):
            return [accumulate_to_float(node.op_type, inputs, self.attributes[index])]
        return FLOATS[node.op_type]([_optional(value) for value in inputs], self.attributes[index])

    def _dequantise(self, index: int, node: onnx.NodeProto, inputs: list[Value]) -> Quantised:
        integers, scale, zero = inputs
        assert isinstance(integers, Tensor) and isinstance(scale, Tensor) and isinstance(zero, Tensor)
        low, high = INTEGER_RANGES[self.view.initialisers[node.input[2]].data_type]
        axis = self.attributes[index].get("axis", 1) if scale.dim() else None
        return Quantised(
            integers=integers,
            scale=scale,
            zero_point=zero,
            axis=axis,
            low=low,
            high=high,
            half=node.output[0] in self.half,
            block=self.attributes[index].get("block_size", 0),
        )


_KNOWN = KERNELS.keys() | MOVES.keys() | FLOATS.keys() | {"QuantizeLinear", "DequantizeLinear"}


def _held(values: NDArray[Any] | None) -> Tensor:
    """A constant as the oracle holds it: float16 as float32, which holds all its values."""
    tensor = torch.from_numpy(np.array(values))
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def half_tensors(view: OnnxView) -> frozenset[str]:
    """Every tensor of a file that is float16, by the rules of the operators that are known here."""
    halves = {name for name, stored in view.initialisers.items() if stored.data_type == TensorProto.FLOAT16}
    for node in view.nodes:
        if node.op_type == "Cast":
            is_half = attributes(node).get("to") == TensorProto.FLOAT16
        elif node.op_type == "QuantizeLinear":
            is_half = False
        elif node.op_type == "DequantizeLinear":
            is_half = node.input[1] in halves
        else:
            is_half = any(name in halves for name in node.input)
        if is_half:
            halves.update(node.output)
    return frozenset(halves)


def _real(value: Value) -> Tensor:
    assert value is not None
    return value.real() if isinstance(value, Quantised) else value


def _optional(value: Value) -> Tensor | None:
    return None if value is None else _real(value)


@final
class Reference(Backend):
    """ONNX Runtime's artifact, executed by the oracle: always there, exact, and slow."""

    name = "reference"
    reads_split_models = True
    cpu_profiles = CPU_PROFILES

    def __init__(self, profile: Profile | None = None) -> None:
        self.profile = profile or host_profile()

    def emit(self, network: FrozenNetwork, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
        """The artifact that ONNX Runtime gets, linted."""
        return linted_artifact(network, self.profile, opset=opset, batch=batch)

    def unavailable(self) -> str | None:
        """None: it needs torch alone."""
        return None

    @contextmanager
    def runner(self, model: Serialised, *, threads: int) -> Iterator[Runner]:
        """The oracle on that many threads of torch, whose number is restored at the end.

        Raises UserError for bytes that are no model or that hold an operator which the oracle does not know.
        """
        if threads < 1:
            raise ValueError("a runner needs at least one thread")
        oracle, before = self._oracle(parsed(model)), torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield _OracleRunner(oracle)
        finally:
            torch.set_num_threads(before)

    def census(self, model: Serialised, layers: Sequence[str]) -> Census:
        """Integer layers are those that the oracle executes on integers."""
        loaded = parsed(model)
        kernels = set(self._oracle(loaded).integer_layers())
        integer = tuple(layer for layer in layers if layer in kernels)
        return Census(
            integer=integer,
            floating=tuple(layer for layer in layers if layer not in integer),
            histogram=dict(sorted(Counter(node.op_type for node in loaded.graph.node).items())),
        )

    def _oracle(self, model: onnx.ModelProto) -> IntegerOracle:
        profile = self.profile
        return IntegerOracle(model, fused_rounding=profile.fused_rounding, arm_arithmetic=profile.arm_arithmetic)


class _OracleRunner:
    """The oracle as a runner."""

    def __init__(self, oracle: IntegerOracle) -> None:
        self._oracle = oracle

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Outputs in the file's order for images float32 [B, C, H, W]."""
        outputs, _ = self._oracle.run(torch.from_numpy(np.ascontiguousarray(images, np.float32)))
        return [output.numpy() for output in outputs]
