"""The factors of layers: their products with the weights are what the layers give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.graph.operators import kind
from calibration.simulation.reconstruction.layer_products import KINDS, groups_of, products
from tests.calibration.conftest import MakeNet, Noise
from tests.chain import folded_graph

LAYERS: dict[str, nn.Module] = {
    "plain": nn.Conv2d(4, 6, 3),
    "padded": nn.Conv2d(4, 6, 3, padding=1),
    "uneven": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1)),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "grouped": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "pointwise": nn.Conv2d(4, 6, 1),
}


def only(n: Any, x: Tensor) -> Tensor:
    result: Tensor = n.layer(x)
    return result


def seen(layer: nn.Module, images: Tensor, net: MakeNet, positions: int) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of a layer, the outputs at the same places, and its weight by groups."""
    graph = folded_graph(net(only, layer=layer).eval(), images)
    node = next(node for node in graph.graph.nodes if kind(node) in KINDS)
    with torch.no_grad():
        x, y = products(node, images, layer(images), positions=positions, generator=torch.Generator().manual_seed(0))
    weight = layer.weight.detach()  # type: ignore[operator]
    return x, y, weight.reshape(groups_of(node), -1, x.shape[-1])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("positions", [7, 10_000])
def test_products_with_the_weights_are_the_outputs(name: str, positions: int, net: MakeNet, noise: Noise) -> None:
    layer, images = LAYERS[name], noise(2, 4, 9, 8)
    x, y, weight = seen(layer, images, net, positions)
    places = layer(images)[0, 0].numel()
    assert x.shape[1] == y.shape[1] == 2 * min(positions, places)
    bias = layer.bias.detach().reshape(len(weight), 1, -1)  # type: ignore[operator]
    torch.testing.assert_close(torch.einsum("gnk,gok->gno", x, weight) + bias, y, rtol=1e-4, atol=1e-5)


def test_a_linear_layer_of_rows_and_of_vectors(net: MakeNet, noise: Noise) -> None:
    layer = nn.Linear(5, 3)
    for images in (noise(4, 5), noise(2, 6, 5)):
        x, y, weight = seen(layer, images, net, 4)
        assert x.shape[1] == len(images) * min(4, images[0].numel() // 5)
        torch.testing.assert_close(x[0] @ weight[0].T + layer.bias, y[0], rtol=1e-4, atol=1e-5)


def test_places_are_drawn_by_the_generator(net: MakeNet, noise: Noise) -> None:
    layer, images = LAYERS["plain"], noise(2, 4, 9, 8)
    first, again = (seen(layer, images, net, 5)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[:, :5], seen(layer, images, net, 42)[0][:, :5])
