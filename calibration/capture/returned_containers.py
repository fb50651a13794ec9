"""What a network returns: tensors in whatever holds them, dataclasses and dictionaries of the user's own among it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from calibration.errors import UserError, message_of

_HOW = (
    "return tensors in a tuple, a dictionary or a dataclass, in a builder given as --teacher"
    " python:package.module:function"
)


def make_known(results: object, source: str, path: str = "output") -> None:
    """Let torch look into every dataclass and dictionary that a network returned, so that its tensors have names.

    Raises:
        UserError: there is no tensor in it, one that cannot be learned (bool, integers, complex), or an object that is
            none of these; `source` names the network.
    """
    if not _look_into(results, source, path):
        what = "None" if results is None else f"a {type(results).__name__} without a tensor"
        raise UserError(f"{source}: the network returns {what}; {_HOW}")


def _look_into(value: Any, source: str, path: str) -> bool:
    """Whether there is a tensor in it."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise UserError(
                f"{source}: the network's {path} holds {str(value.dtype).removeprefix('torch.')}, which cannot be"
                " learned: return what it is computed from, such as the logits before argmax or a threshold, or leave"
                " it out"
            )
        if not value.numel():
            raise UserError(
                f"{source}: the network's {path} is empty, of shape {list(value.shape)}: leave it out, in a builder"
                " given as --teacher python:package.module:function"
            )
        return True
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return False  # named where the names of outputs are made, as far as the graph does not leave it out
    if isinstance(value, Mapping):
        _register(value, _register_mapping, source, path)
        return any([_look_into(item, source, f"{path} {key}") for key, item in value.items()])
    if isinstance(value, (list, tuple)):
        _register(value, _register_sequence, source, path)
        return any([_look_into(item, source, f"{path} {index}") for index, item in enumerate(value)])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        _register(value, torch.export.register_dataclass, source, path)
        names = [field.name for field in dataclasses.fields(value)]
        return any([_look_into(getattr(value, name, None), source, f"{path} {name}") for name in names])
    if type(value) in pytree.SUPPORTED_NODES:
        return any([_look_into(leaf, source, path) for leaf in pytree.tree_leaves(value)])
    raise UserError(f"{source}: the network's {path} is a {type(value).__name__}, into which nothing can look; {_HOW}")


def _register(value: Any, register: Any, source: str, path: str) -> None:
    kind = type(value)
    if kind in pytree.SUPPORTED_NODES or pytree.is_namedtuple_instance(value):
        return
    try:
        register(kind)
    except (ValueError, TypeError) as error:  # such as fields that no constructor takes
        raise UserError(
            f"{source}: the network's {path}, a {kind.__name__}, cannot be taken apart ({message_of(error)}); {_HOW}"
        ) from error


def _register_mapping(kind: type) -> None:
    pytree.register_pytree_node(
        kind,
        lambda mapping: (list(mapping.values()), list(mapping)),
        lambda values, keys: dict(zip(keys, values, strict=True)),
        flatten_with_keys_fn=lambda mapping: ([(pytree.MappingKey(k), v) for k, v in mapping.items()], list(mapping)),
    )


def _register_sequence(kind: type) -> None:
    pytree.register_pytree_node(
        kind,
        lambda values: (list(values), None),
        lambda values, _: list(values),
        flatten_with_keys_fn=lambda values: ([(pytree.SequenceKey(i), v) for i, v in enumerate(values)], None),
    )
