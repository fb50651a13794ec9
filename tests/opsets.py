"""ONNX opsets that the installed ONNX Runtime knows: an older one than the newest refuses the files of some."""

from __future__ import annotations

import pytest

from backends.onnx_file.view import OPSETS
from backends.onnxruntime.oldest_version import LEAST_OF_OPSET
from tests.versions import older


def runs(opset: int) -> bool:
    """Whether the installed ONNX Runtime runs files of an opset."""
    return not older("onnxruntime", LEAST_OF_OPSET[opset])


RUNNABLE_OPSETS = [
    pytest.param(
        opset,
        marks=pytest.mark.skipif(
            not runs(opset), reason=f"ONNX Runtime {LEAST_OF_OPSET[opset]} is the first that runs opset {opset}"
        ),
    )
    for opset in OPSETS
]
