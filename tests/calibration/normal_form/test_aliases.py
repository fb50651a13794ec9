"""What torch has under two names is one operator in the captured graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from calibration.capture.graph_from_module import capture
from calibration.normal_form.aliases import ALIASES

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise

Line = Callable[[Tensor], Tensor]
PAIRS: dict[str, tuple[Line, Line]] = {
    "multiply": (lambda x: torch.multiply(x, 2).multiply_(x), lambda x: x * 2 * x),
    "divide": (lambda x: torch.divide(x, 3).divide_(x.exp()), lambda x: x / 3 / x.exp()),
    "true_divide": (lambda x: torch.true_divide(x, x.exp()), lambda x: x / x.exp()),
    "subtract": (lambda x: torch.subtract(x, x.exp(), alpha=2), lambda x: x - 2 * x.exp()),
    "negative, absolute": (lambda x: torch.negative(x).exp().negative_().absolute(), lambda x: (-(-x).exp()).abs()),
    "concat": (lambda x: torch.concat([x, x], -1), lambda x: torch.cat([x, x], -1)),
    "concatenate": (lambda x: torch.concatenate((x, x), 1), lambda x: torch.cat([x, x], 1)),
    "clip": (lambda x: torch.clip(x, max=1).clip_(-1), lambda x: x.clamp(max=1).clamp(min=-1)),
    "clip, as clamp is relu": (lambda x: torch.clip(x, 0), torch.relu),
    "special": (lambda x: torch.special.expit(torch.special.erf(x)), lambda x: x.erf().sigmoid()),
    "special softmax": (lambda x: torch.special.softmax(x, 1), lambda x: x.softmax(1)),
    "product": (lambda x: torch.linalg.matmul(x, x.exp()), lambda x: x @ x.exp()),
    "positive": (lambda x: +x.exp(), torch.exp),
}


@pytest.mark.parametrize("name", PAIRS)
def test_either_name_gives_the_same_graph(name: str, net: MakeNet, noise: Noise) -> None:
    images, graphs = noise(2, 3, 4, 4), []
    for line in PAIRS[name]:
        captured = capture(net(lambda n, x, line=line: line(x)), images, source="test")
        torch.testing.assert_close(captured(images)[0], line(images))
        graphs.append([node.target for node in captured.graph.nodes if node.op == "call_function"])
    assert graphs[0] == graphs[1]


def test_an_alias_takes_what_its_operator_takes() -> None:
    assert len(ALIASES) > 20
    for alias, known in ALIASES.items():
        taken = [[str(slot.type) for slot in operator._schema.arguments] for operator in (alias, known)]
        assert taken[0] == taken[1] and len(alias._schema.returns) == len(known._schema.returns)
