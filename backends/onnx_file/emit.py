"""Explicit Q/DQ ONNX written from a frozen network: our own emission, one node of the graph after the other."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor
from torch.fx import GraphModule, Node

from backends.onnx_file.serialised import check_model
from backends.onnx_file.shapes import declared_shape
from backends.onnx_file.translations import TRANSLATORS
from backends.onnx_file.translations.refused import most_telling, refusal_of
from backends.onnx_file.view import INT4_OPSET, OPSETS
from backends.onnx_file.writer import Integers, Writer
from calibration.errors import UserError
from calibration.graph.arguments import READS, unread
from calibration.graph.operators import multiplier
from calibration.rewrites.own_borders import one_sided_border
from calibration.simulation.freeze import FrozenNetwork

_BYTE = 8  # bits of the integers that activations are stored in


def emit(
    network: FrozenNetwork | GraphModule,
    *,
    opset: int,
    pack_int4: bool = False,
    batch: int | None = None,
    move_reals: bool = False,
    share_constants: bool = True,
    merged_channels: int = 0,
    maximum_for_prelu: bool = False,
    name: str = "faqd",
) -> onnx.ModelProto:
    """The ONNX model of a network: explicit Q/DQ for a frozen one, plain float for a folded graph.

    `opset` 17 to 23; `pack_int4` stores weights of 4 bits or fewer as int4 and casts them to int8 before the
    DequantizeLinear (needs opset 21, as weights in blocks do, which are int4 always); `batch` fixes the batch size,
    None leaves it free; `move_reals`: what only moves integers is written on the reals read from them;
    `share_constants`: layers read one copy of equal weights and zero points, else each layer has its own;
    `merged_channels`: groups of integer convolutions are merged up to so many channels; `maximum_for_prelu`: a PReLU is
    the larger of x and slope times x. Deterministic: equal networks give equal bytes. Raises UserError for an operator
    that has no translation, naming node and module.
    """
    if opset not in OPSETS:
        raise UserError(f"--opset {opset}: {OPSETS.start} to {OPSETS.stop - 1} are possible")
    in_blocks = isinstance(network, FrozenNetwork) and any(weight.block for weight in network.weights.values())
    if (pack_int4 or in_blocks) and opset < INT4_OPSET:
        raise UserError(f"--opset {opset}: int4 weights exist from opset {INT4_OPSET} on")
    settings = opset, pack_int4, batch, move_reals, share_constants, merged_channels, maximum_for_prelu
    return Emitter(network, *settings).model(name)


class Emitter(Writer):
    """The walk over a graph: every node translated, and the model closed."""

    def model(self, name: str) -> onnx.ModelProto:
        """Translate every node and close the model."""
        inputs, results = [], []
        self._refuse_untranslated()
        for node in self.module.graph.nodes:
            self.current = node
            if node.op == "placeholder":
                self.floats[node] = node.name
                inputs.append(helper.make_tensor_value_info(node.name, TensorProto.FLOAT, declared_shape(self, node)))
            elif node.op == "call_function" and isinstance(node.meta.get("val"), (Tensor, list, tuple)):
                self._operator(node)
            elif node.op == "output":
                results = self._outputs(node)
            if node.name in self.placements:
                self._quantise(node)
        opset = helper.make_opsetid("", self.opset)
        # The format that came with the opset (int4 came with 21): a newer one locks out runtimes that read all else.
        ir_version = helper.find_min_ir_version_for([opset])
        model = onnx.ModelProto(ir_version=ir_version, producer_name="faqd", opset_import=[opset])
        # Filled in place: a graph of its own would be copied, which protobuf refuses beyond 2 GB.
        model.graph.name = name
        model.graph.node.extend(self.nodes)
        model.graph.input.extend(inputs)
        model.graph.output.extend(results)
        for constant in list(self.initialisers):
            # One by one: the copy that the model takes of each is the only one then.
            model.graph.initializer.append(self.initialisers.pop(constant))
        check_model(model)
        return model

    def _refuse_untranslated(self) -> None:
        """Raise UserError naming the operator of all without a translation that says most."""
        nodes = [
            node
            for node in self.module.graph.nodes
            if node.op == "call_function"
            and isinstance(node.meta.get("val"), (Tensor, list, tuple))
            and node.target not in TRANSLATORS
        ]
        if nodes:
            self.current = most_telling(nodes)
            why, said = refusal_of(self.current), "this operator has no translation to ONNX"
            raise self.unsupported(said) if why is None else self.unsupported(said, remedy=f": {why}")

    def _operator(self, node: Node) -> None:
        factor = multiplier(node)
        if factor is not None and self.moves_integers(node):
            (source,) = node.all_input_nodes
            scale = self._scale(source) * np.float32(factor)
            self.integers[node] = self._with_scale(source, scale, f"times_{np.float32(factor)!s}")
            return
        if one_sided_border(node) is not None:  # the convolutions that read it have it as their own padding
            (source,) = node.all_input_nodes
            if self.moves_integers(node):
                self.integers[node] = self.integers[source]
            else:
                self.floats[node] = self.read_float(source)
            return
        row = READS.get(node.target)
        if said := unread(node, None if row is None else row.kept):
            raise self.unsupported(said)
        produced = TRANSLATORS[node.target](self, node)
        if len(produced) > 1 or isinstance(node.meta["val"], (list, tuple)):
            self.lists[node] = produced
            if self.moves_integers(node):
                self.integers[node] = self._like_source(node, produced[0])
        elif self.moves_integers(node):
            self.integers[node] = self._like_source(node, produced[0])
        else:
            self.floats[node] = produced[0]

    def _like_source(self, node: Node, name: str) -> Integers:
        source = self.integers[next(source for source in node.all_input_nodes if source in self.integers)]
        return Integers(name=name, scale=source.scale, zero_point=source.zero_point)

    def _quantise(self, node: Node) -> None:
        assert self.frozen is not None
        frozen, group = self.frozen.activations[node.name], self.placements[node.name].group
        integer = np.int8 if frozen.signed else np.uint8
        scale = self.constant(frozen.scale, f"{group}_scale")
        zero = self.constant(np.array(frozen.zero_point, integer), f"{np.dtype(integer)}_{frozen.zero_point}")
        name = self.fresh(f"{node.name}_q")
        self.nodes.append(helper.make_node("QuantizeLinear", [self.floats[node], scale, zero], [name], name=name))
        grid = self.placements[node.name].grid
        if grid.bits < _BYTE:
            # No integer type of so few bits is computed with: the integers of a byte are held in the grid's range.
            ends = [
                self.constant(np.array(end, integer), f"{np.dtype(integer)}_{end}") for end in (0, 2**grid.bits - 1)
            ]
            clipped = self.fresh(f"{node.name}_clipped")
            self.nodes.append(helper.make_node("Clip", [name, *ends], [clipped], name=clipped))
            name = clipped
        self.integers[node] = Integers(name=name, scale=scale, zero_point=zero)

    def _outputs(self, node: Node) -> list[onnx.ValueInfoProto]:
        """Give the results their public names; a result that is also read inside, or an input, is copied."""
        (values,), results = node.args, []
        assert isinstance(values, (list, tuple))
        for value, public in zip(values, self.public, strict=True):
            assert isinstance(value, Node)
            self.nodes.append(helper.make_node("Identity", [self.read_float(value)], [public], name=f"{public}_result"))
            results.append(helper.make_tensor_value_info(public, TensorProto.FLOAT, declared_shape(self, value)))
        self._drop_identities()
        return results

    def _drop_identities(self) -> None:
        """Let the node that computes a result write it under its public name where nobody else reads it."""
        for identity in [node for node in self.nodes if node.op_type == "Identity" and node.name.endswith("_result")]:
            source, public = identity.input[0], identity.output[0]
            readers = [node for node in self.nodes if source in node.input]
            writer = next((node for node in self.nodes if source in node.output), None)
            if len(readers) == 1 and writer is not None and source != public:
                writer.output[list(writer.output).index(source)] = public
                self.nodes.remove(identity)
            elif source == public:
                self.nodes.remove(identity)
