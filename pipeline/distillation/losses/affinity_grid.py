"""Affinity losses as a grid: affinity x normalisation x distance, between the images of a batch or within each image.

Source: Li and Maki, A unified view of affinity-based knowledge distillation, arXiv 2209.15555. Its members SP (Tung
and Mori, arXiv 1907.09682), RKD-D and RKD-A (Park et al., arXiv 1904.05068) and PKT (Passalis and Tefas, arXiv
1803.10837) follow a public re-implementation; FAQD's FA is cosine x none x l1 or squared over pixels. The bandwidth of
"rbf" and the form of "polynomial" were not recovered: ours.

Notation: n things (images or pixels) with d features each, F [m, n, d], m matrices A [m, n, n]: one for a batch over
samples, one per image over pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.config.affinity_points import Affinity, Distance, Normalisation, Point
from pipeline.distillation.losses.affinity import FEATURE_EPSILON

# Added to probabilities before a logarithm or a division, as in PKT's released code.
PROBABILITY_EPSILON = 1e-7
# Float32 elements of the affinity matrices that exist at once over pixels: 64 MiB.
_BLOCK_ELEMENTS = 2**24


def _inner(features: Tensor) -> Tensor:
    return features @ features.mT


def _cosine(features: Tensor) -> Tensor:
    units = features / (_root(features.square().sum(-1, keepdim=True)) + FEATURE_EPSILON)
    return units @ units.mT


def _squared_euclidean(features: Tensor) -> Tensor:
    # Distances do not see a shift: without the common mean the products stay small and float32 keeps its digits.
    centred = features - features.mean(-2, keepdim=True).detach()
    squares = centred.square().sum(-1)
    distances = squares[..., :, None] + squares[..., None, :] - 2 * (centred @ centred.mT)
    off_diagonal = 1 - torch.eye(features.shape[-2], dtype=features.dtype, device=features.device)
    return distances.clamp_min(0) * off_diagonal


def _root(squares: Tensor) -> Tensor:
    """The square root with slope 0 at 0."""
    zero = squares == 0
    return torch.where(zero, 0, torch.where(zero, 1, squares).sqrt())


def _mean_of_positive(matrices: Tensor) -> Tensor:
    positive = matrices > 0
    count = positive.sum((-2, -1), keepdim=True).clamp_min(1)
    return (matrices * positive).sum((-2, -1), keepdim=True) / count


def _rbf(features: Tensor) -> Tensor:
    """Gaussian of the distance, its variance the mean squared distance [ours]: no unit of the features is left."""
    distances = _squared_euclidean(features)
    return torch.exp(-distances / _mean_of_positive(distances).clamp_min(FEATURE_EPSILON))


def _polynomial(features: Tensor) -> Tensor:
    """Square of 1 + the mean product of features [ours]."""
    return (1 + _inner(features) / features.shape[-1]).square()


def _angle(features: Tensor) -> Tensor:
    """Cosine of the angle at i between j and k, [m, n, n * n]: without the n x n x d differences."""
    products = _inner(features - features.mean(-2, keepdim=True).detach())
    own = products.diagonal(dim1=-2, dim2=-1)
    # <f_j - f_i, f_k - f_i>, its index [i, j, k]
    between = products[:, None] - products[..., :, :, None] - products[..., :, None, :] + own[..., None, None]
    lengths = _root(_squared_euclidean(features))
    scale = lengths[..., :, :, None] * lengths[..., :, None, :]
    return _divided(between, scale).flatten(-2)


# name -> function from F [m, n, d] to A [m, n, n]; "angle" gives [m, n, n * n]
AFFINITIES: Mapping[Affinity, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "inner": _inner,
        "cosine": _cosine,
        "shifted-cosine": lambda features: (1 + _cosine(features)) / 2,
        "euclidean": lambda features: _root(_squared_euclidean(features)),
        "squared-euclidean": _squared_euclidean,
        "rbf": _rbf,
        "polynomial": _polynomial,
        "angle": _angle,
    }
)


def _divided(matrices: Tensor, by: Tensor) -> Tensor:
    """The matrices over something that is never negative; 0 / 0 is 0, with a finite slope."""
    zero = by == 0
    return torch.where(zero, 0, matrices / torch.where(zero, 1, by))


# name -> function from A [m, n, n] to A of the same shape
NORMALISATIONS: Mapping[Normalisation, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "none": lambda matrices: matrices,
        "rows": lambda matrices: _divided(matrices, _root(matrices.square().sum(-1, keepdim=True))),
        "frobenius": lambda matrices: _divided(matrices, _root(matrices.square().sum((-2, -1), keepdim=True))),
        "mean": lambda matrices: _divided(matrices, _mean_of_positive(matrices)),
        "max": lambda matrices: _divided(matrices, matrices.abs().amax((-2, -1), keepdim=True)),
        "softmax": lambda matrices: matrices.softmax(-1),
        "row-sum": lambda matrices: matrices / (matrices.sum(-1, keepdim=True) + PROBABILITY_EPSILON),
    }
)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher * ((teacher + PROBABILITY_EPSILON).log() - (student + PROBABILITY_EPSILON).log())).mean((-2, -1))


def _js(student: Tensor, teacher: Tensor) -> Tensor:
    middle = (student + teacher) / 2
    return (_kl(middle, student) + _kl(middle, teacher)) / 2


def _row_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    lengths = _root(student.square().sum(-1)) * _root(teacher.square().sum(-1))
    return (1 - _divided((student * teacher).sum(-1), lengths)).mean(-1)


# name -> function of (student, teacher) A [m, n, n] to the mean over each matrix's entries (or rows), [m]
DISTANCES: Mapping[Distance, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "l1": lambda student, teacher: (student - teacher).abs().mean((-2, -1)),
        "squared": lambda student, teacher: (student - teacher).square().mean((-2, -1)),
        "smooth-l1": lambda student, teacher: functional.smooth_l1_loss(student, teacher, reduction="none").mean(
            (-2, -1)
        ),
        "kl": _kl,
        "js": _js,
        "cosine": _row_cosine,
    }
)


def grid_loss(student: Tensor, teacher: Tensor, *, point: Point) -> Tensor:
    """The loss of one point of the grid between the features of two networks.

    Args:
        student: [B, d] or a map [B, C_student, H, W] (flattened to [B, C H W] over samples), any floating type.
        teacher: [B, d'] or a map [B, C_teacher, H', W'], a constant; over pixels resized bilinearly (align_corners).
        point: affinity, normalisation, distance, and between what.

    Returns:
        Scalar, float32 (float64 for float64 features), >= 0 up to rounding: the mean over all entries of the matrices
        (over rows for the distance "cosine").

    Raises:
        ValueError: batches that differ, or vectors where pixels are to be compared.
    """
    if student.shape[0] != teacher.shape[0]:
        raise ValueError(f"features of one batch are needed, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    working = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = student.to(working), teacher.detach().to(working)
        if point.over == "samples":
            return _distances(student.flatten(1)[None], teacher.flatten(1)[None], point).mean()
        if student.ndim != 4 or teacher.ndim != 4:
            raise ValueError(f"pixels need maps [B, C, H, W], got {tuple(student.shape)} and {tuple(teacher.shape)}")
        if teacher.shape[2:] != student.shape[2:]:
            teacher = functional.interpolate(teacher, size=student.shape[2:], mode="bilinear", align_corners=True)
        student, teacher = student.flatten(2).mT, teacher.flatten(2).mT
        images, positions = student.shape[:2]
        block = max(1, _BLOCK_ELEMENTS // positions**2)
        total = student.new_zeros(())
        for start in range(0, images, block):
            chosen = slice(start, start + block)
            # The matrices of a block are made again for its gradient: all of them at once may not fit.
            part = checkpoint(
                _distances, student[chosen], teacher[chosen], point, use_reentrant=False, preserve_rng_state=False
            )
            assert isinstance(part, Tensor)
            total = total + part.sum()
        return total / images


def _distances(student: Tensor, teacher: Tensor, point: Point) -> Tensor:
    """Distance per matrix, [m], of features [m, n, d] and [m, n, d']."""
    affinity, normalise = AFFINITIES[point.affinity], NORMALISATIONS[point.normalise]
    return DISTANCES[point.distance](normalise(affinity(student)), normalise(affinity(teacher)))
