"""What OpenVINO takes into the kernel before it and computes wrongly there: kept apart in our files, named in others.

Every line is a branch of one network, so that a form is tried on all of them with one network and two files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.errors import UserError
from tests.openvino_branches import (
    CHANNELS,
    SIDE,
    Build,
    Line,
    broken,
    built_of,
    errors,
    floating,
    holds,
    kernels_of,
    written,
)

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")


def _largest(function: Callable[[Tensor], Tensor]) -> Line:
    """A function behind a max pooling of a convolution's sums."""
    return lambda n, y: function(F.max_pool2d(y, 2))


FALLING: dict[str, Line] = {
    "GELU": _largest(F.gelu),
    "GELU by tanh": _largest(lambda y: F.gelu(y, approximate="tanh")),
    "GELU in parts": _largest(lambda y: y / 2 * (1 + torch.erf(y / math.sqrt(2)))),
    "SiLU": _largest(F.silu),
    "SiLU of 1.7 x": _largest(lambda y: y * torch.sigmoid(1.702 * y)),
    "Mish": _largest(F.mish),
    "Mish in parts": _largest(lambda y: y * torch.tanh(F.softplus(y))),
    "absolute value": _largest(torch.abs),
    "absolute value in parts": _largest(lambda y: torch.maximum(y, -y)),
    "negative slope": _largest(lambda y: F.leaky_relu(y, -0.5)),
    "negative slope in parts": _largest(lambda y: torch.maximum(y, -0.5 * y)),
    "learned negative slope": lambda n, y: n.one_slope(F.max_pool2d(y, 2)),
    "negative ELU": _largest(lambda y: F.elu(y, -1.0)),
    "behind tanh": _largest(lambda y: y.tanh().abs()),
    "behind a slope": _largest(lambda y: F.leaky_relu(y, 0.3).abs()),
    "behind a clip": _largest(lambda y: F.silu(y.clamp(-2, 2))),
    "of a depthwise convolution": lambda n, y: F.max_pool2d(n.depthwise(y), 2).abs(),
    "of a sum of convolutions": lambda n, y: F.max_pool2d(n.again(y) + n.depthwise(y), 2).abs(),
    "of scaled sums": lambda n, y: F.max_pool2d(y * n.factors, 2).abs(),
    "of shifted sums": lambda n, y: F.max_pool2d(y + n.factors, 2).abs(),
    "of the whole map": lambda n, y: F.max_pool2d(y, SIDE).abs(),
    "of windows cut short": lambda n, y: F.max_pool2d(y, 5, 4, ceil_mode=True).abs(),
    "of adaptive windows": lambda n, y: F.adaptive_max_pool2d(y, 4).abs(),
}

#: The same runtime, right without a Max: no pooling of maxima, one that rises, or something in between.
RIGHT: dict[str, Line] = {
    "ReLU": _largest(torch.relu),
    "clip": _largest(lambda y: y.clamp(-1, 1.5)),
    "sigmoid": _largest(torch.sigmoid),
    "tanh": _largest(torch.tanh),
    "ELU": _largest(F.elu),
    "slope": _largest(lambda y: F.leaky_relu(y, 0.3)),
    "scaled in between": _largest(lambda y: F.gelu(-0.7 * y)),
    "shifted in between": _largest(lambda y: (y + 0.7).abs()),
    "part in between": _largest(lambda y: y[:, :, 1:].abs()),
    "smallest": lambda n, y: F.gelu(-F.max_pool2d(-y, 2)),
    "average": lambda n, y: F.avg_pool2d(y, 2).abs(),
    "average of the map": lambda n, y: F.adaptive_avg_pool2d(y, 1).abs(),
    "larger of two": lambda n, y: torch.maximum(y, n.again(y)).abs(),
    "largest of the map": lambda n, y: y.amax((2, 3), keepdim=True).abs(),
    "nearer ones": lambda n, y: F.interpolate(y, scale_factor=2.0, mode="nearest").abs(),
}


def test_what_may_fall_behind_a_max_pooling_is_computed_before_it_unless_a_max_stands_between(build: Build) -> None:
    built = built_of(FALLING, build)
    assert holds(FALLING, built)
    model = written(built, maxima_apart=False, mish_in_parts=False)
    assert broken(built, model) == [42] * len(FALLING)
    right = {name: error for name, error in errors(FALLING, built, model).items() if error < 0.01}
    assert right == {}, "no Max is needed there"


def test_what_was_taken_in_is_named_by_the_kernel_of_the_convolution(build: Build) -> None:
    """The reason: the convolution's kernel says that it computes the activation, whose pooling comes behind it."""
    lines = {"absolute value": FALLING["absolute value"]}
    built = built_of(lines, build)
    seen = []
    for apart in (False, True):
        model = written(built, maxima_apart=apart)
        (node,) = [node.name for node in model.graph.node if node.op_type == "Abs"]
        kernels = kernels_of(model)
        seen.append(any({"parts_0_first", node} <= names for names in kernels))
    assert seen == [True, False]


def test_what_rises_and_other_poolings_are_right_as_they_are(build: Build) -> None:
    built = built_of(RIGHT, build)
    model = written(built, maxima_apart=False)
    assert written(built).SerializeToString() == model.SerializeToString(), "a Max is written for nothing"
    assert holds(RIGHT, built)


