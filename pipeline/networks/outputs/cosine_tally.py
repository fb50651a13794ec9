"""How alike two columns of embeddings are: the cosine between what sets each image apart from the mean embedding."""

from __future__ import annotations

import torch
from torch import Tensor

#: The worst images are those below this quantile: what one in twenty may be.
WORST_SHARE = 0.05
# A spread below a millionth of the vectors themselves is the rounding of float32: no variance.
_NO_VARIANCE = 1e-12


class CosineTally:
    """Centred cosine similarities of the vectors of two columns, image by image.

    Who compares embeddings reads the order of an image's neighbours, and what all embeddings share changes no order: of
    embeddings with a common mean, one answer for every image has a plain cosine near 1. So the first column's mean over
    all images is taken from both vectors of an image before their cosine: one answer for every image is then at a right
    angle on average, and a shift of all of them, which a gallery of float embeddings would see, still counts. Where the
    first column is one vector for all images nothing sets them apart, and the plain cosine is left.

    The mean is known when all images are, so the vectors are kept: 8 bytes per number of an image for the two columns.
    """

    def __init__(self) -> None:
        self._exact: list[Tensor] = []
        self._other: list[Tensor] = []

    def add(self, exact: Tensor, other: Tensor) -> None:
        """Count a batch of both columns, [B, ...] each: all numbers of an image are its vector."""
        self._exact.append(exact.detach().flatten(1).float())
        self._other.append(other.detach().flatten(1).float())

    @property
    def moved(self) -> bool:
        """Whether the first column's vectors differ from image to image."""
        exact = torch.cat(self._exact).double()
        return float((exact - exact.mean(0)).square().sum()) > _NO_VARIANCE * float(exact.square().sum())

    def similarities(self) -> Tensor:
        """Centred cosine of each image, float64 [N], -1 to 1."""
        exact = torch.cat(self._exact)
        return cosine_similarity(exact, torch.cat(self._other), exact.double().mean(0) if self.moved else 0.0)

    def fraction(self) -> float:
        """Mean of the centred cosine; 0 where it is below."""
        return max(0.0, float(self.similarities().mean()))

    def plain(self) -> float:
        """Mean cosine of the vectors as they are; 0 where it is below."""
        return max(0.0, float(cosine_similarity(torch.cat(self._exact), torch.cat(self._other)).mean()))

    def worst(self) -> float:
        """What WORST_SHARE of the images stay below or at, at least one of them; 0 where it is below.

        The quantile is a similarity that was measured (the lower neighbour): nothing is interpolated.
        """
        ordered = self.similarities().sort().values
        return max(0.0, float(ordered[int(WORST_SHARE * (len(ordered) - 1))]))


def cosine_similarity(exact: Tensor, other: Tensor, origin: Tensor | float = 0.0) -> Tensor:
    """Cosine of the angle between the vectors of each image, [B, ...] each, seen from an origin: float64 [B], -1 to 1.

    1 where both are equal, 0 where one is the origin and the other is not, or where a number is not finite.
    """
    one, two = exact.flatten(1).double(), other.flatten(1).double()
    equal = (one == two).all(1)
    one, two = one - origin, two - origin
    lengths = one.norm(dim=1) * two.norm(dim=1)
    cosine = ((one * two).sum(1) / lengths).clamp(-1, 1)
    cosine = torch.where(lengths.isfinite() & (lengths > 0), cosine, torch.zeros_like(cosine))
    return torch.where(equal, torch.ones_like(cosine), cosine)
