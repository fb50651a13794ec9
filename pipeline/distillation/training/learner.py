"""The one way in which networks learn here, float or quantised: batches, objective, optimiser, checkpoint."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.distillation.objective import Objective
from pipeline.distillation.taps import Tapped
from pipeline.distillation.terms import Seen, Signals
from pipeline.distillation.training.budget import Budget, Deadline, Hurried, in_words
from pipeline.distillation.training.divergence import DivergenceWatch, Watched
from pipeline.distillation.training.lesson_images import Batch, LessonImages
from pipeline.distillation.training.optimiser import Rates, ScheduledOptimiser
from pipeline.distillation.training.plateau import Plateau, Waited
from pipeline.distillation.training.teachers import Teachers
from pipeline.tools.kept import Kept
from pipeline.tools.progress import Progress
from pipeline.tools.randomness import generator_for

#: Seconds between two checkpoints on disk; what is trained does not depend on it, as a resumed run is the same run.
CHECKPOINT_SECONDS = 20.0
_CURVE_POINTS = 200
# When a run says how long it will take: steps that know it, of a training that is no matter of seconds.
_TOLD_AFTER_STEPS, _TOLD_AFTER_SECONDS = 4, 3.0
# Steps that tell how long one takes, behind a first one.
_TIMED_STEPS = 3
_REFERENCE = "plateau.reference"
# Of what a checkpoint holds: one of another form is not gone on from.
_FORM = 7


@dataclass(frozen=True, kw_only=True)
class Pupil:
    """A network that learns."""

    network: nn.Module
    """Whose state is kept."""
    tapped: Tapped
    """The same network, which gives its logits and the features that the objective looks at."""
    draws: str
    """Name of the stream of random numbers that its objective draws."""
    second_pass: Callable[[Tensor, torch.Generator], tuple[Tensor, ...]] | None = None
    """What it makes of images at other precisions, for objectives that compare both."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What a checkpoint of a quantised student holds of the attempts so far (see `Trainer`)."""

    rates: Rates
    first_steps: tuple[str, ...]
    backoffs: int
    steps: int
    """Length of the run, and images of a step: what machine and images made of the settings where it began."""
    batch_size: int
    budget: Budget | None = None
    """What is left for it, where there is one."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise ValueError(f"steps is {self.steps} and batch_size {self.batch_size}: must be at least 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a learner stands, as its checkpoint says beside the tensors."""

    step: int
    form: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    watch: Watched | None = None
    attempt: Attempt | None = None
    waited: Waited | None = None
    hurried: Hurried | None = None

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError(f"step is {self.step}: must be 0 or more")


