"""Which weights go on after training, by the losses of the held-out images, and what should be said about them.

No label is read. A loss may fall by next to nothing beyond all chance, as its differences image by image are tiny too,
while decisions turn from the teacher's: so the fall must be worth something, and decisions must not be lost. Both
students see the same images, so the differences image by image tell far smaller effects from
chance than the two means would.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.simulation.learned_grids import ActivationGrid
from calibration.simulation.prepared import PreparedNetwork
from pipeline.networks.outputs.meaning import Output
from pipeline.tools.confidence import student_quantile

# A mean difference counts where by chance alone it is larger in one case of forty: two standard errors of many images,
# 2.3 of nine, 12.7 of two, whose standard error is itself little known (Student's t).
_CONFIDENCE = 1 - 1 / 40
#: Part of the calibrated student's loss that training must take away to be worth other weights [ours].
LEAST_GAIN = 0.01
# Standard errors by which decisions may turn from the teacher's: that they are lost need only be likely, where the gain
# is to be sure [ours].
_DECISIONS_LOST = 1.0
_SHOWN = 3
# Scales are kept as float32 logarithms, of which those of the floor come back a few parts in a million off.
_AT_FLOOR = SMALLEST_SCALE * (1 + 1e-5)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A student's answers to the held-out images, beside what it was asked for.

    `losses`: float64 [N]; `agreement`: share of each image's decisions that are those asked for, float64 [N], None
    where no output decides; `ignorant`: mean loss of a student that sees nothing.
    """

    losses: Tensor
    agreement: Tensor | None
    ignorant: float


def agreement_per_image(student: Sequence[Tensor], targets: Sequence[Tensor], outputs: Sequence[Output]) -> Tensor:
    """Share of decisions, of all outputs together, in which logits [B, ...] are the targets': float64 [B], or NaN."""
    equal, count = np.zeros(len(targets[0])), 0
    for mine, theirs, output in zip(student, targets, outputs, strict=True):
        if output.holds == "values":
            continue
        # Of logits, whose decisions are those of what activations make of them.
        plain = replace(output, activation=None)
        same = (plain.answers(mine) == plain.answers(theirs)).reshape(len(equal), -1)
        equal, count = equal + same.sum(1), count + same.shape[1]
    return torch.from_numpy(equal / count if count else np.full(len(equal), np.nan))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What training did to the held-out loss.

    `final`: its mean after training, None where it is not finite. `gain`: mean over the images of what each lost, below
    0 where the loss has risen. `error`: standard error of that mean, None for a single image. `calibrated`: mean before
    training. `decisions`: mean share of an image's decisions that became the teacher's, below 0 where they turned from
    it, and its standard error; None where nothing is decided.
    """

    images: int
    final: float | None
    gain: float | None
    error: float | None
    calibrated: float = 0.0
    decisions: float | None = None
    decisions_error: float | None = None

    @property
    def improves(self) -> bool:
        """Whether the loss has fallen beyond chance, by what is worth it, and decisions are not lost for it."""
        if self.gain is None or self.gain <= self.chance or self.turns:
            return False
        return self.gain >= LEAST_GAIN * self.calibrated

    @property
    def turns(self) -> bool:
        """Whether decisions have probably turned from the teacher's."""
        if self.decisions is None or self.decisions_error is None:
            return False
        # One of any number of images, and none won, is one standard error but for the last bits.
        return -self.decisions > _DECISIONS_LOST * self.decisions_error * (1 + 1e-6)

    @property
    def worsens(self) -> bool:
        """Whether it has risen beyond chance."""
        return self.gain is not None and -self.gain > self.chance

    @property
    def chance(self) -> float:
        """The mean difference that chance alone may make."""
        return math.inf if self.error is None else student_quantile(self.images - 1, _CONFIDENCE) * self.error


def judged(calibrated: HeldOut, trained: HeldOut) -> Verdict:
    """Compare two students on the same images."""
    verdict = verdict_on(calibrated.losses, trained.losses)
    if calibrated.agreement is None or trained.agreement is None or verdict.gain is None:
        return verdict
    won = trained.agreement - calibrated.agreement
    error = float(won.std()) / math.sqrt(len(won)) if len(won) > 1 else None
    return replace(verdict, decisions=float(won.mean()), decisions_error=error)


def verdict_on(calibrated: Tensor, trained: Tensor) -> Verdict:
    """Compare the losses of two students on the same images, float64 [N] each."""
    gains = calibrated - trained
    count, final, gain = len(gains), float(trained.mean()), float(gains.mean())
    if not math.isfinite(gain):
        return Verdict(images=count, final=None, gain=None, error=None)
    error = float(gains.std()) / math.sqrt(count) if count > 1 else None
    # KL of two all but equal distributions may come out a rounding error below zero.
    before = max(0.0, float(calibrated.mean()))
    return Verdict(images=count, final=max(0.0, final), gain=gain, error=error, calibrated=before)


