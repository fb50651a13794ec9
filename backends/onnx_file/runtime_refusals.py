"""Which nodes of a file a runtime's own words are about, when it refuses the file."""

from __future__ import annotations

import re

import onnx

from backends.onnx_file.view import node_name

# What a library says of its own sources, and of how it has wrapped its own error.
_NOISE = (
    r"\[ONNXRuntimeError\] : \d+ : \w+ : ",
    r"/\S+\.(?:h|hpp|cc|cpp|cu):\d+(?: [\w:<>~]+\([^)]*\)(?: \[with [^\]]*\])?)?",
    r"\b\w+\.(?:h|cc|cpp):\d+ \w+",
)
_LONGEST = 400
# What a library writes before the name of a node.
_BEFORE = r"(?:[Nn]ode(?: ?\(| ?:| ) ?|name(?: ?[:=]| ) ?|['\"]|\): )"


def one_line(message: str) -> str:
    """A library's message on one line, without its own files and functions, shortened."""
    for pattern in _NOISE:
        message = re.sub(pattern, " ", message)
    return " ".join(message.split())[:_LONGEST]


def nodes_named_in(message: str, model: onnx.ModelProto) -> list[str]:
    """The nodes, with their operators, whose name a message has, else whose operator it has; never a rounding."""
    words = set(re.findall(r"\w+", message))
    nodes = [node for node in model.graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    by_name = [node for node in nodes if node.name and re.search(_BEFORE + re.escape(node.name) + r"\b", message)]
    return [f"{node_name(node)} ({node.op_type})" for node in by_name or [n for n in nodes if n.op_type in words]]
