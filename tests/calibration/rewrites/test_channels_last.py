"""Rows of positions are taken from maps with channels last: the same values, one transposition instead of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.graph.interface import interface_of
from calibration.graph.operators import axis_order, kind
from calibration.rewrites.channels_last import ROWS_OF_CHANNELS_LAST
from calibration.rewrites.fold import fold
from calibration.rewrites.rewrite import rewritten

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


def _windows(x: Tensor, size: int) -> Tensor:
    """[B, 64, 8, 8] to [B, windows, positions, 64]."""
    apart = x.reshape(-1, 64, 8 // size, size, 8 // size, size).permute(0, 2, 4, 3, 5, 1)
    return apart.reshape(-1, (8 // size) ** 2, size**2, 64)


def _from_windows(x: Tensor, size: int) -> Tensor:
    apart = x.reshape(-1, 8 // size, 8 // size, size, size, 64).permute(0, 5, 1, 3, 2, 4)
    return apart.reshape(-1, 64, 8, 8)


def _split(n: Any, x: Tensor) -> Tensor:
    query, key, value = n.a(x).reshape(-1, 1, 64, 64).transpose(-1, -2).split([16, 16, 32], -1)
    result: Tensor = (query @ key.transpose(-1, -2)).softmax(-1) @ value
    return result


REWRITTEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[list[int]]]] = {
    "heads": (lambda n, x: n.a(x).reshape(-1, 2, 32, 64).permute(0, 1, 3, 2).softmax(-1), [_LAST, [0, 2, 1, 3]]),
    "tokens": (lambda n, x: n.a(x).flatten(2).transpose(1, 2).softmax(-1), [_LAST]),
    "behind a residual": (lambda n, x: (n.a(x) + n.b(x)).flatten(2).transpose(1, 2).softmax(-1), [_LAST]),
    "back to a map": (
        lambda n, x: n.c((x.mean((1, 2, 3), keepdim=True) + n.table).transpose(2, 3).reshape(-1, 64, 8, 8)),
        [[0, 2, 1, 3], _FIRST],
    ),
    "windows": (lambda n, x: _windows(n.a(x), 4).softmax(-1), [_LAST, [0, 1, 3, 2, 4, 5]]),
    "windows to other windows": (
        lambda n, x: _windows(_from_windows(_windows(n.a(x), 4).softmax(-1), 4), 2).softmax(-1),
        [_LAST, [0, 1, 3, 2, 4, 5], [0, 1, 3, 2, 4, 5], [0, 1, 3, 2, 4, 5]],
    ),
}


def _orders(graph_module: torch.fx.GraphModule) -> list[list[int]]:
    return [axis_order(node) for node in graph_module.graph.nodes if kind(node) == "transpose"]


def _network(net: MakeNet, compute: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    layers = {name: nn.Conv2d(channels, 64, 1) for name, channels in (("a", 3), ("b", 3), ("c", 64))}
    module = net(compute, **layers).eval()
    module.register_buffer("table", torch.linspace(-1, 1, 64 * 64).reshape(1, 2, 64, 32))
    return module


@pytest.mark.parametrize("name", REWRITTEN)
def test_rows_come_from_maps_with_channels_last(name: str, net: MakeNet, noise: Noise) -> None:
    compute, expected = REWRITTEN[name]
    folded = fold(capture(_network(net, compute), noise(2, 3, 8, 8), source="test"))
    changed = rewritten(folded, (ROWS_OF_CHANNELS_LAST,))
    assert _orders(changed) == expected
    images = noise(3, 3, 8, 8, seed=1)
    torch.testing.assert_close(changed(images), folded(images))
    for node in changed.graph.nodes:
        if kind(node) in {"reshape", "transpose"}:
            made = node.target(*torch.fx.node.map_arg(node.args, lambda source: source.meta["val"]), **node.kwargs)
            assert made.shape == node.meta["val"].shape
    assert interface_of(changed) == interface_of(folded)


LEFT: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "no convolution": lambda n, x: x.flatten(2).transpose(1, 2).softmax(-1),
    "short blocks": lambda n, x: n.a(x).reshape(-1, 4, 16, 64).permute(0, 1, 3, 2).softmax(-1),
    "split into short blocks": _split,
    "positions last": lambda n, x: n.a(x).reshape(-1, 2, 32, 64).transpose(1, 2).softmax(-1),
    "channels and rows in one": lambda n, x: n.a(x).reshape(-1, 512, 8).transpose(1, 2).softmax(-1),
    "two readers": lambda n, x: (y := n.a(x).flatten(2)).transpose(1, 2) @ y,
}


@pytest.mark.parametrize("name", LEFT)
def test_what_would_gain_nothing_is_left_alone(name: str, net: MakeNet, noise: Noise) -> None:
    folded = fold(capture(_network(net, LEFT[name]), noise(2, 3, 8, 8), source="test"))
    assert rewritten(folded, (ROWS_OF_CHANNELS_LAST,)) is folded


def test_a_transposition_that_moves_nothing_is_left_out(net: MakeNet, noise: Noise) -> None:
    module = _network(net, lambda n, x: n.a(x).permute(0, 1, 2, 3).transpose(1, 1).softmax(-1))
    assert _orders(fold(capture(module, noise(2, 3, 8, 8), source="test"))) == []
