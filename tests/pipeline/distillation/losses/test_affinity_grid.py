"""The affinity grid against slow versions, hand-worked members, and what it refuses."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calibration.errors import UserError
from pipeline.config.affinity_points import AFFINITY_WEIGHTS, POINTS, AffinityChoice, Point, grid_point
from pipeline.distillation.losses import affinity_grid
from pipeline.distillation.losses.affinity import FEATURE_EPSILON, fa_loss
from pipeline.distillation.losses.affinity_grid import PROBABILITY_EPSILON, grid_loss
from pipeline.distillation.losses.table import valid_points

Array = NDArray[np.float64]


def slow_affinity(name: str, features: Array) -> Array:
    """A, entry by entry, of features [n, d]."""
    count, width = features.shape

    def entry(i: int, j: int) -> float:
        a, b = features[i], features[j]
        product, distance = float(sum(a * b)), float(sum((a - b) ** 2))
        lengths = [math.sqrt(float(sum(v * v))) + FEATURE_EPSILON for v in (a, b)]
        cosine = product / lengths[0] / lengths[1]
        entries: dict[str, float] = {
            "inner": product,
            "cosine": cosine,
            "shifted-cosine": (1 + cosine) / 2,
            "euclidean": math.sqrt(distance),
            "squared-euclidean": distance,
            "rbf": distance,
            "polynomial": (1 + product / width) ** 2,
        }
        return entries[name]

    if name == "angle":
        rows = []
        for i in range(count):
            ways = [features[j] - features[i] for j in range(count)]
            units = [way / np.linalg.norm(way) if np.linalg.norm(way) > 0 else way for way in ways]
            rows.append([float(sum(one * other)) for one in units for other in units])
        return np.array(rows)
    matrix = np.array([[entry(i, j) for j in range(count)] for i in range(count)])
    return np.exp(-matrix / matrix[matrix > 0].mean()) if name == "rbf" else matrix


def slow_normalised(name: str, matrix: Array) -> Array:
    if name == "none":
        return matrix
    if name in ("frobenius", "mean", "max"):
        by = {
            "frobenius": math.sqrt(float((matrix**2).sum())),
            "mean": float(matrix[matrix > 0].mean()),
            "max": float(abs(matrix).max()),
        }[name]
        return matrix / by
    rows = []
    for row in matrix:
        if name == "rows":
            rows.append(row / math.sqrt(float(sum(row**2))))
        elif name == "softmax":
            rows.append(np.exp(row - row.max()) / sum(np.exp(row - row.max())))
        else:
            rows.append(row / sum(row))
    return np.array(rows)


def kl(p: float, q: float) -> float:
    return p * math.log((p + PROBABILITY_EPSILON) / (q + PROBABILITY_EPSILON))


def slow_entry(name: str, a: float, b: float) -> float:
    if name == "smooth-l1":
        return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5
    if name == "kl":
        return kl(b, a)
    if name == "js":
        return (kl(a, (a + b) / 2) + kl(b, (a + b) / 2)) / 2
    return abs(a - b) if name == "l1" else (a - b) ** 2


def slow_distance(name: str, student: Array, teacher: Array) -> float:
    if name == "cosine":
        rows = zip(student, teacher, strict=True)
        return sum(1 - float(sum(s * t)) / math.sqrt(float(sum(s * s)) * float(sum(t * t))) for s, t in rows) / len(
            student
        )
    pairs = zip(student.flatten(), teacher.flatten(), strict=True)
    return sum(slow_entry(name, float(a), float(b)) for a, b in pairs) / student.size


def test_every_point_equals_the_slow_version() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn((3, 4, 2, 2), generator=generator, dtype=torch.float64) for _ in range(2))
    points = valid_points()
    assert len(points) > 300
    for point in points:
        if point.over == "samples":
            pairs = [(student.flatten(1).numpy(), teacher.flatten(1).numpy())]
        else:
            pairs = [(s.flatten(1).T.numpy(), t.flatten(1).T.numpy()) for s, t in zip(student, teacher, strict=True)]
        slow = []
        for both in pairs:
            first, second = (slow_normalised(point.normalise, slow_affinity(point.affinity, one)) for one in both)
            slow.append(slow_distance(point.distance, first, second))
        quick = grid_loss(student, teacher, point=point).item()
        assert quick == pytest.approx(sum(slow) / len(slow), rel=1e-4, abs=1e-7), point


# Three images with two features: student (1, 0), (0, 1), (0, 0); teacher (1, 0), (1, 0), (0, 2).
STUDENT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
TEACHER = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])


def test_hand_worked_sp() -> None:
    # Student's products: the unit matrix with its last row zero. Teacher's: rows (1,1,0), (1,1,0), (0,0,4), to unit
    # length (r,r,0), (r,r,0), (0,0,1) with r = 1/sqrt(2). Differences: (1-r)^2 + r^2 twice, and 1.
    r = 1 / math.sqrt(2)
    expected = (2 * ((1 - r) ** 2 + r**2) + 1) / 9
    assert grid_loss(STUDENT, TEACHER, point=POINTS["sp"]).item() == pytest.approx(expected, rel=1e-5)


def test_hand_worked_rkd_distance() -> None:
    # Student's distances: sqrt(2), 1, 1, mean m = (sqrt(2) + 2) / 3. Teacher's: 0, sqrt(5), sqrt(5), mean sqrt(5)
    # of the positive ones. Divided: (1.2426, 0.8787, 0.8787) and (0, 1, 1).
    m = (math.sqrt(2) + 2) / 3
    expected = 2 * ((math.sqrt(2) / m - 0.5) + 2 * 0.5 * (1 / m - 1) ** 2) / 9
    assert grid_loss(STUDENT, TEACHER, point=POINTS["rkd-d"]).item() == pytest.approx(expected, rel=1e-5)


def test_hand_worked_rkd_angle() -> None:
    # A right angle at the corner of the student, 45 degrees at its two other corners; in the teacher the first two
    # images are one point: the angle between them at the third is 0, at either of them it is not defined: 0.
    corner, sharp = 0.0, math.cos(math.pi / 4)
    # Entries (i, j, k): j = k gives 1 where j is not i. Student: at i = 0 and 1 [sharp twice, 1 twice], at 2 [corner
    # twice, 1 twice]. Teacher: at 0 and 1 [0 twice, 1 for the third image alone], at 2 [1 twice, 1 twice].
    expected = (2 * (2 * 0.5 * sharp**2 + 0.5 * 1.0) + 2 * 0.5 * (1 - corner) ** 2) / 27
    assert grid_loss(STUDENT, TEACHER, point=POINTS["rkd-a"]).item() == pytest.approx(expected, rel=1e-5)


def test_hand_worked_pkt() -> None:
    # (1 + cosine) / 2 of the student: 1, 1/2, 1/2 | 1/2, 1, 1/2 | 1/2, 1/2, 1/2, rows over their sums 2, 2, 3/2.
    # Of the teacher: 1, 1, 1/2 | 1, 1, 1/2 | 1/2, 1/2, 1, over 5/2, 5/2, 2.
    student = [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 3, 1 / 3, 1 / 3]]
    teacher = [[2 / 5, 2 / 5, 1 / 5], [2 / 5, 2 / 5, 1 / 5], [1 / 4, 1 / 4, 1 / 2]]
    entries = itertools.chain(*(zip(s, t, strict=True) for s, t in zip(student, teacher, strict=True)))
    expected = sum(t * math.log(t / s) for s, t in entries) / 9
    assert grid_loss(STUDENT, TEACHER, point=POINTS["pkt"]).item() == pytest.approx(expected, abs=2e-6)


def test_faqds_loss_is_a_point_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(5, 6, 4, 4, generator=generator), torch.randn(5, 3, 4, 4, generator=generator)
    for blocks in (2**24, 1, 600):
        monkeypatch.setattr(affinity_grid, "_BLOCK_ELEMENTS", blocks)
        point = Point(affinity="cosine", normalise="none", distance="l1", over="pixels")
        assert grid_loss(student, teacher, point=point).item() == pytest.approx(
            fa_loss(student, teacher, order="1").item(), rel=1e-5
        )
        first = student.clone().requires_grad_()
        second = student.clone().requires_grad_()
        point = Point(affinity="cosine", normalise="none", distance="squared", over="pixels")
        torch.autograd.backward(grid_loss(first, teacher, point=point))
        torch.autograd.backward(fa_loss(second, teacher, order="squared"))
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-6)


def test_angles_need_no_differences_of_all_pairs() -> None:
    """128 images of 16,384 features: the differences alone would be a gigabyte."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(32, 4096, generator=generator) + 100
    point = POINTS["rkd-a"]
    exact = grid_loss(student.double(), student.double().flip(1).roll(1, 0), point=point).item()
    assert grid_loss(student, student.flip(1).roll(1, 0), point=point).item() == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("inner", "none", "kl", "samples"), "--distance kl compares probabilities, and the rows of --normalise none"),
        (("cosine", "rows", "js", "pixels"), "--distance js compares probabilities, and the rows of --normalise rows"),
        (("cosine", "row-sum", "kl", "samples"), "--normalise row-sum makes probabilities of affinities, and --affin"),
        (("inner", "max", "cosine", "samples"), "--normalise max only scales rows, which --distance cosine does not"),
        (("angle", "softmax", "kl", "samples"), "--affinity angle is bounded already"),
        (("angle", "none", "l1", "pixels"), "--affinity angle is bounded already"),
        (("l1", "none", "l1", "pixels"), "--affinity l1: must be one of inner, cosine"),
        (("inner", "none", "l1", "channels"), "--over channels: must be one of samples, pixels"),
    ],
)
def test_combinations_without_sense_are_refused_with_the_reason(axes: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Point(**dict(zip(("affinity", "normalise", "distance", "over"), axes, strict=True)))  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_names_fix_their_axes() -> None:
    assert grid_point("sp", None, None, None) == POINTS["sp"]
    assert grid_point("auto", None, None, None) is None and grid_point("none", None, None, None) is None
    fixed = grid_point("rbf", None, None, None)
    assert fixed == Point(affinity="rbf", normalise="none", distance="squared", over="samples")
    for choice in ("fa", "pkt", "none"):
        with pytest.raises(UserError, match=f"--normalise rows: --affinity {choice} leaves no choice of it; free are"):
            grid_point(choice, "rows", None, None)
    assert set(AFFINITY_WEIGHTS) < set(get_args(AffinityChoice))


def test_vectors_have_no_pixels() -> None:
    point = Point(affinity="inner", normalise="none", distance="l1", over="pixels")
    with pytest.raises(ValueError, match="pixels need maps"):
        grid_loss(STUDENT, TEACHER, point=point)
    with pytest.raises(ValueError, match="of one batch"):
        grid_loss(STUDENT, TEACHER[:2], point=POINTS["sp"])
