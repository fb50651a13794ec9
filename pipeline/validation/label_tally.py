"""What labels say of one column: the share that is right, image by image, and of maps the overlap class by class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.errors import UserError

# A table of this many classes squared is counted; more classes have no mean intersection over union.
_MOST_CLASSES = 1024


class LabelTally:
    """Answers of one column beside labels, over batches; of maps the positions count whose label is a class."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.right = self.known = 0
        self._wrong: list[NDArray[np.float64]] = []
        self._pairs: NDArray[np.int64] | None = None

    def add(self, answers: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Count one batch of answers and labels, int64 [B] or [B, H, W].

        Raises:
            UserError: the label of an image is no class.
        """
        if labels.ndim == 1:
            check_labels(labels, self.classes)
        answers = answers.reshape(labels.shape)
        known = (labels >= 0) & (labels < self.classes)
        right = (answers == labels) & known
        self.right += int(right.sum())
        self.known += int(known.sum())
        counted = known.reshape(len(labels), -1).sum(1)
        self._wrong.append((counted - right.reshape(len(labels), -1).sum(1)) / np.maximum(counted, 1))
        if labels.ndim > 1 and self.classes <= _MOST_CLASSES:
            # What is decided by no number is -1: it is a class of its own here, the last.
            mine = np.where(answers[known] < 0, self.classes, answers[known])
            size = self.classes + 1
            pairs = np.bincount(labels[known] * size + mine, minlength=size * size).reshape(size, size)
            self._pairs = pairs if self._pairs is None else self._pairs + pairs

    def fraction(self) -> float:
        """The share of labels that are answered rightly, 0 to 1; 0 where none is a class."""
        return self.right / self.known if self.known else 0.0

    def wrong(self) -> NDArray[np.float64]:
        """Of each image the share of its labels that are answered wrongly, float64 [images]."""
        return np.concatenate(self._wrong)

    def mean_iou(self) -> float | None:
        """The mean over classes that occur of intersection over union, 0 to 1; None where labels are no maps."""
        if self._pairs is None:
            return None
        both = self._pairs.diagonal()[:-1]
        either = (self._pairs.sum(0) + self._pairs.sum(1) - self._pairs.diagonal())[:-1]
        return float((both[either > 0] / either[either > 0]).mean()) if either.any() else None


def check_labels(labels: NDArray[np.int64], classes: int, *, flag: str = "--eval-data") -> None:
    """Raise UserError unless labels [N], which `flag` names, are classes of a network that has so many."""
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise UserError(
            f"{flag} has labels {labels.min()} to {labels.max()}, but the network has"
            f" {classes} classes, 0 to {classes - 1}"
        )
