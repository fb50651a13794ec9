"""Networks as training lays them out."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.distillation.training.layout import channels_last


def test_maps_lie_with_their_channels_last_and_tensors_of_other_ranks_as_they_were() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(3, 3))
    network.register_buffer("masks", torch.randn(1, 2, 1, 3, 4))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moved = channels_last(network, torch.device("cpu"))
    assert moved is network
    assert network.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.get_buffer("masks").is_contiguous() and network.get_parameter("1.weight").is_contiguous()
