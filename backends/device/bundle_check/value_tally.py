"""How far two columns of numbers are the same: the share explained of what images move them, kind by kind of number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

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
    `axis`: that of the entries, the batch's being 0; None pools all numbers together. `negligible`: a difference of two
    numbers that is none.
    """

    def __init__(self, axis: int | None, *, negligible: float = 0.0) -> None:
        self.axis = axis
        self.negligible = negligible
        self.images = 0
        self.count = 0  # numbers of each entry
        self.sum = self.squares = self.deviations = np.zeros(1)  # [entries]
        self._mean = np.zeros((1, 1))  # [entries, positions]
        self._range: tuple[Numbers, Numbers] | None = None  # lowest and highest, [entries, positions]

    def add(self, values: Any) -> None:
        """Count a batch, an array or tensor [B, ...].

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
        (1979): nothing cancels, and one mean per number is all that is kept.
        """
        entries = self.entries(values)
        batch, before = len(entries), self.images
        self.images, self.count = before + batch, self.count + batch * entries.shape[2]
        self.sum, self.squares = self.sum + entries.sum((0, 2)), self.squares + np.square(entries).sum((0, 2))
        mean = entries.mean(0)
        apart = mean - self._mean
        between = np.square(apart).sum(1) * (before * batch / self.images)
        self.deviations = self.deviations + np.square(entries - mean).sum((0, 2)) + between
        self._mean = self._mean + apart * (batch / self.images)
        if self.negligible:
            lowest, highest = entries.min(0), entries.max(0)
            if self._range is not None:
                lowest, highest = np.minimum(lowest, self._range[0]), np.maximum(highest, self._range[1])
            self._range = lowest, highest

    def entries(self, values: Any) -> Numbers:
        """float64 [B, entries, numbers of each]."""
        array = np.asarray(values, np.float64)
        if self.axis is None:
            return array.reshape(len(array), 1, -1)
        moved = np.moveaxis(array, self.axis, 1)
        return moved.reshape(*moved.shape[:2], -1)

    @property
    def moved(self) -> bool:
        """Whether the images move any number: with one image, or where all give the same, they do not."""
        if self._range is not None and not (self._range[1] - self._range[0] > self.negligible).any():
            return False
        return bool((self.deviations > _NO_VARIANCE * self.squares).any())

    def everything(self) -> tuple[NDArray[np.bool_], float]:
        """All entries as a mask [entries], and what their errors are measured by.

        Where the images move nothing, that is the variance of the numbers among each other, or of equal numbers their
        power: it tells whether two columns are the same, and says nothing of what the images decide.
        """
        chosen, power = np.ones(len(self.sum), np.bool_), float(self.squares.sum())
        if self.moved:
            return chosen, float(self.deviations.sum())
        variance = power - float(self.sum.sum()) ** 2 / (self.count * len(self.sum))
        return chosen, variance if variance > _NO_VARIANCE * power else power

    def kinds(self) -> list[tuple[NDArray[np.bool_], float]]:
        """The entries that hold numbers of one kind, as a mask [entries], with what their errors are measured by.

        From the least spread to the largest; empty where all are of one kind.
        """
        own = self.deviations if self.moved else self.squares - self.sum**2 / self.count
        order = [int(entry) for entry in own.argsort() if own[entry] > _NO_VARIANCE * self.squares[entry]]
        starts = [i for i in range(1, len(order)) if own[order[i]] > _APART**2 * own[order[i - 1]]]
        made = []
        for first, last in zip([0, *starts], [*starts, len(order)], strict=True) if starts else ():
            chosen = np.zeros(len(own), np.bool_)
            chosen[order[first:last]] = True
            made.append((chosen, float(own[chosen].sum())))
        return made


class ValueTally:
    """Squared errors of another column against one whose `Spread` is counted beside it, entry by entry.

    A tensor may hold numbers of several kinds, such as coordinates in pixels beside scores within 1: the variance of
    the one would drown every error of the other. Entries whose spreads lie apart are judged apart. Errors up to what
    the spread calls negligible are none.
    """

    def __init__(self, spread: Spread) -> None:
        self.spread = spread
        self.errors: Numbers = np.zeros(1)

    def add(self, exact: Any, other: Any) -> None:
        """Count a batch of both columns, [B, ...] each; the first is added to the spread by whoever holds that."""
        self.errors = self.errors + self.per_image(exact, other).sum(0)

    def per_image(self, exact: Any, other: Any) -> Numbers:
        """Squared error of each image in each entry, [B, entries]."""
        with np.errstate(invalid="ignore"):
            errors = np.asarray(exact, np.float64) - np.asarray(other, np.float64)
        errors = np.where(np.isnan(errors), np.inf, errors)  # what is no number is as far as can be
        if self.spread.negligible:
            errors = np.where(np.abs(errors) <= self.spread.negligible, 0.0, errors)
        return np.asarray(np.square(self.spread.entries(errors)).sum(2))

    def lost(self, errors: Numbers) -> Numbers:
        """What each image adds to the loss of R2, float64 [N], of its errors or their differences [N, entries].

        Their mean over all images of the tally is 1 less R2. An image of which a number is none has lost all.
        """
        entries, scale = self.worst()
        shares = errors[:, entries].sum(1) * (len(errors) / scale) if scale > 0 else np.zeros(len(errors))
        return np.where(np.isfinite(shares), shares, 1.0)

    def worst(self) -> tuple[NDArray[np.bool_], float]:
        """The entries of which the least is explained, and what their errors are measured by."""
        candidates = [self.spread.everything(), *self.spread.kinds()]
        return max(candidates, key=lambda kind: float(self.errors[kind[0]].sum()) / kind[1] if kind[1] > 0 else 0.0)

    def fraction(self) -> float:
        """R2, the share of the variance between images that is explained, of the kind of number of which least is.

        1 when equal, 0 for the mean over images or worse.
        """
        return self.explained(*self.worst())

    def explained(self, entries: NDArray[np.bool_], scale: float) -> float:
        """The share of `scale`, what the errors of the chosen entries are measured by, that they leave, 0 to 1."""
        error = float(self.errors[entries].sum())
        if error == 0:
            return 1.0
        return max(0.0, 1 - error / scale) if scale > 0 and math.isfinite(error) else 0.0

    def rms_error(self) -> float | None:
        """Root of the mean squared difference, in the unit of the values; None where one of them is no number."""
        error = math.sqrt(float(self.errors.sum()) / (self.spread.count * len(self.errors)))
        return error if math.isfinite(error) else None


def axis_of_kinds(shape: Sequence[int]) -> int | None:
    """The axis of an output (its shape without the batch) that may hold numbers of several kinds; None without one.

    That of channels: the first or the last, whichever is shorter, as [B, 84, 8400] and [B, 8400, 84] have them.
    """
    if not shape:
        return None
    axis = 1 if shape[0] <= shape[-1] or len(shape) == 1 else len(shape)
    return axis if 2 <= shape[axis - 1] <= _MOST_ENTRIES else None
