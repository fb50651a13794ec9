"""Whether a form of an operator for several images gives each of them what the operator gives it alone: by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from calibration.capture.batched_layout import Layout, Layouts, are_equal, layout_of

aten = torch.ops.aten

#: How many images operators are tried with: no size that code has a reason to write.
COUNT: Final = 3

#: Operators that read of their input its sizes or type alone.
_SIZES_ALONE = frozenset({aten.new_zeros.default, aten.new_ones.default, aten.new_full.default})


class SameForAll:
    """Said of a form whose result depends on no image."""


class Trial:
    """Random values for what one operator reads, and what it gives each of `COUNT` images alone.

    `constants` are the values of nodes that are the same for all images; `exact` those of nodes that hold no numbers of
    floating point, for several images. Every other value is drawn: positive, so that roots and logarithms are numbers,
    and other than the network's own, among which many may be zero. Raises whatever the operator raises on them.
    """

    def __init__(
        self,
        node: Node,
        layouts: Layouts,
        constants: dict[Node, Any],
        exact: dict[Node, Tensor],
        generator: torch.Generator,
    ) -> None:
        self._node, self._layouts, self._constants, self._exact = node, layouts, constants, exact
        self._generator = generator
        self._read = {source: self._random(source) for source in node.all_input_nodes}
        with torch.no_grad():
            self.alone = [called(node, {source: each[i] for source, each in self._read.items()}) for i in range(COUNT)]

    def result(self, first: Node, copies: dict[Node, Node], count: Node) -> Any:
        """What the nodes from `first` to the end of the new graph give for all images at once.

        `copies` are the new graph's nodes, `count` that of the number of images.
        """
        env: dict[Node, Any] = {count: COUNT}
        for source, values in self._read.items():
            layout = self._layouts.get(source)
            if layout is None:
                env[copies[source]] = values[0]
            elif isinstance(layout, tuple):
                stacked = [torch.stack([value[i] for value in values]) for i in range(len(layout))]
                env[copies[source]] = [each.joined(value) for each, value in zip(layout, stacked, strict=True)]
            else:
                env[copies[source]] = layout.joined(torch.stack(values))
        node = first
        with torch.no_grad():
            while True:
                env[node] = called(node, env)
                if node.next.op == "root":
                    return env[node]
                node = node.next

    def layout(self, result: Any) -> Layout | tuple[Layout, ...] | type[SameForAll] | None:
        """How a form's result holds the images; None where it does not give them what they get alone."""
        if isinstance(result, (list, tuple)):
            if len(result) != len(self.alone[0]):
                return None
            each = [self._of(part, [one[i] for one in self.alone]) for i, part in enumerate(result)]
            known = tuple(layout for layout in each if isinstance(layout, Layout))
            return known if len(known) == len(each) else None
        return self._of(result, self.alone)

    def _of(self, result: Tensor, alone: Sequence[Tensor]) -> Layout | type[SameForAll] | None:
        single = torch.stack(list(alone))
        if single.dim() == 1:
            single = single[:, None]  # one number for each image is an axis of numbers
        if self._node.target in _SIZES_ALONE and result.shape == single.shape[1:]:
            return SameForAll
        layout = layout_of(tuple(single.shape[1:]), result, COUNT)
        return layout if layout is not None and are_equal(layout.apart(result), single) else None

    def _random(self, source: Node) -> list[Any]:
        """What a node hands to the operator for every image."""
        layout = self._layouts.get(source)
        if layout is None:
            value = self._constants[source]
            if isinstance(value, Tensor) and value.is_floating_point():
                value = self._numbers(value.shape).to(value.dtype)
            return [value] * COUNT
        if isinstance(layout, tuple):
            parts = [self._drawn(each, value) for each, value in zip(layout, source.meta["val"], strict=True)]
            return [[part[i] for part in parts] for i in range(COUNT)]
        return list(self._exact[source]) if source in self._exact else self._drawn(layout, source.meta["val"])

    def _drawn(self, layout: Layout, value: Tensor) -> list[Tensor]:
        drawn = self._numbers((COUNT, *layout.sizes))
        return list(drawn.to(value.dtype) if value.is_floating_point() else drawn.long().to(value.dtype))

    def _numbers(self, sizes: Sequence[int]) -> Tensor:
        return torch.rand(tuple(sizes), generator=self._generator) + 0.5


def called(node: Node, env: dict[Node, Any]) -> Any:
    """A node's result of the values in `env`; what it writes in place is its own."""
    arguments, keywords = map_arg((node.args, node.kwargs), lambda source: _own(env[source]))
    operator: Callable[..., Any] = node.target  # type: ignore[assignment]  # a call_function's
    return operator(*arguments, **keywords)


def _own(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)([_own(item) for item in value])
    return value.clone() if isinstance(value, Tensor) else value


def exact_values(captured: GraphModule, image: Node, generator: torch.Generator) -> dict[Node, Tensor]:
    """Of nodes that hold no numbers of floating point, such as indices and masks, their values for random images."""
    rows: dict[Node, list[Tensor]] = {}

    class Keeping(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = None if n.op == "call_module" else super().run_node(n)  # the guards of export
            if isinstance(value, Tensor) and not value.is_floating_point():
                rows.setdefault(n, []).append(value.clone())
            return value

    with torch.no_grad():
        for _ in range(COUNT):
            Keeping(captured).run(torch.randn(image.meta["val"].shape, generator=generator))
    return {node: torch.stack(values) for node, values in rows.items()}
