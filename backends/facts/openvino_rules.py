"""Where OpenVINO's CPU plugin executes integers: one row per kind of operator, with its source."""

from __future__ import annotations

from dataclasses import replace

from backends.facts.cpu import host_cpu
from backends.facts.file_form import FileForm
from backends.facts.profile import Profile, Rule
from calibration.grid import Grid
from calibration.rewrites.explicit_borders import BORDERS_BEFORE_AVERAGES, STRIDES_BEFORE_POINTWISE
from calibration.rewrites.subpixel import SIGNED_TRANSPOSED_AS_CONVOLUTIONS, TRANSPOSED_AS_CONVOLUTIONS

# "measured" rows were checked on OpenVINO 2026.4.1 by reading the runtime model of the compiled network; what must
# not be rounded twice was found by comparing every rounded tensor with exact integer arithmetic (docs/openvino.md).
_EPILOGUE = frozenset({"relu", "clip", "leaky_relu", "hardswish", "silu", "gelu", "sigmoid", "tanh", "hardsigmoid"})
_POINTWISE = "an elementwise operator reads integers, computes in float and rounds in one kernel (measured)"
_FLOAT = "OpenVINO has no integer kernel for it (measured)"

# A weighted layer: its input is rounded; its activation, and a rounding if one follows, belong to the same kernel.
_LAYER = Rule(
    integer="always",
    output="free",
    absorbs=_EPILOGUE,
    epilogue="any",
    source="integer sums leave the kernel as float unless a rounding follows (measured)",
)

RULES: dict[str, Rule] = {
    "conv": _LAYER,
    "conv_transpose": _LAYER,
    "linear": _LAYER,
    "add": Rule(
        integer="fed",
        inputs="skip",
        output="free",
        absorbs=_EPILOGUE,
        epilogue="any",
        source="a layer's kernel adds the skip branch to its own float sums; a rounding in between would only clip, so"
        " that no simulation of it holds (measured: up to 19 % of the rounded sums differ)",
    ),
    "adaptive_average_pool": Rule(integer="fed", source="integer kernel between two roundings (measured)"),
    "average_pool": Rule(integer="fed", source="integer kernel between two roundings (measured)"),
    "matmul": Rule(
        integer="never", source="a product of two activations runs in float where their grids are asymmetric (measured)"
    ),
    "concat": Rule(integer="never", source="parts of unlike grids are rounded together, behind the concatenation"),
    **{
        word: Rule(integer="never", source=_POINTWISE)
        for word in ("relu", "clip", "leaky_relu", "prelu", "elu", "sigmoid", "hardsigmoid", "hardswish", "silu")
    },
    **{word: Rule(integer="never", source=_POINTWISE) for word in ("gelu", "tanh", "mul", "sub", "div")},
    **{
        word: Rule(integer="never", source=_FLOAT)
        for word in ("softmax", "layer_norm", "group_norm", "mean", "resize_bilinear")
    },
}

# The plugin's pooling of integers takes zero for the border's integer, whatever the zero point is; and its pass for
# strides of 1x1 convolutions (StridesOptimization) puts a pooling of its own between rounding and convolution: both run
# in float then. Measured, ms as it is and with strides in front: 64 to 128 channels at 56x56 0.168 and 0.115, 256 to
# 512 at 28x28 0.324 and 0.153, 512 to 1024 at 14x14 0.304 and 0.137.
_BORDERS_AND_STRIDES = (BORDERS_BEFORE_AVERAGES, STRIDES_BEFORE_POINTWISE)

