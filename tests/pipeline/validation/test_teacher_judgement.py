"""A teacher at chance, or right in another order of the classes, is told from one that is worth something."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.validation.teacher_judgement import Judgement, binomial_tail, judge


def drawn(classes: int, count: int, share: float, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels, and answers that are right with this probability, otherwise anything."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    right = generator.random(count) < share
    return labels, np.where(right, labels, generator.integers(0, classes, count))


def test_a_tail_of_the_binomial_by_hand() -> None:
    # Three coins: all heads 1/8, two or more 4/8, any number 1.
    assert [binomial_tail(3, 0.5, right) for right in (3, 2, 0)] == pytest.approx([1 / 8, 1 / 2, 1.0])
    assert binomial_tail(3, 0.0, 1) == 0.0 and binomial_tail(3, 1.0, 3) == 1.0


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_guesses_are_at_chance_and_half_knowledge_is_not(classes: int) -> None:
    for seed in range(20):
        assert not judge(*drawn(classes, 256, 0.6, seed), classes).at_chance
        assert not judge(*drawn(classes, 256, 0.6, seed), classes).poor
    assert sum(judge(*drawn(classes, 256, 0.0, seed), classes).at_chance for seed in range(20)) >= 19


def test_chance_by_hand() -> None:
    # Half of the answers and three quarters of the labels are class 0: right by chance 3/8 + 1/8.
    judgement = judge(np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1]), 2)
    assert (judgement.accuracy, judgement.chance) == (0.75, 0.5)
    assert not judgement.at_chance, "four images condemn nobody"


def test_one_answer_to_everything_is_a_guess_and_labels_of_one_class_say_nothing() -> None:
    labels, _ = drawn(10, 200, 1.0)
    assert judge(labels, np.full(200, 3), 10).at_chance
    same = np.full(200, 3)
    assert not judge(same, same, 10).at_chance


@pytest.mark.parametrize("count", [60, 256])
def test_another_order_of_the_classes_is_seen_in_images_that_it_was_not_found_on(count: int) -> None:
    labels, answers = drawn(10, count, 0.9)
    order = np.array([0, 1, 5, 2, 3, 4, 9, 8, 6, 7])  # two of ten classes are where they belong
    judgement = judge(order[labels], answers, 10)
    assert judgement.accuracy < 0.35 and judgement.reordered is not None and judgement.reordered > 0.8
    assert judge(labels, answers, 10).reordered is None


def test_one_image_of_each_class_has_no_other_half_to_judge_an_order_on() -> None:
    labels = np.arange(500)
    assert judge(labels, np.roll(labels, 1), 500).reordered is None
    assert judge(labels, np.roll(labels, 1), 500).at_chance


@pytest.mark.parametrize(("images", "at_chance"), [(16, False), (20, True), (40, True)])
def test_from_twenty_images_on_a_coin_is_told_from_half_knowledge(images: int, at_chance: bool) -> None:
    """Half right of two classes: the bound is 0.5 + 0.5 sqrt(t / (1 + t)) with t = 2.576**2 / N, 0.75 for N = 19.9."""
    labels, answers = np.tile([0, 1, 0, 1], images // 4), np.tile([0, 0, 1, 1], images // 4)
    judgement = judge(labels, answers, 2)
    assert (judgement.accuracy, judgement.chance, judgement.at_chance) == (0.5, 0.5, at_chance)


def test_little_knowledge_is_less_than_a_quarter_of_what_chance_leaves() -> None:
    def poor(accuracy: float, chance: float) -> bool:
        return Judgement(images=9, accuracy=accuracy, chance=chance, at_chance=False, reordered=None).poor

    assert [poor(share, 0.5) for share in (0.62, 0.625, 0.7)] == [True, False, False]
    assert [poor(share, 0.0) for share in (0.24, 0.25)] == [True, False]


def test_an_order_must_leave_four_of_five_labels_an_answer_of_their_own() -> None:
    """Each label is always answered by the next class, 20 images of each; of ten labels some are answered alike."""
    labels = np.repeat(np.arange(10), 20)
    for alike, reordered in ((0, 1.0), (2, 1.0), (3, None)):
        order = np.roll(np.arange(10), -1)
        order[:alike] = order[alike]
        assert judge(labels, order[labels], 10).reordered == reordered
