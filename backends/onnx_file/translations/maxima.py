"""Translations of max poolings, and what behind one may give less for a larger value."""

from __future__ import annotations

from torch.fx import Node

from backends.onnx_file.translations.common import input_of
from backends.onnx_file.writer import Writer
from calibration.graph.operators import MOVEMENT, argument, constant, kind, pair, tensor_inputs

#: What gives no less for a larger value, but for parameters that turn it round.
_RISING = frozenset({"relu", "clip", "sigmoid", "hardsigmoid", "tanh", "leaky_relu", "elu", "prelu", "copy"})
#: What is no function of single values, or one that no kernel of a layer takes in by itself.
_NO_ACTIVATION = MOVEMENT | {
    *("conv", "conv_transpose", "linear", "matmul", "add", "mean", "average_pool", "adaptive_average_pool"),
    *("resize_bilinear", "output"),
}
#: Arithmetic with numbers, which together with what else reads the same map may be one activation, as in x / 2 * (1 +
#: erf(x / sqrt(2))).
_ARITHMETIC = frozenset({"mul", "div", "sub"})


def max_pool(e: Writer, node: Node) -> list[str]:
    """MaxPool; or one and a Max of the lowest number, where the form keeps what may fall apart from it."""
    kernel = pair(node.args[1])
    apart = e.form.maxima_apart and node.name not in e.passthrough and may_fall(e, node)
    pooled = e.add(
        "MaxPool",
        [e.read(input_of(node))],
        kernel_shape=kernel,
        strides=pair(argument(node, 2, "stride") or kernel),
        pads=pair(argument(node, 3, "padding", 0)) * 2,
        dilations=pair(argument(node, 4, "dilation", 1)),
        ceil_mode=int(argument(node, 5, "ceil_mode", False)),
        suffix="_largest" if apart else "",
    )
    return e.add("Max", [*pooled, e.lowest]) if apart else pooled


def may_fall(e: Writer, node: Node) -> bool:
    """Whether what reads a map, at once or behind what rises, may give less for a larger value, alone or together."""
    return (len(node.users) > 1 and any(kind(user) in _ARITHMETIC for user in node.users)) or any(
        may_fall(e, user) if _rises(e, user) else _falls(user) for user in node.users
    )


def _rises(e: Writer, node: Node) -> bool:
    word = kind(node)
    if word == "leaky_relu":
        return float(argument(node, 1, "negative_slope", 0.01)) >= 0
    if word == "elu":
        defaults = ((1, "alpha"), (2, "scale"), (3, "input_scale"))
        return all(float(argument(node, place, name, 1.0)) >= 0 for place, name in defaults)
    if word == "prelu":
        slopes = constant(e.module, argument(node, 1, "weight"))
        return slopes is not None and bool((slopes >= 0).all())
    return word in _RISING


def _falls(node: Node) -> bool:
    if kind(node) in _ARITHMETIC:  # a factor, or a gate
        return len(tensor_inputs(node)) > 1
    return kind(node) not in _NO_ACTIVATION
