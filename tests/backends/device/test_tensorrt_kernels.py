"""The census of an engine: inspector JSON of both versions, constructed after the documented format, by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.device.tensorrt_device.check import kernel_line, planned_products
from backends.device.tensorrt_device.errors import DeviceError
from backends.device.tensorrt_device.kernels import EngineKernel, census, parse_inspection

# Written by hand after the manuals' examples (engine inspector page of 10.16 and 10.x-to-11.x migration page); no
# engine of ours has been inspected on hardware yet.
REFORMAT = "Reformatting CopyNode for Input Tensor 0 to conv1 + relu"


def tensor(version: int, name: str, dtype: str, shape: list[int]) -> dict[str, Any]:
    """A tensor's entry: one field of format and type in 10.x, two in 11.x."""
    if version == 10:
        words = {"Int8": "Thirty-two wide channel vectorized row major Int8 format", "Float": "Row major linear FP32"}
        words["Half"] = "Channel major FP16 format where channel % 8 == 0"
        return {"Name": name, "Location": "Device", "Dimensions": shape, "Format/Datatype": words[dtype]}
    return {"Name": name, "Location": "Device", "Dimensions": shape, "Format": "Row major linear", "Datatype": dtype}


def engine(version: int) -> dict[str, Any]:
    """A float image, copied to int8, a fused convolution, a float head and a fused float product of Myelin's."""
    image = tensor(version, "x", "Float", [1, 3, 32, 32])
    copied, mapped = tensor(version, "x_copy", "Int8", [1, 3, 32, 32]), tensor(version, "y", "Int8", [1, 16, 32, 32])
    logits = tensor(version, "logits", "Half", [1, 10])
    layers = [
        {
            "Name": REFORMAT,
            "LayerType": "Reformat",
            "Inputs": [image],
            "Outputs": [copied],
            "ParameterType": "Reformat",
        },
        {
            "Name": "conv1 + relu",
            "LayerType": "CaskConvolution",
            "Inputs": [copied],
            "Outputs": [mapped],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 432},
            "Bias": {"Type": "Float", "Count": 16},
            "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
            "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu]\x1e[ONNX Layer: x_q]",
        },
        {
            "Name": "head",
            "LayerType": "CaskGemmConvolution",
            "Inputs": [logits],
            "Outputs": [logits],
            "Weights": {"Type": "Half", "Count": 160},
            "TacticName": "sm80_xmma_gemm_f16f16_f16f32",
        },
        {
            "Name": "__myl_Fc_myl0_3",
            "LayerType": "gemm",
            "Inputs": [mapped],
            "Outputs": [logits],
            "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize32x32x64",
            "Metadata": "[ONNX Layer: fc]",
        },
    ]
    result: dict[str, Any] = {"Layers": layers}
    if version == 10:
        result["Bindings"] = ["x", "logits"]
    else:
        result["I/O Tensors"] = [{"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 32, 32]}]
    return result


@pytest.mark.parametrize("version", [10, 11])
def test_both_versions_are_read_alike(version: int) -> None:
    copy, convolution, head, product = parse_inspection(json.dumps(engine(version)))
    assert copy.is_reformat and not copy.multiplies_integers
    assert (copy.inputs, copy.outputs) == (("Float",), ("Int8",))
    assert convolution.nodes == ("conv1", "relu", "x_q") and convolution.fused == 2
    assert convolution.multiplies_integers and convolution.weights == ("Int8",)
    assert head.nodes == ("head",) and not head.multiplies_integers
    assert product.multiplies_integers, "the name of its code says so, where its weights are not listed"


@pytest.mark.parametrize("version", [10, 11])
def test_the_census_names_layers_and_counts_kernels(version: int) -> None:
    counted = census(parse_inspection(json.dumps(engine(version))), ["conv1", "head", "fc", "gone"])
    assert counted.integer == ("conv1", "fc")
    assert counted.floating == ("head", "gone")
    assert counted.unseen == ("gone",)
    assert (counted.kernels, counted.fused, counted.reformats, counted.integer_reformats) == (4, 1, 1, 1)
    assert counted.kinds == {"CaskConvolution": 1, "CaskGemmConvolution": 1, "Reformat": 1, "gemm": 1}


def test_a_convolution_of_int8_data_with_float_weights_is_float() -> None:
    kernel = EngineKernel(kind="CaskConvolution", nodes=("a",), inputs=("Int8",), weights=("Float",), tactic="i8i8")
    assert not kernel.multiplies_integers
    assert not EngineKernel(kind="conv", nodes=("a",), inputs=("Int8",), tactic="f32f32").multiplies_integers


def test_products_of_int4_weights_are_counted() -> None:
    fused = EngineKernel(kind="gemm", nodes=("h_weight_dq", "h"), inputs=("Half",), weights=("Int4", "Half"))
    expansion = EngineKernel(kind="kgen", nodes=("g_weight_dq",), inputs=(), weights=("Half", "Int4"))
    expanded = EngineKernel(kind="gemm", nodes=("g",), inputs=("Half", "Half"))
    assert [kernel.reads_int4 for kernel in (fused, expansion, expanded)] == [True, False, False]
    counted = census([fused, expansion, expanded], [])
    assert counted.int4_products == 1 and not fused.multiplies_integers
    assert kernel_line(counted).endswith("; products of int4 weights: 1")
    (read,) = parse_inspection(
        json.dumps({"Layers": [{"Name": "h", "LayerType": "gemm", "Weights": {"Type": "Int4", "Count": 8}}]})
    )
    assert read.weights == ("Int4",)


def test_products_of_two_activations_are_counted_alone_and_as_attention() -> None:
    attention = EngineKernel(kind="kgen", nodes=("qk", "softmax", "v"), inputs=("Int8", "Int8", "Int8"))
    half = EngineKernel(kind="gemm", nodes=("other",), inputs=("Half", "Half"))
    kinds = dict.fromkeys(("qk", "v", "other", "left"), "matmul") | {"a": "conv"}
    counted = census([attention, half], [], planned_products(kinds, {"left": ""}))
    assert (counted.integer_products, counted.float_products) == (("qk", "v"), ("other",))
    assert kernel_line(counted).endswith("; products of two activations: 2 of 3 int8; not int8: other")


def test_shapes_that_the_inspector_does_not_know_are_no_type() -> None:
    entry = {"Name": "x", "Dimensions": [-1, 3], "Format/Datatype": "N/A due to dynamic shapes"}
    (kernel,) = parse_inspection(json.dumps({"Layers": [{"Name": "a", "LayerType": "NoOp", "Inputs": [entry]}]}))
    assert kernel.inputs == ("unknown",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON with Layers"),
        ("[]", "is no JSON with Layers"),
        ('{"Layers": ["conv1 + relu"]}', "profilingVerbosity=detailed"),
    ],
)
def test_other_answers_are_one_line(text: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        parse_inspection(text)