def remarks_on(
    network: PreparedNetwork, verdict: Verdict | None, *, calibrated: float, ignorant: float
) -> tuple[str, ...]:
    """What a user should know about the weights that go on.

    Args:
        network: the one that goes on.
        verdict: None where nothing was trained to the end.
        calibrated: held-out loss of the calibrated student.
        ignorant: that of one that gives every image the teacher's mean output.
    """
    said = []
    if verdict is not None and not verdict.improves:
        said.append(_not_better(verdict, calibrated))
    kept = verdict.final if verdict is not None and verdict.improves else calibrated
    if kept is not None and kept >= ignorant > 0:
        said.append(
            f"WARNING: the held-out loss of the quantised network, {kept:.3g}, is not below that of one that gives"
            f" every image the same answer, {ignorant:.3g}: that classes agree says nothing here"
        )
    if stuck := list(_at_floor(network)):
        others = f" and {len(stuck) - _SHOWN} more" if len(stuck) > _SHOWN else ""
        said.append(
            f"WARNING: the scale of {', '.join(stuck[:_SHOWN])}{others} is at its floor, {SMALLEST_SCALE:.3g}: all"
            " that these tensors hold is 0 or too small for integers; scale the network's weights or inputs up"
        )
    said += _channels_at_floor(network)
    return tuple(said)


def _not_better(verdict: Verdict, calibrated: float) -> str:
    if verdict.gain is None or verdict.final is None:
        return "after training the held-out loss is not a finite number: the calibrated weights are kept"
    change = f"held-out loss {calibrated:.3g} -> {verdict.final:.3g}"
    if verdict.error is None:
        return f"one held-out image tells no gain of training from chance ({change}): the calibrated weights are kept"
    if verdict.gain > verdict.chance:
        return _not_worth_it(verdict, change)
    what = "made worse" if verdict.worsens else "not improved beyond chance"
    return (
        f"training has {what} what {verdict.images} held-out images lose ({change}; by {verdict.gain:.2g} +-"
        f" {verdict.error:.2g} each): the calibrated weights are kept, which --steps 0 gives at once"
    )


def _not_worth_it(verdict: Verdict, change: str) -> str:
    kept = "the calibrated weights are kept, which --steps 0 gives at once"
    if verdict.turns:
        turned = f"{100 * -(verdict.decisions or 0):.2g} +- {100 * (verdict.decisions_error or 0):.2g} %"
        return (
            f"training lowered the loss of {verdict.images} held-out images ({change}) and turned {turned} of their"
            f" decisions from the teacher's: {kept}"
        )
    return (
        f"training lowered the loss of {verdict.images} held-out images by less than {100 * LEAST_GAIN:g} %"
        f" ({change}): {kept}"
    )


def _channels_at_floor(network: PreparedNetwork) -> Iterable[str]:
    """Layers of which some channels hold weights that integers at the smallest scale resolve badly, though they count.

    Beside a channel 255 times as large one is less than a step of the layer's outputs, whatever its integers are.
    """
    values = dict(network.graph.named_parameters()) | dict(network.graph.named_buffers())
    for path, grid in network.weight_grids().items():
        axis, scale = grid.grid.channel_axis, grid.log_scale.detach().exp()
        if axis is None or scale.dim() != 1 or bool((scale <= _AT_FLOOR).all()):
            continue
        largest = values[path].detach().abs().movedim(axis, 0).flatten(1).amax(1)
        lost = (scale <= _AT_FLOOR) & (largest > largest.max() / 255)
        if bool(lost.any()):
            yield (
                f"the scales of {int(lost.sum())} of {len(scale)} channels of {path} are at their floor,"
                f" {SMALLEST_SCALE:.3g}: weights that small keep fewer bits than were asked for; scale the network's"
                " weights up, or its inputs down"
            )


def _at_floor(network: PreparedNetwork) -> Iterable[str]:
    """Tensors whose values all round to nothing: activations by their group, weights by their path."""
    for name, grid in network.activation_grids.items():
        assert isinstance(grid, ActivationGrid)
        if float(grid.log_scale.detach().exp()) <= _AT_FLOOR:
            yield name.removesuffix("_grid")
    for path, weights in network.weight_grids().items():
        if bool((weights.log_scale.detach().exp() <= _AT_FLOOR).all()):
            yield path
