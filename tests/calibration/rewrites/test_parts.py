"""Layers whose result is taken apart, written as one per part: the same function, however they are taken apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.graph.interface import interface_of
from calibration.graph.operators import WEIGHTED, kind
from calibration.rewrites.fold import fold
from calibration.rewrites.parts import LAYERS_PER_PART
from calibration.rewrites.rewrite import rewritten
from tests.one_line_net import Net

TOKENS, WIDTH, HEADS = 9, 16, 4


def tokens(n: Any, x: Tensor) -> Tensor:
    """[B, tokens, width] of images."""
    made: Tensor = n.a(x).flatten(2).transpose(1, 2)
    return made


def attention(parts: list[Tensor]) -> Tensor:
    """Of query, key and value [B, heads, tokens, width]."""
    query, key, value = parts
    mixed = (query @ key.transpose(2, 3) * 0.5).softmax(-1) @ value
    return mixed.transpose(1, 2).reshape(-1, TOKENS, WIDTH)


def heads(part: Tensor) -> Tensor:
    return part.reshape(-1, TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)


def by_part(y: Tensor) -> Tensor:
    """Of a product of three parts: [3, B, heads, tokens, width]."""
    return y.reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)


#: How networks take the product of queries, keys and values apart -> the network from that product on.
FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "unbind, as timm": lambda y: attention(list(by_part(y).unbind(0))),
    "indexed, as torchvision's Swin": lambda y: attention([(z := by_part(y))[0], z[1], z[2]]),
    "from the end": lambda y: attention([(z := by_part(y))[-3], z[-2], z[-1]]),
    "chunks, as MaxViT": lambda y: attention([heads(part) for part in y.chunk(3, -1)]),
    "slices": lambda y: attention([heads(y[..., at : at + WIDTH]) for at in (0, WIDTH, 2 * WIDTH)]),
    "head by head": lambda y: attention(
        list(y.reshape(-1, TOKENS, HEADS, 3, WIDTH // HEADS).permute(3, 0, 2, 1, 4).unbind(0))
    ),
    "split within heads, as TinyViT": lambda y: attention(
        [part.transpose(1, 2) for part in torch.split(y.reshape(-1, TOKENS, HEADS, 12), [4, 4, 4], 3)]
    ),
    "no transposition": lambda y: torch.stack(y.reshape(-1, TOKENS, 3, WIDTH).unbind(2)).square().sum(0),
    "one part unused": lambda y: y[..., :16] * y[..., 20:36],
}

#: What is no such layer.
LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    "parts overlap": lambda y: y[..., :32] * y[..., 16:],
    "the whole is read as well": lambda y: y[..., :24] * y[..., 24:] + y.sum(-1, keepdim=True),
    "a part alone": lambda y: y[..., :16] * 2,
    "every second channel": lambda y: y[..., ::2] * y[..., 1::2],
    "tokens are taken apart": lambda y: y[:, :4] * y[:, 4:8],
    "along two axes": lambda y: y[..., :24].sum(1, keepdim=True) + y[:, :1, 24:],
    "an activation lies between": lambda y: torch.relu(y)[..., :24] * torch.relu(y)[..., 24:],
}


def graph(form: Callable[[Tensor], Tensor], *, bias: bool = True) -> GraphModule:
    torch.manual_seed(0)  # of the layers' weights
    layer = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
    module = Net(lambda n, x: form(n.qkv(tokens(n, x))), a=nn.Conv2d(3, WIDTH, 4, stride=4), qkv=layer)
    return fold(capture(module.eval(), torch.randn(2, 3, 12, 12), source="test"))


def layers(module: GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes if kind(node) in WEIGHTED]


def result(module: GraphModule) -> Tensor:
    with torch.no_grad():
        value: Tensor = module(torch.randn((3, 3, 12, 12), generator=torch.Generator().manual_seed(1)))[0]
    return value


@pytest.mark.parametrize(("form", "bias"), [*((form, True) for form in FORMS), ("unbind, as timm", False)])
def test_the_function_stays(form: str, bias: bool) -> None:
    before = graph(FORMS[form], bias=bias)
    after = rewritten(before, (LAYERS_PER_PART,))
    assert layers(before) == ["a", "qkv"]
    assert layers(after) == ["a", *(f"qkv_{index}" for index in range(2 if form == "one part unused" else 3))]
    torch.testing.assert_close(result(after), result(before), rtol=1e-5, atol=1e-6)
    assert interface_of(after) == interface_of(before)
    (rows,) = {node.args[0] for node in after.graph.nodes if kind(node) == "linear"}
    assert len(rows.users) == len(layers(after)) - 1, "they read one tensor, which is rounded once"
    assert rewritten(after, (LAYERS_PER_PART,)) is after


@pytest.mark.parametrize("form", LEFT)
def test_what_is_not_taken_apart_is_left_alone(form: str) -> None:
    before = graph(LEFT[form])
    assert rewritten(before, (LAYERS_PER_PART,)) is before


def test_a_weight_that_others_read_is_left_alone() -> None:
    def shared(n: Any, x: Tensor) -> Tensor:
        for _ in range(2):
            x = attention([heads(part) for part in n.qkv(tokens(n, x) if x.dim() == 4 else x).chunk(3, -1)])
        return x

    torch.manual_seed(0)
    module = Net(shared, a=nn.Conv2d(3, WIDTH, 4, stride=4), qkv=nn.Linear(WIDTH, 3 * WIDTH))
    before = fold(capture(module.eval(), torch.randn(2, 3, 12, 12), source="test"))
    assert rewritten(before, (LAYERS_PER_PART,)) is before
