"""What every source of images is, and how it keeps account of images that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.tools.source_text import shortened


@final
class UnreadableImage(Exception):
    """One image of a source is damaged or missing; a run goes on without it."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it survives the way between processes
        self.name = name
        self.reason = " ".join(reason.split())[:120]


@final
@dataclass
class Unreadable:
    """The images of one source that turned out unreadable, each counted once."""

    reasons: dict[int, tuple[str, str]] = field(default_factory=dict)  # index -> (name, reason)

    @property
    def count(self) -> int:
        """Number of images found unreadable so far."""
        return len(self.reasons)

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in the source's order."""
        return tuple(self.reasons[index][0] for index in sorted(self.reasons))

    def add(self, index: int, name: str, reason: str) -> None:
        """Record an image; again is no more than once."""
        self.reasons.setdefault(index, (name, reason))

    def summary(self) -> str | None:
        """Return one line for the user, None when every image was readable."""
        if not self.reasons:
            return None
        plural = "images" if self.count > 1 else "image"
        return f"{self.count} unreadable {plural} left out: {shortened(self.names)} ({self.first_reason()})"

    def first_reason(self) -> str:
        """Return why the first of them could not be read."""
        return self.reasons[min(self.reasons)][1] if self.reasons else ""


class ImageSource(Protocol):
    """A numbered collection of images without labels."""

    name: str
    notes: tuple[str, ...]  # what the user should be told
    unreadable: Unreadable

    def __len__(self) -> int:
        """Return the number of images, readable or not."""
        ...

    def image(self, index: int, *, at_least: int | None = None) -> Image.Image:
        """Return an image, upright, of any size and mode.

        With `at_least` a decoder may hand over a smaller version whose shorter side still has that many
        pixels.

        Raises:
            UnreadableImage: this one is damaged or missing.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Images to score on, with labels where there are any."""

    images: ImageSource
    labels: NDArray[np.int64] | None  # [len(images)], index of the class; of maps [len(images), H, W], others left out
    folders: tuple[str, ...] | None = None  # of class folders, by label; None where labels are the network's indices
    ordered: bool = False  # whether a file of the user's gave their order, instead of the alphabet
    order: str = ""  # how labels were matched with a network's classes, half a sentence

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ValueError(f"{self.labels.shape} labels for {len(self.images)} images")
