"""Every loss by name, as training takes it, with what it promises: the conformance tests hold each to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from calibration.errors import UserError
from pipeline.config.affinity_points import POINTS, Affinity, Distance, Normalisation, Over, Point
from pipeline.config.loss_names import LogitLossName
from pipeline.distillation.losses.affinity import AFFINITY_ORDERS, AffinityOrder, fa_loss, ffa_loss, gram_loss
from pipeline.distillation.losses.affinity_grid import grid_loss
from pipeline.distillation.losses.cost import AffinityForm
from pipeline.distillation.losses.feed import feed_loss
from pipeline.distillation.losses.logits import class_loss, cosine_loss, kl_loss, mse_loss
from pipeline.distillation.losses.sakd import uniformise

FormFunction = Callable[[Tensor, Tensor, AffinityOrder, int, torch.Generator], Tensor]

#: Form of FAQD's affinity -> function of (student map, teacher map, order, projections, generator).
AFFINITY_FORMS: Mapping[AffinityForm, FormFunction] = MappingProxyType(
    {
        "fa": lambda student, teacher, order, _projections, _generator: fa_loss(student, teacher, order=order),
        "ffa": lambda student, teacher, order, projections, generator: ffa_loss(
            student, teacher, order=order, projections=projections, generator=generator
        ),
        "gram": lambda student, teacher, _order, _projections, _generator: gram_loss(student, teacher),
    }
)

#: Name of a logit loss -> function of (student logits, teacher logits, temperature).
LOGIT_LOSSES: Mapping[LogitLossName, Callable[[Tensor, Tensor, float], Tensor]] = MappingProxyType(
    {
        "kl": lambda student, teacher, temperature: kl_loss(student, teacher, temperature=temperature),
        "mse": lambda student, teacher, _temperature: mse_loss(student, teacher),
    }
)

#: (student's, teacher's, source of random projections) -> scalar; the teacher's is a constant.
Metric = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A metric and its promises.

    `sees`: logits [B, K], maps [B, C, H, W] or either maps or vectors [B, d] ("features"). `per_image`: an average over
    the images, each of which counts alone; otherwise images are compared with each other, whose order does not matter.
    `vanishes`: zero where student and teacher are equal. `random`: draws from the generator.
    """

    metric: Metric
    sees: Literal["logits", "map", "features"]
    per_image: bool
    vanishes: bool = True
    random: bool = False


def _plain(loss: Callable[[Tensor, Tensor], Tensor]) -> Metric:
    return lambda student, teacher, _generator: loss(student, teacher)


def _of_logits(name: LogitLossName) -> Metric:
    return lambda student, teacher, _generator: LOGIT_LOSSES[name](student, teacher, 4.0)


def _of_form(form: AffinityForm, order: AffinityOrder) -> Metric:
    return lambda student, teacher, generator: AFFINITY_FORMS[form](student, teacher, order, 3, generator)


def _affinities() -> Iterator[tuple[str, Loss]]:
    """FAQD's forms in the norms that each has."""
    for form in AFFINITY_FORMS:
        for order in ("squared",) if form == "gram" else AFFINITY_ORDERS:
            metric = _of_form(form, order)
            yield f"{form}-{order}", Loss(metric=metric, sees="map", per_image=True, random=form == "ffa")


def valid_points() -> list[Point]:
    """Every point of the affinity grid that is not refused."""
    points = []
    axes = (get_args(kind) for kind in (Affinity, Normalisation, Distance, Over))
    for affinity, normalise, distance, over in itertools.product(*axes):
        try:
            points.append(Point(affinity=affinity, normalise=normalise, distance=distance, over=over))
        except UserError:
            continue
    return points


def point_loss(point: Point) -> Loss:
    """The loss of one point of the affinity grid."""
    pixels = point.over == "pixels"
    return Loss(metric=_plain(partial(grid_loss, point=point)), sees="map" if pixels else "features", per_image=pixels)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {
        **{name: Loss(metric=_of_logits(name), sees="logits", per_image=True) for name in LOGIT_LOSSES},
        "class": Loss(
            metric=_plain(lambda student, teacher: class_loss(student, teacher.argmax(1))),
            sees="logits",
            per_image=True,
            vanishes=False,
        ),
        "speq": Loss(metric=_plain(partial(cosine_loss, temperature=2.0)), sees="logits", per_image=True),
        **dict(_affinities()),
        **{name: point_loss(point) for name, point in POINTS.items()},
        "feed": Loss(metric=_plain(feed_loss), sees="map", per_image=True),
        # A branch's classifier is linear: what is ours about SAKD is the uniformisation before it.
        "sakd": Loss(
            metric=_plain(
                lambda student, teacher: kl_loss(
                    uniformise(student, side=2), uniformise(teacher.detach(), side=2), temperature=2.0
                )
            ),
            sees="map",
            per_image=True,
        ),
    }
)
