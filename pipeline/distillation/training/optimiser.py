"""The optimiser of a run: what learns in which way at which rate, and its state as tensors that can be stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.simulation.prepared import PreparedNetwork
from pipeline.distillation.schedules import learning_rate_factor
from pipeline.distillation.training.task import Schedule

# Peak rate of what is trained beside the student and dropped (adapters, transforms, branches): Adam's usual one, as it
# starts from random numbers [ours].
TRANSFORM_RATE = 1e-3
_WARM_UP_SHARE, _MOST_WARM_UP = 0.1, 50
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


class ScheduledOptimiser:
    """Updates of a student's weights, its learned scales and the transforms of the losses, on a cosine with warm-up.

    Weights learn by Adam or by SGD with Nesterov's momentum 0.9. Scales and transforms always learn by Adam: the
    gradients of log-scales differ by orders of magnitude from tensor to tensor [ours].
    """

    def __init__(
        self,
        network: PreparedNetwork,
        transforms: Iterable[nn.Parameter],
        schedule: Schedule,
        *,
        rates: Rates,
        device: torch.device,
    ) -> None:
        self.steps = schedule.steps
        scales = schedule.learned_scales
        learned = network.scale_parameters(activations=scales == "all", weights=scales != "none")
        ids = {id(parameter) for parameter in learned}
        for parameter in network.scale_parameters(activations=True, weights=True):
            parameter.requires_grad_(id(parameter) in ids)
        weights = {"params": network.weight_parameters(), "of": "weights"}
        others = []
        if learned:
            others.append({"params": learned, "of": "scales"})
        if trained := [parameter for parameter in transforms if parameter.requires_grad]:
            others.append({"params": trained, "of": "transforms"})
        fused, decay = device.type in {"cpu", "cuda"}, schedule.weight_decay
        if schedule.optimiser == "sgd":
            sgd = torch.optim.SGD(
                [weights], lr=rates.weights, momentum=_MOMENTUM, nesterov=True, weight_decay=decay, fused=fused
            )
            adams = [torch.optim.Adam(others, lr=rates.weights, fused=fused)] if others else []
            self._optimisers: list[torch.optim.Optimizer] = [sgd, *adams]
        elif decay:
            groups = [weights | {"weight_decay": decay}, *(group | {"weight_decay": 0.0} for group in others)]
            self._optimisers = [torch.optim.AdamW(groups, lr=rates.weights, fused=fused)]
        else:
            self._optimisers = [torch.optim.Adam([weights, *others], lr=rates.weights, fused=fused)]
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

    def update(self, loss: Tensor, step: int) -> None:
        """One step against the gradients of a loss."""
        self.find_gradients(loss)
        warm_up = min(_MOST_WARM_UP, int(self.steps * _WARM_UP_SHARE))
        factor = learning_rate_factor(step, steps=self.steps, warmup_steps=warm_up, kind="cosine")
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()

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
