"""Loading a network: folding is checked, and not blamed for what the network does to rounding by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch.fx import GraphModule

from calibration.graph.nearness import LARGEST_DIFFERENCE
from calibration.graph.operators import fixed_layers
from calibration.rewrites.fold import FOLDING
from calibration.rewrites.rewrite import RewriteChangedOutputs
from pipeline.networks.declared import Declared
from pipeline.stages.teacher import load_network

BUILDER = """
import torch
from torch.fx import GraphModule
from torch import nn


class Chaotic(nn.Module):
    '''What deep networks of random weights do to the last bit of their image, in one step.'''

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, x):
        return torch.sin(2e4 * self.norm(self.conv(x)).mean((2, 3)))


class Cancelling(nn.Module):
    '''An output that is 0 but for rounding: probabilities sum to 1.'''

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x):
        x = self.norm(self.layer(x))
        return x.mean((2, 3)), x.softmax(1).sum(1) - 1


class Listed(nn.Module):
    '''Layers in a plain list, which torch does not know of.'''

    def __init__(self):
        super().__init__()
        self.blocks, self.head = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)], nn.Linear(8, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).relu()
        return self.head(x.mean((2, 3)))


def build():
    return Chaotic(), {"height": 16}


def cancelling():
    return Cancelling(), {"height": 16}


def listed():
    return Listed(), {"height": 16}
"""


@pytest.fixture(autouse=True)
def at_the_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "chaotic_net.py").write_text(BUILDER)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield
    sys.path[:] = before
    sys.modules.pop("chaotic_net", None)


def test_a_network_that_multiplies_rounding_is_loaded() -> None:
    assert load_network("python:chaotic_net:build").fold_difference > LARGEST_DIFFERENCE


def test_an_output_that_is_nothing_but_rounding_is_loaded() -> None:
    kinds = ("output_0=values", "output_1=values")
    assert load_network("python:chaotic_net:cancelling", Declared(output_kinds=kinds)).fold_difference > 0.1


def test_layers_that_training_cannot_reach_are_told() -> None:
    loaded = load_network("python:chaotic_net:listed")
    assert fixed_layers(loaded.folded) == ["conv2d", "conv2d_1"]
    (note,) = [note for note in loaded.notes if "not trained" in note]
    assert note.startswith("python:chaotic_net:listed: the weights of conv2d, conv2d_1 are no parameters")
    assert not any("not trained" in note for note in load_network("python:chaotic_net:build").notes)


def test_a_fold_that_changes_the_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph_module: GraphModule) -> bool:
        layers.edit(graph_module)
        for parameter in graph_module.parameters():
            parameter.data = parameter.data * 1.001
        return True

    (layers,) = [row for row in FOLDING if row.name == "layers"]
    rows = tuple(replace(row, edit=wrong) if row is layers else row for row in FOLDING)
    monkeypatch.setattr("calibration.rewrites.fold.FOLDING", rows)
    for name in ("build", "cancelling"):
        with pytest.raises(RewriteChangedOutputs, match="'layers' changed the output"):
            load_network(f"python:chaotic_net:{name}")
