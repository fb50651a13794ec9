"""How sure a loss is that was measured on a few images, and when it decides a limit: `decision` has the one rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of each bound on its own: of 20 verdicts that only chance could make, one is wrong."""

LEAST_IMAGES = 8
"""Images that outputs with many decisions need: a kind of image that makes up a third of what a device sees is missed
by eight with a chance of (2/3)**8 = 4 %."""


RULED_OUT = 2.0
"""A yes rules out that so many times the limit is lost [ours]: what loses that much gets one in one case of twenty.
The limit itself would ask for a bound that only nearly lossless networks reach on several hundred images."""


@dataclass(frozen=True, kw_only=True)
class PointsLost:
    """What was lost against the teacher, in percentage points: as measured, and its bounds, each for itself at 95 %."""

    points: float
    at_least: float
    at_most: float
    images: int


def decision(loss: PointsLost, limit: float, decisions: int | None) -> bool | None:
    """Whether a loss is within a limit, in percentage points; None where the images are too few to tell.

    No: more than the limit was measured, on `images_needed` or more, or its lower bound is above the limit already.
    Yes: the limit or less was measured, on `images_needed` or more, and `RULED_OUT` times the limit lies above the
    upper bound. All else is undecided. By hand, for a limit of one point and one decision per image: of 298 images none
    decides it; of 300 one lost is a yes (0.33 points, 1.57 at most), two are undecided (2.08 at most), four a no.
    """
    if loss.images < images_needed(limit, decisions):
        return False if loss.at_least > limit else None
    if loss.points > limit:
        return False
    return True if loss.at_most <= RULED_OUT * limit or not limit else None


def images_to_decide(loss: PointsLost, limit: float, decisions: int | None) -> int:
    """Images on which a loss like this one would decide a limit: bounds draw in with the root of their number."""
    needed = images_needed(limit, decisions)
    room, reach = RULED_OUT * limit - loss.points, loss.at_most - loss.points
    if loss.images < needed or loss.points > limit or room >= reach or not limit:
        return needed
    return max(needed, math.ceil(loss.images * (reach / room) ** 2))


def images_needed(limit: float, decisions: int | None) -> int:
    """Images from which on a limit of so many percentage points can be decided at all.

    `decisions` per image: with one, each image is right or wrong, and a share of `limit` wrong ones stays unseen on n
    images with a chance of (1 - limit)**n: that must be 5 % at most (299 images for one point, "the rule of three").
    With more, or with values (None), LEAST_IMAGES are enough where they hold as many decisions. A limit of 0 asks that
    nothing is lost on the images themselves, and needs as many as one point.

    Source: Hanley and Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249 (1983).
    """
    share = min((limit or 1.0) / 100, 1.0)
    alone = 1 if share >= CONFIDENCE else math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-share))
    if decisions is None:
        return min(alone, LEAST_IMAGES)
    return alone if decisions <= 1 else min(alone, max(LEAST_IMAGES, math.ceil(alone / decisions)))


def decidable_limit(images: int) -> float:
    """The smallest limit, in percentage points, that so many images with one decision each can decide."""
    return 100 * (1 - math.pow(1 - CONFIDENCE, 1 / max(images, 1)))


def loss_of(lost: NDArray[np.float64], *, points: float, decisions: int | None, paired: bool) -> PointsLost:
    """Bounds on a loss of `points`, the mean of what each image has lost [B]: 1 its answer, 0 nothing, -1 one won.

    With one decision per image, counts decide: the exact (Clopper-Pearson) bounds of the share lost, or where answers
    could be won as well (`paired`) those of `paired_bounds`. With more (maps), or with values (None), the bounds are
    Student's over images.
    """
    images = len(lost)
    if decisions == 1:
        worse, better = int((lost > 0).sum()), int((lost < 0).sum())
        if paired:
            low, high = -_paired_bound(better, worse, images), _paired_bound(worse, better, images)
        else:
            low, high = binomial_bounds(worse, images, 1 - CONFIDENCE)
    elif images < 2:
        low, high = -math.inf, math.inf
    else:
        reach = student_quantile(images - 1) * float(lost.std(ddof=1)) / math.sqrt(images)
        low, high = float(lost.mean()) - reach, float(lost.mean()) + reach
    low, high = max(100 * low, -100.0), min(100 * high, 100.0)
    return PointsLost(points=points, at_least=min(low, points), at_most=max(high, points), images=images)


def _paired_bound(worse: int, better: int, images: int) -> float:
    """Upper bound on the share lost less the share won, where `worse` images were lost and `better` won.

    The difference whose score statistic is the quantile of CONFIDENCE; its chance of being too low is right within
    0.2 % for what is measured here (60 images or more, each share 1 % or more). Where nothing was won the exact bound
    of the share lost, which is no smaller and holds for any number.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), formulas 7 and 12.
    """
    if not better:
        return binomial_bounds(worse, images, 1 - CONFIDENCE)[1]
    quantile, measured = NormalDist().inv_cdf(CONFIDENCE), (worse - better) / images

    def beyond(share: float) -> float:
        difference = measured + share * (1 - measured)
        slope = 2 * images * difference - worse - better + (better - worse) * difference
        won = math.sqrt(slope**2 + 8 * images * better * difference * (1 - difference)) - slope
        variance = images * (won / (2 * images) + difference * (1 - difference))
        if variance <= 0:
            return 1.0
        return (images * difference - worse + better) / math.sqrt(variance) - quantile

    return measured + _root(beyond) * (1 - measured)


def binomial_bounds(count: int, total: int, risk: float) -> tuple[float, float]:
    """Lower and upper bound on the share behind `count` of `total`, each passed with a chance of `risk` at most.

    The lower bound is the share at which `count` or more come up with the chance `risk`, the upper one that at which
    `count` or fewer do; both are quantiles of beta distributions.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    low = 0.0 if count == 0 else _root(lambda p: incomplete_beta(p, count, total - count + 1) - risk)
    high = 1.0 if count == total else _root(lambda p: incomplete_beta(p, count + 1, total - count) - (1 - risk))
    return low, high


def student_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """What Student's t with so many degrees of freedom, >= 1, stays below with a chance of `confidence`, 0.5 to 1."""

    def beyond(x: float) -> float:
        # The chance of t > sqrt(freedom * (1 - x) / x), for x from 0 to 1 rising (DLMF 8.17 and its relation to t).
        return 0.5 * incomplete_beta(x, freedom / 2, 0.5) - (1 - confidence)

    x = _root(beyond)
    return math.sqrt(freedom * (1 - x) / x)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), for x in [0, 1] and positive a and b.

    Source: the continued fraction DLMF 8.17.22, evaluated from its front (modified Lentz).
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges quickly on this side of the mean alone
        return 1 - incomplete_beta(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny, value, upper, lower = 1e-300, 1.0, 1.0, 0.0
    for index in range(10_000):
        half = index // 2
        if index == 0:
            term = 1.0
        elif index % 2 == 0:
            term = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        else:
            term = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        lower = 1 / (1 + term * lower or tiny)
        upper = 1 + term / upper or tiny
        value *= lower * upper
        if abs(1 - lower * upper) < 1e-14:
            break
    return front * (value - 1)


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function crosses 0 within [0, 1], by halving."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
