"""The settings of a run as a file holds them: as typed, and as they come out of the configuration alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from backends import backends_for
from pipeline.config import RunConfig
from pipeline.config.affinity_points import GRID_AXES
from pipeline.config.ramps import Ramp
from pipeline.distillation.training.schedule import (
    resolve_device,
    resolve_learning_rate,
    resolve_normalised,
    resolve_patience,
)
from pipeline.setup.decisive import FREE
from pipeline.setup.settled import float_steps

_RAMPS = ("temperature", "logit-weight", "class-weight", "label-weight", "feed-weight", "sakd-weight", "speq-weight")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked of a run, and what it came out as."""

    typed: Mapping[str, Any]
    """Flag without dashes -> value as JSON, a default that hangs on other things as None or "auto"."""
    settled: Mapping[str, Any]
    """Flag without dashes -> the value that such a default, or what was typed instead of it, stands for; may lack some
    (see `pipeline.setup.settled`)."""

    def differs(self, other: Settings, key: str) -> bool:
        """Whether a setting has another value there; one that was typed has the same as a default that comes to it."""
        if self.typed.get(key) == other.typed.get(key):
            return False
        return not (key in self.settled and key in other.settled and self.settled[key] == other.settled[key])


def settings_asked_for(config: RunConfig, settled: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    """The settings that a run may depend on, as a file holds them."""
    typed, values = json.loads(json.dumps([config.to_json(), {**settled_by_configuration(config), **settled}]))
    return Settings(typed={key: value for key, value in typed.items() if key not in FREE}, settled=values)


def settled_by_configuration(config: RunConfig) -> dict[str, Any]:
    """Flag without dashes -> its value as JSON, of those whose default hangs on other flags or on this machine.

    Raises UserError where this machine's processor is none that a backend knows.
    """
    quantisation, learning, validation = config.grids, config.learning, config.validation
    bits = min(quantisation.bits, quantisation.activation_bits)
    normalised = resolve_normalised(learning.batch_norm, bits)
    settled: dict[str, Any] = {
        "float-steps": float_steps(config.student, learning),
        "batch-norm": "kept" if normalised else "folded",
        "patience": resolve_patience(learning, normalised=normalised),
        "rounding": quantisation.resolved_rounding,
        "precision": config.execution.precision,
        "training-threads": config.execution.training_threads or torch.get_num_threads(),
        "target": quantisation.target,
        "eval-data": config.evaluation_source,
        "max-drop": validation.drop_limit,
        "output-max-drop": validation.output_limits,
        "batches": list(config.engine.batches or (validation.batch,) * 3),
        "output-kinds": sorted(config.teacher.output_kinds),
    }
    if learning.steps is not None:  # otherwise images settle it
        settled["steps"] = learning.steps
    # A default rate is lowered where the first step would do harm, a typed one is not, where such a step is tried.
    if learning.learning_rate is not None or normalised or learning.optimiser != "adam":
        settled["learning-rate"] = resolve_learning_rate(
            learning.learning_rate, bits, normalised=normalised, optimiser=learning.optimiser
        )
    # By default grids of fewer bits keep their own, all others get 4.
    if learning.speq_bits is not None or quantisation.activation_bits in (8, 4):
        settled["speq-bits"] = learning.speq_bits or 4
    if config.execution.precision == "auto":
        device = config.execution.device
        on_gpu = resolve_device(device).type == "cuda" if device == "auto" else device.startswith("cuda")
        settled["precision"] = "bfloat16" if on_gpu else "float32"
    if quantisation.backend != "tensorrt":
        settled["weight-only"] = "none"
    if quantisation.target is None:
        settled["target"] = backends_for(quantisation.backend, None)[0].profile.cpu
    for key in _RAMPS:
        field = key.replace("-", "_")
        settled[key] = None if getattr(learning, field) is None else _plain(learning.ramp(field))
    settled["affinity-weight"] = _plain(learning.ramp("affinity_weight"))
    point = learning.point
    settled |= {axis: None if point is None else getattr(point, axis) for axis in GRID_AXES}
    return settled


def _plain(ramp: Ramp) -> Any:
    """A weight or temperature over a run: a number where it does not change."""
    return ramp.values[0] if len(set(ramp.values)) == 1 else [ramp.kind, *ramp.values]
