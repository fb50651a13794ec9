"""The optimiser of a run: what learns in which way at which rate, and its state as tensors that can be stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from calibration.simulation.prepared import PreparedNetwork
from pipeline.config.distillation import DistillationConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.distillation.schedules import learning_rate_factor
from pipeline.distillation.training.units import NO_UNITS

# Peak rate of what is trained beside the student and dropped (adapters, transforms, branches): Adam's usual one, as it
# starts from random numbers [ours].
TRANSFORM_RATE = 1e-3
_WARM_UP_SHARE, _MOST_WARM_UP = 0.1, 50
_FLOAT_WARM_UP_SHARE = 0.05
_MOMENTUM = 0.9
_PREFIX = "optimiser."


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Peak learning rates, > 0: of the weights, of the logarithms of the scales, of what is trained beside both."""

    weights: float
    scales: float
    transforms: float = TRANSFORM_RATE

    def times(self, factor: float) -> Rates:
        """All of them multiplied."""
        return Rates(weights=factor * self.weights, scales=factor * self.scales, transforms=factor * self.transforms)

    def of_student(self, *, weights: float, scales: float) -> Rates:
        """Those of weights and scales multiplied, each by its factor."""
        return replace(self, weights=weights * self.weights, scales=scales * self.scales)


def optimiser_of_quantised(
    network: PreparedNetwork,
    transforms: Iterable[nn.Parameter],
    settings: DistillationConfig,
    quantisation: QuantisationConfig,
    *,
    rates: Rates,
    steps: int,
    units: Mapping[nn.Parameter, Tensor] = NO_UNITS,
) -> ScheduledOptimiser:
    """Of a student's weights, its learned scales and the transforms of the losses.

    Weights learn by Adam, in their `units`, or by SGD with Nesterov's momentum 0.9, at one rate as its papers have it.
    Scales and transforms always learn by Adam: the gradients of log-scales differ by orders of magnitude from tensor to
    tensor [ours].
    """
    scales = quantisation.learned_scales
    learned = network.scale_parameters(activations=scales == "all", weights=scales != "none")
    ids = {id(parameter) for parameter in learned}
    for parameter in network.scale_parameters(activations=True, weights=True):
        parameter.requires_grad_(id(parameter) in ids)
    weights: dict[str, Any] = {"params": network.weight_parameters(), "of": "weights"}
    others = []
    if learned:
        others.append({"params": learned, "of": "scales"})
    if trained := [parameter for parameter in transforms if parameter.requires_grad]:
        others.append({"params": trained, "of": "transforms"})
    fused = all(parameter.device.type in {"cpu", "cuda"} for parameter in weights["params"])
    decay, rate = settings.weight_decay, rates.weights
    optimisers: list[torch.optim.Optimizer]
    if settings.optimiser == "sgd":
        sgd = torch.optim.SGD([weights], lr=rate, momentum=_MOMENTUM, nesterov=True, weight_decay=decay, fused=fused)
        optimisers = [sgd, *([torch.optim.Adam(others, lr=rate, fused=fused)] if others else [])]
        units = {}
    elif decay:
        groups = [weights | {"weight_decay": decay}, *(group | {"weight_decay": 0.0} for group in others)]
        optimisers = [torch.optim.AdamW(groups, lr=rate, fused=fused)]
    else:
        optimisers = [torch.optim.Adam([weights, *others], lr=rate, fused=fused)]
    warm_up = min(_MOST_WARM_UP, int(steps * _WARM_UP_SHARE))
    return ScheduledOptimiser(optimisers, rates=rates, steps=steps, warm_up=warm_up, units=units)


def optimiser_of_float(parameters: Iterable[nn.Parameter], *, rate: float, steps: int) -> ScheduledOptimiser:
    """Adam of a float student and of the transforms of its losses, all at one peak rate."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    adam = torch.optim.Adam([{"params": trained, "of": "weights"}], lr=rate)
    rates = Rates(weights=rate, scales=rate, transforms=rate)
    return ScheduledOptimiser([adam], rates=rates, steps=steps, warm_up=int(steps * _FLOAT_WARM_UP_SHARE))


@final
class ScheduledOptimiser:
    """Updates by optimisers whose groups say what they are `of`, a field of the rates, on a cosine with warm-up.

    `steps`: length of the run, >= 1 for updates; `warm_up`: how many of them rise to the peak. `units`: parameters that
    learn as if what is multiplied with their factors were what learns.
    """

    def __init__(
        self,
        optimisers: Sequence[torch.optim.Optimizer],
        *,
        rates: Rates,
        steps: int,
        warm_up: int,
        units: Mapping[nn.Parameter, Tensor] = NO_UNITS,
    ) -> None:
        self._optimisers, self.steps, self._warm_up, self.units = tuple(optimisers), steps, warm_up, units
        self.set_peaks(rates)

    def set_peaks(self, rates: Rates) -> None:
        """Take other peak rates from now on."""
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["peak"] = getattr(rates, group["of"])

    def find_gradients(self, loss: Tensor) -> None:
        """Put the gradients of a loss in place of those that parameters had."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)

    def update(self, loss: Tensor, step: int, *, share: float = 1.0) -> None:
        """One step against the gradients of a loss, at this share of the schedule's rate."""
        self.find_gradients(loss)
        factor = share * learning_rate_factor(step, steps=self.steps, warmup_steps=self._warm_up, kind="cosine")
        with self._in_units():
            for optimiser in self._optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * factor
                optimiser.step()

    @contextmanager
    def _in_units(self) -> Iterator[None]:
        """Inside it gradients are those of what the units multiply; what steps add meanwhile is multiplied afterwards.

        All in a few operations over all parameters, each of which would else cost as much as a pass over a small map.
        """
        parameters, gradients, units = list[Tensor](), list[Tensor](), list[Any]()
        for parameter, unit in self.units.items():
            if parameter.grad is not None:
                parameters.append(parameter.data)
                gradients.append(parameter.grad)
                units.append(unit)  # tensors, which the operations' types forget
        if not units:
            yield
            return
        before = [values.clone() for values in parameters]
        torch._foreach_mul_(gradients, units)
        yield
        torch._foreach_sub_(parameters, before)
        torch._foreach_mul_(parameters, units)
        torch._foreach_add_(parameters, before)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and counts by name."""
        return {
            f"{_PREFIX}{number}.{index}.{name}": tensor
            for number, optimiser in enumerate(self._optimisers)
            for index, values in optimiser.state_dict()["state"].items()
            for name, tensor in values.items()
            if tensor is not None
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; other names are ignored."""
        for number, optimiser in enumerate(self._optimisers):
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            prefix = f"{_PREFIX}{number}."
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(prefix):
                    index, key = name.removeprefix(prefix).split(".", 1)
                    like = parameters[int(index)]
                    # Fused kernels walk parameter and moments in storage order: they must have one memory layout.
                    is_moment = tensor.shape == like.shape and key != "step"
                    moment = torch.empty_like(like).copy_(tensor) if is_moment else tensor
                    state.setdefault(int(index), {})[key] = moment
            groups = optimiser.state_dict()["param_groups"]
            optimiser.load_state_dict({"state": state, "param_groups": groups})
