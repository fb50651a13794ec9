"""How alike two columns of embeddings are: the cosine of the angle between the two vectors of each image."""

from __future__ import annotations

import torch
from torch import Tensor

#: The worst images are those below this quantile: what one in twenty may be.
WORST_SHARE = 0.05


class CosineTally:
    """Cosine similarities of the vectors of two columns, image by image."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def add(self, exact: Tensor, other: Tensor) -> None:
        """Count a batch of both columns, [B, ...] each: all numbers of an image are its vector."""
        self.images.append(cosine_similarity(exact, other))

    @staticmethod
    def per_image(exact: Tensor, other: Tensor) -> Tensor:
        """1 less the similarity of each image, [B]."""
        return 1 - cosine_similarity(exact, other)

    def fraction(self) -> float:
        """Mean similarity; 0 where it is below."""
        return max(0.0, float(torch.cat(self.images).mean()))

    def worst(self) -> float:
        """What WORST_SHARE of the images stay below or at, at least one of them; 0 where it is below.

        The quantile is a similarity that was measured (the lower neighbour): nothing is interpolated.
        """
        ordered = torch.cat(self.images).sort().values
        return max(0.0, float(ordered[int(WORST_SHARE * (len(ordered) - 1))]))


def cosine_similarity(exact: Tensor, other: Tensor) -> Tensor:
    """Cosine of the angle between the vectors of each image, [B, ...] each: float64 [B], -1 to 1.

    1 where both are equal, 0 where one is nothing but 0 and the other is not, or where a number is not finite.
    """
    one, two = exact.flatten(1).double(), other.flatten(1).double()
    lengths = one.norm(dim=1) * two.norm(dim=1)
    cosine = ((one * two).sum(1) / lengths).clamp(-1, 1)
    cosine = torch.where(lengths.isfinite() & (lengths > 0), cosine, torch.zeros_like(cosine))
    return torch.where((one == two).all(1), torch.ones_like(cosine), cosine)
