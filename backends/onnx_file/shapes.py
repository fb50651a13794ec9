"""Shapes in a file being written: what is free in them, and how it is called."""

from __future__ import annotations

from collections.abc import Collection

from torch.fx import Node

from backends.onnx_file.writer import Writer
from calibration.graph.operators import static_shape


def shape_of(e: Writer, node: Node) -> tuple[int, ...]:
    """A node's shape with -1 for every free dimension: the batch, and what follows the size of images if free."""
    free_shape = None if e.free is None else e.free.shape(node.name)
    return static_shape(node) if free_shape is None else free_shape


def stored(e: Writer, nodes: Collection[str]) -> str:
    """Name of one of several tensors that lies there as it is, for its shape: the image, else a rounded one if any.

    A kernel writes no float between what it computes and what it rounds.
    """
    if e.first_input in nodes:
        return e.first_input
    integers = [values.name for node, values in e.integers.items() if node.name in nodes]
    return (integers or [name for node, name in e.floats.items() if node.name in nodes])[0]


def declared_shape(e: Writer, node: Node) -> list[int | str]:
    """The shape of an input or result as a file declares it, free dimensions by name."""
    sizes: list[int | str] = []
    for axis, size in enumerate(shape_of(e, node)):
        if size >= 0:
            sizes.append(size)
        else:
            sizes.append((e.batch or "batch") if axis == 0 else _free_name(e, node, axis))
    return sizes


def _free_name(e: Writer, node: Node, axis: int) -> str:
    """The name of a free dimension: the image's, where it is as long as that."""
    if e.free is not None:
        image = e.free.sizes[e.first_input]
        for place, word in ((2, "height"), (3, "width")):
            if e.free.sizes[node.name][axis] == image[place]:
                return word
    return f"{node.name}_{axis}"
