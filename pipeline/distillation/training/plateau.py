"""Ending a training early whose held-out loss falls no longer: what is left of its schedule is shortened, not cut off.

While the learning rate is high the loss of a student that learns well may stand still for most of its steps, and fall
when the rate does: ResNet-20 at 4 bits, taught the mean of image and mirror image, had not fallen below its 0.309 in 60
steps of 400. So a plateau says something in the second half alone, and from the beginning only where a student is its
teacher but for a trifle. And it ends no training at once: the rate goes to 0 from there within a part of the steps, and
only then weights are judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from pipeline.distillation.training.lesson_images import LessonImages
from pipeline.distillation.training.verdict import HeldOut, verdict_on
from pipeline.images.preprocessing import Preprocessing
from pipeline.tools.source_text import counted

#: Times in a whole training that the held-out loss is looked at.
EVALUATIONS = 20
#: Steps between two looks at the least: fewer change too little.
LEAST_STEPS = 5
#: Looks in a row without a fall that end a default training [ours].
PATIENCE = 3
#: Part of an ignorant student's loss below which a calibrated one has nothing to learn that decisions show [ours]: the
#: embedded digits at 8 bits have 0.00003 of it, and all held-out images decided; ResNet-20 has 0.0005.
TRIFLE = 1e-4
#: Part of all steps in which the rate then falls to 0 [ours].
COOLING_SHARE = 1 / 6
#: Held-out images that are looked at, and fewer than which tell nothing early; what all may take together, bytes.
MOST_IMAGES, LEAST_IMAGES, MOST_BYTES = 128, 8, 2**27


def seen_early(
    images: LessonImages, preprocessing: Preprocessing, asked_of: Callable[[Tensor], list[Tensor]]
) -> list[tuple[Tensor, list[Tensor]]]:
    """The held-out images that are looked at on the way, normalised, in batches with what a student is asked for.

    They stay in memory: decoding them twenty times would cost more than the steps between.
    """
    size = 4 * preprocessing.channels * preprocessing.height * preprocessing.width
    most = min(MOST_IMAGES, max(LEAST_IMAGES, MOST_BYTES // size))
    return [(batch, asked_of(batch)) for batch in images.held_out(most=most)]


def without_looks(patience: int, *, images: int) -> Iterator[str]:
    """What to say where so few images are held out that a patience ends no training."""
    if patience and images < LEAST_IMAGES:
        held_out = f"{counted(images, 'held-out image')} tell{'s' if images == 1 else ''}"
        yield (
            f"training does not end early, which --patience {patience} asks for: {held_out} no loss that falls from one"
            f" that stands still, {LEAST_IMAGES} do (--held-out-images {LEAST_IMAGES})"
        )


def cooling_steps(steps: int) -> int:
    """Steps in which the rate of a training of so many falls to 0 where it ends early."""
    return max(1, round(steps * COOLING_SHARE))


def cooled(step: int, over: int) -> float:
    """The part of its rate that training has left, so many steps after it began to end, over so many."""
    return 0.5 * (1 + math.cos(math.pi * step / over))


def interval_of(steps: int) -> int:
    """Steps between two looks of a training of so many."""
    return max(LEAST_STEPS, steps // EVALUATIONS)


def begin_of_looks(steps: int, *, trifle: bool) -> int:
    """The step from which on a training of so many is looked at."""
    return 0 if trifle else steps // 2


def looks_at_most(steps: int, *, trifle: bool) -> int:
    """How often a training of so many steps is looked at, at the most."""
    return -(-(steps - begin_of_looks(steps, trifle=trifle)) // interval_of(steps))


def is_trifle(calibrated: HeldOut) -> bool:
    """Whether a student decides all held-out images as asked and loses next to nothing."""
    decided = calibrated.agreement is None or bool((calibrated.agreement == 1).all())
    return decided and float(calibrated.losses.mean()) <= TRIFLE * calibrated.ignorant


@dataclass(frozen=True, kw_only=True)
class Waited:
    """How far a training has come, as its checkpoint says beside the losses that are to be undercut."""

    step: int
    """Of the last look."""
    waited: int
    """Looks since the loss fell."""
    cools_from: int | None = None
    """Step at which the end began."""

    def __post_init__(self) -> None:
        if min(self.step, self.waited, self.cools_from or 0) < 0:
            raise ValueError(f"step is {self.step}, waited {self.waited}, cools_from {self.cools_from}: must be >= 0")


@final
class Plateau:
    """Looks at a student's held-out losses on its way, and says when its training is to come to an end.

    The loss has fallen where it is below the last one that had, beyond what chance makes of the differences image by
    image, and by what is worth it (`Verdict.improves`): small falls add up until they tell.

    Args:
        losses: of the student as it is, per image, float64 [N].
        reference: the same of the calibrated student.
        steps: of the whole training, >= 1.
        patience: looks in a row without a fall, >= 1.
        begins: step from which on it looks, >= 0.
    """

    def __init__(
        self, losses: Callable[[], Tensor], reference: Tensor, *, steps: int, patience: int, begins: int = 0
    ) -> None:
        self._losses, self.reference, self._steps, self._patience = losses, reference, steps, patience
        self._begins = begins
        self.place = Waited(step=0, waited=0)
        self.interval = interval_of(steps)

    @property
    def end(self) -> int:
        """Steps of the training as far as is known."""
        begun = self.place.cools_from
        return self._steps if begun is None else min(self._steps, begun + self._cooling)

    @property
    def _cooling(self) -> int:
        return cooling_steps(self._steps)

    def share(self, step: int) -> float:
        """The part of the schedule's rate that a step takes: falling to 0 at the end, 1 before that has begun."""
        begun = self.place.cools_from
        return 1.0 if begun is None else cooled(step - begun, self._cooling)

    def look(self, step: int) -> str | None:
        """Look at the losses before a step, where it is time to; a line where the end begins there."""
        place = self.place
        if place.cools_from is not None or step <= place.step or step < self._begins or step % self.interval:
            return None
        losses = self._losses()
        if verdict_on(self.reference, losses).improves:
            self.reference, self.place = losses, Waited(step=step, waited=0)
            return None
        waited = place.waited + 1
        ends = waited >= self._patience and step + self._cooling < self._steps
        self.place = Waited(step=step, waited=waited, cools_from=step if ends else None)
        if not ends:
            return None
        return (
            f"the loss of {len(losses)} held-out images has not fallen beyond chance in {waited * self.interval} steps:"
            f" training ends after {self.end} steps instead of {self._steps} (--patience 0 takes all)"
        )

    def restore(self, place: Waited, reference: Tensor) -> None:
        """Go on where `place` and `reference` were; raises ValueError where the losses are of other images."""
        if reference.shape != self.reference.shape:
            raise ValueError(f"plateau has losses {list(reference.shape)}, not {list(self.reference.shape)}")
        self.place, self.reference = place, reference
