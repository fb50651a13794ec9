"""How far two columns of numbers are the same: the share explained of what images move them, kind by kind of number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.report.schema import Entries

# A spread below a millionth of the numbers themselves is the rounding of float32: no variance.
_NO_VARIANCE = 1e-12
# Entries of one tensor are numbers of other kinds where their spreads differ by more than so much from one to the next:
# scores spread by up to 0.5, coordinates by tens of pixels; scores of one network lie near each other.
_APART = 30.0
_MOST_ENTRIES = 512


class Spread:
    """How far the images move a column of numbers, float64, pooled over each entry of the axis that holds kinds.

    What one answer for all images gives explains nothing of an image, however much it varies from position to position
    (the anchors of boxes, the mean of a depth map): deviations are those of each number from its own mean over images.
    `axis`: that of the entries, the batch's being 0; None pools all numbers together.
    """

    def __init__(self, axis: int | None) -> None:
        self.axis = axis
        self.images = 0
        self.count = 0  # numbers of each entry
        self.sum = self.squares = self.deviations = torch.zeros(1, dtype=torch.float64)  # [entries]
        self._mean = torch.zeros(1, 1, dtype=torch.float64)  # [entries, positions]

    def add(self, values: Tensor) -> None:
        """Count a batch, [B, ...].

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
        (1979): nothing cancels, and one mean per number is all that is kept.
        """
        entries = self.entries(values)
        batch, before = len(entries), self.images
        self.images, self.count = before + batch, self.count + batch * entries.shape[2]
        self.sum, self.squares = self.sum + entries.sum((0, 2)), self.squares + entries.square().sum((0, 2))
        mean = entries.mean(0)
        apart = mean - self._mean
        between = apart.square().sum(1) * (before * batch / self.images)
        self.deviations = self.deviations + (entries - mean).square().sum((0, 2)) + between
        self._mean = self._mean + apart * (batch / self.images)

    def entries(self, values: Tensor) -> Tensor:
        """float64 [B, entries, numbers of each]."""
        values = values.double()
        if self.axis is None:
            return values.reshape(len(values), 1, -1)
        return values.movedim(self.axis, 1).flatten(2) if values.ndim > 2 else values.unsqueeze(2)

    @property
    def moved(self) -> bool:
        """Whether the images move any number: with one image, or where all give the same, they do not."""
        return bool((self.deviations > _NO_VARIANCE * self.squares).any())

    def everything(self) -> tuple[Tensor, float]:
        """All entries as a mask [entries], and what their errors are measured by.

        Where the images move nothing, that is the variance of the numbers among each other, or of equal numbers their
        power: it tells whether two columns are the same, and says nothing of what the images decide.
        """
        chosen, power = torch.ones(len(self.sum), dtype=torch.bool), float(self.squares.sum())
        if self.moved:
            return chosen, float(self.deviations.sum())
        variance = power - float(self.sum.sum()) ** 2 / (self.count * len(self.sum))
        return chosen, variance if variance > _NO_VARIANCE * power else power

    def kinds(self) -> list[tuple[Tensor, float]]:
        """The entries that hold numbers of one kind, as a mask [entries], with what their errors are measured by.

        From the least spread to the largest; empty where all are of one kind.
        """
        own = self.deviations if self.moved else self.squares - self.sum**2 / self.count
        order = [int(entry) for entry in own.argsort() if own[entry] > _NO_VARIANCE * self.squares[entry]]
        starts = [i for i in range(1, len(order)) if own[order[i]] > _APART**2 * own[order[i - 1]]]
        made = []
        for first, last in zip([0, *starts], [*starts, len(order)], strict=True) if starts else ():
            chosen = torch.zeros(len(own), dtype=torch.bool)
            chosen[order[first:last]] = True
            made.append((chosen, float(own[chosen].sum())))
        return made


class ValueTally:
    """Squared errors of another column against one whose `Spread` is counted beside it, entry by entry.

    A tensor may hold numbers of several kinds, such as coordinates in pixels beside scores within 1: the variance of
    the one would drown every error of the other. Entries whose spreads lie apart are judged apart.
    """

    def __init__(self, spread: Spread) -> None:
        self.spread = spread
        self.errors = torch.zeros(1, dtype=torch.float64)

    def add(self, exact: Tensor, other: Tensor) -> None:
        """Count a batch of both columns, [B, ...] each; the first is added to the spread by whoever holds that."""
        self.errors = self.errors + self.per_image(exact, other).sum(0)

    def per_image(self, exact: Tensor, other: Tensor) -> Tensor:
        """Squared error of each image in each entry, [B, entries]."""
        return self.spread.entries(exact.double() - other.double()).square().sum(2)

    def lost(self, errors: Tensor) -> Tensor:
        """What each image adds to the loss of R2, float64 [N], of its errors or their differences [N, entries].

        Their mean over all images of the tally is 1 less R2.
        """
        entries, scale = self.worst()
        return errors[:, entries].sum(1) * (len(errors) / scale if scale > 0 else 0.0)

    def worst(self) -> tuple[Tensor, float]:
        """The entries of which the least is explained, and what their errors are measured by."""
        candidates = [self.spread.everything(), *self.spread.kinds()]
        return max(candidates, key=lambda kind: float(self.errors[kind[0]].sum()) / kind[1] if kind[1] > 0 else 0.0)

    def fraction(self) -> float:
        """R2, the share of the variance between images that is explained, of the kind of number of which least is.

        1 when equal, 0 for the mean over images or worse.
        """
        return self._explained(*self.worst())

    def _explained(self, entries: Tensor, scale: float) -> float:
        error = float(self.errors[entries].sum())
        if error == 0:
            return 1.0
        return max(0.0, 1 - error / scale) if scale > 0 else 0.0

    def rms_error(self) -> float:
        """Root of the mean squared difference, in the unit of the values."""
        return math.sqrt(float(self.errors.sum()) / (self.spread.count * len(self.errors)))

    def entries(self) -> tuple[Entries, ...]:
        """Each kind of number in the tensor and how much of it is explained; empty where there is one kind alone."""
        axis, count = self.spread.axis, self.spread.count
        if axis is None:
            return ()
        return tuple(
            Entries(
                axis=axis,
                places=ranges_of(chosen.nonzero().flatten().tolist()),
                spread=math.sqrt(scale / (count * int(chosen.sum()))),
                explained=self._explained(chosen, scale),
            )
            for chosen, scale in self.spread.kinds()
        )


def ranges_of(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rising places as runs of neighbours, (first, last) each."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return tuple(runs)


def axis_of_kinds(shape: Sequence[int]) -> int | None:
    """The axis of an output (its shape without the batch) that may hold numbers of several kinds; None without one.

    That of channels: the first or the last, whichever is shorter, as [B, 84, 8400] and [B, 8400, 84] have them.
    """
    if not shape:
        return None
    axis = 1 if shape[0] <= shape[-1] or len(shape) == 1 else len(shape)
    return axis if 2 <= shape[axis - 1] <= _MOST_ENTRIES else None
