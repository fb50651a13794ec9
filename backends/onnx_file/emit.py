"""Explicit Q/DQ ONNX written from a frozen network: our own emission, one node of the graph after the other."""

from __future__ import annotations

from typing import overload

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import Tensor
from torch.fx import GraphModule, Node

from backends.facts.file_form import PLAIN, FileForm
from backends.onnx_file.int4 import INT4_BITS
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


@overload
def emit(
    network: FrozenNetwork, *, opset: int, form: FileForm, batch: int | None = None, name: str = "faqd"
) -> onnx.ModelProto: ...


@overload
def emit(network: GraphModule, *, opset: int, batch: int | None = None, name: str = "faqd") -> onnx.ModelProto: ...


def emit(
    network: FrozenNetwork | GraphModule,
    *,
    opset: int,
    form: FileForm | None = None,
    batch: int | None = None,
    name: str = "faqd",
) -> onnx.ModelProto:
    """The ONNX model of a network: explicit Q/DQ for a frozen one, plain float for a folded graph.

    `opset` 17 to 23, from 21 on where int4 is stored (`holds_int4`); `form`: which of several equal forms a runtime
    asks for, always told for a frozen network; a float file has one form for all runtimes. `batch` fixes the batch
    size, None leaves it free. Deterministic: equal networks give equal bytes. Raises UserError for an operator that has
    no translation, naming node and module.
    """
    if (form is not None) != isinstance(network, FrozenNetwork):
        raise ValueError("a frozen network is written in a runtime's form, a float graph in the one that all read")
    if opset not in OPSETS:
        raise UserError(f"--opset {opset}: {OPSETS.start} to {OPSETS.stop - 1} are possible")
    if form is not None and isinstance(network, FrozenNetwork) and holds_int4(network, form) and opset < INT4_OPSET:
        raise UserError(f"--opset {opset}: int4 weights exist from opset {INT4_OPSET} on")
    return Emitter(network, opset=opset, form=form or PLAIN, batch=batch).model(name)


def holds_int4(network: FrozenNetwork, form: FileForm) -> bool:
    """Whether the file of a frozen network stores int4: narrow weights where the form packs them, blocks always."""
    return any(weight.block or (form.packs_int4 and weight.bits <= INT4_BITS) for weight in network.weights.values())


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
