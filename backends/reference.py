"""The oracle: a Q/DQ ONNX file executed with exact integer arithmetic, and the semantics of a runtime's kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from backends.reference_operators import FLOATS, MOVES, Attributes, average_pool, convolve

#: Integers up to here are exact in float32, and so is every partial sum of products that stays below.
_EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Integers (held as int32, or as they come) with the scale and zero point of their real values."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    low: int
    high: int

    def real(self) -> Tensor:
        """The float32 values: (integer - zero point) * scale, as DequantizeLinear computes them."""
        shifted = self.integers.to(torch.int32) - _along(self.zero_point, self.axis, self.integers.dim())
        return shifted.float() * _along(self.scale, self.axis, self.integers.dim())

    def centred(self) -> Tensor:
        """The integers minus the zero point, int32."""
        return self.integers.to(torch.int32) - _along(self.zero_point, self.axis, self.integers.dim())


def _along(parameter: Tensor, axis: int | None, rank: int) -> Tensor:
    if parameter.dim() == 0 or axis is None:
        return parameter
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an integer kernel writes: scale, zero point and range of the rounded output."""

    name: str
    scale: Tensor
    zero_point: int
    low: int
    high: int

    def saturate(self, values: Tensor) -> Tensor:
        """Round half to even, add the zero point, clip; int32. `values` are reals divided by the scale."""
        return (values.round() + self.zero_point).clamp(self.low, self.high).to(torch.int32)


_RANGES = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.INT32: (-(2**31), 2**31 - 1),
}


