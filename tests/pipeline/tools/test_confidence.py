"""Bounds on shares and means, and the images that a limit needs, against sums written out and another library."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from pipeline.tools.confidence import (
    LEAST_IMAGES,
    PointsLost,
    binomial_bounds,
    decidable_limit,
    decision,
    images_needed,
    images_to_decide,
    incomplete_beta,
    loss_of,
    student_quantile,
)


def at_most(count: int, total: int, share: float) -> float:
    """The chance of `count` or fewer of `total`, summed in exact fractions."""
    p = Fraction(share)
    return float(sum(math.comb(total, k) * p**k * (1 - p) ** (total - k) for k in range(count + 1)))


@pytest.mark.parametrize(("count", "total"), [(0, 9), (3, 9), (9, 9), (2, 450), (40, 60)])
def test_bounds_of_a_share_leave_the_risk_that_they_say(count: int, total: int) -> None:
    low, high = binomial_bounds(count, total, 0.05)
    if count:
        assert 1 - at_most(count - 1, total, low) == pytest.approx(0.05, abs=1e-9)
    if count < total:
        assert at_most(count, total, high) == pytest.approx(0.05, abs=1e-9)
    assert (low == 0) == (count == 0) and (high == 1) == (count == total)
    assert low <= count / total <= high


def test_nothing_lost_on_300_images_is_one_point_at_most() -> None:
    """By hand: 0.99**299 = 0.0495, 0.99**298 = 0.0500..."""
    assert images_needed(1.0, 1) == 299 and 0.99**299 <= 0.05 < 0.99**298
    assert binomial_bounds(0, 299, 0.05)[1] <= 0.01 < binomial_bounds(0, 298, 0.05)[1]
    assert images_needed(0.5, 1) == 598 and images_needed(50, 1) == 5 and images_needed(100, 1) == 1
    assert decidable_limit(1) == pytest.approx(95) and decidable_limit(9) == pytest.approx(28.313, abs=1e-3)
    for images in (1, 9, 299, 5000):
        assert images_needed(decidable_limit(images) + 1e-9, 1) <= images


def test_many_decisions_per_image_need_few_images_but_never_one() -> None:
    assert images_needed(1.0, 2) == 150 and images_needed(1.0, 1024) == images_needed(1.0, None) == LEAST_IMAGES
    assert (2 / 3) ** LEAST_IMAGES < 0.05 < (2 / 3) ** (LEAST_IMAGES - 1)
    assert images_needed(0.0, 1) == images_needed(1.0, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_functions_are_those_of_another_library(seed: int) -> None:
    from scipy import special  # here: no other test needs it, and every process would wait for it

    generator = np.random.default_rng(seed)
    for _ in range(50):
        a, b, x = *10 ** generator.uniform(-0.5, 4, 2), generator.uniform()
        assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), abs=1e-9)
    for freedom in (1, 2, 9, 1000):
        assert student_quantile(freedom) == pytest.approx(special.stdtrit(freedom, 0.95), rel=1e-7)


def test_a_loss_is_bounded_by_counts_or_by_the_spread_over_images() -> None:
    lost = np.zeros(450)
    alone = loss_of(lost, points=0.0, decisions=1, paired=False)
    assert alone.at_least == 0 and alone.at_most == pytest.approx(100 * (1 - 0.05 ** (1 / 450)))
    lost[:6], lost[6:8] = 1, -1
    paired = loss_of(lost, points=400 / 450, decisions=1, paired=True)
    assert paired.at_least < 0 < paired.points < paired.at_most
    # By hand: (0.01, 0.02, 0.03) has mean 2 points, deviation 1, and t of two degrees of freedom is 2.920.
    maps = loss_of(np.array([0.01, 0.02, 0.03]), points=2.0, decisions=1024, paired=False)
    assert maps.at_most == pytest.approx(2 + 2.919986 / math.sqrt(3), abs=1e-4)
    one = loss_of(np.array([0.0]), points=0.0, decisions=1024, paired=False)
    assert (one.at_least, one.at_most) == (-100, 100), "one image says nothing of others"


@pytest.mark.parametrize("paired", [False, True])
def test_the_bounds_hold_as_often_as_they_say(paired: bool) -> None:
    """Coverage of drawn experiments: the true loss lies below its upper and above its lower bound 95 times of 100."""
    generator = np.random.default_rng(0)
    chances = [0.93, 0.04, 0.03] if paired else [0.96, 0.04, 0.0]
    truth, inside = 100 * (chances[1] - chances[2]), [0, 0]
    for _ in range(400):
        lost = generator.choice([0.0, 1.0, -1.0], size=120, p=chances)
        loss = loss_of(lost, points=100 * float(lost.mean()), decisions=1, paired=paired)
        inside[0] += loss.at_least <= truth
        inside[1] += truth <= loss.at_most
    # Three standard deviations of a count of 400 that is to be 95 %.
    assert min(inside) >= 0.95 * 400 - 3 * math.sqrt(400 * 0.95 * 0.05)


def counted(worse: int, better: int, images: int, *, paired: bool = False) -> PointsLost:
    lost = np.zeros(images)
    lost[:worse], lost[worse : worse + better] = 1, -1
    return loss_of(lost, points=round(100 * float(lost.mean()), 9), decisions=1, paired=paired)


@pytest.mark.parametrize(
    ("worse", "images", "limit", "expected"),
    [
        (0, 9, 1.0, None),  # nine images decide no point: 0.95 of the networks that lose 28 in 100 would show it
        (6, 9, 1.0, False),  # two thirds lost are no chance
        (0, 298, 1.0, None),
        (0, 299, 1.0, True),  # at most 1.00
        (1, 300, 1.0, True),  # 0.33, at most 1.57
        (2, 300, 1.0, None),  # 0.67, at most 2.08: may be twice the limit
        (3, 300, 1.0, None),
        (4, 300, 1.0, False),  # 1.33 measured
        (0, 300, 0.5, None),  # at most 0.99, though nothing was lost
        (0, 598, 0.5, True),
        (0, 450, 1.0, True),
        (3, 450, 1.0, True),  # 0.67, at most 1.71
        (0, 300, 0.0, True),  # nothing lost on the images themselves
        (1, 300, 0.0, False),
    ],
)
def test_the_rule_by_hand(worse: int, images: int, limit: float, expected: bool | None) -> None:
    loss = counted(worse, 0, images)
    assert decision(loss, limit, 1) is expected
    needed = images_to_decide(loss, limit, 1)
    assert (needed > images) == (expected is None or images < images_needed(limit, 1))


def test_what_loses_twice_the_limit_gets_a_yes_in_one_case_of_twenty_at_most() -> None:
    """Summed over all counts that are a yes, for a network that loses two points where one is allowed."""
    for images in (299, 300, 399, 400, 450, 512, 1017):
        yes = [k for k in range(images // 50) if decision(counted(k, 0, images), 1.0, 1)]
        assert yes == list(range(len(yes))) and yes, "the less is lost the surer a yes, and no loss is one"
        assert at_most(yes[-1], images, 0.02) <= 0.05


def test_twenty_lost_and_twenty_won_are_no_yes_on_300_images() -> None:
    """Measured 0 points; the difference of two networks that answer so differently is known to 3.5 points alone."""
    few, many = counted(20, 20, 300, paired=True), counted(20, 20, 1017, paired=True)
    assert few.points == 0 and few.at_most == pytest.approx(100 * 1.645 * math.sqrt(40) / 300, rel=0.05)
    assert decision(few, 1.0, 1) is None and decision(many, 1.0, 1) is True
    # The reach of 3.5 points must shrink to 2, so (3.5 / 2)**2 = 3 times the images.
    assert images_to_decide(few, 1.0, 1) == pytest.approx(300 * (few.at_most / 2) ** 2, abs=1)
    assert decision(counted(0, 0, 300, paired=True), 1.0, 1) is True, "the same answers everywhere"


@pytest.mark.parametrize(("worse", "better", "images"), [(12, 8, 1017), (20, 20, 300), (3, 1, 500), (1, 9, 400)])
def test_a_paired_bound_is_where_the_likelihood_allows_no_more(worse: int, better: int, images: int) -> None:
    """Its score statistic with the likeliest share won, searched for instead of solved, is the 95 % quantile."""
    bound = counted(worse, better, images, paired=True).at_most / 100

    won = np.linspace(max(0.0, -bound) + 1e-6, 0.3, 300_000)
    shares, counts = (won + bound, won, 1 - 2 * won - bound), (worse, better, images - worse - better)
    likelihood = sum(count * np.log(share) for count, share in zip(counts, shares, strict=True))
    likeliest = float(won[int(np.argmax(likelihood))])
    deviation = math.sqrt(images * (2 * likeliest + bound - bound**2))
    assert (images * bound - worse + better) / deviation == pytest.approx(1.6449, abs=2e-3)


@pytest.mark.parametrize(("worse", "images"), [(0, 300), (1, 300), (3, 60)])
def test_where_nothing_was_won_a_pair_has_the_exact_bound_of_what_was_lost(worse: int, images: int) -> None:
    paired, alone = (counted(worse, 0, images, paired=paired) for paired in (True, False))
    assert paired.at_most == alone.at_most == pytest.approx(100 * binomial_bounds(worse, images, 0.05)[1])
    # And where nothing was lost, what was won is bounded so.
    assert counted(0, worse, images, paired=True).at_least == pytest.approx(-paired.at_most)


def test_values_are_decided_by_the_spread_over_images() -> None:
    steady, wild = np.full(9, 0.005), np.array([0.0] * 8 + [0.06])
    made = [loss_of(lost, points=100 * float(lost.mean()), decisions=None, paired=False) for lost in (steady, wild)]
    assert [decision(loss, 1.0, None) for loss in made] == [True, True]
    wild[-1] = 0.089  # 0.99 points on the mean of nine, all by one image: 1.86 * 0.0297 / 3 = 1.84 points more at most
    loss = loss_of(wild, points=100 * float(wild.mean()), decisions=None, paired=False)
    assert loss.at_most == pytest.approx(0.99 + 1.84, abs=0.01) and decision(loss, 1.0, None) is None
