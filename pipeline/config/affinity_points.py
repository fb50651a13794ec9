"""The points of the affinity grid: which affinity, normalisation and distance go together, and their names.

Source: Li and Maki, arXiv 2209.15555; see `pipeline.distillation.losses.affinity_grid`. Without torch: the command line
checks a configuration with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from calibration.errors import UserError

Affinity = Literal["inner", "cosine", "shifted-cosine", "euclidean", "squared-euclidean", "rbf", "polynomial", "angle"]
Normalisation = Literal["none", "rows", "frobenius", "mean", "max", "softmax", "row-sum"]
Distance = Literal["l1", "squared", "smooth-l1", "kl", "js", "cosine"]
Over = Literal["samples", "pixels"]

_MAY_BE_NEGATIVE = frozenset({"inner", "cosine", "angle"})
_PROBABILITIES = frozenset({"softmax", "row-sum"})
_SCALE_ONLY = frozenset({"rows", "frobenius", "mean", "max", "row-sum"})


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the grid. Raises UserError for a combination that makes no sense, with the reason."""

    affinity: Affinity
    normalise: Normalisation
    distance: Distance
    over: Over

    def __post_init__(self) -> None:
        for flag, kind in (
            ("affinity", Affinity),
            ("normalise", Normalisation),
            ("distance", Distance),
            ("over", Over),
        ):
            value = getattr(self, flag)
            if value not in get_args(kind):
                raise UserError(f"--{flag} {value}: must be one of {', '.join(get_args(kind))}")
        if self.distance in ("kl", "js") and self.normalise not in _PROBABILITIES:
            raise UserError(
                f"--distance {self.distance} compares probabilities, and the rows of --normalise {self.normalise} do "
                "not sum to 1: use --normalise softmax or row-sum"
            )
        if self.normalise == "row-sum" and self.affinity in _MAY_BE_NEGATIVE:
            raise UserError(
                f"--normalise row-sum makes probabilities of affinities, and --affinity {self.affinity} may be "
                "negative: use --normalise softmax, or --affinity shifted-cosine"
            )
        if self.distance == "cosine" and self.normalise in _SCALE_ONLY:
            raise UserError(
                f"--normalise {self.normalise} only scales rows, which --distance cosine does not see: "
                "use --normalise none or softmax"
            )
        if self.affinity == "angle" and (self.normalise != "none" or self.over != "samples"):
            raise UserError(
                "--affinity angle is bounded already and costs the cube of what is compared: "
                "use --normalise none --over samples"
            )

    @property
    def least_images(self) -> int:
        """Images that a batch needs at least for the affinities to say anything."""
        return 1 if self.over == "pixels" else 3 if self.affinity == "angle" else 2


# name -> point of the grid
POINTS: Mapping[str, Point] = MappingProxyType(
    {
        "sp": Point(affinity="inner", normalise="rows", distance="squared", over="samples"),
        "rkd-d": Point(affinity="euclidean", normalise="mean", distance="smooth-l1", over="samples"),
        "rkd-a": Point(affinity="angle", normalise="none", distance="smooth-l1", over="samples"),
        "pkt": Point(affinity="shifted-cosine", normalise="row-sum", distance="kl", over="samples"),
    }
)

AffinityChoice = Literal[
    "auto",
    "fa",
    "ffa",
    "gram",
    "none",
    "sp",
    "rkd-d",
    "rkd-a",
    "pkt",
    "inner",
    "cosine",
    "shifted-cosine",
    "euclidean",
    "squared-euclidean",
    "rbf",
    "polynomial",
    "angle",
]

FA_CHOICES = ("auto", "fa", "ffa", "gram")
GRID_AXES = ("normalise", "distance", "over")

# Weight beside a logit loss of weight 1. FAQD's released 0.1 multiplies a sum over a batch of 100: for our average that
# is 10 for order "1" and 1 for order "2". The members' as their authors use them beside a cross entropy (arXiv
# 2209.15555); a point without a name has none that is known.
AFFINITY_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {**dict.fromkeys(FA_CHOICES, 0.1), "sp": 3000.0, "rkd-d": 25.0, "rkd-a": 50.0, "pkt": 30000.0}
)


def grid_point(choice: str, normalise: str | None, distance: str | None, over: str | None) -> Point | None:
    """The point of the grid that the flags name; None for FAQD's own forms and for no affinity.

    Without the other flags an affinity is compared as it is: normalise none, distance squared, over samples.

    Raises:
        UserError: an axis given to a name that fixes it, or a combination that makes no sense.
    """
    axes = {"normalise": normalise, "distance": distance, "over": over}
    if choice in FA_CHOICES or choice in POINTS or choice == "none":
        for axis, value in axes.items():
            if value is not None:
                free = ", ".join(get_args(Affinity))
                raise UserError(f"--{axis} {value}: --affinity {choice} leaves no choice of it; free are {free}")
        return POINTS.get(choice)
    return Point(
        affinity=choice,  # type: ignore[arg-type]  # checked by the dataclass
        normalise=normalise or "none",  # type: ignore[arg-type]  # as above
        distance=distance or "squared",  # type: ignore[arg-type]  # as above
        over=over or "samples",  # type: ignore[arg-type]  # as above
    )
