"""Two executions of a model, tensor by tensor: where they differ, where a difference arises, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch
from onnx import NodeProto, numpy_helper
from torch import Tensor

from backends.onnx_file.exposed import rounded_tensors
from backends.onnx_file.view import OnnxView
from backends.oracle.backend import IntegerOracle
from calibration.errors import UserError

# Relative change of a scale under which a value that rounds another way counts as a tie: up to 2**-10 of a step at the
# end of a grid of 256, far above what the order of a float32 sum changes and far below what a wrong constant does.
_NUDGE = 2.0**-18


@dataclass
class TensorDifference:
    """One rounded tensor of two executions: counts over all images so far.

    `differing` and `largest` (in steps of the grid) compare the two executions as they are. `own` and `own_largest`
    compare what the first one's operator makes of the second one's inputs with what the second made of them: only what
    arises in this operator; `ties` of them lie at a rounding tie.
    """

    name: str
    node: str
    operators: tuple[str, ...]
    elements: int = 0
    differing: int = 0
    largest: int = 0
    own: int = 0
    own_largest: int = 0
    ties: int = 0
    saturated: int = 0
    example: str = ""
    constants: tuple[str, ...] = field(default=())

    @property
    def arises(self) -> bool:
        """Whether a difference arises in this operator, and is not only handed on by it."""
        return self.own > 0


class Comparison:
    """Compares the oracle over one model with another execution, of the same model or of another one.

    `arm_arithmetic`: the oracle's additions and multiplications are those of ARM.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        other: onnx.ModelProto | None = None,
        *,
        fused_rounding: bool = True,
        arm_arithmetic: bool = False,
    ) -> None:
        self.oracle = IntegerOracle(model, fused_rounding=fused_rounding, arm_arithmetic=arm_arithmetic)
        self.nudged = [
            IntegerOracle(_with_scales(model, factor), fused_rounding=fused_rounding, arm_arithmetic=arm_arithmetic)
            for factor in (1 - _NUDGE, 1 + _NUDGE)
        ]
        self.names = rounded_tensors(model)
        if other is not None:
            theirs = set(rounded_tensors(other))
            self.names = [name for name in self.names if name in theirs]
        view = self.oracle.view
        self.tensors = {}
        for name in self.names:
            chain = kernel_of(view, name)
            constants = () if other is None else changed_constants(view, OnnxView(other), name)
            self.tensors[name] = TensorDifference(
                name=name,
                node=chain[0].name if chain else name,
                operators=tuple(node.op_type for node in reversed(chain)),
                constants=constants,
            )

    def add(self, images: Tensor, theirs: Mapping[str, Tensor]) -> list[Tensor]:
        """Count one batch: float32 images [B, C, H, W] and the other execution's rounded tensors by name.

        Returns the oracle's outputs. Raises UserError where a tensor has another shape there.
        """
        seen = {name: theirs[name].to(torch.int32) for name in self.names}
        outputs, mine = self.oracle.run(images, trace=True)
        for name in self.names:
            if mine[name].shape != seen[name].shape:
                raise UserError(
                    f"tensor {name} has the shape {list(mine[name].shape)} in the bundle's model and"
                    f" {list(seen[name].shape)} in the other one: compare models of the same network"
                )
        own = mine
        if any(not torch.equal(mine[name], seen[name]) for name in self.names):
            _, own = self.oracle.run(images, trace=True, instead=seen)
        odd = [name for name in self.names if not torch.equal(own[name], seen[name])]
        nudged = [oracle.run(images, trace=True, instead=seen)[1] for oracle in self.nudged] if odd else []
        for name in self.names:
            self._count(self.tensors[name], mine[name], seen[name], own[name], [rounded[name] for rounded in nudged])
        return outputs

    def _count(
        self, entry: TensorDifference, mine: Tensor, theirs: Tensor, own: Tensor, nudged: Sequence[Tensor]
    ) -> None:
        unequal = mine != theirs
        if bool(unequal.any()) and not entry.differing:
            place = unequal.nonzero()[0].tolist()
            entry.example = f"first at {place}: {int(mine[tuple(place)])} here, {int(theirs[tuple(place)])} there"
        entry.elements += mine.numel()
        entry.differing += int(unequal.sum())
        entry.largest = max(entry.largest, int((mine - theirs).abs().max()))
        odd = own != theirs
        if not bool(odd.any()):
            return
        entry.own += int(odd.sum())
        entry.own_largest = max(entry.own_largest, int((own - theirs).abs().max()))
        entry.ties += int((odd & (nudged[0] != nudged[1])).sum())
        low, high = self.oracle.limits(entry.name)
        entry.saturated += int((odd & ((theirs == low) | (theirs == high) | (own == low) | (own == high))).sum())

    def first(self) -> TensorDifference | None:
        """The first tensor in file order that differs."""
        return next((entry for entry in self.tensors.values() if entry.differing), None)


