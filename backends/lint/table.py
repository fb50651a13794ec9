"""The linter of artifacts: which rules of its target a file breaks, read from the file alone."""

from __future__ import annotations

import onnx

from backends.lint import fusion
from backends.lint import stored as checks
from backends.lint.openvino_rows import OPENVINO_RULES
from backends.lint.rule import LintRule, LintRules, Violation
from backends.onnx_file.view import OnnxView
from calibration.errors import UserError

_ORT = "measured on ONNX Runtime 1.31.1"
_OV = "measured on OpenVINO 2026.4.1"
_RTX = "measured on the ONNX parser of TensorRT-RTX 1.7.1, the same family as TensorRT 11"

_SHARED: tuple[LintRule, ...] = (
    LintRule(
        number=1,
        title="zero points are 0",
        breach={"tensorrt": "refused"},
        check=checks.zero_points_are_zero,
        source=f"the parser asserts shiftIsAllZeros ({_RTX})",
    ),
    LintRule(
        number=2,
        title="activations and weights are int8",
        breach={"tensorrt": "wrong"},
        check=checks.int8_alone,
        source=f"uint8 activations are silently read as int8, uint8 weights and 16 bits refused ({_RTX})",
    ),
    LintRule(
        number=3,
        title="biases are float",
        breach={"tensorrt": "refused"},
        check=checks.float_biases,
        source=f"the parser refuses an int32 DequantizeLinear ({_RTX})",
    ),
    LintRule(
        number=4,
        title="only inputs of Conv, ConvTranspose, Gemm and MatMul are rounded",
        breach={"tensorrt": "slow"},
        check=None,
        source=f"a rounding between a layer and its activation splits their kernel ({_RTX})",
    ),
    LintRule(
        number=5,
        title="of a residual addition, only the skip branch is rounded",
        breach={"tensorrt": "slow"},
        check=None,
        source=f"one more rounding in the epilogue of the addition ({_RTX})",
    ),
    LintRule(
        number=6,
        title="what is concatenated shares one scale with the result",
        breach={"tensorrt": "slow"},
        check=None,
        source=f"another pass rounds each part anew ({_RTX})",
    ),
    LintRule(
        number=7,
        title="narrow layers, and products of a matrix with one vector, stay float",
        breach={"tensorrt": "slow"},
        check=None,
        source="int8 gains nothing there (ModelOpt, NVIDIA; not measured here)",
    ),
    LintRule(
        number=8,
        title="the rest has one float type",
        breach={"tensorrt": "refused"},
        check=checks.one_float_type,
        source="networks are strongly typed since TensorRT 11: nothing casts by itself (10.x to 11.x migration guide)",
    ),
    LintRule(
        number=9,
        title="a scale per tensor has rank 0",
        breach={"onnxruntime": "refused", "tensorrt": "float", "openvino": "none"},
        check=checks.scale_ranks,
        source=f"shape [1] fails session creation at QLinearAdd ({_ORT}; not on 1.32.0), and convolutions run in float"
        f" ({_RTX}); nothing happens ({_OV})",
    ),
    LintRule(
        number=10,
        title="zero points are written, `output_dtype` is not",
        breach={"onnxruntime": "wrong", "tensorrt": "wrong", "openvino": "wrong"},
        check=checks.explicit_zero_points,
        source="onnxruntime issues 28491 and 25526; an omitted zero point means uint8",
    ),
    LintRule(
        number=11,
        title="weight scales lie on the output channels",
        breach={"onnxruntime": "wrong", "tensorrt": "float", "openvino": "float"},
        check=checks.weight_axes,
        source=f"axis 1 on a square convolution gives wrong outputs without a word ({_ORT}; pull request 21712), and"
        f" runs in float ({_OV}; {_RTX})",
    ),
    LintRule(
        number=12,
        title="activations are uint8",
        breach={"onnxruntime": "float", "openvino": "wrong"},
        check=checks.uint8_activations,
        source="int8 activations stay float wherever a tensor has two readers (qdq_s8_to_u8.cc); outputs are wrong by"
        f" up to a fifth of their range where a rounding to int8 stands behind a Concat ({_OV})",
    ),
    LintRule(
        number=13,
        title="a ReLU is part of the rounding behind it",
        breach={"onnxruntime": "float"},
        check=fusion.absorbed_relus,
        source=f"a convolution fuses with a ReLU only when the zero point is the smallest integer ({_ORT})",
    ),
    LintRule(
        number=14,
        title="a clip is part of the rounding behind it",
        breach={"onnxruntime": "float"},
        check=fusion.absorbed_clips,
        source=f"a range that reaches beyond the clip leaves the convolution float ({_ORT})",
    ),
    LintRule(
        number=15,
        title="every convolution's output is rounded",
        breach={"onnxruntime": "float"},
        check=fusion.rounded_convolutions,
        source=f"a convolution without a QuantizeLinear behind it runs in float ({_ORT})",
    ),
    LintRule(
        number=16,
        title="activations with integer kernels are rounded on both sides",
        breach={"onnxruntime": "float"},
        check=fusion.rounded_activations,
        source=f"QLinearLeakyRelu and QLinearSigmoid need a rounding before and behind ({_ORT})",
    ),
    LintRule(
        number=17,
        title="poolings are rounded on both sides, linear layers read a DequantizeLinear",
        breach={"onnxruntime": "float"},
        check=fusion.rounded_poolings,
        source=f"a Flatten between DequantizeLinear and Gemm, or a ReduceMean, means float ({_ORT})",
    ),
    LintRule(
        number=18,
        title="what only moves values keeps scale and zero point",
        breach={"onnxruntime": "float"},
        check=fusion.unchanged_movement,
        source=f"MaxPool between different scales runs in float ({_ORT})",
    ),
    LintRule(
        number=19,
        title="biases are int32 at input scale times weight scale",
        breach={"onnxruntime": "float"},
        check=checks.integer_biases,
        source=f"another scale leaves the layer float; float weights and biases are rounded at load ({_ORT})",
    ),
    LintRule(
        number=20,
        title="BatchNorm is folded before the rounding",
        breach={"onnxruntime": "float", "tensorrt": "none", "openvino": "float"},
        check=checks.no_batch_norm,
        source=f"behind integer weights it cannot be folded any more, and the layer runs in float ({_ORT}; {_OV}); it"
        f" is part of the kernel ({_RTX})",
    ),
    LintRule(
        number=21,
        title="a tensor is rounded once",
        breach={"onnxruntime": "float", "tensorrt": "slow", "openvino": "slow"},
        check=fusion.one_rounding,
        source=f"a second QuantizeLinear or a float reader makes the kernel before it float ({_ORT}); one more pass"
        f" over the tensor ({_OV}; {_RTX})",
    ),
    LintRule(
        number=22,
        title="weights keep within the profile's limit",
        breach={"onnxruntime": "wrong", "tensorrt": "none", "openvino": "wrong"},
        check=checks.limited_weights,
        source="x86 without VNNI saturates sums of two products at 16 bits (onnxruntime issue 24711); no kernel of a"
        " GPU does",
    ),
    LintRule(
        number=23,
        title="weights use -127 to 127",
        breach={"onnxruntime": "none", "tensorrt": "none", "openvino": "none"},
        check=checks.narrow_weights,
        source="the most negative integer has no positive counterpart: negated weights would not fit",
    ),
    LintRule(
        number=24,
        title="scales are positive and normal",
        breach={"onnxruntime": "wrong", "tensorrt": "refused", "openvino": "wrong"},
        check=checks.positive_scales,
        source="the parser refuses 0 and less (onnx-tensorrt issue 764); behind a negative scale outputs are wrong"
        f" without a word, and denormal scales are flushed to zero ({_ORT}; {_OV})",
    ),
    LintRule(
        number=25,
        title="4-bit weights are stored as the target can read them",
        breach={"onnxruntime": "float", "tensorrt": "refused", "openvino": "float"},
        check=checks.four_bit_weights,
        source=f"DequantizeLinear(int4) in front of a convolution: it runs in float ({_ORT}; {_OV}), no build ({_RTX})",
    ),
    LintRule(
        number=26,
        title="weights are symmetric",
        breach={"openvino": "float"},
        check=checks.symmetric_weights,
        source=f"a layer whose weight has a zero point runs in float ({_OV})",
    ),
    LintRule(
        number=27,
        title="the opset is 17 to 23",
        breach={"onnxruntime": "refused", "tensorrt": "refused", "openvino": "refused"},
        check=checks.opset,
        source=f"int4 initialisers exist from opset 21 on, a reader refuses older ones; 17 to 23 were tried ({_ORT};"
        f" {_OV}; {_RTX})",
    ),
    LintRule(
        number=30,
        title="int4 weights have a scale per 128 or 64 inputs",
        breach={"tensorrt": "float"},
        check=checks.blocked_weights,
        source=f"with a scale per channel the weight is written out as floats before the product reads it ({_RTX})",
    ),
    LintRule(
        number=31,
        title="no ReLU or clip stands alone behind a product with a float result",
        breach={"onnxruntime": "float"},
        check=fusion.products_before_activations,
        source="the search for the kernel's rounding goes on behind a Relu or Clip and finds none, and the product runs"
        " in float (measured on ONNX Runtime 1.32.0)",
    ),
    LintRule(
        number=37,
        title="a linear layer whose result is taken apart, as into queries, keys and values, is one layer per part",
        breach={"tensorrt": "float"},
        check=None,
        source=f"the compiler takes it apart by itself, and expands its weight to floats for that ({_RTX})",
    ),
    LintRule(
        number=38,
        title="a transposed convolution is a convolution and movement",
        breach={"tensorrt": "float"},
        check=None,
        source=f"there is no int8 kernel for one ({_RTX})",
    ),
)

RULES = tuple(sorted((*_SHARED, *OPENVINO_RULES), key=lambda rule: rule.number))
"""Every rule, by number; those that bind OpenVINO alone stand in a file of their own."""


def lint(model: onnx.ModelProto, rules: LintRules) -> list[Violation]:
    """Every violation of the target's rules that the file shows, by rule number, then in file order."""
    view = OnnxView(model)
    return [
        Violation(rule=rule.number, node=node, problem=problem)
        for rule in RULES
        if rules.target in rule.breach and rule.check is not None
        for node, problem in rule.check(view, rules)
    ]


def require_clean(model: onnx.ModelProto, rules: LintRules) -> None:
    """Raise UserError naming node and rule of the first violation, and how many more there are."""
    violations = lint(model, rules)
    if not violations:
        return
    first = violations[0]
    title = next(rule.title for rule in RULES if rule.number == first.rule)
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    raise UserError(
        f"{first.node}: the file breaks rule {first.rule} of {rules.target} ({title}): {first.problem}{more};"
        " it would not run as simulated, so it was not written"
    )
