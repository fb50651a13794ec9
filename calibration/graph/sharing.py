"""Copies of networks that do not copy their weights: what a rewrite leaves alone it has in memory once."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def sharing_copy(module: Module) -> Module:
    """A copy whose parameters and buffers are tensors of their own on the same memory.

    Either may be moved, retyped, given other values as a whole or other flags without the other's notice. What writes
    into a value in place, as an optimiser does, writes into both: it wants `copy.deepcopy`.
    """
    shared: dict[int, Tensor] = {}
    for parameter in module.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        shared[id(buffer)] = buffer.detach()
    return copy.deepcopy(module, {**derived(module), **shared})


def derived(module: nn.Module) -> dict[int, Tensor]:
    """By id what hooks compute of parameters and keep (weight_norm and prune of old), detached: torch copies no such.

    In memory of its own.
    """
    attributes = [value for part in module.modules() for value in vars(part).values()]
    return {
        id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and not value.is_leaf
    }
