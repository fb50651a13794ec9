"""What may be asked of a quantiser that works after training, and what it would have to ignore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.errors import UserError
from pipeline import flags
from pipeline.config.distillation import DistillationConfig

_BITS = ("bits", "first-bits", "depthwise-bits", "last-bits", "activation-bits")
_TRAINING = (
    *flags.flags(DistillationConfig),
    "range",
    "learned-scales",
    "weight-grids",
    "activation-grids",
    "augmentation",
)


def check_post_training(given: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    """Check the flat settings of a run against what its post-training quantiser can do; `default`: nothing typed.

    Raises:
        UserError: fewer than 8 bits, training or TensorRT are asked for; the line names the flag.
    """
    quantiser = given["quantiser"]
    for key in _BITS:
        if given[key] != 8:
            raise UserError(f"--{key} {given[key]}: NNCF has 8-bit convolutions only; use --quantiser faqd")
    if given["backend"] == "tensorrt":
        raise UserError(f"--quantiser {quantiser} has no files for --backend tensorrt: use onnxruntime or openvino")
    if given["static-batch"] is not None:
        raise UserError(f"--static-batch {given['static-batch']}: NNCF's files have a free batch size; leave it out")
    changed = [key for key in _TRAINING if given[key] != default[key]]
    if changed:
        raise UserError(
            f"--{changed[0]} has no meaning with --quantiser {quantiser}, which does not train: leave it out"
        )
