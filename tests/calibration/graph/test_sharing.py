"""Copies of networks in the same memory: what each of the two may do without the other's notice."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule

from calibration.graph.sharing import draft_of, sharing_copy


def network() -> nn.Sequential:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    module.append(nn.Conv2d(4, 4, 3))
    module[3].weight = module[2].weight
    return module


def places(module: nn.Module) -> list[int]:
    return [value.data_ptr() for value in (*module.parameters(), *module.buffers())]


def test_values_are_in_the_same_memory_and_tied_ones_stay_tied() -> None:
    module = network()
    copied = sharing_copy(module)
    assert places(copied) == places(module)
    assert copied[3].weight is copied[2].weight is not module[2].weight
    assert copied.state_dict().keys() == module.state_dict().keys()


def test_either_may_be_given_other_values_flags_and_types() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    copied = sharing_copy(module).requires_grad_(False).double()
    copied[0].weight.data = torch.zeros(4, 3, 3, 3)
    copied.eval().to(memory_format=torch.channels_last)
    assert all(parameter.requires_grad for parameter in module.parameters()) and module.training
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


def test_training_a_copy_of_the_copy_changes_neither() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    trained = copy.deepcopy(sharing_copy(module))
    trained(torch.ones(2, 3, 9, 9)).sum().backward()
    torch.optim.SGD(trained.parameters(), lr=1.0).step()
    assert not torch.equal(trained.get_parameter("0.weight"), module.get_parameter("0.weight"))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def traced() -> GraphModule:
    """The same network's last layers as a graph that reads tensors, and calls a module."""
    root = nn.Module()
    root.part, root.act = network(), nn.BatchNorm2d(4)
    root.register_buffer("shift", torch.ones(4, 1, 1))
    graph = Graph()
    x = graph.placeholder("x")
    for index in (2, 3):
        x = graph.call_function(nn.functional.conv2d, (x, graph.get_attr(f"part.{index}.weight")))
    x = graph.call_module("act", (x,))
    graph.output(graph.call_function(operator.add, (x, graph.get_attr("shift"))))
    return GraphModule(root.eval(), graph)


@pytest.mark.parametrize("shared", [True, False])
def test_a_draft_has_all_that_its_graph_reads_and_runs_when_it_is_compiled(shared: bool) -> None:
    module, images = traced(), torch.randn(2, 4, 9, 9)
    module.meta["said"] = 1
    draft = draft_of(module, shared=shared)
    assert draft.get_parameter("part.2.weight") is draft.get_parameter("part.3.weight")
    assert draft.get_parameter("part.2.weight") is not module.get_parameter("part.2.weight")
    for path in ("part.2.weight", "act.weight"):
        same = draft.get_parameter(path).data_ptr() == module.get_parameter(path).data_ptr()
        assert same is shared
    assert dict(draft.named_buffers()).keys() == dict(module.named_buffers()).keys()
    assert draft.meta == module.meta and not draft.training
    with pytest.raises(NotImplementedError):
        draft(images)
    draft.recompile()
    assert torch.equal(draft(images), module(images))


def test_what_is_edited_in_a_draft_is_not_in_its_original() -> None:
    module, images = traced(), torch.randn(2, 4, 9, 9)
    before = module(images)
    draft = draft_of(module)
    draft.shift = torch.zeros(4, 1, 1)
    last = next(node for node in draft.graph.nodes if node.target is not None and "add" in node.name)
    last.replace_all_uses_with(last.args[0])
    made = GraphModule(draft, draft.graph)
    torch.testing.assert_close(made(images), before - 1)
    assert torch.equal(module(images), before)
