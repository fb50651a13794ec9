"""What the translations share: integers by name, how arguments are read, and operators without any of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from backends.onnx_file.writer import Writer
from calibration.graph.operators import attribute, static_shape

#: A number that changes no sum but one of exactly 0, and that no pass of a compiler takes for 0.
NEXT_TO_NOTHING = 1e-30
Translator = Callable[["Writer", Node], list[str]]


def input_of(node: Node, position: int = 0) -> Node:
    """The node that an argument holds."""
    source = node.args[position]
    assert isinstance(source, Node)
    return source


def spatial(node: Node, position: int) -> tuple[int, int]:
    """Height and width, or depth of a kernel, of an argument."""
    sizes = static_shape(input_of(node, position))
    return sizes[-2], sizes[-1]


def simple(operator: str, **attributes: Any) -> Translator:
    """An operator with one input and fixed attributes."""

    def translate(e: Writer, node: Node) -> list[str]:
        return e.add(operator, [e.read(input_of(node))], **attributes)

    return translate


def per_channel(e: Writer, parameter: Node, rank: int) -> str:
    """A parameter [C] in the form that broadcasts along axis 1 of a tensor of that rank."""
    values = attribute(e.module, str(parameter.target)).detach().cpu().float().numpy()
    name = f"{str(parameter.target).replace('.', '_')}_per_channel"
    return e.constant(values.reshape(-1, *[1] * (rank - 2)), name)
