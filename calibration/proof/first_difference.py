"""Where a captured graph and the module that it was captured of part: the first node whose values differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from calibration.capture.eager import Eager
from calibration.capture.graph_from_module import exported_graph
from calibration.errors import raise_lack_of_memory
from calibration.graph.constants import LOWEST
from calibration.graph.interface import Interface, make_graph_module
from calibration.graph.nearness import LARGEST_DIFFERENCE, LARGEST_OF_THE_SAME, apart
from calibration.graph.origin import module_path
from calibration.normal_form.rules import normal_form


def first_difference(eager: Eager, images: Tensor, source: str) -> str:
    """Name the first node that computes something else than the module does with images [B, C, H, W].

    The module is exported anew, and its graph run node by node, as torch.export gives it and in normal form: what
    differs between the two names a node; what differs already before names a part of the network.
    """
    exported, outputs = exported_graph(eager.module, images[:2], source=source, one_image=eager.one_image)
    parts = _results_of_parts(eager, images)
    before = values_of(exported, images)
    origins = _origins(exported)
    copies: dict[Node, Node] = {}
    nodes = [(node.name, str(node.target), _path(node)) for node in exported.graph.nodes if node.op == "call_function"]
    graph = normal_form(exported, source=source, copies=copies)
    names = {node.name: copied for node, copied in copies.items()}
    after = values_of(make_graph_module(exported, graph, Interface(outputs=outputs)), images)
    for path, result in parts.items():
        inside = [before[name] for name in origins.get(path, ()) if name in before]
        alike = [value for value in inside if value.shape == result.shape]
        if alike and not any(_are_same(value, result) for value in alike):
            return f"the first part that differs is module {path}, in the graph as torch.export gives it"
    for name, target, path in nodes:
        ours = after.get(names[name].name) if name in names else None
        theirs = before.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            continue
        if not _are_same(ours, theirs):
            return f"the first node that differs is {names[name].name} ({target}, in {path})"
    return "no single node differs by itself: the code behaves otherwise while it is exported"


def _are_same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two values inside the network are the same.

    Where a mask puts infinity, the normal form has the largest number; what is read of either alone tells them apart.
    """
    if ours.shape == theirs.shape and theirs.is_floating_point():
        masks = theirs.isinf() & (ours.sign() == theirs.sign()) & (ours.abs() >= -LOWEST)
        ours, theirs = ours.masked_fill(masks, 0), theirs.masked_fill(masks, 0)
    return apart(ours, theirs) <= LARGEST_DIFFERENCE


def first_mixing(eager: Eager, images: Tensor, place: int) -> str:
    """Name the first sub-module that gives an image of [B, C, H, W] another result alone than among the others.

    In float64 where the network runs so.
    """
    largest, double = LARGEST_OF_THE_SAME, images.double()
    try:
        among, alone = (_results_of_parts(eager.in_double(), part) for part in (double, double[place:][:1]))
    except Exception as error:  # the network's own code, which float64 may not fit
        raise_lack_of_memory(error)
        largest = LARGEST_DIFFERENCE
        among, alone = _results_of_parts(eager, images), _results_of_parts(eager, images[place:][:1])
    for path in among:
        if path in alone and among[path].dim() and len(among[path]) == len(images):
            single = among[path][place][None]
            if single.shape != alone[path].shape or not apart(alone[path], single) <= largest:
                return f" (first behind module {path})"
    return ""


def _results_of_parts(eager: Eager, images: Tensor) -> dict[str, Tensor]:
    """What every sub-module that is called once gives, in the order in which they end.

    Where images are shown one at a time, it is called once for each of them.
    """
    fresh, results = eager.again(), dict[str, list[Tensor | None]]()

    def look(path: str, result: object) -> None:
        results.setdefault(path, []).append(result.detach().clone() if isinstance(result, Tensor) else None)

    for path, part in fresh.module.named_modules():
        if path:
            part.register_forward_hook(lambda _part, _inputs, result, path=path: look(path, result))
    fresh(images)
    expected = len(images) if eager.one_image else 1
    once = {path: [one for one in each if one is not None] for path, each in results.items() if len(each) == expected}
    return {
        path: torch.cat(each) if eager.one_image else each[0]
        for path, each in once.items()
        if len(each) == expected and (not eager.one_image or (each[0].dim() and len(each[0]) == 1))
    }


def _origins(exported: GraphModule) -> Mapping[str, list[str]]:
    """The nodes of every sub-module, by its path."""
    origins: dict[str, list[str]] = {}
    for node in exported.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            origins.setdefault(str(path), []).append(node.name)
    return origins


def _path(node: Node) -> str:
    path = module_path(node)
    return f"module {path}" if path else "the top module"


def values_of(graph_module: GraphModule, images: Tensor) -> dict[str, Tensor]:
    """Every tensor that a graph computes for images, by its node's name, up to the first one that cannot run."""
    values: dict[str, Tensor] = {}

    class Keeping(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                values[n.name] = value.detach().clone()  # an operator in place writes it later
            return value

    with torch.no_grad():
        Keeping(graph_module).run(images.clone())
    return values