def _average(columns: int, function: Callable[[Any, Tensor], Tensor]) -> Line:
    """A function behind an average of unequal windows."""
    return lambda n, y: function(n, F.adaptive_avg_pool2d(y, (5, columns)))


PER_CHANNEL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "slopes": lambda n, y: n.slopes(y),
    "summands": lambda n, y: y + n.factors,
    "factors behind an activation": lambda n, y: y.relu() * n.factors,
}


def test_what_is_per_channel_behind_an_average_of_unequal_windows_is_taken_for_per_column(build: Build) -> None:
    """Wrong where there are as many columns as channels."""
    lines = {name: _average(CHANNELS, line) for name, line in PER_CHANNEL.items()}
    built = built_of(lines, build)
    assert holds(lines, built)
    model = written(built, shares_apart=False)
    assert broken(built, model) == [43] * len(lines)
    assert {name: error for name, error in errors(lines, built, model).items() if error < 0.1} == {}


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_behind_another_number_of_columns_the_file_is_refused(name: str, build: Build) -> None:
    lines = {name: _average(5, PER_CHANNEL[name])}
    built = built_of(lines, build)
    assert holds(lines, built)
    model = written(built, shares_apart=False)
    assert broken(built, model) == [43]
    with pytest.raises(UserError, match="cannot load the model"):
        errors(lines, built, model)


TURNED: dict[str, Line] = {
    "group norm": lambda n, y: n.norm(y),
    "group norm and ReLU": lambda n, y: n.norm(y).relu(),
    "group norm and average": lambda n, y: F.avg_pool2d(n.norm(y), 2),
    "group norm and maximum": lambda n, y: F.max_pool2d(n.norm(y), 2),
    "group norm of tokens": lambda n, y: n.tokens(n.norm(y).transpose(1, 3)).transpose(1, 3),
    "factors of a softmax": lambda n, y: y.softmax(1) * n.factors,
    "factors of maxima": lambda n, y: F.max_pool2d(y, 2) * n.factors,
    "divisors": lambda n, y: y.softmax(1) / (n.factors - 3),
    "factors of rows": lambda n, y: n.rows(y) * n.factors,
    "layer norm of vectors": lambda n, y: n.vectors(n.tokens(y.mean((2, 3)))).relu()[..., None, None],
}


def test_negative_factors_become_wrong_bounds_of_a_rounding_unless_a_max_stands_between(build: Build) -> None:
    built = built_of(TURNED, build)
    assert holds(TURNED, built)
    model = written(built, negative_factors_apart=False)
    assert broken(built, model) == [44] * len(TURNED)
    assert {name: error for name, error in errors(TURNED, built, model).items() if error < 0.03} == {}


def test_positive_factors_are_right_as_they_are(build: Build) -> None:
    lines: dict[str, Line] = {
        "factors": lambda n, y: y.softmax(1) * n.factors.abs(),
        "one negative factor": lambda n, y: y.softmax(1) * -1.5,
        "normalised": lambda n, y: F.group_norm(y, 4),
    }
    built = built_of(lines, build)
    assert written(built).SerializeToString() == written(built, negative_factors_apart=False).SerializeToString()
    assert holds(lines, built)


def _joined(axis: int, function: Callable[[Tensor], Tensor]) -> Line:
    """A function of positions of a map and of what is made of it, joined."""
    return lambda n, y: function(torch.cat([F.gelu(y), y], axis))


def test_a_number_behind_joined_positions_leaves_the_layer_behind_in_float_unless_a_max_stands_between(
    build: Build,
) -> None:
    lines = {
        "added": _joined(3, lambda y: y + 1),
        "taken away": _joined(2, lambda y: y - 1),
        "multiplied": _joined(3, lambda y: y * 2),
    }
    built = built_of(lines, build)
    assert holds(lines, built)
    model = written(built, joins_apart=False)
    assert broken(built, model) == [46] * 3
    assert floating(built, model) == tuple(f"parts_{index}_last" for index in range(3))


def _attention(function: Callable[[Tensor], Tensor]) -> Line:
    """A function of a map that attends to itself."""

    def line(n: Any, y: Tensor) -> Tensor:
        rows = y.flatten(2).transpose(1, 2)
        weights = (n.tokens(rows) @ n.keys(rows).transpose(1, 2) / 4).softmax(-1)
        return function((weights @ n.values(rows)).transpose(1, 2).reshape(y.shape))

    return line


@pytest.mark.parametrize("function", [F.mish, lambda y: F.mish(1.5 * y), lambda y: F.mish(y.relu() - 0.3)])
def test_a_mish_behind_attention_does_not_load_as_one(function: Callable[[Tensor], Tensor], build: Build) -> None:
    lines = {"attention": _attention(function)}
    built = built_of(lines, build)
    assert holds(lines, built)
    model = written(built, mish_in_parts=False)
    assert broken(built, model) == [47]
    with pytest.raises(UserError, match=r"cannot load the model: .*Mish"):
        errors(lines, built, model)


def test_a_mish_that_a_layer_takes_in_stays_one(build: Build) -> None:
    lines: dict[str, Line] = {
        "of a layer": lambda n, y: F.mish(y),
        "of a sum": lambda n, y: F.mish(y + n.again(y)),
    }
    built = built_of(lines, build)
    assert written(built).SerializeToString() == written(built, mish_in_parts=False).SerializeToString()
    assert holds(lines, built)
