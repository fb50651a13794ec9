"""In-place operators: when they can be replaced one by one, and what each is without its side effect."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten


def is_in_place(node: Node) -> bool:
    """Whether the operator writes one of its inputs."""
    schema = _schema(node)
    return schema is not None and bool(schema.is_mutable)


def functional(node: Node) -> Any:
    """The operator without the trailing underscore that computes what the in-place one writes.

    Its overload may have another name (pow_.Scalar is pow.Tensor_Scalar): it is the one that takes the same arguments.
    """
    name, overload = functional_name(str(node.target)).removeprefix("aten.").split(".")
    packet = getattr(aten, name)
    taken = _taken(_schema(node))
    same = [each for each in packet.overloads() if _taken(getattr(packet, each)._schema) == taken]
    return getattr(packet, overload if overload in same or not same else same[0])


def functional_name(operator: str) -> str:
    """The name, with its overload, of the operator that computes what this one writes into its input."""
    packet, _, overload = operator.rpartition(".")
    return operator if packet.endswith("__") else f"{packet.removesuffix('_')}.{overload}"  # __and__ writes nothing


def _taken(schema: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in schema.arguments]


def mutates_a_view(graph: Graph, *, harmless: Collection[Any] = ()) -> bool:
    """Whether an in-place operator, other than the `harmless`, writes a tensor that another node sees as another.

    If not, every in-place operator's result is read in its written form only, and its functional form is the same.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not is_in_place(node) or node.target in harmless:
            continue
        written = node.args[0]
        if not isinstance(written, Node) or _writes_elsewhere(node):
            return True
        # A part of a split is a view as well: it is an item of the operator that has the schema.
        shared = is_view(written) or written.op in {"get_attr", "placeholder"} or written.target is operator.getitem
        if shared or any(order[user] > order[node] or is_view(user) for user in written.users):
            return True
    return False


def is_view(node: Node) -> bool:
    """Whether the operator's result may share memory with an input without being written."""
    schema = _schema(node)
    if schema is None or schema.is_mutable:
        return False
    return any(value.alias_info is not None for value in schema.returns)


def _writes_elsewhere(node: Node) -> bool:
    """Whether an operator writes another of its arguments than the first, as torch.add(a, b, out=c) does."""
    return any(slot.alias_info is not None and slot.alias_info.is_write for slot in _schema(node).arguments[1:])


def _schema(node: Node) -> Any:
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None
