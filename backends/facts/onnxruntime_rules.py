"""Where ONNX Runtime's CPU provider executes integers: one row per kind of operator, with its source."""

from __future__ import annotations

from dataclasses import replace

from backends.facts.cpu import host_cpu
from backends.facts.file_form import FileForm
from backends.facts.profile import Profile, Rule
from calibration.grid import Grid
from calibration.rewrites.channels_last import ROWS_OF_CHANNELS_LAST
from calibration.rewrites.multipliers import NUMBERS_BEFORE_PRODUCTS
from calibration.rewrites.subpixel import TRANSPOSED_AS_CONVOLUTIONS

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
        source="a depthwise QLinearConv of ones; QLinearAveragePool where windows differ in size, which adds the zero"
        " point before it rounds (measured, qlinear_pool.cc)",
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
    "hardsigmoid": Rule(
        integer="fed",
        source="QLinearAdd of a constant, clipped by its rounding: 0.11 ns a value; in float between roundings 0.39",
    ),
    "prelu": Rule(
        integer="never",
        source="ONNX Runtime has no integer PReLU; two convolutions and their sum are faster and round twice more",
    ),
    "gelu": Rule(integer="never", source="ONNX Runtime has no integer GELU"),
    "tanh": Rule(integer="never", source="ONNX Runtime has no integer Tanh"),
    "softmax": Rule(
        integer="never", source="QLinearSoftmax differs from float rounding on 6 % of values: kept in float"
    ),
    "layer_norm": Rule(integer="never", source="ONNX Runtime has no integer LayerNormalization"),
    "group_norm": Rule(integer="never", source="ONNX Runtime has no integer GroupNormalization"),
    "copy": Rule(integer="never", source="8 bits that a narrow layer reads rounded once more; others read all of them"),
    "expand": Rule(integer="never", source="a constant repeated for every image: it is copied, not computed"),
    "pad": Rule(integer="never", source="a border of another value than 0 lies on no grid that its input has"),
    "relu": Rule(integer="never", source="a ReLU that no integer kernel absorbs runs in float"),
    "clip": Rule(integer="never", source="a clip that no integer kernel absorbs runs in float"),
    "sub": Rule(integer="never", source="ONNX Runtime has no integer Sub"),
    "div": Rule(integer="never", source="ONNX Runtime has no integer Div"),
    "norm": Rule(integer="never", source="ONNX Runtime has no integer ReduceL2"),
    "exp": Rule(integer="never", source="ONNX Runtime has no integer Exp"),
    "sqrt": Rule(integer="never", source="ONNX Runtime has no integer Sqrt"),
    "mean": Rule(integer="never", source="ONNX Runtime has no integer ReduceMean"),
    "resize_bilinear": Rule(
        integer="never",
        # Measured on 1.32, 24x32x32 to twice the size: 4.1 ns a value on bytes, 2.1 in float between roundings.
        source="a linear Resize of bytes truncates, a step too low on 46 % of values, and is slower than the float one",
    ),
}