class IntegerOracle:
    """Executes a Q/DQ ONNX model; the same file gives the same integers on every machine.

    A weighted operator whose inputs come from DequantizeLinear multiplies integers and accumulates exactly; when a
    QuantizeLinear follows (over a ReLU or Clip that it performs), the result is rescaled by one float32 multiplier
    and rounded half to even, which is what ONNX Runtime's kernels do (measured equal on every output). Additions
    and poolings follow the formulas of its MLAS library. All else runs in float32.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, list(model.graph.node)
        self.constants = {t.name: _tensor(t) for t in model.graph.initializer}
        self.types = {t.name: t.data_type for t in model.graph.initializer}
        self.attributes = [_attributes(node) for node in self.nodes]
        self.input = model.graph.input[0].name
        self.outputs = [output.name for output in model.graph.output]
        readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                readers.setdefault(name, []).append(index)
        self.readers = readers
        self.targets = {
            index: target for index, node in enumerate(self.nodes) if (target := self._target(node)) is not None
        }

    def _target(self, node: onnx.NodeProto) -> Target | None:
        """The QuantizeLinear that rounds this node's output, when its kernel can perform the rounding."""
        if node.op_type not in _KERNELS:
            return None
        name = node.output[0]
        while name not in self.outputs and len(self.readers.get(name, [])) == 1:
            reader = self.nodes[self.readers[name][0]]
            if reader.op_type == "QuantizeLinear":
                kind = self.types[reader.input[2]]
                low, high = _RANGES[kind]
                scale = self.constants[reader.input[1]]
                zero_point = int(self.constants[reader.input[2]])
                return Target(name=reader.output[0], scale=scale, zero_point=zero_point, low=low, high=high)
            if not self._is_performed(reader):
                return None
            name = reader.output[0]
        return None

    def _is_performed(self, activation: onnx.NodeProto) -> bool:
        """Whether the rounding behind a ReLU or Clip(0, ...) clips at least as hard as the operator itself."""
        following = self.readers.get(activation.output[0], [])
        if activation.op_type not in {"Relu", "Clip"} or len(following) != 1:
            return False
        rounding = self.nodes[following[0]]
        if rounding.op_type != "QuantizeLinear":
            return False
        low, high = _RANGES[self.types[rounding.input[2]]]
        zero_point, scale = int(self.constants[rounding.input[2]]), float(self.constants[rounding.input[1]])
        if zero_point != low:
            return False
        if activation.op_type == "Relu":
            return True
        bounds = [float(self.constants[name]) for name in activation.input[1:]]
        return len(bounds) == 2 and bounds[0] <= 0.0 and scale * (high - zero_point) <= bounds[1]

    def run(self, images: Tensor, *, trace: bool = False) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Outputs, float32, for images float32 [B, C, H, W]; with `trace`, also every rounded tensor by name (int32)."""
        values: dict[str, Tensor | Quantised] = {self.input: images.float()}
        rounded: dict[str, Tensor] = {}
        done: set[str] = set()
        with torch.no_grad():
            for index, node in enumerate(self.nodes):
                if all(name in done for name in node.output):
                    continue
                target = self.targets.get(index)
                inputs = [self._value(name, values) for name in node.input]
                if target is not None and (kernel := _KERNELS[node.op_type]) and _all_quantised(inputs, node.op_type):
                    values[target.name] = kernel(inputs, self.attributes[index], target)
                    rounded[target.name] = _as_tensor(values[target.name])
                    done.update(self._chain(node, target.name))
                    continue
                for name, value in zip(node.output, self._plain(index, node, inputs), strict=True):
                    values[name] = value
                    if node.op_type == "QuantizeLinear":
                        rounded[name] = _as_tensor(value)
        return [_as_tensor(values[name]) for name in self.outputs], rounded if trace else {}

    def _chain(self, node: onnx.NodeProto, last: str) -> list[str]:
        """Outputs of the node and of all that its kernel performs, up to the rounded tensor."""
        names = [node.output[0]]
        while names[-1] != last:
            names.append(self.nodes[self.readers[names[-1]][0]].output[0])
        return names

    def _value(self, name: str, values: Mapping[str, Tensor | Quantised]) -> Tensor | Quantised | None:
        if not name:
            return None
        return values[name] if name in values else self.constants[name]

    def _plain(
        self, index: int, node: onnx.NodeProto, inputs: list[Tensor | Quantised | None]
    ) -> list[Tensor] | list[Quantised]:
        attributes = self.attributes[index]
        if node.op_type == "QuantizeLinear":
            x, scale, zero = (_real(value) for value in inputs)
            assert x is not None and scale is not None and zero is not None
            low, high = _RANGES[self.types[node.input[2]]]
            target = Target(name=node.output[0], scale=scale, zero_point=int(zero), low=low, high=high)
            return [target.saturate(x / scale)]
        if node.op_type == "DequantizeLinear":
            integers, scale, zero = inputs
            assert isinstance(integers, Tensor) and isinstance(scale, Tensor) and isinstance(zero, Tensor)
            axis = attributes.get("axis", 1) if scale.dim() else None
            low, high = _RANGES[self.types[node.input[2]]]
            return [Quantised(integers=integers, scale=scale, zero_point=zero, axis=axis, low=low, high=high)]
        if node.op_type in MOVES:
            return MOVES[node.op_type]([_real(value) for value in inputs], attributes)
        if node.op_type in {"Gemm", "MatMul", "Conv"} and _all_quantised(inputs[:2], node.op_type):
            return [_accumulate_to_float(node.op_type, inputs, attributes)]
        if node.op_type not in FLOATS:
            raise ValueError(f"{node.name}: the oracle does not know {node.op_type}")
        return FLOATS[node.op_type]([_real(value) for value in inputs], attributes)


def _tensor(proto: onnx.TensorProto) -> Tensor:
    array = numpy_helper.to_array(proto)
    if proto.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        array = array.astype(np.int32)
    return torch.from_numpy(np.array(array))


def _attributes(node: onnx.NodeProto) -> Attributes:
    found = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def _as_tensor(value: Tensor | Quantised) -> Tensor:
    return value.real() if isinstance(value, Quantised) else value


def _real(value: Tensor | Quantised | None) -> Tensor | None:
    return value.real() if isinstance(value, Quantised) else value


def _all_quantised(inputs: list[Tensor | Quantised | None], operator: str) -> bool:
    """Whether an operator's data (and weight) inputs are all integers; biases may be either."""
    needed = {"Conv": 2, "Gemm": 2, "MatMul": 2, "Add": 2, "Mul": 2}.get(operator, 1)
    return len(inputs) >= needed and all(isinstance(value, Quantised) for value in inputs[:needed])


def _accumulate(operator: str, inputs: list[Tensor | Quantised | None], attributes: Attributes) -> Tensor:
    """The exact integer sums of a weighted operator with its int32 bias, held in float32 or float64.

    float32 where the largest possible sum stays below 2**24, so that no rounding can happen, else float64.
    """
    x, weight = inputs[0], inputs[1]
    assert isinstance(x, Quantised) and isinstance(weight, Quantised)
    bias = inputs[2].integers if len(inputs) > 2 and isinstance(inputs[2], Quantised) else None
    weights = weight.centred()
    reach = max(int((x.low - x.zero_point).abs().max()), int((x.high - x.zero_point).abs().max()))
    axes = {"Conv": (1, 2, 3), "Gemm": (1,) if attributes.get("transB") else (0,)}.get(operator, (-2,))
    largest = int(weights.abs().sum(axes, dtype=torch.int64).max()) * reach
    largest += 0 if bias is None else int(bias.long().abs().max())
    kind = torch.float32 if largest < _EXACT_IN_FLOAT32 else torch.float64
    data, weights = x.centred().to(kind), weights.to(kind)
    offset = None if bias is None else bias.to(kind)
    if operator == "Conv":
        return convolve(data, weights, offset, attributes)
    total = data @ (weights.T if attributes.get("transB") else weights)
    return total if offset is None else total + offset


