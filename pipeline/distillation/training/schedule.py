"""How long and how fast a student learns, and on what: what settings come to, which depend on bits and machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from calibration.errors import UserError
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.distillation.training.batch import batch_size_for
from pipeline.distillation.training.plateau import PATIENCE

#: Training steps by weight bits: at 8 bits what two minutes on two cores have room for (ResNet-20: the held-out loss
#: tells no number of steps from another), at 4 enough for the held-out loss to level off (docs/benchmarks.md); below 4
#: bits more would still help.
STEPS = {8: 300, 4: 400, 3: 800, 2: 1600, 1: 800}
#: Training steps where activations have 2 bits: after 800 the held-out loss has a sixth to fall (docs/benchmarks.md).
STEPS_OF_TWO_BIT_ACTIVATIONS = 2400
#: Times that a default run shows each image at the most, per step by the bits: 40 in the 300 of 8 bits, as weights that
#: have seen few images so often learn them by heart [ours, not tuned].
EPOCHS_PER_STEP = 40 / 300
#: Peak learning rate of Adam by weight bits: the best of 3e-5, 1e-4 and 3e-4 by the same loss (of ResNet-56 at 4 bits
#: 3e-5 is a little better); below 4 bits, where layers are normalised in training, networks learn with the rate that
#: Adam usually has.
LEARNING_RATES = {8: 1e-4, 4: 1e-4, 3: 1e-3, 2: 1e-3, 1: 1e-3}
#: The rate below 4 bits of a network that is folded before it learns.
FOLDED_RATE = 3e-4
#: The rate of SGD at any width: that of FAQD's released code (arXiv 2302.10899).
SGD_RATE = 0.01


def resolve_normalised(batch_norm: str, bits: int) -> bool:
    """Whether layers are normalised over the batch in training: as asked for, else below 4 bits."""
    return bits < 4 if batch_norm == "auto" else batch_norm == "kept"


#: Steps in which a student without weights learns in float [ours]: the loss still falls slowly then.
FLOAT_STEPS = 2000


def resolve_float_steps(steps: int | None, *, named: bool, has_weights: bool) -> int:
    """Steps of float distillation: those asked for, else some for another student that begins without weights."""
    if steps is not None:
        return steps
    return FLOAT_STEPS if named and not has_weights else 0


def resolve_steps(
    steps: int | None, weight_bits: int, activation_bits: int = 8, *, images: int, batch_size: int
) -> int:
    """Training steps: those asked for, else by the bits of weights and activations, and fewer of few images."""
    if steps is not None:
        return steps
    most = STEPS_OF_TWO_BIT_ACTIVATIONS if activation_bits == 2 else STEPS[min(weight_bits, activation_bits)]
    return min(most, math.ceil(EPOCHS_PER_STEP * most * images / batch_size))


def resolve_learning_rate(rate: float | None, bits: int, *, normalised: bool = False, optimiser: str = "adam") -> float:
    """Peak learning rate: the one asked for, else by the optimiser and the fewest bits of weights or activations."""
    if rate is not None:
        return rate
    if optimiser == "sgd":
        return SGD_RATE
    return LEARNING_RATES[bits] if normalised or bits >= 4 else FOLDED_RATE


def resolve_patience(settings: DistillationConfig, *, normalised: bool) -> int:
    """Looks without a fall that end training early: those asked for, else some where no number of steps is typed.

    None by default where layers are normalised in training, as their statistics are judged once they are folded away,
    and where a weight or a temperature changes over the run: what it does in the end is not seen before.
    """
    if settings.patience is not None:
        return settings.patience
    return 0 if settings.steps is not None or normalised or settings.changes else PATIENCE


def resolve_device(name: str) -> torch.device:
    """The device that trains. Raises UserError when a GPU is asked for and there is none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no CUDA GPU here; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


def is_fast(execution: ExecutionConfig, device: torch.device) -> bool:
    """Whether training may take TF32, which is exact on a student's integers, and bfloat16 for its teachers."""
    return execution.precision == "bfloat16" or (execution.precision == "auto" and device.type == "cuda")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What the settings of the quantised student's training come to."""

    steps: int
    """0: calibration only."""
    batch_size: int
    """Images per step, >= 1."""
    learning_rate: float
    """Peak rate of the weights, > 0."""
    normalised: bool = False
    """Convolutions learn with a normalisation over the batch, which is folded away at the end (see
    `calibration.simulation.normalised_training`)."""
    patience: int = 0
    """Looks at the held-out loss in a row without a fall that end it early (see
    `pipeline.distillation.training.plateau`); 0: none does."""
    tries_rates: bool = False
    """The rates are an offer, lowered where the first step would do harm and where short trials end better (see
    `pipeline.distillation.training.first_step` and `short_trials`)."""

    def length(self, images: int, *, mirrored: bool) -> str:
        """How long a student learns from so many images, in words: steps, images of each, how often each is seen."""
        drawn = (self.batch_size + 1) // 2 if mirrored else self.batch_size
        epochs = self.steps * drawn / images
        often = f"{epochs:.0f} epochs" if epochs >= 1.5 else f"{100 * epochs:.0f} % of an epoch"
        half = ", half of it mirrored" if mirrored else ""
        return f"batch {self.batch_size}{half}, {self.steps} steps: {often} of {images} images"


def schedule_of(
    settings: DistillationConfig,
    quantisation: QuantisationConfig,
    graph: GraphModule,
    device: torch.device,
    *,
    images: int,
) -> Schedule:
    """What the settings come to for a student of these bits, its folded graph, and this many training images."""
    batch_size = batch_size_for(settings, graph, device, images=images)
    bits = min(quantisation.bits, quantisation.activation_bits)
    normalised = resolve_normalised(settings.batch_norm, bits)
    return Schedule(
        steps=resolve_steps(
            settings.steps, quantisation.bits, quantisation.activation_bits, images=images, batch_size=batch_size
        ),
        batch_size=batch_size,
        learning_rate=resolve_learning_rate(
            settings.learning_rate, bits, normalised=normalised, optimiser=settings.optimiser
        ),
        normalised=normalised,
        patience=resolve_patience(settings, normalised=normalised),
        tries_rates=settings.learning_rate is None,
    )
