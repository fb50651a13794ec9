"""NNCF's post-training quantisation of a float ONNX file: min-max ranges, fast bias correction."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import ModuleType

import onnx
from onnx import NodeProto, helper

from backends.base import Array
from backends.facts.profile import Profile
from backends.lint.rule import LintRules, lint_rules
from backends.lint.table import RULES, lint
from backends.nncf.adapt import adapted
from backends.onnx_file.view import OnnxView, attributes
from backends.vendor import without_telemetry
from calibration.errors import MissingExtra, UserError

_TORCH_COMPILER_LOGGER = "torch.utils.cpp_extension"


def quantise(model: bytes, images: Callable[[], Iterable[Array]], count: int, profile: Profile) -> onnx.ModelProto:
    """The file quantised to W8A8 by NNCF for CPUs, in the form that the profile's kernels take.

    `images()` yields normalised images float32 [1, C, H, W], the same `count` of them whenever it is called. Raises
    MissingExtra without the package nncf, UserError when NNCF cannot quantise the file or the result would compute
    something else on the target.
    """
    nncf = _nncf()
    loaded = onnx.load_model_from_string(model)
    name, ends = loaded.graph.input[0].name, _add_ends(loaded, profile)
    # Half of the range where 16-bit sums of two products saturate; elsewhere NNCF would halve the first layer's too.
    halved = profile.weight_limit is not None and profile.weight_limit < 127
    overflow = nncf.OverflowFix.ENABLE if halved else nncf.OverflowFix.DISABLE
    try:
        with _quietly():
            quantised: onnx.ModelProto = nncf.quantize(
                loaded,
                nncf.Dataset(_Images(images), lambda image: {name: image}),
                preset=nncf.QuantizationPreset.PERFORMANCE
                if profile.signed.symmetric
                else nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=count,
                fast_bias_correction=True,
                model_type=nncf.ModelType.TRANSFORMER if _has_attention(loaded) else None,
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
            )
    except (nncf.InternalError, nncf.UnsupportedModelError, nncf.ValidationError) as error:
        raise UserError(f"NNCF {nncf.__version__} cannot quantise the network: {str(error)[:400]}") from error
    _take_ends_away(quantised, ends)
    result = adapted(quantised, profile)
    if not any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        raise UserError("NNCF quantises nothing in this network: it has no layer with constant weights")
    # NNCF's half range ends at 64, where two products still fit: 2 x 255 x 64 < 2^15.
    _require_sound(result, lint_rules(replace(profile, weight_limit=64) if halved else profile))
    return result


class _Images:
    """Images to iterate over as often as NNCF likes."""

    def __init__(self, images: Callable[[], Iterable[Array]]) -> None:
        self._images = images

    def __iter__(self) -> Iterator[Array]:
        return iter(self._images())


def _nncf() -> ModuleType:
    before = logging.getLoggerClass()
    try:
        with _quietly():
            nncf = without_telemetry("nncf")
    except ImportError as error:
        raise MissingExtra("nncf", extra="nncf", needed_for="--quantiser nncf") from error
    finally:
        logging.setLoggerClass(before)
    # Not by its own function, which sets the level of every handler too, whoever added it.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep NNCF's progress bars and warnings from the terminal, and torch's of a compiler that nothing here needs."""
    logger = logging.getLogger(_TORCH_COMPILER_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _has_attention(model: onnx.ModelProto) -> bool:
    """Whether the network has a softmax inside, as attention has: NNCF places quantisers otherwise then."""
    results = {output.name for output in model.graph.output}
    return any(node.op_type == "Softmax" and not results & set(node.output) for node in model.graph.node)


def _add_ends(model: onnx.ModelProto, profile: Profile) -> list[NodeProto]:
    """Put a reader behind each convolution that makes a result, where its integer kernel needs a rounded one.

    NNCF rounds what a kernel reads, and can round no result of a network that nothing reads. A pooling of single
    values changes nothing and is a kernel to it; `_take_ends_away` removes what is returned here.
    """
    if profile.rules["conv"].output != "quantised":
        return []
    results, ends = {output.name for output in model.graph.output}, []
    for node in list(model.graph.node):
        if node.op_type == "Conv" and node.output[0] in results:
            result, node.output[0] = node.output[0], f"{node.output[0]}_before_end"
            kernel = attributes(node)["kernel_shape"]
            end = helper.make_node(
                "AveragePool", [node.output[0]], [result], name=f"{result}_end", kernel_shape=[1] * len(kernel)
            )
            model.graph.node.append(end)
            ends.append(end)
    return ends


def _take_ends_away(model: onnx.ModelProto, ends: Iterable[NodeProto]) -> None:
    for end in ends:
        added = next(node for node in model.graph.node if node.name == end.name)
        writer = OnnxView(model).producer(added.input[0])
        assert writer is not None
        writer.output[0] = added.output[0]
        model.graph.node.remove(added)


def _require_sound(model: onnx.ModelProto, rules: LintRules) -> None:
    # A breach that means a float kernel shows in the census of the run.
    unsound = {rule.number for rule in RULES if rule.breach.get(rules.target) in {"wrong", "refused"}}
    broken = next((violation for violation in lint(model, rules) if violation.rule in unsound), None)
    if broken is not None:
        raise UserError(
            f"{broken.node}: NNCF's file breaks rule {broken.rule} of {rules.target}: {broken.problem}; its outputs"
            " would be wrong there; use --quantiser faqd"
        )
