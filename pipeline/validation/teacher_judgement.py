"""Whether a float teacher answers labelled images better than by chance, and whether their classes are in its order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Of a normal distribution: one true value in two hundred lies above such a bound [ours].
_BOUND = 2.576
# Chance is ruled out where it would give as many right answers less often than this [ours].
_CHANCE = 0.01
# Of what chance leaves to be known: a teacher that may know half of it is not condemned, and one below a quarter is
# told of [ours].
_LEAST_SKILL, _POOR_SKILL = 0.5, 0.25
# By how much another order must do better on images that it was not found on, and how seldom chance may do that [ours].
_BETTER, _BETTER_BY_CHANCE = 0.25, 1e-4
# Of the labels, how many must have an answer of their own: a few errors may make two of them alike [ours].
_LEAST_DISTINCT = 0.8


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What labelled images say of a teacher.

    `accuracy`, `chance`: fractions right, and right if answers and labels were drawn apart from each other.
    `reordered`: fraction right with the labels' classes in the order that suits best, on images that it was not found
    on; None where that is no better. `at_chance`: nothing tells it from guessing, and images enough to tell were there.
    """

    images: int
    accuracy: float
    chance: float
    at_chance: bool
    reordered: float | None

    @property
    def poor(self) -> bool:
        """Whether little is known beyond chance."""
        return self.accuracy - self.chance < _POOR_SKILL * (1 - self.chance)


def judge(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> Judgement:
    """Judge answers int64 [N] by labels int64 [N], both 0 to classes - 1, N >= 1.

    Source: chance as in Cohen's kappa (1960), the bound of the accuracy is Wilson's (1927); the limits are ours.
    """
    count, right = len(labels), int((labels == answers).sum())
    answered, labelled = (np.bincount(values, minlength=classes) / count for values in (answers, labels))
    chance = float((answered * labelled).sum())
    upper = _wilson_upper(right, count)
    guessed = binomial_tail(count, chance, right) > _CHANCE
    # Labels of all but one class are guessed by whoever knows that class.
    at_chance = guessed and chance < 0.9 and (upper - chance) < _LEAST_SKILL * (1 - chance)
    return Judgement(
        images=count,
        accuracy=right / count,
        chance=chance,
        at_chance=at_chance,
        reordered=_reordered(labels, answers),
    )


def _reordered(labels: NDArray[np.int64], answers: NDArray[np.int64]) -> float | None:
    """Fraction right when each label means the class that is most often answered to it, judged on the other half."""
    rank = np.zeros(len(labels), dtype=np.int64)
    seen: dict[int, int] = {}
    for place, label in enumerate(labels.tolist()):
        rank[place] = seen.get(label, 0)
        seen[label] = rank[place] + 1
    first = rank % 2 == 0
    meaning = {int(label): int(np.bincount(answers[first & (labels == label)]).argmax()) for label in seen}
    # An order gives every class one place: labels that share an answer show a teacher that knows few classes.
    if len(set(meaning.values())) < _LEAST_DISTINCT * len(meaning) or bool(first.all()):
        return None
    tested, truth = answers[~first], labels[~first]
    right = int((tested == np.array([meaning[int(label)] for label in truth])).sum())
    plain = float((tested == truth).mean())
    better = right / len(tested)
    sure = binomial_tail(len(tested), plain, right) < _BETTER_BY_CHANCE
    return better if sure and better - plain > _BETTER else None


def _wilson_upper(right: int, count: int) -> float:
    share, z = right / count, _BOUND
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle + spread) / (1 + z * z / count)


def binomial_tail(count: int, share: float, right: int) -> float:
    """Probability of at least `right` of `count` when each is right with probability `share`."""
    if right <= 0:
        return 1.0
    if share <= 0:
        return 0.0
    if share >= 1:
        return 1.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(share) + (count - k) * math.log1p(-share)
        for k in range(right, count + 1)
    ]  # fmt: skip
    return min(1.0, math.fsum(math.exp(value) for value in logs))
