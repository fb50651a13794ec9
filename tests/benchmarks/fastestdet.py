"""FastestDet as a module of torch, read from its ONNX file: the few operators that it has, for a batch of any size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional


class FastestDet(nn.Module):
    """Images [B, 3, 352, 352] to a map [B, 85, 22, 22]: objectness, four offsets, 80 classes."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        graph = onnx.load(file).graph
        constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self._nodes = list(graph.node)
        self._picks = dict[str, int]()
        self._input, self._output = graph.input[0].name, graph.output[0].name
        for node in self._nodes:
            attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type == "Constant":
                constants[node.output[0]] = numpy_helper.to_array(attributes["value"])
            elif node.op_type == "Gather":
                self._picks[node.name] = int(constants[node.input[1]])
            elif node.op_type == "Conv":
                self.add_module(node.name, self._convolution(node, attributes, constants))

    def _convolution(self, node: onnx.NodeProto, attributes: dict[str, Any], constants: Mapping[str, Any]) -> nn.Conv2d:
        weight, bias = (torch.from_numpy(constants[name].copy()) for name in node.input[1:])
        outputs, inputs = weight.shape[:2]
        groups = attributes["group"]
        layer = nn.Conv2d(
            inputs * groups,
            outputs,
            (weight.shape[2], weight.shape[3]),
            stride=tuple(attributes["strides"]),
            padding=tuple(attributes["pads"][:2]),
            groups=groups,
        )
        layer.load_state_dict({"weight": weight, "bias": bias})
        return layer

    def forward(self, images: Tensor) -> Tensor:
        """The map of a batch."""
        values = {self._input: images}
        for node in self._nodes:
            if node.op_type == "Constant":
                continue
            read = [values[name] for name in node.input if name in values]
            values[node.output[0]] = self._run(node, read)
        return values[self._output]

    def _run(self, node: onnx.NodeProto, read: list[Tensor]) -> Tensor:
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        match node.op_type:
            case "Conv":
                convolved: Tensor = self.get_submodule(node.name)(read[0])
                return convolved
            case "Relu":
                return read[0].relu()
            case "Sigmoid":
                return read[0].sigmoid()
            case "Add":
                return read[0] + read[1]
            case "Concat":
                return torch.cat(read, attributes["axis"])
            case "Softmax":
                return read[0].softmax(attributes["axis"])
            case "MaxPool":
                return functional.max_pool2d(
                    read[0], attributes["kernel_shape"], attributes["strides"], attributes["pads"][0]
                )
            case "Resize":
                return functional.interpolate(read[0], scale_factor=2.0, mode="nearest")
            case "Transpose" if len(attributes["perm"]) == 4:
                return read[0].permute(attributes["perm"])
            case "AveragePool":
                # The Pad in front of it holds its border.
                return functional.avg_pool2d(read[0], 3, 2, 1)
            case "Reshape" | "Transpose" | "Pad":
                # Of a shuffle, which ends in its Gather: every second channel; and a padding by nothing.
                return read[0]
            case "Gather":
                return read[0][:, self._picks[node.name] :: 2]
        raise ValueError(f"{node.name}: {node.op_type}")
