"""Operators that are short for others, spelt out: x.square() is x * x, and the tables need to know the product alone.

Rules of the normal form, each written as the expression that it is: `w` writes an operator of ATen and returns its
result; None leaves the operator alone, whose translation or whose error then says what is missing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

from calibration.graph.operators import argument, axis_order, clip_bounds, kind, static_shape
from calibration.normal_form.decompositions import before

aten = torch.ops.aten

Write = Callable[..., Node]
Spelling = Callable[[Write, Node], Node | None]


def rule_of(spelling: Spelling) -> Callable[[Graph, Node], Node]:
    """The rule of the normal form that a spelling is."""

    def rule(graph: Graph, node: Node) -> Node:
        written = spelling(lambda target, *arguments: before(graph, node, target, arguments), node)
        if written is None:
            return node
        graph.erase_node(node)
        return written

    return rule


def source_of(node: Node) -> Node:
    """The tensor that an operator takes first."""
    source = node.args[0]
    assert isinstance(source, Node)
    return source


def _power(w: Write, node: Node) -> Node | None:
    source, exponent = source_of(node), float(argument(node, 1, "exponent"))
    if exponent == 1.0:
        return source
    if exponent in (0.5, -0.5):
        root = w(aten.sqrt.default, source)
        return root if exponent > 0 else w(aten.reciprocal.default, root)
    if exponent == -1.0:
        return w(aten.reciprocal.default, source)
    if exponent in (2.0, 3.0, 4.0):
        square = w(aten.mul.Tensor, source, source)
        return square if exponent == 2.0 else w(aten.mul.Tensor, square, source if exponent == 3.0 else square)
    return None


def _addcmul(w: Write, node: Node) -> Node:
    product = w(aten.mul.Tensor, node.args[1], node.args[2])
    value = argument(node, 3, "value", 1)
    return w(aten.add.Tensor, source_of(node), product if value == 1 else w(aten.mul.Tensor, product, value))


def _product_added(w: Write, node: Node) -> Node:
    """The sum beta * x + alpha * (a @ b)."""
    added, product = source_of(node), w(aten.matmul.default, node.args[1], node.args[2])
    beta, alpha = (float(argument(node, place, name, 1)) for place, name in ((3, "beta"), (4, "alpha")))
    product = product if alpha == 1.0 else w(aten.mul.Tensor, product, alpha)
    if beta == 0.0:
        return product  # torch reads nothing of it then, not even NaN
    return w(aten.add.Tensor, product, added if beta == 1.0 else w(aten.mul.Tensor, added, beta))


def _lerp(w: Write, node: Node) -> Node:
    way = w(aten.sub.Tensor, node.args[1], source_of(node))
    return w(aten.add.Tensor, source_of(node), w(aten.mul.Tensor, way, argument(node, 2, "weight")))


def _gated_half(w: Write, node: Node) -> Node | None:
    source, axis = source_of(node), int(argument(node, 1, "dim", -1))
    half = static_shape(source)[axis] // 2
    if half <= 0:
        return None
    value, gate = (w(aten.slice.Tensor, source, axis, start, start + half) for start in (0, half))
    return w(aten.mul.Tensor, value, w(aten.sigmoid.default, gate))


def _mish(w: Write, node: Node) -> Node:
    return w(aten.mul.Tensor, source_of(node), w(aten.tanh.default, w(aten.softplus.default, source_of(node))))


def _log_sigmoid(w: Write, node: Node) -> Node:
    return w(aten.mul.Tensor, w(aten.softplus.default, w(aten.mul.Tensor, source_of(node), -1.0)), -1.0)


def _scaled_elu(w: Write, node: Node) -> Node | None:
    """The general form, as which functionalisation leaves SELU and CELU; one with both scales of its own stays."""
    alpha, scale, of_input = (
        float(argument(node, place, name, 1)) for place, name in enumerate(("alpha", "scale", "input_scale"), 1)
    )
    if of_input == 1.0 and scale != 1.0:
        return w(aten.mul.Tensor, w(aten.elu.default, source_of(node), alpha), scale)
    if scale == 1.0 and of_input != 1.0 and math.isclose(of_input * alpha, 1.0, rel_tol=1e-6):
        return w(aten.celu.default, source_of(node), alpha)
    return None


def _stack(w: Write, node: Node) -> Node:
    axis = int(argument(node, 1, "dim", 0))
    return w(aten.cat.default, [w(aten.unsqueeze.default, part, axis) for part in argument(node, 0, "tensors")], axis)


def _repeated(w: Write, node: Node, times: Sequence[int]) -> Node | None:
    repeated, rank = source_of(node), len(static_shape(source_of(node)))
    if len(times) > rank or not all(isinstance(count, int) and count > 0 for count in times):
        return None
    for axis, count in enumerate(times, start=rank - len(times)):
        if count > 1:
            repeated = w(aten.cat.default, [repeated] * count, axis)
    return repeated


def _repeat(w: Write, node: Node) -> Node | None:
    return _repeated(w, node, argument(node, 1, "repeats"))


def _tile(w: Write, node: Node) -> Node | None:
    return _repeated(w, node, argument(node, 1, "dims"))


def _variance(w: Write, node: Node) -> Node | None:
    """Spread over axes of known size; the correction is 1 where none is given, as in torch."""
    source, axes = source_of(node), argument(node, 1, "dim")
    sizes = [static_shape(source)[axis] for axis in axes or ()]
    own_correction: Any = node.kwargs.get("correction", 1 if argument(node, 2, "unbiased", True) else 0)
    correction = 1.0 if own_correction is None else float(own_correction)
    count = math.prod(sizes)
    if not sizes or min(sizes) <= 0 or count <= correction:
        return None
    keep = node.kwargs.get("keepdim", argument(node, 3, "keepdim", False))
    distance = w(aten.sub.Tensor, source, w(aten.mean.dim, source, axes, True))
    mean = w(aten.mean.dim, w(aten.mul.Tensor, distance, distance), axes, bool(keep))
    return w(aten.mul.Tensor, mean, count / (count - correction)) if correction else mean


def _deviation(w: Write, node: Node) -> Node | None:
    variance = _variance(w, node)
    return None if variance is None else w(aten.sqrt.default, variance)


#: Operators that give spread and mean at once -> the spread alone.
_MOMENTS: Mapping[Any, Spelling] = {
    aten.var_mean.dim: _variance,
    aten.var_mean.correction: _variance,
    aten.std_mean.dim: _deviation,
    aten.std_mean.correction: _deviation,
}


def _one_moment(w: Write, node: Node) -> Node | None:
    """The spread or the mean, of an operator that gives both."""
    both, index = node.args[:2]
    if node.target is not operator.getitem or not isinstance(both, Node) or both.target not in _MOMENTS:
        return None
    axes = argument(both, 1, "dim")
    if index == 0 or not axes:
        return _MOMENTS[both.target](w, both)
    keep = both.kwargs.get("keepdim", argument(both, 3, "keepdim", False))
    return w(aten.mean.dim, source_of(both), axes, bool(keep))


def _pixel_unshuffle(w: Write, node: Node) -> Node | None:
    sizes, factor = static_shape(source_of(node)), int(argument(node, 1, "downscale_factor"))
    if len(sizes) != 4 or min(sizes[1:]) <= 0:
        return None
    _, channels, height, width = sizes
    apart = w(aten.reshape.default, source_of(node), [-1, channels, height // factor, factor, width // factor, factor])
    turned = w(aten.permute.default, apart, [0, 1, 3, 5, 2, 4])
    return w(aten.reshape.default, turned, [-1, channels * factor**2, height // factor, width // factor])


def _squeezed(w: Write, node: Node) -> Node:
    """All axes of one entry dropped, but never the images', however many there are."""
    sizes = static_shape(source_of(node))
    return w(aten.squeeze.dims, source_of(node), [axis for axis, size in enumerate(sizes) if axis and size == 1])


