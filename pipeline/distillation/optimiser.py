"""The optimiser of a run: what learns at which rate, and its state as tensors that can be stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from calibration.prepared import PreparedNetwork
from pipeline.distillation.schedules import learning_rate_factor
from pipeline.distillation.task import Schedule

# Peak rate of what is trained beside the student and dropped (adapters, transforms, branches): Adam's usual one, as it
# starts from random numbers [ours].
TRANSFORM_RATE = 1e-3
_WARM_UP_SHARE, _MOST_WARM_UP = 0.1, 50
_PREFIX = "optimiser."


class ScheduledAdam:
    """Adam over a student's weights, its learned scales and the transforms of the losses, on a cosine with warm-up."""

    def __init__(
        self,
        network: PreparedNetwork,
        transforms: Iterable[nn.Parameter],
        schedule: Schedule,
        *,
        learning_rate: float,
        device: torch.device,
    ) -> None:
        self.learning_rate, self.steps = learning_rate, schedule.steps
        scales = schedule.learned_scales
        learned = network.scale_parameters(activations=scales == "all", weights=scales != "none")
        ids = {id(parameter) for parameter in learned}
        for parameter in network.scale_parameters(activations=True, weights=True):
            parameter.requires_grad_(id(parameter) in ids)
        groups = [{"params": network.weight_parameters(), "share": 1.0}]
        if learned:
            groups.append({"params": learned, "share": schedule.scale_learning_rate / schedule.learning_rate})
        if trained := [parameter for parameter in transforms if parameter.requires_grad]:
            groups.append({"params": trained, "share": TRANSFORM_RATE / schedule.learning_rate})
        self.adam = torch.optim.Adam(groups, lr=learning_rate, fused=device.type in {"cpu", "cuda"})

    def update(self, loss: Tensor, step: int) -> None:
        """One step against the gradients of a loss."""
        self.adam.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        warm_up = min(_MOST_WARM_UP, int(self.steps * _WARM_UP_SHARE))
        factor = learning_rate_factor(step, steps=self.steps, warmup_steps=warm_up, kind="cosine")
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate * group["share"] * factor
        self.adam.step()

    def tensors(self) -> dict[str, Tensor]:
        """Moments and counts by name."""
        return {
            f"{_PREFIX}{index}.{name}": tensor
            for index, values in self.adam.state_dict()["state"].items()
            for name, tensor in values.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; other names are ignored."""
        parameters = [parameter for group in self.adam.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(_PREFIX):
                _, index, key = name.split(".", 2)
                like = parameters[int(index)]
                # Fused Adam walks parameter and moments in storage order: they must have one memory layout.
                is_moment = tensor.shape == like.shape and key != "step"
                state.setdefault(int(index), {})[key] = torch.empty_like(like).copy_(tensor) if is_moment else tensor
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": state, "param_groups": groups})
