"""A read-only index of an ONNX file: who writes a tensor, who reads it, what a constant holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

#: Opsets that all targets read and fuse; int4 initialisers exist from INT4_OPSET on.
OPSETS = range(17, 24)
INT4_OPSET = 21

#: Largest and smallest integer of every type that a quantiser may write.
INTEGER_RANGES: dict[int, tuple[int, int]] = {
    TensorProto.UINT4: (0, 15),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
}


class OnnxView:
    """Look-ups over one model; constants are decoded when first asked for. The model must not change meanwhile."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self.initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = frozenset(output.name for output in model.graph.output)
        self._values: dict[str, NDArray[Any]] = {}
        self._producers = {name: node for node in self.nodes for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return next((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), 0)

    def producer(self, tensor: str) -> NodeProto | None:
        """The node that writes a tensor; None for an input or initialiser."""
        return self._producers.get(tensor)

    def readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read a tensor, in file order, each once."""
        return self._readers.get(tensor, [])

    def only_reader(self, tensor: str) -> NodeProto | None:
        """The one node that reads a tensor; None when it has several, none, or is a result of the model."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def value(self, tensor: str) -> NDArray[Any] | None:
        """What an initialiser holds, 4-bit integers as int8; None for anything that is computed."""
        if tensor in self.initialisers and tensor not in self._values:
            stored = self.initialisers[tensor]
            values = numpy_helper.to_array(stored)
            four_bits = stored.data_type in (TensorProto.INT4, TensorProto.UINT4)
            self._values[tensor] = values.astype(np.int8) if four_bits else values
        return self._values.get(tensor)

    def input(self, node: NodeProto, position: int) -> str:
        """Name of a node's input; empty where it has none."""
        return node.input[position] if position < len(node.input) else ""

    def dequantised(self, node: NodeProto, position: int) -> NodeProto | None:
        """The DequantizeLinear that writes a node's input, or None."""
        producer = self.producer(self.input(node, position))
        return producer if producer is not None and producer.op_type == "DequantizeLinear" else None

    def stored_integers(self, dequantise: NodeProto) -> str | None:
        """The initialiser that a DequantizeLinear reads, directly or over a Cast; None when it reads an activation."""
        name = dequantise.input[0]
        producer = self.producer(name)
        if producer is not None and producer.op_type == "Cast":
            name = producer.input[0]
        return name if name in self.initialisers else None

    def integer_type(self, node: NodeProto) -> int | None:
        """Type of the integers that a QuantizeLinear or DequantizeLinear works on, as its zero point says it."""
        zero = self.input(node, 2)
        if zero in self.initialisers:
            return int(self.initialisers[zero].data_type)
        stored = self.initialisers.get(node.input[0])
        return None if stored is None else int(stored.data_type)

    def roundings(self) -> Iterator[NodeProto]:
        """Every QuantizeLinear and DequantizeLinear, in file order."""
        return (node for node in self.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear"))

    def scale(self, node: NodeProto) -> NDArray[Any] | None:
        """The constant scale of a QuantizeLinear or DequantizeLinear, float32; None when it is computed."""
        return self.value(self.input(node, 1))

    def zero_point(self, node: NodeProto) -> NDArray[Any] | None:
        """The constant zero point of a QuantizeLinear or DequantizeLinear; None when it is omitted or computed."""
        return self.value(self.input(node, 2))

    def is_weighted(self, node: NodeProto) -> bool:
        """Whether the node multiplies by a constant: Conv, ConvTranspose, Gemm or MatMul with a stored second input."""
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            return False
        dequantise = self.dequantised(node, 1)
        if dequantise is not None:
            return self.stored_integers(dequantise) is not None
        return self.input(node, 1) in self.initialisers

    def has_integer_weight(self, node: NodeProto) -> bool:
        """Whether the node's weight is stored as integers behind a DequantizeLinear."""
        return self.is_weighted(node) and self.dequantised(node, 1) is not None


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, text decoded."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def node_name(node: NodeProto) -> str:
    """What to call a node in a message: its name, else the tensor that it writes."""
    return node.name or (node.output[0] if node.output else node.op_type)
