"""The rows of the linter's table that bind OpenVINO alone: what its passes lose the integers of, or compute wrongly."""

from __future__ import annotations

from backends.lint import openvino_kernels, openvino_movement
from backends.lint import openvino_passes as openvino
from backends.lint.rule import LintRule

_OV = "measured on OpenVINO 2026.4.1"

OPENVINO_RULES: tuple[LintRule, ...] = (
    LintRule(
        number=32,
        title="every layer has a bias",
        breach={"openvino": "wrong"},
        check=openvino.biased_layers,
        source=f"without one, a sum of a layer's output and of what else is made of it is wrong, and linear layers over"
        f" tokens do not load ({_OV})",
    ),
    LintRule(
        number=33,
        title="strides are left out in front of 1x1 convolutions",
        breach={"openvino": "float"},
        check=openvino.strided_pointwise,
        source=f"a pooling is put between rounding and convolution, and both run in float ({_OV})",
    ),
    LintRule(
        number=34,
        title="averages take no border into signed maps",
        breach={"openvino": "wrong"},
        check=openvino.borders_of_averages,
        source=f"the border's integers are 0 whatever the zero point is ({_OV})",
    ),
    LintRule(
        number=35,
        title="a Max stands behind a largest or smallest value",
        breach={"openvino": "wrong"},
        check=openvino.lone_reductions,
        source=f"a rounding that becomes part of ReduceMax or ReduceMin gives wrong outputs ({_OV})",
    ),
    LintRule(
        number=36,
        title="transposed convolutions read values that are not negative",
        breach={"openvino": "float"},
        check=openvino.unsigned_transposed,
        source=f"behind a zero point other than 0 they run in float ({_OV})",
    ),
    LintRule(
        number=39,
        title="positions of signed maps are joined as integers",
        breach={"openvino": "float"},
        check=openvino.joined_positions,
        source=f"a zero point is taken over concatenations of channels alone: behind those of other axes the next layer"
        f" runs in float ({_OV})",
    ),
    LintRule(
        number=40,
        title="no tensor is spread to a size that is computed",
        breach={"openvino": "wrong"},
        check=openvino.computed_sizes,
        source=f"the size is read from a convolution's sums, whose bias is then lost: wrong outputs ({_OV})",
    ),
    LintRule(
        number=41,
        title="dilated maxima read integers",
        breach={"openvino": "float"},
        check=openvino.dilated_maxima,
        source=f"of reals no pass takes the integers over a dilated pooling: the layer behind it runs in float ({_OV})",
    ),
    LintRule(
        number=42,
        title="a Max stands between a max pooling and what may fall for larger values",
        breach={"openvino": "wrong"},
        check=openvino_kernels.maxima_before_falling,
        source="activations behind a max pooling become part of the convolution before it, GELU, SiLU, Mish, absolute"
        f" values and negative slopes too: wrong outputs ({_OV})",
    ),
    LintRule(
        number=43,
        title="a Max stands between an average of unequal windows and what is per channel",
        breach={"openvino": "wrong"},
        check=openvino_kernels.products_before_channels,
        source="numbers per channel become part of a product's kernel as if they were per column: refused, and where"
        f" channels and columns are equally many wrong outputs ({_OV})",
    ),
    LintRule(
        number=44,
        title="a Max stands behind a product with negative factors of channels or rows",
        breach={"openvino": "wrong"},
        check=openvino_kernels.negative_factors,
        source=f"a rounding takes the factors into its own bounds, negative ones wrongly: wrong outputs ({_OV})",
    ),
    LintRule(
        number=45,
        title="stored integers are the second input of a product",
        breach={"openvino": "wrong"},
        check=openvino_kernels.stored_on_the_left,
        source="as its first input they leave the product in float and what it reads without its zero point: wrong"
        f" outputs ({_OV})",
    ),
    LintRule(
        number=46,
        title="a Max stands between a concatenation of positions and a number",
        breach={"openvino": "float"},
        check=openvino_kernels.numbers_behind_joins,
        source=f"where a part is made of another no pass takes the integers over both: the layer runs in float ({_OV})",
    ),
    LintRule(
        number=47,
        title="a Mish behind a product of two activations is written in parts",
        breach={"openvino": "refused"},
        check=openvino_kernels.mish_behind_products,
        source=f"it is put together and then has no kernel there: the plugin refuses the file ({_OV})",
    ),
    LintRule(
        number=48,
        title="a Max stands before the normalisation of a product with a constant",
        breach={"openvino": "wrong"},
        check=openvino_kernels.normalised_products,
        source="scales and factors are moved behind it, where they become their signs, and the epsilon stays as it was:"
        f" wrong outputs where variances are near it ({_OV})",
    ),
    LintRule(
        number=49,
        title="a Max stands before a clip of what integers stand for",
        breach={"openvino": "wrong"},
        check=openvino_kernels.clipped_integers,
        source=f"it clips the integers, whose bounds are whole: up to half a step off, and what is made of it ({_OV})",
    ),
    LintRule(
        number=50,
        title="a Max stands between a concatenation of positions, or of parts to be taken, and its rounding",
        breach={"openvino": "refused"},
        check=openvino_movement.rounded_joins,
        source="the rounding is moved to the parts: a layer behind it runs in float, and with some parts the file does"
        f" not load (ConvertWeightCompressedConv1x1ToMatmul; {_OV})",
    ),
    LintRule(
        number=51,
        title="a Max stands between a convolution's output, with constants added or not, and a factor of it",
        breach={"openvino": "float"},
        check=openvino_movement.factors_of_convolutions,
        source=f"the factor becomes part of the weights, which are no integers then ({_OV})",
    ),
    LintRule(
        number=52,
        title="a Max of a row stands between channels turned as positions and a function of single values",
        breach={"openvino": "float"},
        check=openvino_movement.turned_positions,
        source=f"function and rounding are moved before what spreads channels: the layer behind runs in float ({_OV})",
    ),
    LintRule(
        number=53,
        title="parts of joined channels of signed maps are taken of integers",
        breach={"openvino": "float"},
        check=openvino_movement.parts_of_joins,
        source="a zero point that was taken over a concatenation is not taken over a Slice behind it: linear layers run"
        f" in float, and convolutions of some parts ({_OV})",
    ),
)
