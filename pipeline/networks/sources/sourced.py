"""What every source of networks hands over, and the steps that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn

from pipeline.images.preprocessing import Preprocessing
from pipeline.networks.checkpoints.one_network import Checkpoint
from pipeline.networks.weights import classes_in, fit_state, own_tensors


@dataclass(frozen=True, kw_only=True)
class SourcedModel:
    """A network with its weights, before the preprocessing is completed or overridden."""

    module: nn.Module
    preprocessing: Preprocessing | None  # None: the source carries none
    notes: tuple[str, ...] = ()  # what the user should be told
    output_kinds: Mapping[str, str] = field(default_factory=dict)  # output -> a key of OUTPUT_KINDS, where known
    class_names: tuple[str, ...] = ()  # in the order of the outputs, where known
    only_parts: str = ""  # why only sub-modules can be captured, and which; empty where the whole can


CLASSIFIER: Mapping[str, str] = MappingProxyType({"output": "classes"})
"""What a network of one output [B, K] says of it that is a classifier."""


@contextmanager
def reproducible_weights() -> Iterator[None]:
    """Inside, random weights are the same every time; what code may change for the whole of torch is put back after.

    That is the global generator, the default type and device of tensors, and whether gradients are recorded.
    """
    dtype, device, gradients = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_grad_enabled(gradients)


def module_with_state(
    build: Callable[[int | None], nn.Module],
    checkpoint: Checkpoint,
    *,
    classes: int | None,
    source: str,
    rename: Callable[[str], str] = str,
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build the network and load a checkpoint into it; also return notes.

    `build` takes the number of classes, None for the architecture's own. Where that number is not given and
    is all that differs between checkpoint and network, it is read from the checkpoint. `rename` puts the file's own
    spellings of names right.

    Raises:
        UserError: the checkpoint does not fit.
    """
    path, module = checkpoint.path, build(classes)
    state, notes = checkpoint.fitted_to(own_tensors(module), rename=rename)
    if classes is None and (stored := classes_in(state, module)) is not None:
        resized = build(stored)
        own = resized.state_dict()
        # Where more than the classes differs, the message is about the network that was asked for.
        if all(own[key].shape == tensor.shape for key, tensor in state.items() if key in own):
            module, notes = resized, (*notes, f"{stored} classes, as in {path.name}")
    fit_state(module, state, f"{path} for {source}")
    return module, notes
