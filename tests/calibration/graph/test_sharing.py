"""Copies of networks in the same memory: what each of the two may do without the other's notice."""

from __future__ import annotations

import copy

import torch
from torch import nn

from calibration.graph.sharing import sharing_copy


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
