"""A graph that was captured for one image, rewritten for any number of them: each gets the answer that it gets alone.

Networks with a batch of one in their code (`x.view(1, -1)`, tokens of `torch.zeros(1, 1, width)`) are trained so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from calibration.capture.batched_forms import Forms
from calibration.capture.batched_layout import Layout, Layouts
from calibration.capture.batched_trial import SameForAll, Trial, called, exact_values
from calibration.errors import UserError, raise_lack_of_memory
from calibration.graph.operators import attribute
from calibration.graph.origin import module_path
from calibration.normal_form.mutation import is_in_place
from calibration.normal_form.no_effect import CHECKS, NO_OPERATION

aten = torch.ops.aten

# For how many images tensors without values stand: another number than that of a trial, so that neither can become a
# part of the graph.
_OTHER_COUNT = 7

# Torch does not check what these are given, and ends in memory that is not theirs where a state is of another batch.
_RECURRENT = ("lstm", "gru", "rnn_")

_ADVICE = (
    "keep the first axis for the image, as x[:1] does and x[0] and squeeze(0) do not, or write that part otherwise, in"
    " a builder given as --teacher python:package.module:function (docs/networks.md)"
)


def changes_constants(graph: Graph) -> bool:
    """Whether an operator in place writes what is an image's into a tensor that is the same for all images.

    That tensor would have to be another for every image: such a graph is to be made functional first.
    """
    images = set[Node]()
    for node in graph.nodes:
        if node.op == "placeholder" or images.intersection(node.all_input_nodes):
            if is_in_place(node) and node.args[0] not in images:
                return True
            images.add(node)
    return False


def of_any_batch(captured: GraphModule, *, names: Sequence[str], source: str) -> GraphModule:
    """Rewrite a graph of ATen operators for one image [1, C, H, W] to one for a free number of images.

    Every operator is written anew and held against itself: random tensors of several images at once give what those of
    each image give alone. `names` are of the outputs, `source` of the network in errors. Parameters stay those of
    `captured`.

    Raises:
        UserError: naming the first operator for which no form does so, or an output without an axis for the images.
    """
    return _Rewriting(captured, source).done(names)


class _Rewriting:
    """The graph as it grows; what is known of its nodes, by the node of the graph for one image."""

    def __init__(self, captured: GraphModule, source: str) -> None:
        self._captured, self._source = captured, source
        self._graph = Graph()
        self._image = next(node for node in captured.graph.nodes if node.op == "placeholder")
        self._copies: dict[Node, Node] = {self._image: self._graph.node_copy(self._image)}
        self._layouts: Layouts = {self._image: Layout(sizes=tuple(self._image.meta["val"].shape), axis=0)}
        self._count = self._graph.create_node("call_function", aten.sym_size.int, (self._copies[self._image], 0))
        self._constants: dict[Node, Any] = {}
        """The values of what is the same for all images."""
        self._merged: dict[Node, Node] = {}
        """Node -> the first node before it that put the images and something else on one axis."""

    def done(self, names: Sequence[str]) -> GraphModule:
        generator = torch.Generator().manual_seed(0)
        try:
            exact = exact_values(self._captured, self._image, generator)
        except Exception as error:  # the network's own conditions, which random images may break
            raise_lack_of_memory(error)
            raise self._refusal(self._image, f"for a random image its graph ends in {type(error).__name__}") from error
        forms = Forms(self._graph, self._copies, self._layouts, self._count)
        for node in self._captured.graph.nodes:
            if node is self._image or node.op == "call_module" or node.target in CHECKS:
                continue  # the guards of export hold for one image
            if node.op == "output":
                self._finish(node, names, forms)
                self._graph.node_copy(node, self._copies.__getitem__)
            elif not any(source in self._layouts for source in node.all_input_nodes):
                self._copies[node] = self._graph.node_copy(node, self._copies.__getitem__)
                self._constants[node] = self._value(node)
            elif node.target in NO_OPERATION:
                self._copies[node] = self._graph.node_copy(node, self._copies.__getitem__)
                self._layouts[node] = self._layouts[node.all_input_nodes[0]]
            elif not all(isinstance(size, int) for size in _sizes(node)):
                raise self._refusal(node, "how much it gives depends on the values of a tensor")
            elif any(word in str(node.target) for word in _RECURRENT):
                raise self._refusal(node, "it runs step by step, with no integer kernel in any runtime")
            else:
                try:
                    trial = Trial(node, self._layouts, self._constants, exact, generator)
                except Exception as error:  # an operator on random numbers
                    raise_lack_of_memory(error)
                    raise self._refusal(node, f"on random numbers it ends in {type(error).__name__}") from error
                self._write(node, forms, trial)
        batched = GraphModule(self._captured, self._graph)
        self._graph.lint()
        self._describe(batched)
        return batched

    def _value(self, node: Node) -> Any:
        if node.op == "get_attr":
            return attribute(self._captured, str(node.target))
        with torch.no_grad():
            return called(node, self._constants)

    def _write(self, node: Node, forms: Forms, trial: Trial) -> None:
        """Write the first form of a node that gives every image what the node gives it alone."""
        for build in forms.of(node):
            mark = next(iter(reversed(self._graph.nodes)))
            try:
                result = build()
                layout = trial.layout(trial.result(mark.next, self._copies, self._count))
            except Exception as error:  # torch's own refusal of a form that does not fit
                raise_lack_of_memory(error)
                layout = None
            if layout is not None:
                self._copies[node] = result
                result.meta = dict(node.meta)
                if isinstance(layout, (Layout, tuple)):
                    self._layouts[node] = layout
                    self._keep_merged(node, layout)
                else:
                    assert layout is SameForAll
                    self._constants[node] = trial.alone[0]
                return
            while (written := next(iter(reversed(self._graph.nodes)))) is not mark:
                self._graph.erase_node(written)
        if isinstance(trial.alone[0], Tensor) and not trial.alone[0].dim():
            why = "it makes one number of all axes, which are to be named without the first, as in x.mean((1, 2, 3))"
        else:
            why = "it does not compute image by image, as an operator along the images' axis does"
        raise self._refusal(node, why)

    def _keep_merged(self, node: Node, layout: Layout | tuple[Layout, ...]) -> None:
        first = layout[0] if isinstance(layout, tuple) else layout
        if first.sizes[first.axis] != 1:
            before = (self._merged[source] for source in node.all_input_nodes if source in self._merged)
            self._merged[node] = next(before, node)

    def _finish(self, node: Node, names: Sequence[str], forms: Forms) -> None:
        """Let every output begin with the images' axis."""
        (results,) = node.args
        assert isinstance(results, (list, tuple))
        for result, name in zip((each for each in results if isinstance(each, Node)), names, strict=True):
            layout = self._layouts.get(result)
            if isinstance(layout, Layout) and not result.meta["val"].dim():
                raise UserError(
                    f"{self._source}: the network's output {name} is one number without an axis for the image:"
                    f" {_ADVICE}"
                )
            if isinstance(layout, Layout) and not layout.is_first:
                if layout.sizes[:1] == (1,):
                    self._copies[result] = forms.in_front(result)
                    self._layouts[result] = Layout(sizes=layout.sizes, axis=0)
                    continue
                raise UserError(
                    f"{self._source}: the network's output {name} has the shape {list(layout.sizes)} for one image,"
                    f" without an axis of its own for the image{self._since(result)}: {_ADVICE}"
                )

    def _describe(self, batched: GraphModule) -> None:
        """Give every node the shape of its tensor over a free number of images."""
        sizes = [_OTHER_COUNT, *self._image.meta["val"].shape[1:]]
        free = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (len(sizes) - 1)]
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        context: Any = StatelessSymbolicContext(dynamic_sizes=free)
        example = mode.from_tensor(torch.empty(sizes), symbolic_context=context)
        for node in batched.graph.nodes:
            node.meta.pop("val", None)
        try:
            with enable_python_dispatcher(), torch.no_grad():
                FakeTensorProp(batched, mode).propagate_dont_convert_inputs(example)
        except Exception as error:  # torch's own refusal of a free size
            raise_lack_of_memory(error)
            unknown = (node for node in self._layouts if "val" not in self._copies[node].meta)
            node = next(unknown, self._image)
            raise self._refusal(node, f"for a free number of images it ends in {type(error).__name__}") from error
        for node in batched.graph.nodes:
            if node.op == "get_attr":
                node.meta["val"] = mode.from_tensor(attribute(batched, str(node.target)), static_shapes=True)
        for node, layout in self._layouts.items():
            value = self._copies[node].meta["val"]
            if isinstance(layout, Layout) and not _is_free(value, layout):
                raise self._refusal(node, f"it has the shape {list(value.shape)} for several images")

    def _refusal(self, node: Node, why: str) -> UserError:
        return UserError(
            f"{self._source}: the network takes one image at a time, and {node.name} ({node.target}, {_place(node)})"
            f" cannot be computed for several in training: {why}{self._since(node)}; {_ADVICE}"
        )

    def _since(self, node: Node) -> str:
        sources = [node, *node.all_input_nodes]
        origin = next((self._merged[source] for source in sources if source in self._merged), None)
        if origin is None:
            return ""
        return f" (it shares one with other values since {origin.name}, {_place(origin)})"


def _is_free(value: Tensor, layout: Layout) -> bool:
    """Whether the images' axis alone is of a free size."""
    return len(layout.sizes) == value.dim() and all(
        not isinstance(size, int) if axis == layout.axis else isinstance(size, int) and size == layout.sizes[axis]
        for axis, size in enumerate(value.shape)
    )


def _sizes(node: Node) -> tuple[Any, ...]:
    """The sizes of all tensors that a node gives; no whole numbers where they follow from a tensor's values."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(size for one in values if isinstance(one, Tensor) for size in one.shape)


def _place(node: Node) -> str:
    """The module that a node comes from, and the innermost line of code that is not torch's."""
    path = module_path(node)
    place = f"in module {path}" if path else "in the top module"
    lines = (line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines())
    files = [line for line in lines if line.startswith('File "')]
    theirs = [line for line in files if str(Path(torch.__file__).parent) not in line]
    if not theirs:
        return place
    file, number, *_ = theirs[-1].split(", ")
    return f"{place}, {file.removeprefix('File ').strip(chr(34))}:{number.removeprefix('line ')}"
