"""Where TensorRT executes integers: one row per kind of operator and per shape of layer, with its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.facts.profile import LayerShape, Profile, Rule, WeightOnly
from calibration.grid import Grid
from calibration.rewrites.gaps import GAPS_GATHERED
from calibration.rewrites.parts import LAYERS_PER_PART
from calibration.rewrites.subpixel import TRANSPOSED_AS_CONVOLUTIONS

_GUIDANCE = "NVIDIA TensorRT developer guide, explicit quantisation; ModelOpt 0.47 onnx/quantization"
# A layer's kernel ends in one pointwise epilogue, which needs no rounding behind it.
_EPILOGUE = frozenset({"relu", "clip", "leaky_relu", "hardswish", "silu", "gelu", "sigmoid", "tanh", "hardsigmoid"})
_POINTWISE = f"a pointwise operator runs in float, fused with its neighbours ({_GUIDANCE})"
_POOLING = f"pooling does not commute with rounding: both sides ({_GUIDANCE})"


# A weighted layer: its inputs are rounded, its activation is computed in the same kernel.
_LAYER = Rule(integer="always", output="free", absorbs=_EPILOGUE, epilogue="any", source=f"inputs only ({_GUIDANCE})")

RULES: dict[str, Rule] = {
    "conv": _LAYER,
    "conv_transpose": _LAYER,
    "linear": _LAYER,
    "matmul": Rule(integer="always", output="free", source=f"inputs only ({_GUIDANCE})"),
    "add": Rule(
        integer="fed",
        inputs="skip",
        output="free",
        absorbs=_EPILOGUE,
        epilogue="any",
        source=f"skip branch only: the other is the layer's own epilogue ({_GUIDANCE})",
    ),
    "adaptive_average_pool": Rule(integer="fed", source=_POOLING),
    "average_pool": Rule(integer="fed", source=_POOLING),
    **{
        word: Rule(integer="never", source=_POINTWISE)
        for word in ("relu", "clip", "leaky_relu", "prelu", "elu", "sigmoid", "hardsigmoid", "hardswish", "silu")
    },
    **{word: Rule(integer="never", source=_POINTWISE) for word in ("gelu", "tanh", "mul", "sub", "div")},
    "softmax": Rule(integer="never", source=f"normalisations get no quantiser ({_GUIDANCE})"),
    "layer_norm": Rule(integer="never", source=f"normalisations get no quantiser ({_GUIDANCE})"),
    "group_norm": Rule(integer="never", source=f"normalisations get no quantiser ({_GUIDANCE})"),
    "mean": Rule(integer="never", source="a mean over other axes than height and width has no integer kernel"),
    "resize_bilinear": Rule(integer="never", source=f"Resize gets no quantiser of its own ({_GUIDANCE})"),
}


@dataclass(frozen=True, kw_only=True)
class SkippedShape:
    """One row of the table of layers that gain nothing from integers: whom it concerns, and why."""

    reason: str
    concerns: Callable[[LayerShape], bool]


# An INT8 tensor core takes 16 channels at a time, some kernels 8.
_CHANNELS = 16
_LEAST_CHANNELS = 8


def _is_narrow(layer: LayerShape) -> bool:
    return layer.kind != "linear" and min(layer.inputs, layer.outputs) < _CHANNELS


def _narrow_dense(layer: LayerShape) -> bool:
    """A dense convolution with few channels on one side, other than those that INT8 kernels exist for."""
    if not _is_narrow(layer) or layer.groups > 1:
        return False
    divisible = layer.inputs % _LEAST_CHANNELS == 0 or layer.outputs % _LEAST_CHANNELS == 0
    wide_enough = layer.first or max(layer.inputs, layer.outputs) >= _CHANNELS
    return not (divisible and wide_enough and len(set(layer.kernel)) == 1)


def _narrow_grouped(layer: LayerShape) -> bool:
    if not _is_narrow(layer) or layer.groups == 1:
        return False
    return layer.outputs % _LEAST_CHANNELS != 0 or min(layer.kernel) < 3


#: Weighted layers that stay float, by shape (rule 7): ModelOpt 0.47, onnx/quantization/graph_utils.py,
#: `find_nodes_from_convs_to_exclude` and `find_nodes_from_matmul_to_exclude`; channels count per group there as here.
SKIPPED: tuple[SkippedShape, ...] = (
    SkippedShape(reason="a convolution with fewer than 16 channels gains nothing from INT8", concerns=_narrow_dense),
    SkippedShape(
        reason="a grouped convolution needs a multiple of 8 outputs and a kernel of 3 or more for INT8",
        concerns=_narrow_grouped,
    ),
    SkippedShape(
        reason="a product of a matrix and one vector is bound by memory, not by arithmetic",
        concerns=lambda layer: layer.kind == "linear" and (layer.rows == 1 or layer.outputs == 1),
    ),
)


def skip_layer(layer: LayerShape) -> str | None:
    """Why a layer of this shape stays float; None when it runs on integers."""
    return next((row.reason for row in SKIPPED if row.concerns(layer)), None)


#: Linear layers whose weights alone are integers (rule 30): what they cost is reading the weights, which int4 halves.
#: Blocks of 128 or 64 inputs: the preset of ModelOpt's INT4, and the groups that TensorRT-LLM has kernels for; the
#: compiler of TensorRT-RTX 1.7.1 reads int4 as it is in blocks of 16 to 128 (measured), but with one scale per channel,
#: or one block, it writes the whole weight out as floats first. A million weights [ours]: reading 1 MB of int8 at a
#: Jetson's 100 to 200 GB/s takes some 5 to 10 microseconds, about as long as launching one more kernel.
WEIGHT_ONLY = WeightOnly(
    bits=4,
    blocks=(128, 64),
    least_weights=2**20,
    reason="its weights are read as 4-bit integers and multiplied by float inputs: for one row per image the layer is"
    " bound by reading them",
    source=f"INT4 is for weights alone, in blocks ({_GUIDANCE}; NvInfer.h, IDequantizeLayer)",
)

# Symmetric int8 everywhere: the parser refuses any other zero point and reads uint8 as int8 (rules 1 and 2).
PROFILE = Profile(
    name="tensorrt",
    rules=RULES,
    non_negative=Grid(bits=8, signed=True, symmetric=True),
    signed=Grid(bits=8, signed=True, symmetric=True),
    integer_bias=False,
    integer_movement=False,
    fused_rounding=False,
    inexact="TensorRT orders its kernels' float operations as it likes: ties may round otherwise than in the oracle",
    wide_storage="weights of 4 bits or fewer are stored and multiplied as int8, so the file is as large as with 8 bits:"
    " TensorRT has no 4-bit convolution",
    skip_layer=skip_layer,
    weight_only=WEIGHT_ONLY,
    rewrites=(
        # Rule 38. TensorRT-RTX 1.7.1 has no int8 transposed convolution (measured): as a convolution whose channels
        # move to their places it multiplies integers. NVIDIA's guidance rounds the inputs of those that stay.
        TRANSPOSED_AS_CONVOLUTIONS,
        # Rule 37. TensorRT-RTX 1.7.1 (measured: every Vision Transformer of timm, Swin's stages of one window): where
        # the tokens of an image stay together, the compiler takes the product of queries, keys and values apart, and
        # expands its int8 weight to floats for that. Three layers of one input it multiplies as one int8 product.
        LAYERS_PER_PART,
        # TensorRT-RTX 1.7.1's parser: "does not support dilations other than 1" (measured).
        GAPS_GATHERED,
    ),
)
