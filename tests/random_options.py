"""Operators of maps with all of their options, drawn: poolings, resizes, joins, borders and places that move."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.random_networks import PIXELS, Operator, RandomNetwork, Step


def _of(function: Callable[[Tensor], Tensor], n: RandomNetwork, at: int) -> Step | None:
    """The step that a function of the last value is; None where torch refuses it, or it leaves no position."""
    try:
        result = function(n.values[at])
    except RuntimeError:
        return None
    fits = result.numel() and result.dim() == 4 and max(result.shape[2:]) <= 2 * PIXELS and result.shape[1] <= 96
    return (lambda n, values: function(values[at])) if fits else None


def _sides(n: RandomNetwork, *choices: int) -> tuple[int, int]:
    """One number for both axes, or one for each."""
    first = n.draw.choice(choices)
    return (first, first) if n.draw.random() < 0.6 else (first, n.draw.choice(choices))


def _average(n: RandomNetwork, at: int) -> Step | None:
    kernel, stride, border = _sides(n, 1, 2, 3, 4, 5), _sides(n, 1, 2, 3), _sides(n, 0, 0, 1, 2)
    ceil, counted = n.draw.random() < 0.5, n.draw.random() < 0.5
    divisor = n.draw.choice([None, None, None, 1, 3, 7, -2])
    return _of(lambda x: F.avg_pool2d(x, kernel, stride, border, ceil, counted, divisor), n, at)


def _maximum(n: RandomNetwork, at: int) -> Step | None:
    kernel, stride, border = _sides(n, 1, 2, 3, 4, 5), _sides(n, 1, 2, 3), _sides(n, 0, 0, 1, 2)
    gaps, ceil = _sides(n, 1, 1, 2, 3), n.draw.random() < 0.5
    return _of(lambda x: F.max_pool2d(x, kernel, stride, border, gaps, ceil), n, at)


def _adaptive(n: RandomNetwork, at: int) -> Step | None:
    size = _sides(n, 1, 2, 3, 4, 5, 8)
    return _of(lambda x: F.adaptive_avg_pool2d(x, size), n, at)


def _resize(n: RandomNetwork, at: int) -> Step | None:
    size, mode = _sides(n, 3, 4, 7, 8, 13, 16, 20), n.draw.choice(["nearest", "bilinear", "bilinear", "bicubic"])
    corners = None if mode == "nearest" else n.draw.random() < 0.5
    return _of(lambda x: F.interpolate(x, size, mode=mode, align_corners=corners), n, at)


def _border(n: RandomNetwork, at: int) -> Step | None:
    amounts = [n.draw.choice([0, 0, 1, 1, 2, 3, -1]) for _ in range(4)]
    mode = n.draw.choice(["constant", "constant", "reflect", "replicate"])
    value = n.draw.choice([0.0, 0.0, 0.5]) if mode == "constant" else None
    return _of(lambda x: F.pad(x, amounts, mode, value), n, at)


def _bordered_layer(n: RandomNetwork, at: int) -> Step | None:
    """A convolution of any kernel, stride, gaps and border, equal at both ends or not."""
    channels = n.values[at].shape[1]
    kernel, stride, gaps, border = _sides(n, 1, 2, 3, 5), _sides(n, 1, 1, 2), _sides(n, 1, 1, 2), _sides(n, 0, 1, 2)
    groups = n.draw.choice([1, 1, channels])
    layer = n.layer(nn.Conv2d(channels, channels, kernel, stride, border, gaps, groups, bias=n.draw.random() < 0.7))
    amounts = [n.draw.choice([0, 0, 1, 2]) for _ in range(4)]

    def padded(x: Tensor) -> Tensor:
        result: Tensor = n.layers[layer](F.pad(x, amounts))
        return result

    return None if _of(padded, n, at) is None else lambda n, values: n.layers[layer](F.pad(values[at], amounts))


def _join(n: RandomNetwork, at: int) -> Step | None:
    """With another value of its shape, or with itself moved, along any axis."""
    axis, other = n.draw.choice([1, 2, 3]), n.alike(at)
    if other is None or n.draw.random() < 0.4:
        return _of(lambda x: torch.cat([x, x.flip(axis)], axis), n, at)
    first, second = (at, other) if n.draw.random() < 0.5 else (other, at)
    if max(n.values[at].shape[1:]) > 48:
        return None
    return lambda n, values: torch.cat([values[first], values[second]], axis)


def _roll(n: RandomNetwork, at: int) -> Step | None:
    axis, shift = n.draw.choice([1, 2, 3]), n.draw.choice([1, 2, -1])
    return _of(lambda x: x.roll(shift, axis), n, at)


def _part(n: RandomNetwork, at: int) -> Step | None:
    axis, start, step = n.draw.choice([1, 2, 3]), n.draw.choice([0, 0, 1, 2]), n.draw.choice([1, 1, 2])
    size = n.values[at].shape[axis]
    if size < 4:
        return None
    return _of(lambda x: x.index_select(axis, torch.arange(start, size, step)), n, at)


def _written(n: RandomNetwork, at: int) -> Step | None:
    number = n.draw.choice([0.0, 0.5, -1.0])

    def write(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :, -1:] = number
        return x

    return _of(write, n, at)


def _windows(n: RandomNetwork, at: int) -> Step | None:
    """Attention over all positions of a map, back as a map."""
    channels, (rows, columns) = n.values[at].shape[1], n.values[at].shape[2:]
    if rows * columns > PIXELS * PIXELS or channels > 48:
        return None
    layer = n.layer(nn.Linear(channels, 3 * channels))

    def attend(n: RandomNetwork, x: Tensor) -> Tensor:
        query, key, value = n.layers[layer](x.flatten(2).transpose(1, 2)).chunk(3, -1)
        seen: Tensor = torch.softmax(query @ key.transpose(1, 2) * channels**-0.5, -1) @ value
        return seen.transpose(1, 2).reshape(-1, channels, rows, columns)

    return lambda n, values: attend(n, values[at])


#: Poolings most often: it is they whose options the runtimes read each in its own way.
OPTIONS: tuple[Operator, ...] = (
    *[_average] * 4,
    *[_maximum] * 3,
    _adaptive,
    *[_resize] * 2,
    _border,
    *[_bordered_layer] * 3,
    *[_join] * 2,
    _roll,
    _part,
    _written,
    _windows,
    lambda n, at: _of(lambda x: x.transpose(2, 3), n, at),
    lambda n, at: _of(lambda x: F.pixel_unshuffle(x, 2), n, at),
)
