"""What a user's builder returned: the network in its wrappers, or a line about what it is instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from calibration.errors import UserError

_EXPECTED = "an nn.Module, or (nn.Module, Preprocessing or a dict of its fields)"


def unwrapped(module: nn.Module, source: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Take what trains or compiles a network off it: torch.compile, DataParallel, DDP, AveragedModel; and say so."""
    taken: list[str] = []
    while True:
        inner = _inner(module)
        if inner is None:
            break
        taken.append(type(module).__name__ if not hasattr(module, "_orig_mod") else "torch.compile")
        module = inner
    notes = (f"{source}: the network inside {', '.join(taken)} is taken",) if taken else ()
    return module, notes


def _inner(module: nn.Module) -> nn.Module | None:
    wrappers = (
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
    )
    attribute = "module" if isinstance(module, wrappers) else "_orig_mod"
    # In the table of parts itself: torch.compile's wrapper answers for every attribute of what is in it.
    inner = module.__dict__.get("_modules", {}).get(attribute)
    is_compiled = type(module).__module__.startswith("torch._dynamo")
    return inner if isinstance(inner, nn.Module) and (is_compiled or attribute == "module") else None


def refused(returned: Any, source: str) -> UserError:
    """What to say of something that is neither a network nor a network with its preprocessing."""
    kind = type(returned).__name__
    if returned is None:
        why = "None: does the function end with return?"
    elif isinstance(returned, type):
        why = f"the class {returned.__name__}, not a network: return {returned.__name__}(...)"
    elif isinstance(returned, Mapping) and returned and all(isinstance(v, Tensor) for v in returned.values()):
        why = "a state dict: build the network in the function, and load it there or give the file with --weights"
    elif isinstance(returned, torch.export.ExportedProgram):
        why = "an exported program, whose sizes are fixed: return the network that it was exported from"
    elif isinstance(returned, (list, tuple)) and any(isinstance(item, nn.Module) for item in returned):
        why = f"a {kind} of {len(returned)} things, a network among them; it must return {_EXPECTED}"
    elif callable(returned) and hasattr(returned, "__code__"):
        why = "a function: name the function that returns the network itself"
    else:
        why = f"a {kind}; it must return {_EXPECTED}"
    return UserError(f"{source} returned {why}")
