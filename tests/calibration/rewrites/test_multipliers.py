"""Numbers that multiply tensors: constants of one value, and numbers behind products of two tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.graph.interface import interface_of
from calibration.graph.operators import kind, multiplier
from calibration.rewrites.fold import difference_of_graphs, fold
from calibration.rewrites.multipliers import NUMBERS_BEFORE_PRODUCTS
from calibration.rewrites.rewrite import rewritten

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

CONSTANTS: dict[str, tuple[Callable[[Any, Tensor], Tensor], float | None]] = {
    "product": (lambda n, x: torch.relu(n.a(x)) * torch.full((1, 1, 1), 0.3), 0.3),
    "constant first": (lambda n, x: torch.full((), 0.3) * torch.relu(n.a(x)), 0.3),
    "quotient": (lambda n, x: torch.relu(n.a(x)) / torch.full((1,), 4.0), 0.25),
    "negative": (lambda n, x: torch.relu(n.a(x)) * torch.full((1,), -0.3), None),
    "one of two": (lambda n, x: torch.relu(n.a(x)) * torch.tensor([0.3, 0.4]).view(2, 1, 1), None),
    "another rank": (lambda n, x: (torch.relu(n.a(x)) * torch.full((1, 1, 1, 1, 1), 0.3))[0], None),
    "divided": (lambda n, x: torch.full((1,), 0.3) / (1 + torch.relu(n.a(x))), None),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_of_one_value_is_a_number(name: str, net: MakeNet, noise: Noise) -> None:
    compute, expected = CONSTANTS[name]
    module = net(compute, a=nn.Conv2d(3, 2, 3)).eval()
    captured = capture(module, noise(2, 3, 8, 8), source="test")
    folded = fold(captured)
    assert difference_of_graphs(captured, folded, noise(3, 3, 8, 8, seed=1)) < 1e-6
    factors = [multiplier(node) for node in folded.graph.nodes if kind(node) in {"mul", "div"}]
    assert factors == [expected if expected is None else pytest.approx(expected)]


def _tokens(n: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = n.qkv(x.flatten(2).transpose(1, 2)).reshape(-1, 36, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def _behind(n: Any, x: Tensor) -> Tensor:
    query, key, value = _tokens(n, x)
    return ((query @ key.transpose(-2, -1)) * 0.3).softmax(-1) @ value


def _on_values(n: Any, x: Tensor) -> Tensor:
    query, key, value = _tokens(n, x)
    return ((query @ key.transpose(-2, -1)).softmax(-1) @ value) * 0.3


def _of_own_layer(n: Any, x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    result: Tensor = (n.q(tokens) @ n.k(tokens).transpose(-2, -1)) * 0.3
    return result


def _read_by_others(n: Any, x: Tensor) -> Tensor:
    query, key, _ = _tokens(n, x)
    return (scores := query @ key.transpose(-2, -1)) * 0.3 + scores


def _without_layers(n: Any, x: Tensor) -> Tensor:
    tokens: Tensor = n.q(x.flatten(2).transpose(1, 2)).softmax(-1)
    return (tokens @ tokens.transpose(-2, -1)) * 0.3


MOVED: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[tuple[str, str]]]] = {
    "behind the scores": (_behind, [("matmul", "select")]),
    "behind the values": (_on_values, [("matmul", "select")]),
    "into a layer of its own": (_of_own_layer, []),
    "read by others": (_read_by_others, [("add", "matmul")]),
    "no layer before": (_without_layers, [("", "matmul")]),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_number_behind_a_product_moves_before_it(name: str, net: MakeNet, noise: Noise) -> None:
    compute, expected = MOVED[name]
    layers = {"qkv": nn.Linear(3, 48), "q": nn.Linear(3, 8), "k": nn.Linear(3, 8)}
    folded = fold(capture(net(compute, **layers).eval(), noise(2, 3, 6, 6), source="test"))
    moved = rewritten(folded, (NUMBERS_BEFORE_PRODUCTS,))
    assert difference_of_graphs(folded, moved, noise(3, 3, 6, 6, seed=1)) < 1e-5
    numbers = [node for node in moved.graph.nodes if multiplier(node) is not None]
    places = [(kind(next(iter(node.users))).replace("output", ""), kind(node.args[0])) for node in numbers]
    assert places == expected
    assert (moved is folded) == (name in {"read by others", "no layer before"})
    assert interface_of(moved) == interface_of(folded)
