"""Where ONNX Runtime's CPU provider executes integers: one row per kind of operator, with its source."""

from __future__ import annotations

from dataclasses import replace

from backends.profile import Profile, Rule
from calibration.grid import Grid

# "measured" rows were checked on ONNX Runtime 1.31.1 by reading the kernels of the optimised graph; the selectors are
# in onnxruntime/core/optimizer/qdq_transformer/selectors_actions/qdq_selectors.cc.
_FUSED_ACTIVATIONS = frozenset({"relu", "clip"})

RULES: dict[str, Rule] = {
    "conv": Rule(
        integer="always",
        absorbs=_FUSED_ACTIVATIONS,
        source="QLinearConv: needs a rounded output; ReLU and ReLU6 vanish into its rounding (measured)",
    ),
    "linear": Rule(
        integer="always",
        output="free",
        absorbs=_FUSED_ACTIVATIONS,
        source="QGemm writes float when its bias is int32 (measured)",
    ),
    "add": Rule(integer="fed", absorbs=_FUSED_ACTIVATIONS, source="QLinearAdd: both inputs and the output rounded"),
    "mul": Rule(integer="fed", absorbs=_FUSED_ACTIVATIONS, source="QLinearMul: both inputs and the output rounded"),
    "adaptive_average_pool": Rule(
        integer="fed", absorbs=_FUSED_ACTIVATIONS, source="QLinearGlobalAveragePool (measured)"
    ),
    "average_pool": Rule(
        integer="fed",
        absorbs=_FUSED_ACTIVATIONS,
        source="QLinearAveragePool; it adds the zero point before it rounds (measured, qlinear_pool.cc)",
    ),
    "sigmoid": Rule(integer="fed", source="QLinearSigmoid, a 256-entry table (measured)"),
    "leaky_relu": Rule(integer="fed", source="QLinearLeakyRelu, a 256-entry table (measured)"),
    "matmul": Rule(
        integer="fed", output="free", source="QLinearMatMul, or MatMulIntegerToFloat without a rounded output"
    ),
    "conv_transpose": Rule(
        integer="stored",
        output="free",
        # It rounds a float weight behind a rounded input by itself, per tensor and without a word, when it loads the
        # file (weight_bias_quantization.cc, measured): so the file holds integers of our own.
        source="ONNX Runtime has no integer ConvTranspose on CPU: float arithmetic on stored integers",
    ),
    "concat": Rule(integer="fed", source="QLinearConcat: parts of different scale, where they share no grid"),
    "hardswish": Rule(integer="never", source="ONNX Runtime has no integer HardSwish"),
    "hardsigmoid": Rule(integer="never", source="ONNX Runtime has no integer HardSigmoid"),
    "silu": Rule(integer="never", source="ONNX Runtime has no integer SiLU as one operator"),
    "gelu": Rule(integer="never", source="ONNX Runtime has no integer GELU"),
    "tanh": Rule(integer="never", source="ONNX Runtime has no integer Tanh"),
    "softmax": Rule(
        integer="never", source="QLinearSoftmax differs from float rounding on 6 % of values: kept in float"
    ),
    "layer_norm": Rule(integer="never", source="ONNX Runtime has no integer LayerNormalization"),
    "relu": Rule(integer="never", source="a ReLU that no integer kernel absorbs runs in float"),
    "clip": Rule(integer="never", source="a clip that no integer kernel absorbs runs in float"),
    "sub": Rule(integer="never", source="ONNX Runtime has no integer Sub"),
    "div": Rule(integer="never", source="ONNX Runtime has no integer Div"),
    "mean": Rule(integer="never", source="ONNX Runtime has no integer ReduceMean"),
    "resize_bilinear": Rule(integer="never", source="linear Resize runs in float in ONNX Runtime 1.31"),
}

# x86-64: uint8 activations, because int8 ones stay float wherever a tensor has two readers (qdq_s8_to_u8.cc).
X64 = Profile(
    name="onnxruntime",
    rules=RULES,
    non_negative=Grid(bits=8, signed=False, symmetric=True),
    signed=Grid(bits=8, signed=False, symmetric=False),
    integer_bias=True,
    integer_movement=True,
)

# AVX2 and AVX-512 without VNNI add two products in 16 bits and saturate: weights keep half of their range (rule 22).
X64_WITHOUT_VNNI = replace(X64, weight_limit=63)
