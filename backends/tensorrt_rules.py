"""Where TensorRT executes integers: one row per kind of operator, with its source."""

from __future__ import annotations

from backends.placement import Profile, Rule
from calibration.grid import Grid

_GUIDANCE = "NVIDIA TensorRT developer guide, explicit quantisation; ModelOpt 0.47 onnx/quantization"
_EPILOGUE = frozenset(
    {"relu", "clip", "leaky_relu", "hardswish", "silu", "gelu", "sigmoid", "tanh", "hardsigmoid"}
)

RULES: dict[str, Rule] = {
    "conv": Rule(integer="always", output="free", absorbs=_EPILOGUE, source=f"inputs only ({_GUIDANCE})"),
    "conv_transpose": Rule(
        integer="always", output="free", absorbs=_EPILOGUE, source=f"inputs only ({_GUIDANCE})"
    ),
    "linear": Rule(integer="always", output="free", absorbs=_EPILOGUE, source=f"inputs only ({_GUIDANCE})"),
    "matmul": Rule(integer="always", output="free", source=f"inputs only ({_GUIDANCE})"),
    "add": Rule(
        integer="fed",
        inputs="skip",
        output="free",
        absorbs=_EPILOGUE,
        source=f"skip branch only ({_GUIDANCE})",
    ),
    "adaptive_average_pool": Rule(
        integer="fed", source=f"pooling does not commute with rounding: both sides ({_GUIDANCE})"
    ),
    "average_pool": Rule(
        integer="fed", source=f"pooling does not commute with rounding: both sides ({_GUIDANCE})"
    ),
}

# Symmetric int8 everywhere: the parser refuses any other zero point and reads uint8 as int8 (rules 1 and 2).
PROFILE = Profile(
    name="tensorrt",
    rules=RULES,
    non_negative=Grid(bits=8, signed=True, symmetric=True),
    signed=Grid(bits=8, signed=True, symmetric=True),
    integer_bias=False,
    integer_movement=False,
)
