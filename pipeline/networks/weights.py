"""Weights of a file put into a network, with every misfit named in one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.networks.checkpoints.key_names import COUNTER, likely_cause
from pipeline.tools.source_text import shortened


def load_weights(path: Path, module: nn.Module, where: str, *, rename: Callable[[str], str] = str) -> tuple[str, ...]:
    """Read a checkpoint and copy its tensors into a network; return what the user should be told.

    Raises:
        UserError: it cannot be read, or does not fit; `where` names file and network.
    """
    state, notes = read_checkpoint(path).fitted_to(own_tensors(module), rename=rename)
    fit_state(module, state, where)
    return notes


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state by their names."""
    return {key: tensor for key, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}


def fit_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy a checkpoint's tensors into a network, all of them or none.

    Batch counters of BatchNorm may be absent. Floating-point tensors are converted to the network's type.
    `where` names file and network in messages.

    Raises:
        UserError: keys are missing or unexpected, or shapes or kinds of numbers differ.
    """
    own = own_tensors(module)
    missing = [key for key in own if key not in state and not key.endswith(COUNTER)]
    unexpected = [key for key in state if key not in own and not key.endswith(COUNTER)]
    shared = [key for key in own if key in state]
    shapes = [
        f"{key}: {list(state[key].shape)} in the file, {list(own[key].shape)} in the network"
        for key in shared
        if state[key].shape != own[key].shape
    ]
    # The step counter of BatchNorm is stored as a float by some converters; it decides nothing in eval mode.
    kinds = [
        f"{key}: {state[key].dtype}"
        for key in shared
        if own[key].is_floating_point() and not state[key].is_floating_point()
    ]
    problems = [
        f"{len(names)} {what} ({shortened(names)})"
        for names, what in (
            (missing, "keys missing"),
            (unexpected, "keys unexpected"),
            (shapes, "of another shape"),
            (kinds, "not of floating point"),
        )
        if names
    ]
    if problems:
        compared = {key: tensor for key, tensor in own.items() if not key.endswith(COUNTER)}
        offered = {key: tensor for key, tensor in state.items() if not key.endswith(COUNTER)}
        fitting = sum(key in offered and offered[key].shape == tensor.shape for key, tensor in compared.items())
        raise UserError(
            f"weights {where} do not fit: {', '.join(problems)}, {fitting} of {len(compared)} fit;"
            f" {likely_cause(compared, offered)}"
        )
    # Not load_state_dict: some networks' own versions of it ask for metadata that a safetensors file has not.
    with torch.no_grad():
        for key in shared:
            own[key].copy_(state[key])


def classes_in(state: Mapping[str, Tensor], module: nn.Module) -> int | None:
    """Return the checkpoint's number of classes where a differing number is the only misfit, else None.

    The sign of it: every tensor of another shape differs in its first axis only, from and to the same number.
    """
    own = module.state_dict()
    changes = set()
    for key, tensor in state.items():
        if key not in own or own[key].shape == tensor.shape:
            continue
        if own[key].ndim == 0 or own[key].shape[1:] != tensor.shape[1:] or tensor.ndim == 0:
            return None
        changes.add((own[key].shape[0], tensor.shape[0]))
    return changes.pop()[1] if len(changes) == 1 else None
