"""The placement that a Q/DQ file shows: what another tool rounded, in the words of our own plans."""

from __future__ import annotations

import onnx
from onnx import NodeProto

from backends.onnx_file.view import INTEGER_RANGES, OnnxView, attributes, node_name
from calibration.grid import Grid
from calibration.plan import ActivationPlacement, Plan, WeightPlacement

_KINDS = {"Conv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear", "MatMul": "linear"}


def plan_of_file(model: onnx.ModelProto, *, backend: str, left: str) -> Plan:
    """The plan of a file; `left` is the reason given for weighted layers whose weight it leaves float."""
    view = OnnxView(model)
    layers = [node for node in view.nodes if view.is_weighted(node)]
    integer = [node for node in layers if view.has_integer_weight(node)]
    names = {id(node): node_name(node) for node in layers}
    return Plan(
        backend=backend,
        activations=tuple(_activations(view)),
        weights=tuple(_weight(view, node) for node in integer),
        float_nodes={names[id(node)]: left for node in layers if node not in integer},
        kinds={names[id(node)]: _KINDS[node.op_type] for node in layers},
    )


def _weight(view: OnnxView, node: NodeProto) -> WeightPlacement:
    dequantise = view.dequantised(node, 1)
    assert dequantise is not None
    scale, kind = view.scale(dequantise), view.integer_type(dequantise)
    assert scale is not None and kind is not None
    stored = view.stored_integers(dequantise)
    assert stored is not None
    rank = len(view.initialisers[stored].dims)
    axis = int(attributes(dequantise).get("axis", 1)) % rank if scale.ndim else None
    low, high = INTEGER_RANGES[kind]
    bias = view.dequantised(node, 2)
    return WeightPlacement(
        layer=node_name(node),
        grid=Grid(bits=(high - low).bit_length(), signed=low < 0, symmetric=True, channel_axis=axis),
        integer_bias=bias is not None,
    )


def _activations(view: OnnxView) -> list[ActivationPlacement]:
    placements = []
    for node in view.nodes:
        if node.op_type != "QuantizeLinear":
            continue
        zero, kind = view.zero_point(node), view.integer_type(node)
        assert zero is not None and kind is not None
        low, high = INTEGER_RANGES[kind]
        placements.append(
            ActivationPlacement(
                tensor=node.input[0],
                grid=Grid(bits=(high - low).bit_length(), signed=low < 0, symmetric=not zero.any()),
                readers=tuple(dict.fromkeys(map(node_name, _readers(view, node)))),
                group=node.input[0],
            )
        )
    return placements


def _readers(view: OnnxView, quantise: NodeProto) -> list[NodeProto]:
    """The nodes that read a rounded tensor, behind its DequantizeLinear or on its integers."""
    readers = []
    for node in view.readers(quantise.output[0]):
        readers += view.readers(node.output[0]) if node.op_type == "DequantizeLinear" else [node]
    return readers
