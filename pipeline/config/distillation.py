"""The part of a configuration that says how the student learns: losses, their weights, steps and rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from calibration.errors import UserError
from pipeline.config import flags
from pipeline.config.affinity_points import (
    AFFINITY_WEIGHTS,
    FA_CHOICES,
    AffinityChoice,
    Distance,
    Normalisation,
    Over,
    Point,
    grid_point,
)
from pipeline.config.loss_names import LogitLossName
from pipeline.config.ramps import Ramp, read_ramp

_WEIGHTED = ("logit", "class", "label", "affinity", "feed", "sakd", "speq")


def _weight(name: str, help: str) -> Parameter:
    return Parameter(name=name, metavar="NUMBER|SCHEDULE", help=f"{help} Or linear:A:B, cosine:A:B, step:A:B:...")


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How the quantised network learns from the float one; labels are read where `label_weight` is set, else never."""

    steps: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Training steps; 0: calibration only. Default: by the bits, 300 to 2400, fewer of few images.",
        ),
    ] = None
    patience: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Looks at the held-out loss in a row, each after a twentieth of the steps, mostly in the second half, "
            "after which training ends early where that, of 8 images or more, has not fallen beyond chance; 0: never. "
            "Default: 3, 0 with --steps.",
        ),
    ] = None
    minutes: Annotated[
        float | None,
        Parameter(
            metavar="NUMBER",
            help="Minutes that training may take, every beginning of it: as many of the default's steps as fit, "
            "measured once where it begins and kept by --resume.",
        ),
    ] = None
    float_steps: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Steps in which a --student learns in float before it is quantised. Default: 2000 without weights, "
            "else none.",
        ),
    ] = None
    float_learning_rate: Annotated[float, Parameter(metavar="RATE", help="Peak learning rate of Adam there.")] = 1e-3
    batch_norm: Annotated[
        Literal["auto", "kept", "folded"],
        Parameter(
            help="kept: convolutions are normalised over the batch in training, folded away at the end; folded: "
            "before; auto: kept below 4 bits."
        ),
    ] = "auto"
    batch_size: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Images per training step. Default: 128, fewer of large images, by the memory that a step takes, and "
            "where there are few.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Parameter(
            metavar="RATE",
            help="Peak learning rate of the weights; it backs off by itself on divergence. Default: chosen from --bits "
            "and --optimiser, and lowered where the first step would do harm or short trials end better.",
        ),
    ] = None
    optimiser: Annotated[
        Literal["adam", "sgd"], Parameter(help="How weights are updated; sgd: with Nesterov's momentum 0.9.")
    ] = "adam"
    weight_decay: Annotated[
        float, Parameter(metavar="NUMBER", help="Decay of the weights, per unit of the learning rate.")
    ] = 0.0
    scale_learning_rate: Annotated[
        float, Parameter(metavar="RATE", help="Peak learning rate of the logarithms of the learned scales.")
    ] = 1e-3
    targets: Annotated[
        Literal["auto", "image", "mirror"],
        Parameter(
            help="Teacher logits to learn: of the image, or averaged with those of its mirror image; auto: mirror "
            "where training flips images and the teacher hardly minds."
        ),
    ] = "auto"
    logit_loss: Annotated[LogitLossName, Parameter(help="Loss between the logits of teacher and student.")] = "kl"
    temperature: Annotated[float | str, _weight("--temperature", "Softmax temperature, no unit.")] = 4.0
    logit_weight: Annotated[float | str, _weight("--logit-weight", "Weight of the logit loss.")] = 1.0
    class_weight: Annotated[
        float | str | None,
        _weight("--class-weight", "Weight of the cross entropy with the teacher's class. Default: left out."),
    ] = None
    label_weight: Annotated[
        float | str | None,
        _weight("--label-weight", "Weight of the cross entropy with labels in --data. Default: no labels."),
    ] = None
    affinity: Annotated[
        AffinityChoice,
        Parameter(
            help="Loss between features. auto: FAQD's (fa, ffa, gram), the cheapest per layer, none where no map has "
            "several positions; none: logits only; sp, rkd-d, rkd-a, pkt: named losses between images; else an "
            "affinity of the grid.",
        ),
    ] = "auto"
    affinity_order: Annotated[
        Literal["squared", "1", "2"], Parameter(help="Norm of FAQD's loss; auto and gram need squared.")
    ] = "squared"
    normalise: Annotated[
        Normalisation | None,
        Parameter(help="What an affinity of the grid is divided by. Default: none.", show_default=False),
    ] = None
    distance: Annotated[
        Distance | None,
        Parameter(help="How affinities of the grid are compared. Default: squared.", show_default=False),
    ] = None
    over: Annotated[
        Over | None,
        Parameter(help="Affinities between the images of a batch or the pixels of an image. Default: samples."),
    ] = None
    affinity_weight: Annotated[
        float | str | None,
        _weight("--affinity-weight", "Weight of the affinity loss beside the logit loss. Default: as published."),
    ] = None
    adapters: Annotated[
        Literal["identity", "trained"],
        Parameter(help="trained: the student's maps pass a 1x1 convolution first, dropped after training."),
    ] = "identity"
    feed_weight: Annotated[
        float | str | None,
        _weight("--feed-weight", "Weight of FEED's loss to every teacher's last map. Default: left out."),
    ] = None
    sakd_weight: Annotated[
        float | str | None,
        _weight("--sakd-weight", "Weight of SAKD's branches at the taps. Default: left out."),
    ] = None
    speq_weight: Annotated[
        float | str | None,
        _weight("--speq-weight", "Weight of SPEQ's loss to a second pass of mixed precision. Default: left out."),
    ] = None
    speq_bits: Annotated[
        int | None,
        Parameter(metavar="COUNT", help="Activation bits there by chance, 2 to 8. Default: own below 8, else 4."),
    ] = None
    speq_probability: Annotated[
        float, Parameter(metavar="NUMBER", help="Chance of those bits per layer, above 0 to 1; else 8 bits.")
    ] = 0.5
    generations: Annotated[
        int, Parameter(metavar="COUNT", help="Students in a chain, each taught by the one before (sequential FEED).")
    ] = 1
    projections: Annotated[
        int, Parameter(metavar="COUNT", help="Random vectors per step of the fast affinity form (ffa).")
    ] = 15
    taps: Annotated[
        tuple[str, ...] | None,
        Parameter(
            converter=flags.split_text,
            consume_multiple=True,
            negative=(),
            metavar="NAME,...",
            help="Modules whose outputs are compared. Default: the last map of each spatial resolution.",
        ),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        flags.check_at_least(
            self, steps=0, patience=0, float_steps=0, batch_size=1, projections=1, generations=1, weight_decay=0
        )
        flags.check_above_zero(self, "minutes", "learning_rate", "scale_learning_rate", "float_learning_rate")
        if self.minutes is not None and self.steps is not None:
            raise UserError(f"--minutes {self.minutes:g} and --steps {self.steps} both say how long: give one of them")
        self._check_weights()
        point = self.point
        if point is not None and self.batch_size is not None and self.batch_size < point.least_images:
            raise UserError(
                f"--batch-size {self.batch_size}: --affinity {self.affinity} compares the images of a batch and needs "
                f"{point.least_images} or more"
            )
        if self.speq_bits is not None and not 2 <= self.speq_bits <= 8:
            raise UserError(f"--speq-bits {self.speq_bits}: must be 2 to 8")
        if not 0 < self.speq_probability <= 1:
            raise UserError(f"--speq-probability {self.speq_probability:g}: must be above 0 and at most 1")
        if self.affinity not in FA_CHOICES and self.affinity_order != "squared":
            raise UserError(
                f"--affinity-order {self.affinity_order} belongs to --affinity fa and ffa, not {self.affinity}"
            )
        if self.affinity in ("auto", "gram") and self.affinity_order != "squared":
            raise UserError(
                f"--affinity-order {self.affinity_order} has no {self.affinity} form: "
                "add --affinity fa or ffa, or use --affinity-order squared"
            )
        if self.taps is not None and not self.taps:
            raise UserError("--taps is empty: name at least one module, or use --affinity none")
        pixels = self.affinity in FA_CHOICES or (point is not None and point.over == "pixels")
        if self.adapters == "trained" and not pixels:
            raise UserError(f"--adapters trained belongs to losses over pixels: --affinity {self.affinity} is not one")

    @property
    def point(self) -> Point | None:
        """The point of the affinity grid; None for FAQD's forms or no affinity."""
        return grid_point(self.affinity, self.normalise, self.distance, self.over)

    @property
    def softening(self) -> float | None:
        """Temperature at the first step by which several teachers' outputs are averaged; None: as logits."""
        return self.ramp("temperature").start if self.logit_loss == "kl" else None

    def ramp(self, name: str) -> Ramp:
        """The temperature or the weight in a field over the run; a term that is left out has none."""
        value = getattr(self, name)
        if value is None and name == "affinity_weight":
            value = AFFINITY_WEIGHTS.get(self.affinity, 1.0)
        return read_ramp(name.replace("_", "-"), value, positive=name == "temperature")

    @property
    def changes(self) -> bool:
        """Whether a weight or the temperature changes over the run."""
        names = ("temperature", *(f"{part}_weight" for part in _WEIGHTED))
        return any(getattr(self, name) is not None and len(set(self.ramp(name).values)) > 1 for name in names)

    def _check_weights(self) -> None:
        read_ramp("temperature", self.temperature, positive=True)
        for flag, instead in (
            ("logit-weight", ""),
            ("class-weight", "leave it out instead"),
            ("label-weight", "leave it out instead"),
            ("affinity-weight", "--affinity none trains on the logits alone"),
            ("feed-weight", "leave it out instead"),
            ("sakd-weight", "leave it out instead"),
            ("speq-weight", "leave it out instead"),
        ):
            ramp = getattr(self, flag.replace("-", "_"))
            if ramp is not None:
                read_ramp(flag, ramp, positive=False, instead=instead)
