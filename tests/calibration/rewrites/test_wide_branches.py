"""Copies for narrow layers: the same function, 8 bits for the branch, and the oracle's numbers to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.facts.file_form import FileForm
from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from backends.placement.place import place
from calibration.graph.interface import interface_of
from calibration.graph.operators import kind
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.rewrite import rewritten
from calibration.rewrites.wide_branches import WIDE_BRANCHES
from calibration.simulation.freeze import freeze
from calibration.simulation.insert import insert
from tests.one_line_net import folded_with_seed, small_images

WIDTHS = Widths(weights=2, activations=2)


class Net(nn.Module):
    """A residual block with two branches, between a first layer and a last one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.third, self.short = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(x))
        x = (x + self.third(self.second(x).relu()) + self.short(x)).relu()
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def folded() -> GraphModule:
    return folded_with_seed(Net)


def test_the_function_stays_and_narrow_layers_share_one_copy(folded: GraphModule) -> None:
    changed = rewritten(folded, (WIDE_BRANCHES,))
    with torch.no_grad():
        assert torch.equal(changed(small_images(1))[0], folded(small_images(1))[0])
    (copied,) = [node for node in changed.graph.nodes if kind(node) == "copy"]
    assert {reader.name for reader in copied.users} == {"second", "short"}
    assert not [node for node in folded.graph.nodes if kind(node) == "copy"], "the given graph is as it was"
    assert interface_of(changed) == interface_of(folded)
    assert rewritten(changed, (WIDE_BRANCHES,)) is changed


def test_the_branch_keeps_8_bits_and_layers_read_few(folded: GraphModule) -> None:
    before, after = place(folded, X64, WIDTHS), place(rewritten(folded, (WIDE_BRANCHES,)), X64, WIDTHS)
    branch = {"add", "second"}  # what reads the tensor that is both branch and input
    assert [p.grid.bits for p in before.activations if branch <= set(p.readers)] == [2]
    assert {p.grid.bits for p in after.activations if "add" in p.readers} == {8}
    for placement in after.activations:
        narrow = {"second", "third", "short"} & set(placement.readers)
        assert placement.grid.bits == (2 if narrow else 8), placement.tensor
        assert placement.limit == (6.0 if placement.tensor in ("clone_default", "hardtanh", "relu6") else None)


def test_the_simulation_is_the_oracles(folded: GraphModule) -> None:
    changed = rewritten(folded, (WIDE_BRANCHES,))
    plan = place(changed, X64, WIDTHS)
    prepared = insert(changed, plan, choose_ranges(observe(changed, plan, [small_images(1)]), plan, "auto")).eval()
    oracle = IntegerOracle(emit(freeze(prepared, changed), opset=21, form=FileForm(packs_int4=True)))
    with torch.no_grad():
        assert torch.equal(prepared(small_images(2))[0], oracle.run(small_images(2))[0][0])


class Plain(nn.Module):
    """Layers one behind the other: nothing is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


def test_a_network_without_branches_stays_the_same_object() -> None:
    graph = folded_with_seed(Plain)
    assert rewritten(graph, (WIDE_BRANCHES,)) is graph
