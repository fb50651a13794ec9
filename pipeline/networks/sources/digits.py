"""The embedded teacher: a small network for the digits that lie in the package beside it."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from calibration.errors import UserError
from pipeline.images.embedded import TEACHER_NAME, read_embedded
from pipeline.images.preprocessing import Preprocessing
from pipeline.networks.architectures.digits import DigitsNetwork
from pipeline.networks.sources.sourced import CLASSIFIER, SourcedModel
from pipeline.networks.weights import load_weights

# Mean and standard deviation of the training split's pixels as fractions of 255, rounded to four digits.
_MEAN = (0.3058,)
_STD = (0.3764,)


def digits_preprocessing() -> Preprocessing:
    """What the digits network expects: 8x8 pixels, one channel, white ink on black paper."""
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


def load_digits(rest: str, weights: Path | None) -> SourcedModel:
    """The shipped network with its trained weights, or those of a file; UserError for a variant."""
    if rest:
        raise UserError(f"digits:{rest}: the embedded network has no variants; write digits")
    module = DigitsNetwork()
    module.load_state_dict(safetensors.torch.load(read_embedded(TEACHER_NAME)))
    notes = () if weights is None else load_weights(weights, module, f"{weights} for digits")
    return SourcedModel(
        module=module.eval(),
        preprocessing=digits_preprocessing(),
        notes=notes,
        output_kinds=CLASSIFIER,
        class_names=tuple("0123456789"),
    )