@final
class Learner:
    """A network on its way: what it is compared with, where it stands, and how it takes a step.

    What it draws, it draws by the seed of its images. `watch`: says when the run is lost; None: when its loss is no
    finite number. `plateau`, `deadline`: say when it is to end early, if it may or must. `attempt`: what checkpoints
    hold as well, for who made the learner.
    """

    def __init__(
        self,
        pupil: Pupil,
        objective: Objective,
        teachers: Teachers,
        images: LessonImages,
        optimiser: ScheduledOptimiser,
        *,
        watch: DivergenceWatch | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        self.pupil, self.objective, self.teachers, self.images = pupil, objective, teachers, images
        self.optimiser, self.seed, self.watch, self.attempt = optimiser, images.seed, watch, attempt
        self.plateau: Plateau | None = None
        self.deadline: Deadline | None = None
        self.step, self.curve = 0, list[tuple[int, float]]()
        self._logit_part = 0.0

    @property
    def steps(self) -> int:
        """Length of the run, as far as is known."""
        ends = [ending.end for ending in (self.plateau, self.deadline) if ending is not None]
        return min(ends, default=self.optimiser.steps)

    def batches(self) -> Iterator[Batch]:
        """Images of the steps that remain, on the device, with labels where they were asked for."""
        return self.images.training(self.step, self.steps - self.step)

    def loss(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective of a batch at the present step, a scalar with a gradient, and its parts."""
        images, labels = self.images.with_mirrors(images, labels)
        outputs, features = self.pupil.tapped(images)
        signals = Signals(
            student=Seen(outputs=outputs, features=features),
            teachers=self.teachers.seen(images),
            step=self.step,
            steps=self.optimiser.steps,
            generator=generator_for(self.seed, self.pupil.draws, self.step),
            labels=labels,
            ensemble=self._second_pass(images) if self.objective.wants_ensemble else None,
        )
        loss, parts = self.objective(signals)
        return loss, parts

    def update(self, images: Tensor, labels: Tensor | None = None) -> float:
        """One step of the optimiser; the loss before it."""
        loss, parts = self.loss(images, labels)
        shares = [ending.share(self.step) for ending in (self.plateau, self.deadline) if ending is not None]
        self.optimiser.update(loss, self.step, share=math.prod(shares))
        value = float(loss.detach())
        # A schedule may leave the logits out for a while: then nothing new is known of them.
        self._logit_part = float(parts["logits"]) if "logits" in parts else self._logit_part
        if math.isfinite(value) and self.step % max(1, self.optimiser.steps // _CURVE_POINTS) == 0:
            self.curve.append((self.step, value))
        self.step += 1
        return value

    def lost(self, loss: float) -> str | None:
        """Why the run is lost, by the loss of the step just taken; None while it is not."""
        if self.watch is None:
            return None if math.isfinite(loss) else f"diverged at step {self.step}"
        # Other terms have scales of their own; one that is not finite is seen in the sum.
        return self.watch.observe(self._logit_part if math.isfinite(loss) else loss)

    def state(self) -> tuple[dict[str, Tensor], Place]:
        """All that a resumed run needs, as tensors and a record."""
        tensors = {f"network.{name}": tensor for name, tensor in self.pupil.network.state_dict().items()}
        tensors |= {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        watch = None if self.watch is None else self.watch.state()
        waited = None
        if self.plateau is not None:
            waited, tensors[_REFERENCE] = self.plateau.place, self.plateau.reference
        place = Place(
            form=_FORM,
            step=self.step,
            curve=tuple(self.curve),
            watch=watch,
            attempt=self.attempt,
            waited=waited,
            hurried=None if self.deadline is None else self.deadline.place,
        )
        return tensors | self.optimiser.tensors(), place

    def restore(self, tensors: Mapping[str, Tensor], place: Place) -> None:
        """Go on where `state` was taken, by a learner made alike.

        Raises KeyError, IndexError, RuntimeError or ValueError where it was taken of another one.
        """
        if place.step > self.optimiser.steps:
            raise ValueError(f"step is {place.step}, of {self.optimiser.steps}")
        for prefix, module in (("network.", self.pupil.network), ("objective.", self.objective)):
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(own)
        self.optimiser.restore(tensors)
        self.step, self.curve = place.step, list(place.curve)
        if self.watch is not None:
            if place.watch is None:
                raise ValueError("watch is missing")
            self.watch.restore(place.watch)
        if self.plateau is not None:
            if place.waited is None:
                raise ValueError("waited is missing")
            self.plateau.restore(place.waited, tensors[_REFERENCE])
        if self.deadline is not None:
            if place.hurried is None:
                raise ValueError("hurried is missing")
            self.deadline.place = place.hurried

    def _second_pass(self, images: Tensor) -> tuple[Tensor, ...]:
        assert self.pupil.second_pass is not None
        return self.pupil.second_pass(images, generator_for(self.seed, "precision", self.step))


@contextlib.contextmanager
def of_this_network(checkpoint: Kept | None) -> Iterator[None]:
    """Say in one line that a checkpoint is of another network or run than the one that is to go on with it."""
    try:
        yield
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = f"{checkpoint} is of another training than this one ({' '.join(str(error).split())[:200]})"
        raise UserError(f"{reason}: add --restart-training, which trains anew and keeps the rest") from error


def load_checkpoint(checkpoint: Kept | None) -> tuple[dict[str, Tensor], Place] | None:
    """What `train` kept of a run that was killed or interrupted; None where it kept nothing.

    Raises UserError when the file is damaged, or another version's.
    """
    if checkpoint is None or not checkpoint.exists():
        return None
    tensors, place = checkpoint.load(Place)
    if place.form != _FORM:
        raise UserError(
            f"{checkpoint} was written by another version of faqd: add --restart-training, which trains anew from the"
            " first step on and keeps the rest"
        )
    return tensors, place


def seconds_of_step(learner: Learner) -> float:
    """Of a training step here and now, which the learner takes: the median of some, behind one that is slow as all
    first ones are."""
    times, began = list[float](), time.monotonic()
    for images, labels in learner.images.training(0, 1 + _TIMED_STEPS):
        learner.update(images, labels)
        times.append(time.monotonic() - began)
        began = time.monotonic()
    return statistics.median(times[1:])


def time_left(steps: int, seconds: float) -> str:
    """How long a number of steps of these seconds each will take, in words."""
    return f"{seconds:.2g} s a step: training will take about {in_words(steps * seconds)} more"


def train(learner: Learner, *, checkpoint: Kept | None, progress: Progress) -> str | None:
    """Train to the last step, or return why the run is lost.

    The state is kept in `checkpoint` every few seconds and when interrupted; a learner that is restored from it ends
    with the same weights.
    """
    began = kept = time.monotonic()
    # Of a budget the time is told already.
    first, said, deadline = learner.step, learner.deadline is not None, learner.deadline
    if deadline is not None:
        deadline.begin()
    try:
        for images, labels in learner.batches():
            if deadline is not None and (line := deadline.look(learner.step)) is not None:
                progress.say(line)
                if checkpoint is not None:  # what a clock has settled is kept at once
                    checkpoint.save(*learner.state())
            if learner.plateau is not None and (line := learner.plateau.look(learner.step)) is not None:
                progress.say(line)
            loss = learner.update(images, labels)
            if (reason := learner.lost(loss)) is not None:
                return reason
            progress.step(learner.step, learner.steps, loss=loss)
            passed, taken = time.monotonic() - began, learner.step - first
            if not said and passed > _TOLD_AFTER_SECONDS and taken >= _TOLD_AFTER_STEPS:
                said = True
                progress.say(time_left(learner.steps - learner.step, passed / taken))
            if checkpoint is not None and time.monotonic() - kept > CHECKPOINT_SECONDS:
                checkpoint.save(*learner.state())
                kept = time.monotonic()
            if learner.step >= learner.steps:  # which is known on the way
                break
    except KeyboardInterrupt:
        if checkpoint is not None:
            checkpoint.save(*learner.state())
        raise
    return None
