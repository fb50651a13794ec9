"""Graphs and plans of a few nodes put together by hand, and what a file says as lines that can be read.

No export and no observation: what is written of a network follows from the few numbers that a test names itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import map_arg

from backends.onnx_file.emit import emit
from calibration.errors import UserError
from calibration.graph.free_size import FreeSize
from calibration.graph.interface import Interface, make_graph_module
from calibration.grid import Grid
from calibration.plan import ActivationPlacement, Plan, WeightPlacement
from calibration.simulation.freeze import FrozenActivation, FrozenConstant, FrozenNetwork

_KINDS: dict[int, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.FLOAT16: "f16",
    TensorProto.INT4: "i4",
    TensorProto.INT8: "i8",
    TensorProto.UINT8: "u8",
    TensorProto.INT32: "i32",
    TensorProto.INT64: "i64",
}
#: Longest constant whose numbers stand in a line.
_SHOWN = 12


class HandGraph:
    """A graph over one input `x`, its batch free, whose nodes know their shapes as captured ones do."""

    def __init__(self, *shape: int) -> None:
        self._mode = FakeTensorMode(shape_env=ShapeEnv())
        self._root, self._graph = nn.Module(), Graph()
        context: Any = StatelessSymbolicContext(
            dynamic_sizes=[DimDynamic.DYNAMIC] + [DimDynamic.STATIC] * len(shape),
            constraint_sizes=[None] * (len(shape) + 1),
        )
        self.x = self._graph.placeholder("x")
        self.x.meta["val"] = self._mode.from_tensor(torch.zeros(7, *shape), symbolic_context=context)

    def constant(self, name: str, values: Tensor) -> Node:
        """A stored tensor."""
        self._root.register_buffer(name, values)
        node = self._graph.get_attr(name)
        node.meta["val"] = self._mode.from_tensor(values, static_shapes=True)
        return node

    def __call__(self, target: Any, *args: Any, name: str | None = None, **kwargs: Any) -> Node:
        """An operator's node, of the shape that the operator gives."""
        node = self._graph.create_node("call_function", target, args, kwargs, name=name)
        values = map_arg((args, kwargs), lambda read: read.meta["val"])
        # Python's kernels, as exporting has them: in torch 2.11 matmul's other one asks for sizes that are numbers.
        with enable_python_dispatcher(), self._mode, torch.no_grad():
            node.meta["val"] = target(*values[0], **values[1])
        return node

    def module(self, *results: Node, outputs: Sequence[str] = (), free_size: FreeSize | None = None) -> GraphModule:
        """The graph, with these results."""
        self._graph.output(tuple(results))
        names = tuple(outputs) or tuple(f"y{index}" for index in range(len(results)))
        return make_graph_module(self._root, self._graph, Interface(outputs=names, free_size=free_size))


def rounded(
    tensor: str, *readers: str, scale: float = 0.5, zero: int = 0, bits: int = 8, signed: bool = False, group: str = ""
) -> tuple[ActivationPlacement, FrozenActivation]:
    """A tensor that is rounded, and to what."""
    grid = Grid(bits=bits, signed=signed, symmetric=False)
    placement = ActivationPlacement(tensor=tensor, grid=grid, readers=readers, group=group or tensor)
    return placement, FrozenActivation(scale=np.array(scale, np.float32), zero_point=zero, signed=signed)


def integers(
    values: Any, scale: Any, *, bits: int = 8, axis: int | None = None, block: int | None = None
) -> FrozenConstant:
    """A constant of integers, int32 of 32 bits."""
    stored = np.array(values, np.int32 if bits == 32 else np.int8)
    return FrozenConstant(integers=stored, scale=np.array(scale, np.float32), axis=axis, bits=bits, block=block)


def frozen(
    module: GraphModule,
    *activations: tuple[ActivationPlacement, FrozenActivation],
    weights: Mapping[str, FrozenConstant] | None = None,
    biases: Mapping[str, FrozenConstant] | None = None,
    **plan: Any,
) -> FrozenNetwork:
    """A network with these integers; the rest of the plan by name."""
    placed = tuple(
        WeightPlacement(layer=layer, grid=Grid(bits=8, signed=True, symmetric=True), integer_bias=True)
        for layer in weights or {}
    )
    return FrozenNetwork(
        graph_module=module,
        plan=Plan(backend="hand", activations=tuple(placement for placement, _ in activations), weights=placed, **plan),
        activations={placement.tensor: values for placement, values in activations},
        weights=weights or {},
        biases=biases or {},
    )


def read_aloud(model: onnx.ModelProto) -> list[str]:
    """A file's nodes as lines: name = operator(inputs) attributes -> tensors, where these are called otherwise.

    Constants stand as their numbers with their type, long ones as type and shape; a result is called as the file's.
    """
    constants = {tensor.name: _said(tensor) for tensor in model.graph.initializer}
    results = {output.name for output in model.graph.output}
    lines = []
    for node in model.graph.node:
        inputs = ", ".join(constants.get(name, name or "-") for name in node.input)
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        settings = "".join(f" {name}={_plain(values[name])}" for name in sorted(values))
        other = [] if {*node.output} <= {node.name, *results} else [" -> " + ", ".join(node.output)]
        lines.append("".join([f"{node.name} = {node.op_type}({inputs}){settings}", *other]))
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace(" ", "")


def _said(tensor: TensorProto) -> str:
    kind = _KINDS[tensor.data_type]
    values = numpy_helper.to_array(tensor)
    if values.size > _SHOWN:
        return f"{kind}{list(tensor.dims)}".replace(" ", "")
    numbers = (
        np.vectorize(lambda value: str(value) if values.dtype.kind in "iu" else f"{float(value):.6g}", otypes=[object])(
            values
        )
        if values.size
        else values
    )
    return kind + ":" + str(numbers.tolist()).replace("'", "").replace(" ", "")


def eighths(*shape: int) -> Tensor:
    """1/8, 2/8, ... in this shape."""
    return torch.arange(1.0, 1 + math.prod(shape)).reshape(shape) / 8


def lines(g: HandGraph, *results: Any, opset: int = 20) -> list[str]:
    """The float file with these results."""
    return read_aloud(emit(g.module(*results), opset=opset))


def refused(g: HandGraph, *results: Any, opset: int = 20) -> str:
    """What is said of a graph that cannot be written."""
    with pytest.raises(UserError) as raised:
        lines(g, *results, opset=opset)
    return str(raised.value)
