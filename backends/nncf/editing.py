"""What edits of a file that another tool wrote share: free names, and constants."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


class Names:
    """Names that no tensor of the file has yet."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= {entry.name for entry in (*graph.initializer, *graph.input, *graph.output)}

    def fresh(self, name: str) -> str:
        """This name, or this one and underscores."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def add_constant(model: onnx.ModelProto, name: str, values: NDArray[np.generic]) -> str:
    """Store an initialiser under a name that is free; the name."""
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    return name
