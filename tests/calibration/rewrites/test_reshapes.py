"""Activations are computed before reshapes, and reshapes that undo each other disappear."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.graph.operators import kind, static_shape
from calibration.rewrites.fold import difference_of_graphs, fold

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "between linear layers": (
        lambda n, x: n.b(F.gelu(n.a(x.flatten(2)))),
        ["reshape", "linear", "gelu", "linear", "reshape"],
    ),
    "last": (lambda n, x: torch.relu(n.a(x.flatten(2))), ["reshape", "linear", "relu", "reshape"]),
    "before another shape": (
        lambda n, x: torch.tanh(n.a(x.flatten(2))).reshape(-1, 6, 4),
        ["reshape", "linear", "tanh", "reshape"],
    ),
    "before a flattening": (
        lambda n, x: torch.tanh(n.a(x.flatten(2))).unsqueeze(1),
        ["reshape", "linear", "tanh", "reshape", "reshape"],
    ),
    "two readers": (
        lambda n, x: n.b(y := torch.sigmoid(n.a(x.flatten(2)))) + y,
        ["reshape", "linear", "sigmoid", "reshape", "linear", "reshape", "add"],
    ),
    "read by others": (
        lambda n, x: torch.relu(y := n.a(x.flatten(2))) + y,
        ["reshape", "linear", "reshape", "relu", "add"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_activation_is_computed_before_a_reshape(name: str, net: MakeNet, noise: Noise) -> None:
    compute, expected = CASES[name]
    module = net(compute, a=nn.Linear(16, 8), b=nn.Linear(8, 8)).eval()
    captured = capture(module, noise(2, 3, 4, 4), source="test")
    folded = fold(captured)
    assert [kind(node) for node in folded.graph.nodes if node.op == "call_function"] == expected
    images = noise(3, 3, 4, 4, seed=1)
    assert difference_of_graphs(captured, folded, images) < 1e-6
    for node in folded.graph.nodes:
        if node.op == "call_function" and kind(node) != "reshape":
            (source, *_) = node.all_input_nodes
            assert kind(node) in {"linear", "add"} or static_shape(node) == static_shape(source)