# uint8 activations: on x86-64 int8 ones stay float wherever a tensor has two readers (qdq_s8_to_u8.cc).
X64 = Profile(
    name="onnxruntime",
    cpu="x86-vnni",
    variant="x86-vnni",
    source="VNNI adds four products of 8 bits exactly in 32 bits (measured: every output equals the oracle's)",
    rules=RULES,
    non_negative=Grid(bits=8, signed=False, symmetric=True),
    signed=Grid(bits=8, signed=False, symmetric=False),
    integer_bias=True,
    integer_movement=True,
    form=FileForm(
        packs_int4=True,
        # QLinearConv multiplies group by group, and a matrix of few columns is far from a kernel's 16. Measured, 3x3,
        # one thread, us as it is and merged to 32 channels: 32 groups of 4 at 32x32 17422 and 521 (float 1894), of 8 at
        # 16x16 475 and 257 (494), of 16 at 8x8 258 and 216 (317); 48 groups of 1 to 2, 7x7 at stride 2, 2408 and 289.
        # Beyond 32 the zeros cost more than the wider matrix saves.
        merged_channels=32,
        # Measured, 96x56x56, ns a value: the PRelu kernel 4.90, Mul and Max 1.12, Relu, Min, Mul and Add 1.26.
        prelu_as_maximum=True,
        # Rule 31: it looks behind a Relu or Clip for a rounding that does its work; without one the product stays in
        # float (measured).
        bounds_behind_products=True,
        # Between two roundings a softmax becomes QLinearSoftmax, which differs from float rounding on 6 % of values.
        softmax_apart=True,
        # Rule 21: a kernel that writes integers leaves no float for others to read, so it would stay in float.
        rounded_for_all=True,
    ),
    rewrites=(
        # Measured, one thread, ms as it is and as a convolution behind which channels move (float in brackets), 64 to
        # 32 channels at 56x56: 2x2 stride 2 1.15 and 0.97 (1.22), 4x4 stride 2 3.71 and 1.42 (3.59), 3x3 stride 2 2.23
        # and 1.41 (2.15); a U-Net at 128x128 4.56 and 4.24 (16.3).
        TRANSPOSED_AS_CONVOLUTIONS,
        # Measured, scores of attention, 96 products of 56x56 matrices, ns a value: 2.43 where a number multiplies the
        # query in float, 1.32 on integers.
        NUMBERS_BEFORE_PRODUCTS,
        # The runtime gives every QLinearConv a map with channels last (nhwc_transformer.cc). Measured, one thread, 128
        # px, ms before and after: EfficientFormerV2-S0 3.97 and 3.79, at batch 8 23.3 and 21.4; MaxViT-T 30.1 and 26.2.
        ROWS_OF_CHANNELS_LAST,
    ),
    # Measured, 96x56x56, ns a value as QLinearAveragePool and as a convolution of ones (float in brackets): 2x2, stride
    # 2, 2.17 and 0.32 (0.75), 3x3 9.30 and 0.78 (1.03).
    averages_as_convolutions=True,
    numbers_in_scales=True,
)

X64_WITHOUT_VNNI = replace(
    X64,
    cpu="x86-avx2",
    variant="x86-avx2-limited",
    # 2 * 255 * 63 = 32130 is below 2**15, so no sum of two products saturates (rule 22).
    weight_limit=63,
    source="the U8S8 kernels of AVX2 and of AVX-512 without VNNI add two products in 16 bits and saturate: weights keep"
    " half of their range (onnxruntime issue 24711; measured under emulation of a Haswell)",
)

X64_PRECISE = replace(
    X64,
    cpu="x86-avx2",
    variant="x86-avx2-precise",
    session_options={"session.x64quantprecision": "1"},
    # The option renames each int8 weight and zero point that it turns into uint8, and fails at the second renaming.
    form=replace(X64.form, shared_constants=False),
    source="the session option turns weights beyond 64 into uint8, whose slower kernels add in 32 bits"
    " (avx2_weight_s8_to_u8.cc; measured under emulation of a Haswell)",
)

ARM64 = replace(
    X64,
    cpu="arm64",
    variant="arm64",
    # uint8, as on x86, though int8 is exact as well: cores with 8-bit matrix products use them for every uint8
    # convolution and linear layer but deep and depthwise ones, and pack int8 ones for the older dot products
    # (SymmQgemmDispatch in mlas/lib/platform.cpp, qlinearconv.cc, matmul_integer_base.h).
    non_negative=Grid(bits=8, signed=False, symmetric=True),
    signed=Grid(bits=8, signed=False, symmetric=False),
    arm_arithmetic=True,
    form=replace(X64.form, merged_channels=0),  # not measured there
    source="both signs of activations are exact: measured under emulation on cores without dot products, with them and"
    " with 8-bit matrix products, which serve uint8 alone where weights are constant (onnxruntime's platform.cpp, pull"
    " requests 9902 and 17160; read, not timed);"
    " QLinearAdd computes in fixed point and QLinearMul rounds once (MLAS qladd.cpp, qlmul.cpp; measured)",
)

CPU_PROFILES = {
    "x86-vnni": (X64,),
    "x86-avx2": (X64_WITHOUT_VNNI, X64_PRECISE),
    "arm64": (ARM64,),
}
"""CPU -> the profiles that are exact on it, the one with the fastest kernels first."""


def host_profile() -> Profile:
    """The fastest profile that is exact on this machine; on a processor that none is for, the one without limits."""
    return CPU_PROFILES[host_cpu() or X64.variant][0]
