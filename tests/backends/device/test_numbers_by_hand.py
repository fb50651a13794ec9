"""The measures by which answers are the same, on numbers that a person works out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.device.bundle_check.compare import compared, cosine_similarity, golden_line, same_share
from backends.device.bundle_check.manifest import OutputEntry
from backends.device.bundle_check.same_answer import (
    EXACT,
    WITH_FLOAT,
    answers,
    equal_share,
    largest_difference,
    least_share,
    limit_on,
    value_tally,
)
from backends.device.bundle_check.value_tally import Spread, ValueTally, axis_of_kinds

CLASSES = OutputEntry(name="scores", holds="classes")


def column(*images: Any) -> NDArray[np.float64]:
    return np.array(images, np.float64)


def spread_of(*batches: NDArray[np.float64], axis: int | None = None, negligible: float = 0.0) -> Spread:
    spread = Spread(axis, negligible=negligible)
    for batch in batches:
        spread.add(batch)
    return spread


def test_deviations_are_those_from_the_mean_over_images_however_batches_fall() -> None:
    # 0, 2 and 7 have the mean 3 and the squared deviations 9, 1 and 16; 10 makes the mean 4.75 and the sum 62.75.
    for batches in (([[0.0]], [[2.0]], [[7.0]]), ([[0.0], [2.0]], [[7.0]]), ([[0.0]], [[2.0], [7.0]])):
        spread = spread_of(*(np.array(batch) for batch in batches))
        assert (spread.images, spread.count) == (3, 3)
        assert (spread.sum.item(), spread.squares.item()) == (9, 53)
        assert spread.deviations.item() == pytest.approx(26)
        spread.add(column([10]))
        assert spread.deviations.item() == pytest.approx(62.75)
    integers = spread_of(np.array([[100], [-100]], np.int8))
    assert (integers.squares.item(), integers.deviations.item()) == (20_000, 20_000), "8 bits would not hold them"
    # Two positions, each with its own mean: what differs between them alone is no deviation.
    spread = spread_of(column([0, 100], [2, 100]), column([1, 103]))
    assert spread.deviations.item() == pytest.approx(2 + 6) and spread.count == 6


def test_rounding_of_float32_is_no_move_and_neither_is_what_is_negligible() -> None:
    # Two values v and v + d deviate by d * d / 2 of 2 * v * v: a millionth squared is passed from d = 2e-6 v on.
    assert spread_of(column([1000], [1000 + 2.1e-3])).moved and not spread_of(column([1000], [1000 + 1.9e-3])).moved
    assert not spread_of(column([3])).moved and not spread_of(column([3], [3])).moved
    for order in ([0, 5, 11], [11, 5, 0], [5, 0, 11], [0, 11, 5]):
        batches = [column([value * 1e-7]) for value in order]
        assert spread_of(*batches, negligible=1e-6).moved
        assert not spread_of(*batches, negligible=1.2e-6).moved
    assert not spread_of(column([0], [1]), negligible=1.0).moved, "as far apart as is negligible is nothing"


def test_what_no_image_moves_is_measured_by_its_variance_and_equal_numbers_by_their_power() -> None:
    moved = spread_of(column([0, 1], [2, 1]), axis=1)
    assert moved.everything()[0].tolist() == [True, True] and moved.everything()[1] == 2
    for axis in (None, 1):
        # Power 1 + 9 + 1 + 9, less the square of the sum 8 over 4 numbers.
        assert spread_of(column([1, 3], [1, 3]), axis=axis).everything()[1] == 20 - 64 / 4
        assert spread_of(column([3, 3], [3, 3]), axis=axis).everything()[1] == 36


def test_entries_are_of_another_kind_from_thirty_times_the_spread_on() -> None:
    def kinds(*sizes: float) -> list[tuple[list[int], float]]:
        made = spread_of(column([-size for size in sizes], sizes), axis=1).kinds()
        return [(mask.nonzero()[0].tolist(), scale) for mask, scale in made]

    assert kinds(1, 29) == [] and kinds(1, 30) == [], "more than thirty times"
    assert kinds(1, 31) == [([0], 2), ([1], 2 * 31**2)]
    assert kinds(62, 1, 31) == [([1], 2), ([0, 2], 2 * 62**2 + 2 * 31**2)]
    assert [entries for entries, _ in kinds(31, 1, 1240)] == [[1], [0], [2]]
    # An entry that is always 5 is of no kind.
    spread = spread_of(column([-1, 5, -31], [1, 5, 31]), axis=1)
    assert [mask.tolist() for mask, _ in spread.kinds()] == [[True, False, False], [False, False, True]]
    # Where images move nothing, what differs within an entry says of which kind it is: 1 and 3 deviate by 1 each.
    still = spread_of(np.tile([[[1.0, 3.0], [0.0, 100.0]]], (2, 1, 1)), axis=1)
    assert [(mask.tolist(), scale) for mask, scale in still.kinds()] == [([True, False], 4), ([False, True], 10_000)]


def tallied(exact: NDArray[np.float64], other: NDArray[np.float64], *, negligible: float = 0.0) -> ValueTally:
    tally = ValueTally(spread_of(exact, axis=1, negligible=negligible))
    tally.add(exact, other)
    return tally


def test_r2_by_hand() -> None:
    exact, other = column([-1, 0], [1, 0]), column([-1, 0], [0, 0])
    tally = tallied(exact, other)
    assert tally.fraction() == 0.5 and tally.rms_error() == 0.5, "an error of 1 in 4 numbers, and 1 of 2 deviations"
    assert tally.lost(tally.per_image(exact, other)).tolist() == [0, 1]
    assert tallied(exact, exact).fraction() == 1 and tallied(exact, exact).rms_error() == 0
    assert tallied(exact, 3 * exact).fraction() == 0, "worse than the mean is not below nothing"
    halves = ValueTally(spread_of(exact, axis=1))
    for part in (slice(0, 1), slice(1, 2)):
        halves.add(exact[part], other[part])
    assert halves.fraction() == 0.5 and halves.errors.tolist() == tally.errors.tolist() == [1, 0]


def test_the_kind_of_which_the_least_is_explained_counts() -> None:
    exact = column([-1, -100], [1, 100])
    assert tallied(exact, column([-1, -100], [0, 100])).fraction() == 0.5, "of 2, though of 20,002 it is nothing"
    tally = tallied(exact, column([-1, -100], [1, 0]))
    assert tally.fraction() == 0.5 and tally.worst()[1] == 20_000
    assert tally.lost(tally.per_image(exact, column([-1, -100], [1, 0]))).tolist() == [0, 1]


def test_what_is_no_number_has_lost_all_and_what_is_negligible_nothing() -> None:
    exact = column([-1], [1])
    for wrong in (math.nan, math.inf):
        tally = tallied(exact, column([-1], [wrong]))
        assert tally.fraction() == 0 and tally.rms_error() is None
        assert tally.lost(tally.per_image(exact, column([-1], [wrong]))).tolist() == [0, 1]
    assert tallied(exact, exact + 0.25, negligible=0.25).fraction() == 1
    assert tallied(exact, exact + 0.5, negligible=0.25).fraction() == 1 - 0.5 / 2
    nothing = tallied(column([0], [0]), column([0], [0]))
    assert nothing.fraction() == 1 and nothing.lost(np.zeros((2, 1))).tolist() == [0, 0]
    assert tallied(column([0], [0]), column([0], [1])).fraction() == 0, "there is nothing to explain"


def test_the_axis_of_channels() -> None:
    shapes = {(84, 8400): 1, (8400, 84): 2, (6, 6): 1, (7, 9, 3): 3, (3, 9, 7): 1, (2,): 1, (512,): 1}
    assert {shape: axis_of_kinds(shape) for shape in shapes} == shapes
    assert [axis_of_kinds(shape) for shape in ((), (1,), (513,), (1, 5, 5), (600, 700))] == [None] * 5
    assert value_tally((4, 6), embedding=False, negligible=0.5).spread.axis == 1
    embedding = value_tally((4, 6), embedding=True, negligible=0.5).spread
    assert (embedding.axis, embedding.negligible) == (None, 0.5)


def test_decisions_and_limits() -> None:
    assert least_share(floats=True) == WITH_FLOAT == 0.99 and least_share(floats=False) == EXACT == 1
    labels = answers(np.array([[0.5, 0.6, np.nan]]), holds="labels", axis=1, threshold=0.5)
    assert labels.tolist() == [[0, 1, -1]] and labels.dtype == np.int64, "the threshold itself is no yes"
    assert answers(np.array([[[1, 9], [5, 2]]]), holds="classes", axis=2, threshold=0).tolist() == [[1, 0]]
    assert answers(column([1, np.nan], [1, 2]), holds="classes", axis=1, threshold=0).tolist() == [-1, 1]
    assert limit_on(WITH_FLOAT, same=98, total=99, numbers=WITH_FLOAT) == 98 / 99
    assert limit_on(WITH_FLOAT, same=99, total=100, numbers=1.0) == WITH_FLOAT, "one of a hundred is a share"
    assert limit_on(WITH_FLOAT, same=98, total=99, numbers=None) == WITH_FLOAT
    assert limit_on(WITH_FLOAT, same=99, total=99, numbers=1.0) == WITH_FLOAT


def test_equal_numbers_and_the_largest_difference() -> None:
    output, expected = column(np.nan, 1, 2, np.inf), column(np.nan, 1, 3.5, np.inf)
    assert equal_share(output, expected) == 0.75 and largest_difference(output, expected) == 1.5
    assert equal_share(column(np.nan), column(1)) == 0 == largest_difference(column(np.nan), column(1))
    assert largest_difference(column(3, -9), column(-1, -8)) == 4


def test_cosines() -> None:
    expected = column([1, 0], [0, 0], [0, 0], [1, 0], [2, 2], [1, 0])
    output = column([1, 1], [0, 0], [3, 0], [-2, 0], [5, 5], [np.inf, 0])
    assert cosine_similarity(output, expected) == pytest.approx([math.sqrt(0.5), 1, 0, -1, 1, 0])
    assert cosine_similarity(np.full((1, 3), 0.1), np.full((1, 3), 0.7)).item() <= 1


def test_one_output_against_its_golden_values() -> None:
    expected = column([0, 1], [1, 0], [0, 2], [3, 0])
    output = column([0, 1], [1, 0], [0, 2], [3, 4])
    result = compared(output, expected, CLASSES, WITH_FLOAT)
    assert (result["share"], result["same"], result["answers"], result["passed"]) == (0.75, 3, 4, False)
    assert (result["equal"], result["largest_difference"], result["least"]) == (0.875, 4, WITH_FLOAT)
    assert golden_line("golden", "scores", result) == (
        "golden             scores: same argmax 3 of 4, equal to the bit 87.50 %, largest difference 4: FAIL, at least"
        " 99 % must be"
    )
    near = compared(expected + 0.01, expected, CLASSES, EXACT)
    assert near["passed"] and near["equal"] == 0 and near["same"] == 4 and "cosine" not in near
    exact = compared(expected + 0.01, expected, CLASSES, EXACT, exact=True)
    assert not exact["passed"] and golden_line("golden", "scores", exact).endswith(
        "FAIL, every number must be equal to the bit"
    )
    assert compared(expected, expected, CLASSES, EXACT, exact=True)["passed"]


def test_a_tie_that_falls_apart_is_forgiven_where_the_numbers_are_alike() -> None:
    expected = column([0, 1], [1, 0], [0, 2], [3, 2.99])
    tie = compared(expected + column([0, 0], [0, 0], [0, 0], [-0.01, 0.01]), expected, CLASSES, WITH_FLOAT)
    assert (tie["share"], tie["least"], tie["passed"]) == (0.75, 0.75, True)
    two = expected.copy()
    two[0] += [1.1, 0]
    two[3] += [-0.01, 0.01]
    assert not compared(two, expected, CLASSES, WITH_FLOAT)["passed"]


def test_values_and_embeddings_of_one_output() -> None:
    expected = column([-1, -100], [1, 100])
    values = OutputEntry(name="boxes", holds="values", shape=(1, 2))
    assert same_share(column([-1, -100], [0, 100]), expected, values) == 0.5
    result = compared(column([-1, -100], [0, 100]), expected, values, 0.4)
    assert (result["share"], result["same"], result["answers"], result["passed"]) == (0.5, 1, 1, True)
    assert compared(column([-1, -100], [0, 100]), expected, values, 0.6)["same"] == 0
    assert golden_line("check", "boxes", result) == (
        "check              boxes: values alike, R2 50 %, equal to the bit 75.00 %, largest difference 1"
    )
    vector = OutputEntry(name="vector", holds="values", shape=(1, 2), embedding=True)
    result = compared(column([-1, -100], [0, 100]), expected, vector, 0.99)
    assert result["share"] == pytest.approx(1 - 1 / 20_002) and result["passed"], "an embedding's numbers are one kind"
    lengths = math.hypot(1, 100)
    assert result["least_cosine"] == pytest.approx(100 / lengths)
    assert result["cosine"] == pytest.approx((1 + 100 / lengths) / 2)
    assert "cosine 99 % (least 50 %)" in golden_line("check", "vector", result | {"cosine": 0.99, "least_cosine": 0.5})