def _output_scale(operator: str, inputs: list[Tensor | Quantised | None]) -> Tensor:
    """Input scale times weight scale in float32, shaped to multiply the operator's output."""
    x, weight = inputs[0], inputs[1]
    assert isinstance(x, Quantised) and isinstance(weight, Quantised)
    scale = x.scale * weight.scale
    return scale.reshape(-1, 1, 1) if operator == "Conv" and scale.dim() else scale


def _accumulate_to_float(operator: str, inputs: list[Tensor | Quantised | None], attributes: Attributes) -> Tensor:
    """A weighted operator that writes float32: exact sums, one multiplication, then a float bias if it has one."""
    result = _accumulate(operator, inputs, attributes).float() * _output_scale(operator, inputs)
    bias = inputs[2] if len(inputs) > 2 else None
    if isinstance(bias, Tensor):
        result = result + (bias.reshape(-1, 1, 1) if operator == "Conv" else bias)
    return result


def _weighted_kernel(
    operator: str,
) -> Callable[[list[Tensor | Quantised | None], Attributes, Target], Tensor]:
    def run(inputs: list[Tensor | Quantised | None], attributes: Attributes, target: Target) -> Tensor:
        if len(inputs) > 2 and isinstance(inputs[2], Tensor):
            return target.saturate(_accumulate_to_float(operator, inputs, attributes) / target.scale)
        multiplier = _output_scale(operator, inputs) / target.scale
        return target.saturate(_accumulate(operator, inputs, attributes).float() * multiplier)

    return run


def _add(inputs: list[Tensor | Quantised | None], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qladd: a * (sa/sc) + (b * (sb/sc) + fixed), two fused multiply-adds in float32, then rounding."""
    first, second = inputs[0], inputs[1]
    assert isinstance(first, Quantised) and isinstance(second, Quantised)
    ratio_a, ratio_b = first.scale / target.scale, second.scale / target.scale
    fixed = target.zero_point - (ratio_a * first.zero_point + ratio_b * second.zero_point)
    # A fused multiply-add rounds once: the product is exact in float64 and the sum is rounded to float32 there.
    inner = (first.integers.double() * ratio_a.double() + fixed.double()).float()
    total = (second.integers.double() * ratio_b.double() + inner.double()).float()
    return total.round().clamp(target.low, target.high).to(torch.int32)


def _mul(inputs: list[Tensor | Quantised | None], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qlmul: (a - za) * (b - zb) exactly, times sa * sb / sc, plus the zero point, then rounding."""
    first, second = inputs[0], inputs[1]
    assert isinstance(first, Quantised) and isinstance(second, Quantised)
    ratio = first.scale * second.scale / target.scale
    product = (first.centred() * second.centred()).float() * ratio + float(target.zero_point)
    return product.round().clamp(target.low, target.high).to(torch.int32)


def _global_average_pool(inputs: list[Tensor | Quantised | None], attributes: Attributes, target: Target) -> Tensor:
    """MLAS qlgavgpool: the exact sum times sx / (sy * positions)."""
    x = inputs[0]
    assert isinstance(x, Quantised)
    positions = x.integers.shape[2] * x.integers.shape[3]
    multiplier = x.scale / (target.scale * float(positions))
    total = x.centred().sum((2, 3), keepdim=True, dtype=torch.int64)
    return target.saturate(total.float() * multiplier)


def _average_pool(inputs: list[Tensor | Quantised | None], attributes: Attributes, target: Target) -> Tensor:
    x = inputs[0]
    assert isinstance(x, Quantised)
    return target.saturate(average_pool(x.real(), attributes) / target.scale)


def _table(operator: str) -> Callable[[list[Tensor | Quantised | None], Attributes, Target], Tensor]:
    """A function of one integer: computed for each of the 256 inputs, then looked up (qlinear_lookup_table.cc)."""

    def run(inputs: list[Tensor | Quantised | None], attributes: Attributes, target: Target) -> Tensor:
        x = inputs[0]
        assert isinstance(x, Quantised)
        every = torch.arange(x.low, x.high + 1, dtype=torch.int32)
        reals = (every - x.zero_point).float() * x.scale
        table = target.saturate(FLOATS[operator]([reals], attributes)[0] / target.scale)
        return table[(x.integers - x.low).long()]

    return run


_KERNELS: dict[str, Callable[[list[Tensor | Quantised | None], Attributes, Target], Tensor]] = {
    "Conv": _weighted_kernel("Conv"),
    "Gemm": _weighted_kernel("Gemm"),
    "MatMul": _weighted_kernel("MatMul"),
    "Add": _add,
    "Mul": _mul,
    "GlobalAveragePool": _global_average_pool,
    "AveragePool": _average_pool,
    "Sigmoid": _table("Sigmoid"),
    "LeakyRelu": _table("LeakyRelu"),
}
