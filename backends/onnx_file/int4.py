"""Tensors of 4-bit integers, two to a byte."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

#: Bits of the widest integers that an int4 initialiser holds.
INT4_BITS = 4


def int4_tensor(integers: NDArray[Any], name: str) -> TensorProto:
    """An int4 initialiser that holds integers from -8 to 7, of any shape; the first of two in the lower half-byte."""
    nibbles = integers.astype(np.uint8).reshape(-1) & 0xF
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    data = (nibbles[0::2] | (nibbles[1::2] << 4)).tobytes()
    return TensorProto(name=name, data_type=TensorProto.INT4, dims=list(integers.shape), raw_data=data)
