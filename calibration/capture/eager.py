"""The user's own module, run as it was handed over: the answers that everything made of it is held against."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from calibration.graph.sharing import Module, derived

#: How far into a module's Python attributes state is looked for.
_DEPTH = 3


def own_copy(module: Module) -> Module:
    """A copy in evaluation mode that may be run without the original's notice: its own are all but the parameters."""
    shared: dict[int, Tensor] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False) for parameter in module.parameters()
    }
    copied = copy.deepcopy(module, {**derived(module), **shared})
    copied.eval()  # a network's own version need not return it
    return copied


class Eager:
    """A copy of a network to be called with images; what calls leave behind stays in the copy.

    `module` is any that takes images float32 [B, C, H, W], or with `one_image` one image [1, C, H, W] at a time; its
    results that are tensors are returned in the order in which capture names them, each in memory of its own. What a
    call draws at random begins with `seed`; the global generator is as before afterwards.
    """

    def __init__(self, module: nn.Module, *, seed: int = 0, one_image: bool = False) -> None:
        self.module, self._seed, self.one_image = own_copy(module), seed, one_image

    def __call__(self, images: Tensor) -> list[Tensor]:
        """The tensors among the results for images [B, C, H, W], which stay as they are."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(self._seed)
            warnings.simplefilter("ignore")  # the network's own, said already when it was captured
            if not self.one_image:
                return self._results(images)
            alone = [self._results(image) for image in torch.split(images, 1)]
        return [torch.cat(answers) for answers in zip(*alone, strict=True)]

    def _results(self, images: Tensor) -> list[Tensor]:
        results = self.module(images.clone())
        return [leaf.detach().clone() for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)]

    def again(self, *, seed: int = 0) -> Eager:
        """Another copy, whose calls see nothing of this one's from now on."""
        return Eager(self.module, seed=seed, one_image=self.one_image)

    def in_double(self) -> Eager:
        """A copy that computes in float64."""
        double = self.again(seed=self._seed)
        double.module.double()  # its parameters are tensors of its own, so the network's stay as they are
        return double

    def state(self) -> dict[str, Any]:
        """Values of what calls may change, by the path of module and attribute: buffers, parameters, attributes."""
        values: dict[str, Any] = {}
        for name, parameter in self.module.named_parameters():
            values[name] = (
                tuple(parameter.shape),
                parameter._version,
            )  # too large to keep
        for path, module in self.module.named_modules():
            prefix = f"{path}." if path else ""
            for name, buffer in module._buffers.items():
                values[prefix + name] = None if buffer is None else buffer.detach().clone()
            for name, value in _attributes(module).items():
                values[prefix + name] = _kept(value, _DEPTH)
        return values

    def disturb(self, names: Sequence[str]) -> None:
        """Give numbers and tensors of these names in `state` other values."""
        for name in names:
            path, _, attribute = name.rpartition(".")
            owner = self.module.get_submodule(path)
            value = owner._buffers.get(attribute, owner.__dict__.get(attribute))
            if attribute in owner._buffers:
                owner._buffers[attribute] = _other(value)
            elif attribute in owner.__dict__:
                owner.__dict__[attribute] = _other(value)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names whose values differ between two states."""
    return [name for name in {**before, **after} if not _same(before.get(name), after.get(name))]


#: What every module has for itself: parts, hooks and flags.
_OWN = frozenset(nn.Module().__dict__)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _OWN}


def _kept(value: Any, depth: int) -> Any:
    """A value in a form that stays as it is: tensors cloned, containers by contents, objects by attributes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    if depth and isinstance(value, Mapping):
        return [(str(key), _kept(item, depth - 1)) for key, item in list(value.items())]
    if depth and _is_collection(value):
        return [_kept(item, depth - 1) for item in list(value)]
    if hasattr(value, "tobytes"):  # numpy's arrays and numbers
        return value.tobytes()
    inner = getattr(value, "__dict__", None)
    is_plain = isinstance(inner, dict) and not isinstance(value, (nn.Module, type)) and not callable(value)
    if depth and is_plain:
        return _kept(inner, depth - 1)
    return type(value).__qualname__


def _is_collection(value: Any) -> bool:
    """Whether a value holds others that can be listed without being used up."""
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, nn.Module)


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = first.shape == second.shape and first.dtype == second.dtype
        return alike and bool(torch.equal(first, second) or torch.equal(first.nan_to_num(), second.nan_to_num()))
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(_same(a, b) for a, b in zip(first, second, strict=True))
    return type(first) is type(second) and (first == second or first != first)


def _other(value: Any) -> Any:
    """Another value of the same kind; what is neither number nor tensor stays."""
    if isinstance(value, Tensor):
        return ~value if value.dtype == torch.bool else value * 3 + 17
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1_000_003
    if isinstance(value, list):
        return [_other(item) for item in value]
    if isinstance(value, dict):
        return {key: _other(item) for key, item in value.items()}
    return value
