"""What is written of an ONNX file so far, and what the translations of operators read, add and store in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch.fx import GraphModule, Node

from backends.facts.file_form import FileForm
from backends.onnx_file.carried import carries_factor, carries_integers, normalised
from backends.onnx_file.group_merging import groups_in_one, merged_weight
from backends.onnx_file.int4 import INT4_BITS, int4_tensor
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.graph.operators import MOVEMENT, argument, attribute, kind, pair, static_shape
from calibration.graph.origin import module_path
from calibration.rewrites.own_borders import one_sided_border
from calibration.simulation.freeze import FrozenConstant, FrozenNetwork


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A tensor of integers in the file: its name and those of the scale and zero point that give it meaning."""

    name: str
    scale: str
    zero_point: str


def _equal(stored: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> bool:
    return stored.dtype == values.dtype and np.array_equal(stored, values, equal_nan=stored.dtype.kind == "f")


def _joins_positions(node: Node) -> bool:
    """Whether it is a concatenation along another axis than that of channels, the first behind the batch."""
    return kind(node) == "concat" and int(argument(node, 1, "dim", 0)) % len(static_shape(node)) != 1


def _spreads_parts(node: Node) -> bool:
    """Whether it moves channels to positions that were joined before, with only movement in between.

    As reals of integers with zero points OpenVINO loads no such file (DepthToSpaceTransformation, 2026.4.1).
    """
    if kind(node) != "depth_to_space":
        return False
    while kind(node) in MOVEMENT - {"concat"}:
        node = node.all_input_nodes[0]
    return kind(node) == "concat"


def _is_part_of_a_join(node: Node) -> bool:
    """Whether it takes or reverses places of what was joined, moved or not."""
    if kind(node) != "slice":
        return False
    while kind(node) in MOVEMENT - {"concat"}:
        node = node.all_input_nodes[0]
    return kind(node) == "concat"


def _is_dilated(node: Node) -> bool:
    """Whether it is the largest value of windows with gaps."""
    return kind(node) == "max_pool" and any(gap > 1 for gap in pair(argument(node, 4, "dilation", 1)))


def _around_borders(frozen: FrozenNetwork) -> frozenset[str]:
    """What has to be written on integers in every file, and what moves the same integers before and behind.

    Whose zero point is not 0: paddings, concatenations along other axes than that of channels, channels of several
    parts that become positions, and parts of what was joined. Whatever it is: dilated maxima.
    """
    movement, nodes = frozen.plan.passthrough, list(frozen.graph_module.graph.nodes)
    shifted = {name for name, tensor in movement.items() if frozen.activations[tensor].zero_point}
    asked = (_joins_positions, _spreads_parts, _is_part_of_a_join)
    borders = [node for node in nodes if kind(node) == "pad" or any(ask(node) for ask in asked)]
    return frozenset(_moved_with(borders, shifted) | _moved_with(list(filter(_is_dilated, nodes)), movement.keys()))


def _moved_with(nodes: list[Node], moved: Collection[str]) -> set[str]:
    """Those of some nodes that only move values, and what hands the same values to them or takes them."""
    together, stack = set[str](), [node for node in nodes if one_sided_border(node) is None]
    while stack:
        node = stack.pop()
        if node.name in moved and node.name not in together and one_sided_border(node) is None:
            together.add(node.name)
            # Behind integers that were transposed OpenVINO has a convolution in float (measured on 2026.4.1).
            stack.extend([*node.all_input_nodes, *(user for user in node.users if kind(user) != "transpose")])
    return together


def _flat(node: Node) -> str:
    return str(node.target).replace(".", "_")


class Writer:
    """The file being written: its nodes and initialisers so far, and where every graph node's value is found."""

    def __init__(
        self,
        network: FrozenNetwork | GraphModule,
        *,
        opset: int,
        form: FileForm,
        batch: int | None,
    ) -> None:
        self.frozen = network if isinstance(network, FrozenNetwork) else None
        self.module = network.graph_module if isinstance(network, FrozenNetwork) else network
        self.opset, self.form, self.batch = opset, form, batch
        plan = self.frozen.plan if self.frozen else None
        self.passthrough = dict(plan.passthrough) if plan else {}
        #: Movement around borders on asymmetric grids. Runtimes find integers again behind moved reals, but not behind
        #: such a border of zeros, not always on the long ways of shifted windows, which have one, and not behind a
        #: concatenation of positions (rule 39).
        self.bordered = _around_borders(self.frozen) if self.frozen else frozenset()
        self.placements = {placement.tensor: placement for placement in plan.activations} if plan else {}
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: dict[str, TensorProto] = {}
        self.floats: dict[Node, str] = {}
        self.integers: dict[Node, Integers] = {}
        self.lists: dict[Node, list[str]] = {}
        self.dequantised: dict[Integers, str] = {}
        #: Weights and biases behind their DequantizeLinear, by name.
        self.constants_read: dict[str, str] = {}
        self.current: Node | None = None
        inputs = {node.name for node in self.module.graph.nodes if node.op == "placeholder"}
        interface = interface_of(self.module)
        self.free = interface.free_size
        #: Names that a result has in public; one that is also an input's name is told apart.
        self.public = [f"{name}_out" if name in inputs else name for name in interface.outputs]
        written = {node.name for node in self.module.graph.nodes if node.op not in ("get_attr", "output")}
        self.taken = written | set(self.public)

    def fresh(self, name: str) -> str:
        """A name that no other tensor of the file has: this one, or this one and underscores."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def add(
        self, operator: str, inputs: Sequence[str], *, outputs: int = 1, suffix: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node named after the graph node being translated; its output names.

        What multiplies by constants of which some are negative, a normalisation of layers too, has a Max of the lowest
        number behind it, and what normalises a product with a constant or clips integers one before it, where the form
        asks for that.
        """
        if self._is_kept_apart(operator, inputs):
            inputs = [*self._append("Max", [inputs[0], self.lowest], suffix=f"{suffix}_apart"), *inputs[1:]]
        if self.form.negative_factors_apart and self._multiplies_by_negatives(operator, inputs):
            product = self._append(operator, inputs, suffix=f"{suffix}_product", **attributes)
            return self._append("Max", [*product, self.lowest], suffix=suffix)
        return self._append(operator, inputs, outputs=outputs, suffix=suffix, **attributes)

    def _multiplies_by_negatives(self, operator: str, inputs: Sequence[str]) -> bool:
        places = {"Mul": inputs, "Div": inputs[1:], "LayerNormalization": inputs[1:2]}
        factors = places.get(operator, ())
        stored = [numpy_helper.to_array(self.initialisers[name]) for name in factors if name in self.initialisers]
        return any(values.size > 1 and bool((values < 0).any()) for values in stored)

    def _is_kept_apart(self, operator: str, inputs: Sequence[str]) -> bool:
        clips = self.form.clips_apart and operator == "Clip"
        if not clips and not self.form.normalised_apart:
            return False
        writers = {name: node for node in self.nodes for name in node.output}
        if clips:
            return carries_integers(inputs[0], writers.get, self._stored)
        return normalised(operator, inputs, writers.get) and carries_factor(inputs[0], writers.get, self._stored)

    def _stored(self, name: str) -> np.ndarray[Any, Any] | None:
        return numpy_helper.to_array(self.initialisers[name]) if name in self.initialisers else None

    def _append(
        self, operator: str, inputs: Sequence[str], *, outputs: int = 1, suffix: str = "", **attributes: Any
    ) -> list[str]:
        assert self.current is not None
        base = self.current.name + suffix
        plain = [base] if outputs == 1 else [f"{base}_{index}" for index in range(outputs)]
        own = {self.current.name} - set(self.public)  # the tensor is called like its node, unless a result is
        names = [name if name in own else self.fresh(name) for name in plain]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=base, **attributes))
        return names

    def constant(self, values: np.ndarray[Any, Any], name: str) -> str:
        """An initialiser's name: this one, or this one and underscores where it holds something else already."""
        while name in self.taken:
            stored = self.initialisers.get(name)
            if stored is not None and _equal(numpy_helper.to_array(stored), values):
                return name
            name += "_"
        self.taken.add(name)
        self.initialisers[name] = numpy_helper.from_array(np.array(values, order="C"), name)
        return name

    def int64s(self, values: Sequence[int]) -> str:
        """An int64 vector as an initialiser, shared by all who need these numbers."""
        return self.constant(np.array(values, np.int64), "i64_" + "_".join(map(str, values)).replace("-", "m"))

    def scalar(self, value: float) -> str:
        """A float32 number as a rank-0 initialiser."""
        return self.constant(np.array(value, np.float32), f"f32_{np.float32(value)!s}")

    @property
    def lowest(self) -> str:
        """The lowest float32: a Max of it changes nothing, and keeps what is before and behind out of one kernel."""
        return self.scalar(float(np.finfo(np.float32).min))

    def read(self, node: Node) -> str:
        """Name of a node's value for the node being translated: integers for one that only moves them, else float."""
        assert self.current is not None
        if self.moves_integers(self.current):
            return self.integers[node].name
        return self.read_float(node)

    def read_float(self, node: Node) -> str:
        """Name of a node's float value as the node being translated sees it: dequantised where its plan says so."""
        assert self.current is not None
        placement = self.placements.get(node.name)
        rounded = node in self.integers and (placement is None or self.current.name in placement.readers)
        if rounded:
            return self._dequantise(self.integers[node])
        if node in self.floats:
            return self.floats[node]
        if node.op == "get_attr":
            values = attribute(self.module, str(node.target))
            self.floats[node] = self.constant(values.detach().cpu().float().numpy(), _flat(node))
            return self.floats[node]
        raise self.unsupported(f"its input {node.name} has no value in the file")

    def moves_integers(self, node: Node) -> bool:
        """Whether a node is written on integers: what only moves them, or of that only what has a border."""
        if node.name not in self.passthrough:
            return False
        borders = kind(node) == "pad" and node.all_input_nodes[0] in self.integers
        return self.form.movement == "integers" or borders or node.name in self.bordered

    def _dequantise(self, source: Integers) -> str:
        """One DequantizeLinear per tensor of integers and scale, written when first read (rule 21)."""
        if source not in self.dequantised:
            output = self.fresh(f"{source.name}_dq")
            inputs = [source.name, source.scale, source.zero_point]
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [output], name=output))
            self.dequantised[source] = output
        return self.dequantised[source]

    @property
    def first_input(self) -> str:
        """Name of the network's first input."""
        return str(next(node.name for node in self.module.graph.nodes if node.op == "placeholder"))

    @property
    def input_rank(self) -> int:
        """Number of axes of the network's first input, the batch among them."""
        return len(static_shape(next(node for node in self.module.graph.nodes if node.op == "placeholder")))

    def runs_on_integers(self, node: Node) -> bool:
        """Whether the plan has an integer kernel compute this node."""
        plan = self.frozen.plan if self.frozen else None
        return plan is not None and node.name in plan.kinds.keys() - plan.float_nodes.keys()

    def read_divided(self, node: Node, divisor: int) -> str:
        """Name of a rounded node's value divided by a number: a division that is free, as it is done on the scale."""
        scale = self._scale(node) / np.float32(divisor)
        return self._dequantise(self._with_scale(node, scale, f"by_{divisor}"))

    def _scale(self, node: Node) -> np.ndarray[Any, Any]:
        return numpy_helper.to_array(self.initialisers[self.integers[node].scale])

    def _with_scale(self, node: Node, scale: np.ndarray[Any, Any], word: str) -> Integers:
        """A rounded node's integers with another meaning."""
        integers = self.integers[node]
        return replace(integers, scale=self.constant(scale, f"{integers.scale}_{word}"))

    def integer_constant(self, integer: int, scale: float, *, rank: int) -> str:
        """A number as an integer, stored like activations, behind a DequantizeLinear.

        `rank`: of the tensor that it is added to. To a single number without axes QLinearAdd adds in another order
        where the other's last axis has one position (see `_larger_first`).
        """
        name = self.constant(np.full((1,) * rank, integer, np.uint8), f"uint8_{integer}_rank_{rank}")
        zero = self.constant(np.array(0, np.uint8), "uint8_0")
        return self._dequantise(Integers(name=name, scale=self.scalar(scale), zero_point=zero))

    def border(self, node: Node) -> str:
        """What stands for the real number zero around the node's input: the zero point, or 0.0."""
        assert self.current is not None
        return self.integers[node].zero_point if self.moves_integers(self.current) else self.scalar(0.0)

    def weight(self, node: Node) -> str:
        """Name of the current layer's weight, dequantised where it is quantised."""
        assert self.current is not None
        stored = self.frozen.weights.get(self.current.name) if self.frozen else None
        own = stored is not None and not self.form.shared_constants
        base = f"{self.current.name}_weight" if own else _flat(node)
        if stored is not None:
            groups = int(argument(self.current, 6, "groups", 1)) if kind(self.current) == "conv" else 1
            written = self.groups_written(node) if groups > 1 else 1
            if written < groups:
                merged = merged_weight(stored.integers, groups, groups // written)
                stored, base = replace(stored, integers=merged), f"{base}_in_{written}_groups"
            return self.constant_integers(stored, base)
        return self.constant(attribute(self.module, str(node.target)).detach().cpu().float().numpy(), base)

    def groups_written(self, weight: Node) -> int:
        """How many groups the current convolution has in the file: fewer where its integers are merged."""
        assert self.current is not None
        groups = int(argument(self.current, 6, "groups", 1))
        if self.frozen is None or self.current.name not in self.frozen.weights:
            return groups
        outputs, inputs = static_shape(weight)[:2]
        return groups // groups_in_one(groups, inputs, outputs // groups, self.form.merged_channels)

    def bias(self, node: Node) -> str:
        """Name of the current layer's bias: int32 behind a DequantizeLinear, or float."""
        assert self.current is not None
        stored = self.frozen.biases.get(self.current.name) if self.frozen else None
        # Layers that share a bias may have inputs of different scale: its integers belong to the layer.
        return self.read_float(node) if stored is None else self.constant_integers(stored, f"{self.current.name}_b")

    def unsupported(self, why: str, *, remedy: str | None = None) -> UserError:
        """The error for a node that cannot be written; `remedy` ends the line where it is another than to rewrite."""
        assert self.current is not None
        place = module_path(self.current) or "the top module"
        if remedy is None:
            remedy = "; rewrite that part in a builder given as --teacher python:package.module:function"
        return UserError(f"{self.current.name} ({self.current.target}, in {place}): {why}{remedy}")

    def constant_integers(self, stored: FrozenConstant, base: str) -> str:
        """A constant as integers behind a DequantizeLinear with an explicit zero point."""
        if base in self.constants_read:
            return self.constants_read[base]
        output = self.fresh(f"{base}_dq")
        attributes: dict[str, Any] = {} if stored.axis is None else {"axis": stored.axis}
        if stored.block is not None:
            # Read as they are: a Cast would make the runtime expand them first.
            attributes = {"axis": 1, "block_size": stored.block}
            read, zeros = self._int4(stored.integers, base), np.zeros(stored.scale.shape, np.int8)
            zero = self._int4(zeros, f"{base}_zero")
        else:
            read = self._store(stored.integers, base, packed=self.form.packs_int4 and stored.bits <= INT4_BITS)
            count = None if stored.scale.ndim == 0 else len(stored.scale)
            zero = self._zeros(stored.integers.dtype.type, count, base)
        inputs = [read, self.constant(stored.scale, f"{base}_scale"), zero]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [output], name=output, **attributes))
        self.constants_read[base] = output
        return output

    def _store(self, integers: np.ndarray[Any, Any], name: str, *, packed: bool) -> str:
        if not packed:
            return self.constant(integers, name)
        name = self._int4(integers, name)
        output = self.fresh(f"{name}_i8")
        self.nodes.append(helper.make_node("Cast", [name], [output], name=output, to=TensorProto.INT8))
        return output

    def _int4(self, integers: np.ndarray[Any, Any], name: str) -> str:
        name = self.fresh(name)
        self.initialisers[name] = int4_tensor(integers, name)
        return name

    def _zeros(self, kind: type[np.generic], count: int | None, base: str) -> str:
        """An explicit zero point: one per channel, or rank 0; where constants are shared, one for all of its size."""
        shared = f"{np.dtype(kind)}_0" if count is None else f"{np.dtype(kind)}_0x{count}"
        name = shared if self.form.shared_constants else f"{base}_zero"
        return self.constant(np.zeros(() if count is None else count, kind), name)
