"""Checkpoints: read without running code, and fitted to a network with every misfit named in one line."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.source_text import shortened

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".th", ".ckpt")
"""Checkpoint files that are read; all but the first are torch.save's."""

_CONTAINERS = ("state_dict", "model_state_dict", "model")
# nn.DataParallel and torch.compile put these before every key.
_PREFIXES = ("module.", "_orig_mod.")
# What torch.load(weights_only=True) raised over some 8,000 truncated and corrupted files.
_CORRUPTED = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AssertionError,
    struct.error,
    AttributeError,
    TypeError,
    OverflowError,
)


def load_state(path: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors by key, on the CPU, without prefixes that wrappers add.

    Nothing in the file is executed. A state dict may lie under the key state_dict, model_state_dict or model.

    Raises:
        UserError: the file cannot be read, would run code, is damaged, holds other things than tensors, or
            NaN.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"weights {path}: unknown kind of file {path.suffix!r}; known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"weights {path}: there is no such file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror}") from None
    state = _tensors(_read(path), path)
    for prefix in _PREFIXES * 2:  # twice: either wrapper may be the outer one
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    # +inf is a diverged training as surely as NaN; -inf is what attention masks are made of.
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not _is_usable(tensor)]
    if broken:
        raise UserError(f"weights {path} hold NaN or infinity in {len(broken)} tensors ({shortened(broken)})")
    return state


def fit_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy a checkpoint's tensors into a network, all of them or none.

    Batch counters of BatchNorm may be absent. Floating-point tensors are converted to the network's type.
    `where` names file and network in messages.

    Raises:
        UserError: keys are missing or unexpected, or shapes or kinds of numbers differ.
    """
    own = {key: tensor for key, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own and not key.endswith(".num_batches_tracked")]
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
        raise UserError(f"weights {where} do not fit: {', '.join(problems)}; is it a checkpoint of this architecture?")
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


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"weights {path} are damaged or no safetensors file: {error}") from None
        except OSError as error:
            raise UserError(f"weights {path} cannot be read: {error}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which the user need not act on
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's words for every function or class outside its list; the rest of its message is advice.
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickle that asks to run code ({wanted[1]})" if wanted else "damaged, or a pickle of other things"
        raise UserError(
            f"weights {path} are {what}; only tensors are read: save model.state_dict() with torch.save, "
            "or as .safetensors"
        ) from None
    except OSError as error:
        raise UserError(f"weights {path} cannot be read: {error.strerror or error}") from None
    except _CORRUPTED as error:
        if "TorchScript" in str(error):
            raise UserError(
                f"weights {path} are a TorchScript program, not a state dict: save model.state_dict()"
            ) from None
        raise UserError(f"weights {path} are truncated or damaged: {_first_line(error)}") from None


def _tensors(contents: Any, path: Path) -> dict[str, Tensor]:
    # A plain state dict may hold a module of the container's name, hence the check for a mapping.
    for name in _CONTAINERS:
        if isinstance(contents, Mapping) and isinstance(contents.get(name), Mapping):
            contents = contents[name]
            break
    if not isinstance(contents, Mapping):
        raise UserError(f"weights {path} hold a {type(contents).__name__}, not a state dict of tensors")
    others = [str(key) for key, value in contents.items() if not isinstance(value, Tensor)]
    if others:
        raise UserError(f"weights {path} hold {len(others)} entries that are no tensors ({shortened(others)})")
    if not contents:
        raise UserError(f"weights {path} hold no tensors")
    return {str(key): value.detach() for key, value in contents.items()}


def _is_usable(tensor: Tensor) -> bool:
    # Compared in float32: comparisons are not defined for every 8-bit float.
    return bool((tensor.to(torch.float32) < torch.inf).all())


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:160] if lines else type(error).__name__