def _adaptive_max_pool(w: Write, node: Node) -> Node | None:
    """Windows of equal size are a pooling like any other, which moves integers."""
    targets, sizes = argument(node, 1, "output_size"), static_shape(source_of(node))[-2:]
    if min(sizes) <= 0 or any(size % target for size, target in zip(sizes, targets, strict=True)):
        return None
    kernel = [size // target for size, target in zip(sizes, targets, strict=True)]
    return w(aten.max_pool2d.default, source_of(node), kernel, kernel)


def _transposed(w: Write, node: Node) -> Node:
    return w(aten.transpose.int, *node.args[:3])


def _axes_moved(w: Write, node: Node) -> Node:
    rank = len(static_shape(node))
    both = [argument(node, place, name) for place, name in ((1, "source"), (2, "destination"))]
    sources, targets = (
        [axis % rank for axis in (axes if isinstance(axes, (list, tuple)) else [axes])] for axes in both
    )
    order = [axis for axis in range(rank) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return w(aten.permute.default, source_of(node), order)


def _largest(target: Any) -> Spelling:
    return lambda w, node: w(
        target, source_of(node), [int(argument(node, 1, "dim"))], bool(argument(node, 2, "keepdim", False))
    )


def _hard_sigmoid(w: Write, node: Node) -> Node | None:
    """Recognise relu6(x + 3) / 6 written out, as many copies of MobileNetV3 have it; also as y * relu6(x + 3) / 6."""
    source, sixth = node.args[:2]
    if not isinstance(sixth, float) or not math.isclose(sixth, 1 / 6, rel_tol=1e-6) or not isinstance(source, Node):
        return None
    if (shifted := _three_below(source)) is not None:
        return w(aten.hardsigmoid.default, shifted)
    factors = source.args[:2]
    if source.target is not aten.mul.Tensor or not all(isinstance(factor, Node) for factor in factors):
        return None
    for factor, other in (factors, factors[::-1]):
        assert isinstance(factor, Node)
        if (shifted := _three_below(factor)) is not None:
            return w(aten.mul.Tensor, other, w(aten.hardsigmoid.default, shifted))
    return None


def _three_below(clipped: Node) -> Node | None:
    """The x of relu6(x + 3)."""
    shifted = clipped.args[0] if kind(clipped) == "clip" and clip_bounds(clipped) == (0.0, 6.0) else None
    if not isinstance(shifted, Node) or shifted.target is not aten.add.Tensor:
        return None
    source, three = shifted.args[:2]
    return source if three == 3 and isinstance(source, Node) else None


def _channel_shuffle(w: Write, node: Node) -> Node | None:
    """Recognise channels that are taken apart into groups, exchanged with these and put together again."""
    turned = source_of(node)
    apart = turned.args[0] if kind(turned) == "transpose" else None
    source = apart.args[0] if isinstance(apart, Node) and kind(apart) == "reshape" else None
    if not isinstance(apart, Node) or not isinstance(source, Node) or axis_order(turned) != [0, 2, 1, 3, 4]:
        return None
    sizes, parts = static_shape(source), static_shape(apart)
    fits = len(sizes) == 4 and parts[3:] == sizes[2:] and parts[1] * parts[2] == sizes[1]
    return w(aten.channel_shuffle.default, source, parts[1]) if fits and static_shape(node) == sizes else None


def _random_relu(w: Write, node: Node) -> Node:
    low, high = float(argument(node, 1, "lower", 1 / 8)), float(argument(node, 2, "upper", 1 / 3))
    return w(aten.leaky_relu.default, source_of(node), (low + high) / 2)  # what it is where nothing is trained


_SPELLINGS: Mapping[Any, Spelling] = {
    aten.square.default: lambda w, node: w(aten.mul.Tensor, source_of(node), source_of(node)),
    aten.neg.default: lambda w, node: w(aten.mul.Tensor, source_of(node), -1.0),
    aten.rsqrt.default: lambda w, node: w(aten.reciprocal.default, w(aten.sqrt.default, source_of(node))),
    aten.pow.Tensor_Scalar: _power,
    aten.addcmul.default: _addcmul,
    aten.baddbmm.default: _product_added,
    aten.lerp.Scalar: _lerp,
    aten.glu.default: _gated_half,
    aten.mish.default: _mish,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.elu.default: _scaled_elu,
    aten.stack.default: _stack,
    aten.squeeze.default: _squeezed,
    aten.repeat.default: _repeat,
    aten.tile.default: _tile,
    aten.var.dim: _variance,
    aten.var.correction: _variance,
    aten.std.dim: _deviation,
    aten.std.correction: _deviation,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    aten.max.dim: _largest(aten.amax.default),
    aten.min.dim: _largest(aten.amin.default),
    aten.swapaxes.default: _transposed,
    aten.swapdims.default: _transposed,
    aten.movedim.int: _axes_moved,
    aten.movedim.intlist: _axes_moved,
    aten.moveaxis.int: _axes_moved,
    aten.moveaxis.intlist: _axes_moved,
    aten.rrelu.default: _random_relu,
    aten.fmax.default: lambda w, node: w(aten.maximum.default, *node.args[:2]),
    aten.fmin.default: lambda w, node: w(aten.minimum.default, *node.args[:2]),
}

#: Rule of the normal form for a product with a number, which a division by one is as well.
hard_sigmoid = rule_of(_hard_sigmoid)

#: Rule of the normal form for a reshape.
channel_shuffle = rule_of(_channel_shuffle)

#: Rule of the normal form for one of several tensors.
one_moment = rule_of(_one_moment)

#: Operators that give several tensors, which are written one by one.
IN_PARTS = frozenset({aten.unbind.int, *_MOMENTS})

#: Rule of the normal form per operator.
SPELLINGS: Mapping[Any, Callable[[Graph, Node], Node]] = {
    target: rule_of(spelling) for target, spelling in _SPELLINGS.items()
}
#: Those that give a tuple, whose first tensor is what the spelling gives.
WITH_INDICES = frozenset({aten.adaptive_max_pool2d.default, aten.max.dim, aten.min.dim})
