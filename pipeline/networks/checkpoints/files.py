"""Checkpoint files, read without running anything in them."""

from __future__ import annotations

import errno
import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from calibration.errors import UserError
from pipeline.networks.checkpoints.contents import contents_of, described
from pipeline.networks.checkpoints.file_kinds import foreign_kind
from pipeline.networks.checkpoints.inert_checkpoint import InertCheckpoint, InertCheckpointError, read_inert_checkpoint
from pipeline.networks.checkpoints.inert_pickle import Symbol
from pipeline.networks.checkpoints.one_network import Checkpoint
from pipeline.tools.regular_file import irregular
from pipeline.tools.source_text import shortened

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
# Functions that a pickle calls to do harm, and no checkpoint otherwise: nothing of any pickle is run, but who made such
# a file has other things in mind than weights.
_HARMFUL_MODULES = {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "pty", "ctypes", "importlib"}
_HARMFUL_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "execfile", "input", "breakpoint"}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, FILE or FILE#part, on the CPU; nothing in it is executed.

    Safetensors, or what torch.save wrote: tensors in dictionaries, also beside and in objects of other classes, of
    which only the tensors are read.

    Raises:
        UserError: the file cannot be read, is something else, would do harm, is damaged, or holds no tensors.
    """
    path, part = split_part(Path(path))
    if not path.exists():
        raise UserError(f"weights {path}: there is no such file")
    if (wrong := irregular(path)) is not None:
        raise UserError(f"weights {path} {wrong}")
    try:
        foreign = foreign_kind(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if foreign is not None:
        raise UserError(f"weights {path} {foreign}")
    held, inert = _read(path)
    contents = contents_of(held)
    if not contents.tensors:
        what = "no tensors" if isinstance(held, Mapping) else f"a {described(held)}, not a state dict of tensors"
        if inert is not None and any(symbol.module.startswith("numpy") for symbol in inert.called):
            what = "NumPy's arrays or numbers and no tensors"
        raise UserError(f"weights {path} hold {what}: save model.state_dict() with torch.save")
    return Checkpoint(path=path, part=part, contents=contents, inert=inert)


def split_part(path: Path) -> tuple[Path, str]:
    """Split FILE#part; a file whose own name holds a # is itself."""
    name, mark, part = str(path).rpartition("#")
    return (Path(name), part) if mark and name and not path.exists() else (path, "")


def _read(path: Path) -> tuple[Any, InertCheckpoint | None]:
    """What the file holds; where torch would have to import something for it, without that."""
    if path.suffix.lower() == ".safetensors":
        try:
            return load_file(path), None
        except SafetensorError as error:
            raise UserError(f"weights {path} are damaged or no safetensors file: {error}") from None
        except OSError as error:
            raise _unreadable(path, error) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which the user need not act on
            return torch.load(path, map_location="cpu", weights_only=True), None
    except pickle.UnpicklingError:
        return _read_inert(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    except _CORRUPTED as error:
        raise UserError(
            f"weights {path} are truncated or damaged: fetch or save them again ({_first_line(error)})"
        ) from None


def _unreadable(path: Path, error: OSError) -> UserError:
    """The line of a file that the system does not give, or whose end is sought where there is none."""
    if error.errno == errno.EINVAL:  # of a position that an archive names and the file does not have
        return UserError(f"weights {path} end too early or are damaged: fetch or save them again")
    return UserError(f"weights {path} cannot be read: {error.strerror or error}")


def _read_inert(path: Path) -> tuple[Any, InertCheckpoint]:
    try:
        inert = read_inert_checkpoint(path)
    except InertCheckpointError as error:
        raise UserError(
            f"weights {path} are damaged, or no checkpoint ({error}): save model.state_dict() with torch.save, or as"
            " .safetensors"
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from None
    harmful = sorted(str(symbol) for symbol in inert.called if _is_harmful(symbol))
    if harmful:
        raise UserError(
            f"weights {path} are a pickle that asks to run code ({shortened(harmful)}); none was run: do not open the"
            " file with other tools, and fetch the weights from somewhere else"
        )
    return inert.contents, inert


def _is_harmful(symbol: Symbol) -> bool:
    module = symbol.module.partition(".")[0]
    return module in _HARMFUL_MODULES or (module in ("builtins", "__builtin__") and symbol.name in _HARMFUL_BUILTINS)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:160] if lines else type(error).__name__
