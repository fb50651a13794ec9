"""Blocks of networks: every layer in one, cut where few tensors are alive, and together the whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.simulation.reconstruction.blocks import blocks_of
from calibration.simulation.reconstruction.part import Part
from tests.calibration.conftest import BuildChain, Chain, MakeNet, Noise
from tests.one_line_net import c3, residual, values_of


def unet(n: Any, x: Tensor) -> Tensor:
    """Two resolutions down and up again, with a skip at each."""
    a = torch.relu(n.a(x))
    b = torch.relu(n.b(nn.functional.max_pool2d(a, 2)))
    c = torch.relu(n.d(torch.relu(n.c(nn.functional.max_pool2d(b, 2)))))
    up = torch.relu(n.e(torch.cat([nn.functional.interpolate(c, scale_factor=2.0), b], 1)))
    result: Tensor = n.g(torch.relu(n.f(torch.cat([nn.functional.interpolate(up, scale_factor=2.0), a], 1))))
    return result


def heads(n: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """An output in the middle and one at the end."""
    y = torch.relu(n.b(torch.relu(n.a(x))))
    early = n.c(y)
    z = torch.relu(n.e(torch.relu(n.d(y))))
    return early, n.g(torch.relu(n.f(z)))


def plain(n: Any, x: Tensor) -> Tensor:
    """Six layers in a row."""
    for layer in (n.a, n.b, n.c, n.d, n.e):
        x = torch.relu(layer(x))
    result: Tensor = n.f(x)
    return result


NETWORKS: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, int]]]] = {
    "residual": (residual, {"a": (3, 4), "b": (4, 4), "c": (4, 4), "d": (4, 2)}),
    "unet": (unet, {"a": (3, 4), "b": (4, 4), "c": (4, 4), "d": (4, 4), "e": (8, 4), "f": (8, 4), "g": (4, 2)}),
    "heads": (heads, {"a": (3, 4), **{name: (4, 4) for name in "bcdef"}, "g": (4, 2)}),
    "plain": (plain, {"a": (3, 4), **{name: (4, 4) for name in "bcde"}, "f": (4, 2)}),
}


@pytest.fixture
def made(request: pytest.FixtureRequest, chain: BuildChain, net: MakeNet, noise: Noise) -> Chain:
    compute, layers = NETWORKS[request.param]
    return chain(net(compute, **{name: c3(*sizes) for name, sizes in layers.items()}), noise(4, 3, 16, 16), bits=4)


@pytest.mark.parametrize("made", NETWORKS, indirect=True)
def test_every_layer_is_in_one_block(made: Chain) -> None:
    layers = [layer for block in blocks_of(made.folded, made.prepared) for layer in block.layers]
    assert layers == [placement.layer for placement in made.plan.weights]


@pytest.mark.parametrize("made", NETWORKS, indirect=True)
def test_one_behind_the_other_they_are_the_network(made: Chain) -> None:
    network, blocks = made.prepared.eval(), blocks_of(made.folded, made.prepared)
    held = network.integers
    values, floats = {blocks[0].inputs[0]: made.images}, {blocks[0].inputs[0]: made.images}
    whole = values_of(network.graph, made.images)
    whole_float = values_of(made.folded, made.images)
    with torch.no_grad():
        for index, block in enumerate(blocks):
            begins = [name if index == 0 else held[name] for name in block.inputs]
            assert set(block.inputs) <= values.keys()
            handed_on = [name for name in block.outputs if name in block.handed_on]
            made_on = Part(network.graph, begins, [held[name] for name in handed_on])
            for name, result in zip(handed_on, made_on(*(values[name] for name in block.inputs)), strict=True):
                assert torch.equal(result, whole[held[name]])
                values[name] = result
            own = Part(made.folded, block.inputs, block.outputs)(*(floats[name] for name in block.inputs))
            for name, result in zip(block.outputs, own, strict=True):
                assert torch.equal(result, whole_float[name])
                floats[name] = result
            assert set(block.handed_on) <= values.keys()
    results = {node.name for node in made.folded.graph.nodes if any(user.op == "output" for user in node.users)}
    assert results <= floats.keys()


@pytest.mark.parametrize("made", ["residual"], indirect=True)
def test_a_residual_block_is_not_cut(made: Chain) -> None:
    assert [block.layers for block in blocks_of(made.folded, made.prepared)] == [
        ("a", "b", "c"),
        ("d",),
    ]


@pytest.mark.parametrize("made", ["plain"], indirect=True)
def test_layers_in_a_row_are_joined_by_threes(made: Chain) -> None:
    blocks = blocks_of(made.folded, made.prepared)
    assert [len(block.layers) for block in blocks] == [3, 3]
    assert blocks[0].outputs == blocks[1].inputs == blocks[0].handed_on


@pytest.mark.parametrize("made", ["heads"], indirect=True)
def test_an_output_in_the_middle_is_of_the_block_that_computes_it(made: Chain) -> None:
    blocks = blocks_of(made.folded, made.prepared)
    (early,) = [block for block in blocks if "c" in block.layers]
    assert "c" in early.outputs and "c" not in early.handed_on
    assert blocks[-1].handed_on == ()
    assert blocks[-1].outputs == ("g",)
