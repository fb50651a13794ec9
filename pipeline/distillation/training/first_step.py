"""How large a learning rate a student stands: its first step is tried before it is taken.

Adam divides each gradient by its own size, so its first steps move every weight by the learning rate whatever its
gradient is, all of a layer's in one direction of the loss. Where a student starts almost equal to its teacher, such a
step is far beyond what there is to gain. Measured after one step at the whole rate, logits alone, training images
other than the step's: ResNet-20 at 8 bits 0.0133 -> 0.323 (1e-4), 0.036 (3e-5), 0.0165 (1e-5): the rise goes with the
square of the rate; at 4 bits 0.197 -> 0.293 (1e-4), which training makes good. EfficientNet-Lite0 at 8 bits
0.0122 -> 0.031 (1e-4), 0.255 (3e-4). What comes of it, the held-out loss after eighty steps of ResNet-20 at 8 bits from
0.01447: 0.0173 at 1e-4, 0.0141 at 2e-5, 0.0122 at 5e-6, and 0.0135 with scales alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.simulation.prepared import PreparedNetwork
from pipeline.distillation.training.optimiser import Rates
from pipeline.distillation.training.units import NO_UNITS

#: Parts of the chosen rate that are tried, in this order; the last is taken without being asked.
SHARES = (1.0, 0.3, 0.1, 0.03, 0.01)
#: Times the loss at the start up to which a first step may raise it [ours]: of the rates above it leaves those that
#: ended best, and at 4 bits the default as it is.
LARGEST_RISE = 2.0
# Part of an ignorant student's loss that is rounding, of differences between logarithms in float32: what a student
# that is its teacher seems to lose, or to win. And of a loss at the least: sixteen such roundings, as it is times T^2.
_NOISE, _LEAST_NOISE = 1e-6, 1e-6


def rounding_of(ignorant: float) -> float:
    """What of a loss is rounding, in its units, where an ignorant student loses so much, >= 0."""
    return max(_LEAST_NOISE, _NOISE * ignorant)


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """What was found: the part of the rate that is taken, the loss before any step and after one at the whole rate."""

    share: float
    before: float
    after: float


@contextmanager
def signed_step(
    parameters: Sequence[nn.Parameter], rate: float, units: Mapping[nn.Parameter, Tensor] = NO_UNITS
) -> Iterator[None]:
    """Inside it every parameter that has a gradient is moved by the rate, in its units, against the gradient's sign."""
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.sub_(rate * units.get(parameter, 1.0) * parameter.grad.sign())
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, before, strict=True):
                parameter.copy_(values)


def try_first_step(
    parameters: Sequence[nn.Parameter],
    rate: float,
    loss: Callable[[], float],
    *,
    noise: float = 0.0,
    units: Mapping[nn.Parameter, Tensor] = NO_UNITS,
) -> FirstStep:
    """The largest of `SHARES` of a rate at which Adam's first step leaves the loss below `LARGEST_RISE` times itself.

    Args:
        parameters: with their gradients; they are left as they were.
        rate: peak learning rate, > 0.
        loss: of the present parameters, on images other than the gradients'; >= 0 but for rounding.
        noise: what counts as none, >= 0, in units of the loss: no rise to less does harm.
        units: factors of the rates of some parameters (`pipeline.distillation.training.units`).

    Source: ours.
    """
    before, after = max(0.0, loss()), list[float]()
    for share in SHARES:
        with signed_step(parameters, rate * share, units):
            after.append(loss())
        if after[-1] <= LARGEST_RISE * max(before, noise):
            break
    return FirstStep(share=share, before=before, after=after[0])


def lowered_rates(
    network: PreparedNetwork,
    rates: Rates,
    loss: Callable[[], float],
    *,
    noise: float,
    units: Mapping[nn.Parameter, Tensor] = NO_UNITS,
) -> tuple[Rates, tuple[str, ...]]:
    """The rates of a student's weights and of its scales, each lowered for itself; and what to say of that.

    Its parameters have gradients; `loss`, `noise` and `units`: as of `try_first_step`.
    """
    scales = network.scale_parameters(activations=True, weights=True)
    learned = [parameter for parameter in scales if parameter.requires_grad]
    weights = try_first_step(network.weight_parameters(), rates.weights, loss, noise=noise, units=units)
    said = [*_lowered("the weights", rates.weights, weights)]
    share = 1.0
    if learned:
        tried = try_first_step(learned, rates.scales, loss, noise=noise)
        said += _lowered("the scales", rates.scales, tried)
        share = tried.share
    return rates.of_student(weights=weights.share, scales=share), tuple(said)


def _lowered(what: str, rate: float, tried: FirstStep) -> Iterable[str]:
    """What to say of a rate that is not taken as it is."""
    if tried.share < 1:
        yield (
            f"a first step at learning rate {rate:g} of {what} would raise the loss from {tried.before:.3g} to"
            f" {tried.after:.3g}: {rate * tried.share:.3g} is taken (--learning-rate takes yours as it is)"
        )