# uint8 for all activations: signed tensors with a zero point are 1 % slower than int8 ones and twice as fine where they
# lean to one side; and a rounding to int8 behind a concatenation gives wrong outputs (measured, docs/openvino.md).
PROFILE = Profile(
    name="openvino",
    rules=RULES,
    non_negative=Grid(bits=8, signed=False, symmetric=True),
    signed=Grid(bits=8, signed=False, symmetric=False),
    integer_bias=False,
    integer_movement=True,
    form=FileForm(
        # Its passes carry roundings over movement by themselves, and find integers again behind reals that are moved.
        movement="reals",
        packs_int4=True,
        # Rule 32: without one, a sum of a layer's output and of what else is made of it is wrong (measured).
        bias_everywhere=True,
        # Rule 34: its passes take the border into the pooling, whose integers there are 0 whatever the zero point is.
        borders_next_to_zero=True,
        # Rule 35: a rounding that becomes part of ReduceMax or ReduceMin gives wrong outputs (measured).
        reductions_apart=True,
        # Rule 42: a convolution's kernel takes in the activations behind a max pooling of its sums, those that fall too
        # (measured: it names them; its pass FuseConvolutionAndSimpleOperationThroughMaxPool asks for no more than that
        # a kernel can compute them).
        maxima_apart=True,
        # Rule 43: as part of a product's kernel, slopes and summands per channel belong to the last axis (measured).
        shares_apart=True,
        # Rule 44: a rounding takes factors along axis 1 into its own bounds, the negative ones wrongly (measured).
        negative_factors_apart=True,
        # Rule 46: no pass finds the integers of a convolution behind such a concatenation and number (measured).
        joins_apart=True,
        # Rule 47: behind a product of two activations no kernel for a Mish is there (measured).
        mish_in_parts=True,
        # Rule 48: a pass moves factors and scales behind a normalisation, where they become their signs, and leaves its
        # epsilon as it was (measured; MVNTransformation of its low-precision passes).
        normalised_apart=True,
        # Rule 49: a clip of integers rounds its bounds to them where it hands integers on to a sum (measured).
        clips_apart=True,
        # Rule 50: a rounding is moved over the concatenation to its parts, and what takes parts of it finds no integers
        # or one of its passes fails (measured).
        rounded_joins_apart=True,
        # Rule 51: the factor is moved, over constants too, into the weights, which then are no integers (measured).
        factors_apart=True,
        # Rule 52: functions of single values and the rounding behind them are moved over what turns and spreads, which
        # then is computed in float (measured); over a row of numbers they are not.
        turned_apart=True,
        # Measured on 2026.4.1: where a convolution follows, the pass that fuses reversed channels into weights drops a
        # Gather of all channels and permutes the weights the wrong way round; a reversal is its own inverse.
        orders_in_halves=True,
        # Rule 40: where a size is computed its passes read it from a convolution's sums, whose bias is lost (measured).
        spreads_by_values=True,
    ),
    rewrites=(
        # Measured, 64 to 32 channels at 56x56, one thread, ms as it is and as a convolution behind which channels move:
        # of non-negative values, integers in both, 2x2 stride 2 0.286 and 0.489, 4x4 stride 2 0.524 and 0.739; of
        # signed ones, which have a zero point and so no integer Deconvolution, 0.495 and 0.484, 1.150 and 0.720.
        SIGNED_TRANSPOSED_AS_CONVOLUTIONS,
        *_BORDERS_AND_STRIDES,
    ),
    inexact="OpenVINO rounds after one more float operation than the oracle: values beside a tie may fall a step apart",
)

# Without VNNI oneDNN's int8 kernels add two products in 16 bits as ONNX Runtime's do. Measured on a Zen 3 (AVX2),
# OpenVINO 2026.4.1: with all of int8 the networks of tests/backends are up to 46 % of their range off the oracle.
WITHOUT_VNNI = replace(
    PROFILE,
    cpu="x86-avx2",
    variant="x86-avx2-limited",
    # 2 * 255 * 63 = 32130 is below 2**15, so no sum of two products saturates (rule 22).
    weight_limit=63,
    # Deconvolutions run in float there, of non-negative values as well (measured on AVX2).
    rewrites=(TRANSPOSED_AS_CONVOLUTIONS, *_BORDERS_AND_STRIDES),
    source="kernels of x86 without VNNI add two products in 16 bits and saturate: weights keep half of their range"
    " (oneDNN's notes on int8 computation; measured on AVX2)",
)
VNNI = replace(
    PROFILE, cpu="x86-vnni", source="VNNI adds four products of 8 bits exactly in 32 bits (measured: ties alone differ)"
)
ARM64 = replace(
    PROFILE, cpu="arm64", variant="arm64", source="not measured there: only a run on the device itself can validate it"
)

CPU_PROFILES = {"x86-vnni": (VNNI,), "x86-avx2": (WITHOUT_VNNI,), "arm64": (ARM64,)}
"""CPU -> the profile for it. That of x86-vnni has no variant, as bundles from before there were others have none."""


def host_profile() -> Profile:
    """The profile for this machine; on a processor that none is for, the one without limits."""
    return CPU_PROFILES[host_cpu() or "x86-vnni"][0]
