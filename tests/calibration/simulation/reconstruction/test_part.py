"""Parts of a graph: what the whole computes there, and nothing that follows from anything else."""

from __future__ import annotations

import pytest
import torch

from calibration.simulation.reconstruction.part import Part
from tests.calibration.conftest import BuildChain, MakeNet, Noise
from tests.one_line_net import c3, residual, values_of

LAYERS = {"a": (3, 4), "b": (4, 4), "c": (4, 4), "d": (4, 2)}


def test_a_part_computes_what_the_whole_does(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    made = chain(net(residual, **{name: c3(*sizes) for name, sizes in LAYERS.items()}), noise(4, 3, 8, 8))
    network = made.prepared.eval()
    values = values_of(network.graph, made.images)
    held = network.integers
    first, joined = next(name for name in held if name != "x"), "relu_2"
    part = Part(network.graph, [held[first]], [held[joined]])
    with torch.no_grad():
        (result,) = part(values[held[first]])
    assert torch.equal(result, values[held[joined]])
    # Its parameters stay those of the whole: nothing is stored or trained twice.
    assert not list(part.parameters())


def test_what_follows_from_more_than_the_inputs_is_refused(chain: BuildChain, net: MakeNet, noise: Noise) -> None:
    made = chain(net(residual, **{name: c3(*sizes) for name, sizes in LAYERS.items()}), noise(4, 3, 8, 8))
    with pytest.raises(ValueError, match="relu_2 follow from"):
        Part(made.folded, ["b"], ["relu_2"])  # the way past the block is left out
