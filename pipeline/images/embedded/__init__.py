"""The embedded default: real handwritten digits and a small teacher, shipped inside the package."""

from __future__ import annotations

import io
from importlib import resources

import numpy as np
from numpy.typing import NDArray

ARCHIVE_NAME = "digits.npz"
TEACHER_NAME = "digits_teacher.safetensors"


def read_embedded(name: str) -> bytes:
    """Return the contents of one of the package's data files."""
    return resources.files(__name__).joinpath(name).read_bytes()


def digits_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int64]]:
    """Return unlabelled images to train with, and held-out images with labels to score with.

    The first array is uint8 [1347, 1, 8, 8], the second uint8 [450, 1, 8, 8], both 0 (paper) to 255 (ink);
    the third, int64 [450], holds the digits 0 to 9 of the second. The training images' labels are not
    returned: only the script that trained the teacher reads them.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998; see README.md here.
    """
    with np.load(io.BytesIO(read_embedded(ARCHIVE_NAME)), allow_pickle=False) as archive:
        images, labels, held_out = archive["images"], archive["labels"], archive["held_out"]
    return images[~held_out], images[held_out], labels[held_out]
