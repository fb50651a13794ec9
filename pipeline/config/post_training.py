"""What may be asked of a quantiser that works after training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.errors import UserError

_BITS = ("bits", "first-bits", "depthwise-bits", "last-bits", "activation-bits")


def check_post_training(settings: Mapping[str, Any]) -> None:
    """Check the flat settings of a run against what its post-training quantiser can do; `meaning` has what it ignores.

    Raises:
        UserError: fewer than 8 bits, TensorRT or one batch size are asked for; the line names the flag.
    """
    quantiser = settings["quantiser"]
    for key in _BITS:
        if settings[key] != 8:
            raise UserError(f"--{key} {settings[key]}: NNCF has 8-bit convolutions only; use --quantiser faqd")
    if settings["backend"] == "tensorrt":
        raise UserError(f"--quantiser {quantiser} has no files for --backend tensorrt: use onnxruntime or openvino")
    if settings["static-batch"] is not None:
        raise UserError(f"--static-batch {settings['static-batch']}: NNCF's files have a free batch size; leave it out")
