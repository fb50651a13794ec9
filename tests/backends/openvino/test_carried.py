"""Factors and integers that OpenVINO carries on: over a normalisation, whose epsilon they meant, and into a clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from tests.openvino_branches import CHANNELS, Build, Line, broken, built_of, errors, holds, written

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")

#: An epsilon beside which the variance of what is normalised is not large, so that it counts.
EPSILON = 0.1


def _rows(y: Tensor, eps: float = EPSILON) -> Tensor:
    return F.instance_norm(y, eps=eps)


def _tokens(function: Callable[[Tensor], Tensor]) -> Line:
    """A function of a map's positions as tokens."""
    return lambda n, y: function(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(y.shape)


def _vectors(t: Tensor) -> Tensor:
    return F.layer_norm(t, (CHANNELS,), eps=EPSILON)


def _shared(function: Callable[[Tensor], Tensor], *, signed: bool = False) -> Line:
    """A function of a map that a layer reads as well, as integers and their scale."""

    def line(n: Any, y: Tensor) -> Tensor:
        y = y if signed else (y + 1).relu()
        sums: Tensor = n.again(y)
        return function(y) + sums.mean((2, 3), keepdim=True) / 10

    return line


def _written_out(y: Tensor) -> Tensor:
    centred = y - y.mean((2, 3), keepdim=True)
    result: Tensor = centred / (centred.square().mean((2, 3), keepdim=True) + EPSILON).sqrt()
    return result


NORMALISED: dict[str, Line] = {
    "a number": lambda n, y: _rows(F.gelu(y) * 0.1),
    "a negative number": lambda n, y: _rows(F.gelu(y) * -0.1),
    "a divisor": lambda n, y: _rows(F.gelu(y) / 10),
    "numbers of channels": lambda n, y: _rows(F.gelu(y) * (n.factors.abs() / 10 + 0.05)),
    "a number and tokens": _tokens(lambda t: _vectors(F.gelu(t) / 10)),
    "a number and groups": lambda n, y: F.group_norm(F.gelu(y) / 10, 4, eps=EPSILON),
    "a number and a map": lambda n, y: F.layer_norm(F.gelu(y) / 10, y.shape[1:], eps=EPSILON),
    "a number and vectors": lambda n, y: _vectors((F.gelu(y) / 10).mean((2, 3)))[..., None, None],
    "a number, written out": lambda n, y: _written_out(F.gelu(y) / 10),
    "a number behind a sigmoid": lambda n, y: _rows(y.sigmoid() / 4),
    "a number before a ReLU": lambda n, y: _rows((F.gelu(y) / 10).relu()),
    "a number before a slope": lambda n, y: _rows(F.leaky_relu(F.gelu(y) / 10, 0.3)),
    "a number before an average": lambda n, y: _rows(F.avg_pool2d(F.gelu(y) / 4, 2)),
    "a number before movement": lambda n, y: _rows((F.gelu(y) / 10).flip(3).transpose(2, 3)),
    "a number before a resize": lambda n, y: _rows(F.interpolate(F.gelu(y) / 10, scale_factor=2.0)),
    "integers": _shared(lambda y: _rows(y, 20)),
    "integers and tokens": lambda n, y: _shared(lambda z: _tokens(_vectors)(n, z))(n, y),
    "integers and groups": _shared(lambda y: F.group_norm(y, 4, eps=20)),
    "integers before a number": _shared(lambda y: _rows(y / 2, 5)),
    "integers before an average": _shared(lambda y: _rows(F.avg_pool2d(y, 3, 1, 1), 5)),
    "integers before maxima": _shared(lambda y: _rows(F.max_pool2d(y, 2), 20)),
    "weights of another": lambda n, y: _rows(F.instance_norm(y, weight=n.factors.flatten().abs() / 10 + 0.05)),
}
#: The same runtime, right without a Max: no factor reaches them, or one behind a zero point.
RIGHT: dict[str, Line] = {
    "a layer": lambda n, y: _rows(y),
    "an activation": lambda n, y: _rows(F.gelu(y)),
    "a layer over tokens": _tokens(_vectors),
    "a number before an activation": lambda n, y: _rows(F.gelu(y / 10)),
    "signed integers": _shared(lambda y: _rows(y, 20), signed=True),
    "signed integers that are moved": _shared(lambda y: _rows(y.flip(3), 20), signed=True),
}


def test_a_factor_before_a_normalisation_is_dropped_unless_a_max_stands_between(build: Build) -> None:
    built = built_of(NORMALISED, build)
    assert holds(NORMALISED, built)
    model = written(built, normalised_apart=False)
    assert broken(built, model) == [48] * len(NORMALISED)
    right = {name: error for name, error in errors(NORMALISED, built, model).items() if error < 0.01}
    assert right == {}, "no Max is needed there"


def test_what_no_factor_reaches_is_normalised_as_it_is(build: Build) -> None:
    built = built_of(RIGHT, build)
    assert written(built).SerializeToString() == written(built, normalised_apart=False).SerializeToString()
    assert holds(RIGHT, built)


def _added(function: Callable[[Tensor], Tensor], *, signed: bool = True) -> Line:
    """A function of integers, scaled and added to a layer's sums, so that it may hand integers on."""

    def line(n: Any, y: Tensor) -> Tensor:
        y = y if signed else y.relu()
        z = function(y) * 100
        sums: Tensor = n.depthwise(y) / 1000
        return (sums if sums.shape == z.shape else sums.mean((2, 3), keepdim=True)) + z

    return line


def _clipped(y: Tensor) -> Tensor:
    return y.clamp(-0.05, 0.07)


CLIPPED: dict[str, Line] = {
    "signed": _added(_clipped),
    "before movement": _added(lambda y: _clipped(y).roll(1, 3)),
    "behind movement": _added(lambda y: _clipped(y.flip(3))),
    "behind a number": _added(lambda y: _clipped(y / 3)),
    "behind nearest ones": _added(lambda y: _clipped(F.interpolate(y, scale_factor=2.0))),
    "behind a border": _added(lambda y: _clipped(F.pad(y, (0, 1, 0, 1)))),
    "behind maxima": _added(lambda y: _clipped(F.max_pool2d(y, 3, 1, 1)), signed=False),
}


def test_bounds_of_integers_are_rounded_unless_a_max_stands_before_the_clip(build: Build) -> None:
    built = built_of(CLIPPED, build)
    assert holds(CLIPPED, built)
    model = written(built, clips_apart=False)
    assert broken(built, model) == [49] * len(CLIPPED)
    right = {name: error for name, error in errors(CLIPPED, built, model).items() if error < 0.01}
    assert right == {}, "no Max is needed there"


def test_a_clip_that_a_layer_takes_in_stays_alone(build: Build) -> None:
    lines: dict[str, Line] = {
        "of a layer": lambda n, y: _clipped(y),
        "of a sum": lambda n, y: _clipped(y + n.again(y)),
    }
    built = built_of(lines, build)
    assert written(built).SerializeToString() == written(built, clips_apart=False).SerializeToString()
    assert holds(lines, built)