def why(entry: TensorDifference, *, saturating_products: bool) -> str:
    """The reason of a difference in words, as far as it shows.

    `saturating_products`: the runtime's processor adds two products of 8 bits into 16, which may saturate.
    """
    if entry.constants:
        return "the models differ: " + "; ".join(entry.constants)
    if not entry.arises:
        return "handed on from the tensors before it"
    floats = [operator for operator in entry.operators if operator not in _INTEGER_KERNELS]
    place = f"{entry.ties} of {entry.own} values lie at a rounding tie (within 1/1024 of a step)"
    if entry.own_largest == 1 and entry.ties >= 0.9 * entry.own:
        if floats:
            return f"{place}: {', '.join(floats)} run in float, whose last bits differ between libraries"
        if "AveragePool" in entry.operators:
            return f"{place}: AveragePool adds up its window in another order"
        return place
    if floats:
        return f"{', '.join(floats)} run in float and differ by more than rounding: {place}"
    if saturating_products and {"Conv", "Gemm", "MatMul"} & set(entry.operators):
        return (
            "this processor has no VNNI: its 16-bit sums of two 8-bit products saturate for weights beyond 63; place"
            " for it, or run on one that has"
        )
    if entry.saturated == entry.own:
        return "all of them lie at the end of the grid: one side saturates where the other does not"
    return f"unknown, {place}: the runtime's kernel computes something else than the oracle; please report it"


# What runs on integers wherever its inputs are such; all else between two roundings is a float island.
_INTEGER_KERNELS = frozenset(
    {"Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu", "Relu", "Clip"}
    | {"MaxPool", "Concat", "Reshape", "Flatten", "Transpose", "Slice", "Split", "Pad", "Gather", "DepthToSpace"}
)


def kernel_of(view: OnnxView, rounded: str) -> list[NodeProto]:
    """The nodes between a rounded tensor and the roundings before it, nearest first; empty for a rounded input."""
    quantise = view.producer(rounded)
    assert quantise is not None
    chain: list[NodeProto] = []
    waiting = [quantise.input[0]]
    while waiting:
        node = view.producer(waiting.pop(0))
        if node is None or node.op_type in ("DequantizeLinear", "QuantizeLinear") or node in chain:
            continue
        chain.append(node)
        waiting += node.input
    return chain


def changed_constants(view: OnnxView, other: OnnxView, rounded: str) -> tuple[str, ...]:
    """In words, what differs between two models in the constants and operators that make one rounded tensor."""
    said = []
    chains = [kernel_of(one, rounded) for one in (view, other)]
    operators = [[node.op_type for node in reversed(chain)] for chain in chains]
    if operators[0] != operators[1]:
        return (f"it is computed by {', '.join(operators[0])} here and by {', '.join(operators[1])} there",)
    feeding: list[tuple[str, str]] = []
    quantises = [one.producer(rounded) for one in (view, other)]
    for mine, theirs in [(quantises[0], quantises[1]), *zip(*chains, strict=True)]:
        assert mine is not None and theirs is not None
        for first, second in zip(mine.input, theirs.input, strict=False):
            feeding.append((first, second))
            sources = [one.producer(name) for one, name in ((view, first), (other, second))]
            if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                assert sources[0] is not None and sources[1] is not None
                feeding += zip(sources[0].input, sources[1].input, strict=False)
    for first, second in dict.fromkeys(feeding):
        values = [one.value(name) for one, name in ((view, first), (other, second))]
        if values[0] is None or values[1] is None or np.array_equal(values[0], values[1]):
            continue
        said.append(_changed(first, values[0], values[1]))
    return tuple(said)


def _changed(
    name: str,
    mine: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    theirs: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
) -> str:
    if mine.shape != theirs.shape:
        return f"{name} has the shape {list(mine.shape)} here and {list(theirs.shape)} there"
    if mine.size == 1:
        return f"{name} is {mine.item():.6g} here and {theirs.item():.6g} there"
    return f"{name} differs in {int((mine != theirs).sum())} of {mine.size} values"


def _with_scales(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """A copy in which every QuantizeLinear rounds to a grid whose steps are that much larger; nothing else changes."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    scales = {tensor.name: tensor for tensor in changed.graph.initializer}
    taken = {name for node in changed.graph.node for name in (*node.input, *node.output)} | set(scales)
    for node in changed.graph.node:
        if node.op_type == "QuantizeLinear":
            name = f"{node.input[1]}_nudged"
            while name in taken:
                name += "_"
            if name not in scales:
                values = numpy_helper.to_array(scales[node.input[1]])
                nudged = (values.astype(np.float64) * factor).astype(np.float32)
                changed.graph.initializer.append(numpy_helper.from_array(nudged.reshape(values.shape), name))
                scales[name] = changed.graph.initializer[-1]
            node.input[1] = name
    return changed
