"""A border of zeros in front of a convolution is the convolution's own padding, and that of an average pooling too.

Networks ported from TensorFlow write each border as an operator of its own, which runtimes then compute: memory is read
and written once more for nothing. Where the border is equal at both ends, torch's own argument takes it; the rest
(`one_sided_border`) stays an operator of the graph, as torch has no such argument, and disappears in the file, whose
format has one.
"""

from __future__ import annotations

from torch.fx import Graph, Node

from calibration.graph.operators import argument, kind, pair, static_shape

_PADDING = {"conv": 4, "average_pool": 3}
"""Where the padding stands among an operator's arguments."""


def border_of_zeros(node: Node) -> tuple[int, int, int, int] | None:
    """Rows above, rows below, columns left and right of a map that a padding adds; None where it does anything else."""
    if kind(node) != "pad" or len(static_shape(node)) != 4 or float(argument(node, 2, "value", 0.0) or 0.0) != 0.0:
        return None
    # torch lists the last axis first.
    left, right, top, bottom, *others = [*(int(amount) for amount in argument(node, 1, "pad")), 0, 0, 0, 0][:8]
    if any(others) or min(left, right, top, bottom) < 0:
        return None
    return top, bottom, left, right


def takes_border_in(reader: Node, border: Node) -> bool:
    """Whether a convolution reads a border as its input alone, and has a padding in numbers to add it to."""
    return (
        kind(reader) == "conv"
        and reader.args[0] is border
        and reader.args[1:].count(border) == 0
        and not isinstance(argument(reader, 4, "padding", 0), str)
    )


def one_sided_border(node: Node) -> tuple[int, int, int, int] | None:
    """Rows and columns of a border of zeros that convolutions alone read, so that a file can do without; else None."""
    border = border_of_zeros(node)
    return border if border is not None and node.users and all(takes_border_in(u, node) for u in node.users) else None


def take_border_in(graph: Graph, node: Node) -> None:
    """Give a border that is equal at both ends to the convolutions and average poolings that read it."""
    border = border_of_zeros(node)
    if border is None or border[0] != border[1] or border[2] != border[3]:
        return
    source, added = node.args[0], (border[0], border[2])
    for reader in list(node.users):
        if takes_border_in(reader, node) or _averages_with(reader, added):
            _pad_by(reader, added)
            reader.replace_input_with(node, source)  # type: ignore[arg-type]  # a padding's input is a node
    if not node.users:
        graph.erase_node(node)


def _averages_with(reader: Node, added: tuple[int, int]) -> bool:
    """Whether an average pooling may count these zeros as its own: each window is divided by the same number then."""
    if kind(reader) != "average_pool" or argument(reader, 4, "ceil_mode", False):
        return False
    own = pair(argument(reader, 3, "padding", 0))
    if any(own) and not argument(reader, 5, "count_include_pad", True):
        return False
    # torch refuses a padding of more than half a window.
    sizes = pair(argument(reader, 1, "size"))
    return all(2 * (one + more) <= size for one, more, size in zip(own, added, sizes, strict=True))


def _pad_by(reader: Node, added: tuple[int, int]) -> None:
    """Add to an operator's own padding; all its arguments are written out."""
    slots = reader.target._schema.arguments  # type: ignore[union-attr]  # an overload of ATen
    arguments = [argument(reader, place, slot.name, slot.default_value) for place, slot in enumerate(slots)]
    place = _PADDING[kind(reader)]
    arguments[place] = [own + more for own, more in zip(pair(arguments[place]), added, strict=True)]
    if kind(reader) == "average_pool":
        arguments[5] = True  # its windows count the zeros
    reader.args, reader.kwargs = tuple(arguments), {}
