"""The embedded network at a quarter of its width: all its layers, joins and strides, at a tenth of the time.

Covariances, which weights of few bits are rounded by, grow with the square of the channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scripts.embedded.train_digits import TeacherTraining, teacher_bytes, train_teacher

#: At 8 x 8, 4 x 4 and 2 x 2 pixels.
_CHANNELS = (16, 20, 24)


@contextmanager
def narrow() -> Iterator[pytest.MonkeyPatch]:
    """The embedded network's code makes one of fewer channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.networks.architectures.digits._STAGE_CHANNELS", _CHANNELS)
        yield patch


def taught_narrow() -> bytes:
    """Weights for it that read nine of ten digits or more."""
    with narrow():
        return teacher_bytes(train_teacher(TeacherTraining(epochs=6)))


@contextmanager
def narrow_digits(weights: bytes) -> Iterator[None]:
    """`digits` names a network of fewer channels, with these weights."""
    with narrow() as patch:
        patch.setattr("pipeline.networks.sources.digits.read_embedded", lambda name: weights)
        yield
