"""When two computations of a network are the same: up to float32's rounding, however the network amplifies it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Computation = Callable[[Tensor], Sequence[Tensor]]

#: Rounding of a deep network's output, relative to its largest value, stays below this; unless the network multiplies
#: what the last bit of its image, or of what its operators read, does: then below so many times that (measured: up to
#: 1.5 times, 50 layers of random weights).
LARGEST_DIFFERENCE = 1e-4
LARGEST_FACTOR = 8

#: What an image's probabilities are at least held to: a difference of 1e-6 of 1 is nothing in any of them. ONNX
#: Runtime's Sigmoid is 0.53 of the true value at -16, 0 from -18, and nowhere off by more than 1.7e-7 (measured on
#: 1.32, x86-64).
LEAST_PROBABILITY = 1e-2

#: In float64, where the same algebra agrees to twelve digits and more: what differs by more is another computation,
#: unless the network amplifies rounding, or parts of it compute in float32 all the same: that is measured then. What
#: differs by less passes: it is below what any file in float32 holds.
LARGEST_OF_THE_SAME = 1e-12

# Of an image whose outputs are a thousandth of another's, the last three digits are the other's rounding.
_SMALLEST_SHARE = 1e-3
# Outputs that small are zero for every purpose; the number only keeps 0 / 0 apart.
_NOTHING = 1e-12
#: Beyond all that networks compute: what masks put in place of minus infinity, which hides no difference of others.
HIDES = 1e30
# Where algebra is the same, float64 agrees to many more digits than float32; nothing that is wrong comes as near.
_LARGEST_IN_DOUBLE = 1e-6


def apart(ours: Tensor, theirs: Tensor, *, like: Tensor | None = None, least: float = 0.0) -> float:
    """Largest difference of an image's values, relative to the largest of that image in `theirs`, over all images.

    Both [B, ...]; infinite where the shapes differ, or where one is no finite number and the other not the same: an
    infinity that was left out would be any number. Numbers that hide others, as masks have them, are relative to
    themselves: beside 3e38 every other would be nothing. `like`, of the same shape: what it is relative to instead; to
    `least` at the least.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.numel():
        return 0.0
    first, second, relative = (
        values.detach().double().reshape(len(values) if values.dim() else 1, -1)
        for values in (ours, theirs, theirs if like is None else like)
    )
    known = torch.where(relative.abs() < HIDES, relative, 0.0).abs().amax(1)
    size = torch.maximum(known, known.max() * _SMALLEST_SHARE).clamp_min(max(least, _NOTHING))
    same = (first == second) | (first.isnan() & second.isnan())
    hides = second.isfinite() & (second.abs() >= HIDES)
    differences = (first - second).abs() / torch.where(hides, second.abs(), size[:, None])
    return float(differences.nan_to_num(nan=float("inf"), posinf=float("inf")).masked_fill(same, 0.0).max())


class _LastBits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """While it is entered, every operator reads numbers whose last bit is random.

    What is written in place, and what is only seen in another way, stays as it is.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the operator with what it is to read."""
        slots, returned = func._schema.arguments, [result.alias_info for result in func._schema.returns]
        named = dict(kwargs or {})
        if any(alias is not None and not alias.is_write for alias in returned):
            return func(*args, **named)  # a view: of another tensor there would be nothing to write through
        for name, value in named.items():
            named[name] = value if any(s.name == name and s.alias_info for s in slots) else self._moved(value)
        moved = [value if s.alias_info else self._moved(value) for s, value in zip(slots, args, strict=False)]
        return func(*moved, **named)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._moved(item) for item in value]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        signs = torch.rand(value.shape, generator=self._generator).to(value.device, value.dtype) * 2 - 1
        return value * (1 + torch.finfo(value.dtype).eps * signs)


def sensitivity(network: Computation, images: Tensor, like: Sequence[Tensor]) -> list[float]:
    """How far the last bits of its images, and of all that is computed on the way, move each of a network's outputs.

    Relative to the largest values of each image in `like`, of the outputs' shapes. Terms that cancel leave their
    rounding, as large as they are: of an output that is 0 but for that, images alone show nothing. 0 for an output that
    changes from call to call by itself, or from a number to none: neither chance nor infinity explains anything. Images
    of float64 are for a network in float64.
    """
    plain, again, epsilon = network(images), network(images), torch.finfo(images.dtype).eps
    near = [network(images * factor) for factor in (1 + epsilon, 1 - epsilon)]
    with torch.no_grad(), _LastBits(torch.Generator().manual_seed(0)):
        near += [network(images) for _ in range(2)]
    moved = []
    for index, (value, repeated, size) in enumerate(zip(plain, again, like, strict=True)):
        far = max(apart(other[index], value, like=size) for other in near)
        steady = apart(repeated, value) <= LARGEST_DIFFERENCE and math.isfinite(far)
        moved.append(far if steady else 0.0)
    return moved


def differing(
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    network: Computation,
    images: Tensor,
    *,
    largest: float = LARGEST_DIFFERENCE,
    least: Sequence[float] = (),
) -> list[tuple[int, float]]:
    """The outputs that differ by more than rounding explains, and by how much.

    `network` computes `theirs` of `images`, or outputs of their shapes: it is asked how rounding moves it, only where
    the difference is beyond that of common networks, `largest`. `least`, one for each output where there are any: what
    differences are relative to at the least (`LEAST_PROBABILITY`).
    """
    floors = least or [0.0] * len(theirs)
    differences = [apart(a, b, least=floor) for a, b, floor in zip(ours, theirs, floors, strict=True)]
    suspects = [(index, far) for index, far in enumerate(differences) if not far <= largest]
    if not suspects or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return suspects
    limits = sensitivity(network, images, theirs)
    return [(index, far) for index, far in suspects if not far <= LARGEST_FACTOR * limits[index]]


def equal_in_double(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether two computations in float64 are the same algebra."""
    return all(apart(a, b) <= _LARGEST_IN_DOUBLE for a, b in zip(ours, theirs, strict=True))
