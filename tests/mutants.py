"""Legal files in which one thing is changed, and the rules that they break then."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from backends.lint.rule import LintRules, lint_rules
from backends.lint.table import lint
from backends.onnxruntime.backend import OnnxRuntime


class Mutant:
    """A copy of a legal file in which one thing is changed."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph

    def node(self, name: str) -> onnx.NodeProto:
        named: onnx.NodeProto = next(node for node in self.graph.node if node.name == name)
        return named

    def value(self, name: str) -> Any:
        return numpy_helper.to_array(next(tensor for tensor in self.graph.initializer if tensor.name == name))

    def constant(self, name: str, values: Any) -> str:
        for tensor in [tensor for tensor in self.graph.initializer if tensor.name == name]:
            self.graph.initializer.remove(tensor)
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def give(self, node: str, position: int, values: Any) -> None:
        """Let one node read a constant of its own."""
        self.node(node).input[position] = self.constant(f"{node}_own_{position}", values)

    def give_both(self, tensor: str, position: int, values: Any) -> None:
        """The same for the QuantizeLinear of a rounded tensor and for its DequantizeLinear."""
        for node in (tensor, f"{tensor}_dq"):
            self.give(node, position, values)

    def add(self, before: str, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        at = next(index for index, node in enumerate(self.graph.node) if node.name == before)
        self.graph.node.insert(at, helper.make_node(operator, inputs, [output], name=output, **attributes))

    def remove(self, *names: str) -> None:
        for name in names:
            self.graph.node.remove(self.node(name))

    def rewire(self, old: str, new: str) -> None:
        for node in self.graph.node:
            for position, name in enumerate(node.input):
                if name == old:
                    node.input[position] = new

    def run(self, images: torch.Tensor, *, optimise: bool = True) -> Any:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        data = self.model.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": images.numpy()})[0]

    def census(self, *layers: str) -> Any:
        return OnnxRuntime().census(self.model.SerializeToString(), layers)


def rules_of(built: Any) -> LintRules:
    """The rules of the target that a network was built for."""
    return lint_rules(built.profile, built.plan)


def broken(mutant: Mutant, rules: LintRules) -> set[tuple[int, str]]:
    """Number and node of every violation of a file that ONNX itself takes."""
    onnx.checker.check_model(mutant.model)
    return {(violation.rule, violation.node) for violation in lint(mutant.model, rules)}
