"""The embedded default: real handwritten digits and a small teacher, shipped inside the package."""

from __future__ import annotations

import io
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pipeline.images.preprocessing import Preprocessing
    from pipeline.networks.models import LoadedModel

ARCHIVE_NAME = "digits.npz"
TEACHER_NAME = "digits_teacher.safetensors"

# Mean and standard deviation of the training split's pixels as fractions of 255, rounded to four digits.
_MEAN = (0.3058,)
_STD = (0.3764,)


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


def digits_preprocessing() -> Preprocessing:
    """Return what the digits network expects: 8x8 pixels, one channel, white ink on black paper."""
    from pipeline.images.preprocessing import Preprocessing

    return Preprocessing(
        channels=1,
        height=8,
        width=8,
        resize=None,
        interpolation="bilinear",
        mean=_MEAN,
        std=_STD,
        channel_order="L",
    )


def load_digits_teacher() -> LoadedModel:
    """Return the shipped digits network with its trained weights, in eval mode, float32, on the CPU."""
    # Imported here: pipeline.networks.models lists this loader, and reading the images should not cost torch's import.
    import safetensors.torch

    from pipeline.networks.architectures.digits import DigitsNetwork
    from pipeline.networks.models import LoadedModel

    module = DigitsNetwork()
    module.load_state_dict(safetensors.torch.load(read_embedded(TEACHER_NAME)))
    return LoadedModel(module=module.eval(), preprocessing=digits_preprocessing(), source="digits", notes=())
