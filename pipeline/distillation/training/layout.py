"""Networks where and as they train fastest."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def channels_last(module: _Module, device: torch.device) -> _Module:
    """The module itself, on the device and in the memory layout in which its convolutions are fastest."""
    moved: _Module = module.to(device)
    for tensor in (*moved.parameters(), *moved.buffers()):
        # Maps and their weights alone: Module.to refuses tensors of rank 5, such as Swin's masks of attention.
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return moved
